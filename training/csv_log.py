"""The table of a run: one row for each epoch."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effdet_tf.files import atomic_write
from effdet_tf.runs import LOG_FILE


class CsvLog:
    """`log.csv` of one run folder."""

    def __init__(self, folder: Path, history: list[dict[str, Any]]) -> None:
        """Continue the log of a run.

        Args:
            folder: the run folder.
            history: one row per finished epoch; rows of a resumed run come with its checkpoint, so
                an epoch that is repeated after a crash stands in the CSV once.
        """
        self.folder = folder
        self.history = history

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Take figures of one step; the table has no place for them."""

    def epoch(self, step: int, row: dict[str, Any]) -> None:
        """Add the figures of one epoch, which ended with `step`, and write the table anew."""
        self.history.append(row)
        columns = list(dict.fromkeys(name for past in self.history for name in past))
        with atomic_write(self.folder / LOG_FILE) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.history)
