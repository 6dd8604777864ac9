"""Predicts one shard of a plate and writes its labels, tables and mark."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from effdet_tf import outputs
from effdet_tf.errors import UserError, reason_of
from effdet_tf.images.read import Stack
from effdet_tf.outputs.wells import parse_name
from effdet_tf.plates import storage
from effdet_tf.plates.plan import PlateFile, Shard, content_of, done_file
from effdet_tf.prediction.predictor import LARGE, Predictor

LABELS, CELLS, IMAGES = "labels", "cells", "images"
_PLACE = [
    ("image", pa.string()),
    ("page", pa.int32()),
    ("well", pa.string()),
    ("site", pa.int32()),
    ("minutes", pa.int64()),
]
_TYPES = {"class": pa.string(), "cell": pa.int64(), "area": pa.int64()}  # the other columns are float64
CELL_SCHEMA = pa.schema([*_PLACE, *((n, _TYPES.get(n, pa.float64())) for n in outputs.CELL_COLUMNS)])
IMAGE_SCHEMA = pa.schema(
    [
        *_PLACE,
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("cells", pa.int64()),
        ("mean_score", pa.float64()),
        ("mean_area", pa.float64()),
        ("covered", pa.float64()),
        ("truncated", pa.bool_()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Task:
    """Settings of a plate that the workers need."""

    source: str  # folder or bucket of the images
    out: str  # folder or bucket of the results
    run: str  # the network: a path that every worker can read, or the name of one of the package
    score: float | None  # cells with this score or more are kept; None: the network's own
    labels: bool  # whether label tifs are written
    channel: str | None = None  # of files with several, see `images.channels`


def work_through(task: Task, shard: Shard, predictor: Predictor) -> dict[str, int]:
    """Predict a shard and write its results, the mark at the very end.

    Returns:
        How many `images`, `cells` and `failed` images it has.

    Raises:
        OSError: when results cannot be written.
    """
    # Results are about to differ from the mark of an earlier time.
    storage.remove(done_file(task.out, shard))
    rows: list[dict[str, Any]] = []
    tables: list[pa.Table] = []
    contents: dict[str, str] = {}
    for file in shard.files:
        _work_on_file(task, file, predictor, rows, tables, contents)
    images = pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)
    cells = pa.concat_tables([CELL_SCHEMA.empty_table(), *tables])
    for kind, table in ((CELLS, cells), (IMAGES, images)):
        with storage.writing(storage.join(task.out, kind, f"{shard.name}.parquet")) as local:
            pq.write_table(table, local)
    failed = sum(row["error"] != "" for row in rows)
    done = {"images": len(rows) - failed, "cells": cells.num_rows, "failed": failed}
    storage.write(
        done_file(task.out, shard),
        json.dumps({"digest": shard.digest(), "contents": contents, **done}).encode(),
    )
    return done


def labels_file(out: str, path: str) -> str:
    """Where the labels of an image are; its suffix stays, for a.png and a.tif are two images."""
    return storage.join(out, LABELS, path + outputs.SUFFIXES["labels"])


def _work_on_file(
    task: Task,
    file: PlateFile,
    predictor: Predictor,
    rows: list[dict[str, Any]],
    tables: list[pa.Table],
    contents: dict[str, str],
) -> None:
    """Add a row for each page of a file, with an error for what cannot be read, and a table of its cells.

    The SHA-256 of the file goes to `contents`, by path.
    """
    place = {"image": file.path, **parse_name(file.path)._asdict()}
    target = labels_file(task.out, file.path)
    score = predictor.config.postprocess.report_score if task.score is None else task.score
    path = pages = None

    def fail(page: int, error: Exception) -> None:
        reason = reason_of(error).replace(str(path), file.path) or "cannot be read"
        rows.append({**place, "page": page, "error": reason})

    with contextlib.ExitStack() as opened:
        try:
            path = opened.enter_context(storage.local_copy(storage.join(task.source, file.path)))
            contents[file.path] = content_of(path)
            stack = opened.enter_context(Stack(path))
            chosen, left = stack.chosen(task.channel)
        except (UserError, OSError) as error:
            fail(0, error)
            storage.remove(target)
            return
        if left:
            _tell(left, file.path)
        for page in chosen:
            try:
                image = stack.read(page)
                found = predictor.predict(image, score)
                cells = outputs.number_cells(found)
                table = outputs.cell_table(cells, image)
            except Exception as error:  # whatever is wrong with one image, the others are predicted
                fail(page, error)
                continue
            if found.disturbed:
                logging.getLogger("effdet_tf").warning("%s: %s", file.path, found.disturbed)
            rows.append({**place, "page": page, **_image_columns(cells, table, found.truncated)})
            table = table.assign(**place, page=page)
            tables.append(pa.Table.from_pandas(table, CELL_SCHEMA, preserve_index=False))
            if not task.labels or cells.labels is None:
                continue
            if pages is None:
                local = opened.enter_context(storage.writing(target))
                many = predictor.config.data.max_instances > np.iinfo(np.uint16).max
                wide = many or cells.labels.size > LARGE
                pages = opened.enter_context(_label_pages(local, stack, wide))
            pages.add(cells.labels, page)
        if pages is None:
            storage.remove(target)  # of an earlier time, when it could be read


def _label_pages(path: Path, stack: Stack, wide: bool) -> outputs.LabelPages:
    return outputs.LabelPages(path, stack.axes, wide, stack.um_per_px, stack.is_ome)


_told: set[str] = set()  # by this worker


def _tell(left: str, path: str) -> None:
    """Say what is left out, once for all files like this one."""
    if left not in _told:
        _told.add(left)
        logging.getLogger("effdet_tf").warning("%s: %s (told once for files like this one)", path, left)


def _image_columns(cells: outputs.NumberedCells, table: pd.DataFrame, truncated: bool) -> dict[str, Any]:
    result, labels, count = cells.result, cells.labels, len(cells.result)
    return {
        "height": result.height,
        "width": result.width,
        "cells": count,
        "mean_score": float(result.scores.mean()) if count else None,
        "mean_area": float(table["area"].mean()) if count and labels is not None else None,
        "covered": None if labels is None else float((labels > 0).mean()),
        "truncated": bool(truncated),
        "error": "",
    }
