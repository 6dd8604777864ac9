"""A CSV that grows while a long run goes on."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from effdet_tf.files import atomic_write


class AppendedCsv:
    """A CSV that grows while a long run goes on, and keeps every row if the run dies.

    The file with its header appears whole; after that, the rows of one image are written in one piece and
    forced to the disk before the next image begins.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        self.path = Path(path)
        with atomic_write(self.path) as temporary:
            temporary.write_text(_csv([columns]), encoding="utf-8")
        self._file = self.path.open("ab", buffering=0)

    def append(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add the rows of one image."""
        self._file.write(_csv(rows).encode("utf-8"))
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; more rows cannot follow."""
        self._file.close()

    def __enter__(self) -> AppendedCsv:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
