"""The log of a run: `log.csv` with a row for each epoch, and TensorBoard for steps, too."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from effdet_tf.files import atomic_write
from effdet_tf.runs import LOG_FILE

TENSORBOARD_FOLDER = "tensorboard"


class RunLog:
    """The log files of one run folder."""

    def __init__(self, folder: Path, history: list[dict[str, Any]], tensorboard: bool = True) -> None:
        """Continue the log of a run.

        Args:
            folder: the run folder.
            history: one row per finished epoch; rows of a resumed run come with its checkpoint, so
                an epoch that is repeated after a crash stands in the CSV once.
            tensorboard: write TensorBoard's files, where it is installed; that takes TensorFlow.
        """
        self.folder, self.history = folder, history
        self._writer: Any = None
        if tensorboard and find_spec("tensorboard") is not None:  # without it TensorFlow writes none
            import tensorflow as tf

            self._writer = tf.summary.create_file_writer(str(folder / TENSORBOARD_FOLDER))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of one step to TensorBoard."""
        if self._writer is None:
            return
        import tensorflow as tf

        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def epoch(self, step: int, row: dict[str, Any]) -> None:
        """Add the row of one epoch, which ended with `step`, and write the table anew."""
        self.history.append(row)
        columns = list(dict.fromkeys(name for past in self.history for name in past))
        with atomic_write(self.folder / LOG_FILE) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.history)
        self.step(step, {f"epoch/{k}": v for k, v in row.items() if isinstance(v, (int, float))})
        if self._writer is not None:
            self._writer.flush()
