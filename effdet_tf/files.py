"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"  # how names of unfinished files begin


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` when the block ends well.

    The temporary name keeps the suffixes of `path`, since writers choose the format by them.

    Args:
        path: the final file; its folder is made when it is missing.

    Yields:
        The path to write to.

    Raises:
        OSError: when it cannot be written; its `filename` says which file.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f"{TEMPORARY}{os.getpid()}-{final.name}")
    try:
        yield temporary
        os.replace(temporary, final)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # of a write, which knows no name
            error.filename = os.fspath(final)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically, with a newline at the end.

    Raises:
        TypeError: when `value` holds something JSON has no form for.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")
