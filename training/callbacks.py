"""What a training under TensorFlow tells while it runs: the table, and TensorBoard for each step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from training.csv_log import CsvLog

TENSORBOARD_FOLDER = "tensorboard"


class RunLog(CsvLog):
    """The log files of one run folder."""

    def __init__(self, folder: Path, history: list[dict[str, Any]]) -> None:
        """Continue the log of a run; the arguments are those of `CsvLog`."""
        super().__init__(folder, history)
        self._writer = tf.summary.create_file_writer(str(folder / TENSORBOARD_FOLDER))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Write figures of one step to TensorBoard."""
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def epoch(self, step: int, row: dict[str, Any]) -> None:
        """Write the figures of one epoch to the table and to TensorBoard."""
        super().epoch(step, row)
        self.step(step, {f"epoch/{k}": v for k, v in row.items() if isinstance(v, (int, float))})
        self._writer.flush()
