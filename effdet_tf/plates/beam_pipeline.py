"""The Apache Beam pipeline: shards that are not done yet, over the workers of any runner."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared

from effdet_tf.errors import UserError
from effdet_tf.plates.plan import Shard
from effdet_tf.plates.work import Task, work_through


class PredictShard(beam.DoFn):
    """Work through a shard; yields its counts. A process opens the network once."""

    def __init__(self, task: Task) -> None:
        self.task, self._shared = task, Shared()

    def setup(self) -> None:
        """Open the network."""
        from effdet_tf.prediction.load import load

        self._predictor = self._shared.acquire(lambda: load(self.task.run), self.task.run)

    def process(self, shard: Shard) -> Iterator[dict[str, int]]:
        """Work through one shard."""
        done = work_through(self.task, shard, self._predictor)
        print(
            f"shard {shard.name}: {done['images']} images, {done['cells']} cells, {done['failed']} failed",
            file=sys.stderr,
            flush=True,
        )
        yield done


def run_pipeline(task: Task, shards: Sequence[Shard], options: dict[str, Any]) -> None:
    """Work through shards and wait for the end; options are Apache Beam's: `{"runner": "FlinkRunner"}`.

    Raises:
        UserError: for an option that Apache Beam cannot use, and when results cannot be written.
    """
    pipeline = _open(options)
    (
        pipeline
        | "shards" >> beam.Create(list(shards))
        | "spread" >> beam.Reshuffle()
        | "predict" >> beam.ParDo(PredictShard(task))
    )
    try:
        pipeline.run().wait_until_finish()
    except (OSError, RuntimeError) as error:
        # Runners wrap what a worker raised; of faults of the program itself the traceback is wanted.
        found = re.search(r"OSError: (.*)", str(error))
        if not isinstance(error, OSError) and found is None:
            raise
        reason = found[1] if found else str(error).splitlines()[0]
        raise UserError(
            f"{task.out}: {reason}; what is done is unharmed, the same command goes on"
        ) from error


def _open(options: dict[str, Any]) -> beam.Pipeline:
    """A pipeline by a user's options; UserError for one that is unknown or unusable."""
    known = PipelineOptions([]).get_all_options()
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, 3)
            raise UserError(f"--beam {key}: Apache Beam has no such option" + f"; near: {near}" * bool(near))
    with contextlib.redirect_stderr(io.StringIO()) as told:  # argparse prints all there is
        try:
            chosen = PipelineOptions.from_dictionary(options)
            chosen.get_all_options()  # reads the values
            return beam.Pipeline(options=chosen)
        except (ValueError, SystemExit) as error:
            reason = (told.getvalue().strip().splitlines() or [str(error)])[-1]
            raise UserError(f"--runner, --beam: {reason}") from None
