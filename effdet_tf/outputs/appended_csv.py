"""A CSV that grows while a long run goes on, and keeps every row if the run dies."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from effdet_tf.files import atomic_write

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
Rows = Iterable[Sequence[Any]]


@contextlib.contextmanager
def open_csv(
    path: str | os.PathLike[str], columns: Sequence[str], as_is: bool = False
) -> Iterator[Callable[[Rows], None]]:
    """Write a CSV row by row. The file with its header appears whole.

    Args:
        path: of the file.
        columns: of its header.
        as_is: leave text as it is, for a program, which a spreadsheet would take for a formula.

    Yields:
        Adds the rows of one image: in one piece, forced to the disk before the next image begins.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(_csv([columns]), encoding="utf-8")
    with Path(path).open("ab", buffering=0) as file:

        def append(rows: Rows) -> None:
            marked = rows if as_is else ([table_text(value) for value in row] for row in rows)
            file.write(_csv(marked).encode("utf-8"))
            os.fsync(file.fileno())

        yield append


def table_text(value: Any) -> Any:
    """A value for a CSV: text that a spreadsheet would run as a formula is marked as text by a `'`."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def _csv(rows: Rows) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
