"""Finds the cells of a whole plate: plans its shards, runs the pipeline, writes the tables of counts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from effdet_tf.errors import UserError
from effdet_tf.files import TEMPORARY, locked
from effdet_tf.outputs.wells import count_cells
from effdet_tf.plates import storage
from effdet_tf.plates.beam_pipeline import run_pipeline
from effdet_tf.plates.plan import Shard, find_sources, missing, update_plan
from effdet_tf.plates.work import IMAGE_SCHEMA, IMAGES, Task, labels_file
from effdet_tf.prediction.load import saved_model_version
from effdet_tf.prediction.sizing import Sizing
from effdet_tf.runs import config_file, find_run, weights_file


@dataclass(frozen=True)
class PlateReport:
    """The state of a plate after `run_plate`."""

    images: int  # images and pages of stacks that were predicted
    cells: int  # in them
    failed: int  # images and pages that were not predicted
    shards: int  # all
    shards_done: int  # those that this call processed
    counts: pd.DataFrame  # by plate, well and time, see `outputs.wells.count_cells`
    boxes_only: bool  # whether the network makes no masks, so that there are no label images


def run_plate(
    source: str,
    out: str,
    run: str,
    *,
    score: float | None = None,
    labels: bool = True,
    channel: str | None = None,
    sizing: Sizing | None = None,
    shard_files: int = 64,
    shard_bytes: int = 256 << 20,
    retry_failed: bool = False,
    verify: bool = False,
    beam: dict[str, Any] | None = None,
) -> PlateReport:
    """Find the cells of all images below a folder or bucket; what was done before is left as it is.

    Args:
        source: folder or bucket of images and tif stacks.
        out: folder or bucket of the results, see `python -m effdet_tf plate --help`.
        run: a network, as `effdet_tf.load` takes it; every worker must reach it under this path.
        score: keep cells with this score or more; None: the network's own.
        labels: write label tifs.
        channel: of files with several: its number from 1, its name, "all", or None as `effdet_tf predict`.
        sizing: what is known of the size of cells: images are scaled by it, or by what is seen of them; None:
            by what is seen and by what files say of their pixels.
        shard_files: files in a shard at most.
        shard_bytes: their size at most.
        retry_failed: work through shards again in which an image failed.
        verify: read all files again, and work through those whose content is another than it was.
        beam: options of Apache Beam, such as `{"runner": "FlinkRunner"}`.

    Raises:
        UserError: when there are no images or no network, `out` holds results of other settings, another
            process works there, or the engine cannot do what was asked.
        OSError: when results cannot be written.
    """
    sizing = sizing or Sizing()
    task = Task(source, out, run, score, labels, channel, sizing)
    settings: dict[str, Any] = {"model": model_digest(run), "score": score, "labels": labels}
    settings |= {"channel": channel} if channel else {}
    settings |= {"size": dataclasses.asdict(sizing)} if sizing != Sizing() else {}
    found = find_sources(source, out)
    alone = locked(Path(out), "works on this plate") if storage.is_local(out) else contextlib.nullcontext()
    with alone:
        for path, _, _ in list(storage.walk(out)):  # what a worker that was killed left half written
            if path.rsplit("/", 1)[-1].startswith(TEMPORARY):
                storage.remove(storage.join(out, path))
        shards = update_plan(
            out, found, settings, shard_files, shard_bytes, lambda f: storage.remove(labels_file(out, f))
        )
        left = missing(out, shards, retry_failed, source if verify else None)
        if left:
            run_pipeline(task, left, beam or {})
        counts, failed = write_tables(out, shards)
    images, cells = int(counts["images"].sum()), int(counts["cells"].sum())
    boxes_only = bool(images and counts["covered"].isna().all())
    return PlateReport(images, cells, len(failed), len(shards), len(left), counts, boxes_only)


def write_tables(out: str, shards: Iterable[Shard]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `counts.csv` and `failed.csv` from the rows of all images; returns both tables."""
    tables = [IMAGE_SCHEMA.empty_table()]
    for shard in shards:
        content = storage.read(storage.join(out, IMAGES, f"{shard.name}.parquet"))
        tables.append(pq.read_table(pa.BufferReader(content)))
    # Those of a plate that was begun before there was a scale have no such column.
    together = pa.concat_tables(tables, promote_options="default")
    images = together.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    images = images.sort_values(["image", "page"], ignore_index=True)
    counts = count_cells(images)
    failed = images.loc[images["error"] != "", ["image", "page", "error"]]
    for name, table in (("counts.csv", counts), ("failed.csv", failed)):
        storage.write(storage.join(out, name), table.to_csv(index=False, lineterminator="\n").encode())
    return counts, failed


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
