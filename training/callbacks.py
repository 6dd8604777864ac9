"""What a training tells while it runs: CSV for each epoch, TensorBoard for each step."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from effdet_tf.files import atomic_write

CSV_FILE = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"


class RunLog:
    """The log files of one run folder."""

    def __init__(self, folder: Path, history: list[dict[str, Any]]) -> None:
        """Continue the log of a run.

        Args:
            folder: the run folder.
            history: one row per finished epoch; rows of a resumed run come with its checkpoint, so
                an epoch that is repeated after a crash stands in the CSV once.
        """
        self.folder = folder
        self.history = history
        self._writer = tf.summary.create_file_writer(str(folder / TENSORBOARD_FOLDER))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Write figures of one step to TensorBoard."""
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def epoch(self, step: int, row: dict[str, Any]) -> None:
        """Write the figures of one epoch to the CSV and to TensorBoard."""
        self.history.append(row)
        columns = list(dict.fromkeys(name for past in self.history for name in past))
        with atomic_write(self.folder / CSV_FILE) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.history)
        self.step(step, {f"epoch/{k}": v for k, v in row.items() if isinstance(v, (int, float))})
        self._writer.flush()
