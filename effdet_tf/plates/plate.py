"""A plate from its first image to its counts: plan, pipeline, tables."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from effdet_tf.errors import UserError
from effdet_tf.files import TEMPORARY, locked
from effdet_tf.plates import storage
from effdet_tf.plates.beam_pipeline import run_pipeline
from effdet_tf.plates.counts import write_tables
from effdet_tf.plates.plan import find_sources, missing, update_plan
from effdet_tf.plates.work import Task, labels_file
from effdet_tf.prediction.load import saved_model_version
from effdet_tf.runs import config_file, find_run, weights_file


@dataclass(frozen=True)
class PlateReport:
    """What there is now.

    Attributes:
        images: images and pages of stacks that were predicted.
        cells: in them.
        failed: images and pages that were not.
        shards: all.
        shards_done: those that were worked through by this call.
        counts: by plate, well and time, see `counts.count_cells`.
        boxes_only: whether the network makes no masks, so that there are no label images.
    """

    images: int
    cells: int
    failed: int
    shards: int
    shards_done: int
    counts: pd.DataFrame
    boxes_only: bool


def run_plate(
    source: str,
    out: str,
    run: str,
    *,
    score: float | None = None,
    labels: bool = True,
    shard_files: int = 64,
    shard_bytes: int = 256 << 20,
    retry_failed: bool = False,
    beam: dict[str, Any] | None = None,
) -> PlateReport:
    """Find the cells of all images below a folder or bucket; what was done before is left as it is.

    Args:
        source: folder or bucket of images and tif stacks.
        out: folder or bucket of the results, see `python -m effdet_tf plate --help`.
        run: a network, as `effdet_tf.load` takes it; every worker must reach it under this path.
        score: keep cells with this score or more; None: the network's own.
        labels: write label tifs.
        shard_files: files in a shard at most.
        shard_bytes: their size at most.
        retry_failed: work through shards again in which an image failed.
        beam: options of Apache Beam, such as `{"runner": "FlinkRunner"}`.

    Raises:
        UserError: when there are no images or no network, `out` holds results of other settings, another
            process works there, or the engine cannot do what was asked.
        OSError: when results cannot be written.
    """
    task = Task(source, out, run, score, labels)
    settings = {"model": model_digest(run), "score": score, "labels": labels}
    found = find_sources(source, out)
    alone = locked(Path(out), "works on this plate") if storage.is_local(out) else contextlib.nullcontext()
    with alone:
        for path, _, _ in list(storage.walk(out)):  # what a worker that was killed left half written
            if path.rsplit("/", 1)[-1].startswith(TEMPORARY):
                storage.remove(storage.join(out, path))
        shards = update_plan(
            out,
            found,
            settings,
            shard_files,
            shard_bytes,
            lambda path: storage.remove(labels_file(out, path)),
        )
        left = missing(out, shards, retry_failed)
        if left:
            run_pipeline(task, left, beam or {})
        counts, failed = write_tables(out, shards)
    return PlateReport(
        images=int(counts["images"].sum()),
        cells=int(counts["cells"].sum()),
        failed=len(failed),
        shards=len(shards),
        shards_done=len(left),
        counts=counts,
        boxes_only=bool(counts["images"].sum() and counts["covered"].isna().all()),
    )


def model_digest(run: str) -> str:
    """SHA-256 of the files that make a network, hexadecimal.

    Raises:
        UserError: when there is no network.
    """
    path = find_run(run)
    if path.is_file():
        files = [path]
    elif (version := saved_model_version(path)) is not None:
        files = sorted(file for file in version.rglob("*") if file.is_file())
    else:
        files = [config_file(path), weights_file(path)]
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            raise UserError(f"{path}: holds no {file.name}; train it, or choose another --run")
        digest.update(file.read_bytes())
    return digest.hexdigest()
