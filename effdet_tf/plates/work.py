"""One shard of a plate: find the cells of its images, write labels, measurements and its mark."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from effdet_tf import outputs
from effdet_tf.errors import UserError
from effdet_tf.images.read import Stack
from effdet_tf.outputs.wells import parse_name
from effdet_tf.plates import storage
from effdet_tf.plates.plan import PlateFile, Shard, done_file
from effdet_tf.prediction.predictor import LARGE

LABELS, CELLS, IMAGES = "labels", "cells", "images"
_PLACE = [
    ("image", pa.string()),
    ("page", pa.int32()),
    ("well", pa.string()),
    ("site", pa.int32()),
    ("minutes", pa.int64()),
]
_WHOLE = ("cell", "area")
CELL_SCHEMA = pa.schema(
    [
        *_PLACE,
        *(
            (name, pa.string() if name == "class" else pa.int64() if name in _WHOLE else pa.float64())
            for name in outputs.CELL_COLUMNS
        ),
    ]
)
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


@dataclasses.dataclass(frozen=True)
class Task:
    """What the workers need to know.

    Attributes:
        source: folder or bucket of the images.
        out: folder or bucket of the results.
        run: the network: a path that every worker can read, or the name of one of the package.
        score: cells with this score or more are kept; None: the network's own.
        labels: whether label tifs are written.
    """

    source: str
    out: str
    run: str
    score: float | None
    labels: bool


def work_through(task: Task, shard: Shard, predictor: Any) -> dict[str, int]:
    """Predict a shard and write its results, the mark at the very end.

    Args:
        task: of the plate.
        shard: its files.
        predictor: as `effdet_tf.load` gives it.

    Returns:
        How many `images`, `cells` and `failed` images it has.

    Raises:
        OSError: when results cannot be written.
    """
    if task.score is None:
        task = dataclasses.replace(task, score=predictor.config.postprocess.report_score)
    # Results are about to differ from the mark of an earlier time.
    storage.remove(done_file(task.out, shard))
    rows: list[dict[str, Any]] = []
    tables: list[pa.Table] = []
    for file in shard.files:
        _work_on_file(task, file, predictor, rows, tables)
    images = pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)
    cells = pa.concat_tables([CELL_SCHEMA.empty_table(), *tables])
    for kind, table in ((CELLS, cells), (IMAGES, images)):
        with storage.writing(storage.join(task.out, kind, f"{shard.name}.parquet")) as local:
            pq.write_table(table, local)
    failed = sum(row["error"] != "" for row in rows)
    done = {"images": len(rows) - failed, "cells": cells.num_rows, "failed": failed}
    storage.write(done_file(task.out, shard), json.dumps({"digest": shard.digest(), **done}).encode())
    return done


def labels_file(out: str, path: str) -> str:
    """Where the labels of an image are; its suffix stays, for a.png and a.tif are two images."""
    return storage.join(out, LABELS, path + outputs.SUFFIXES["labels"])


def _work_on_file(
    task: Task, file: PlateFile, predictor: Any, rows: list[dict[str, Any]], tables: list[pa.Table]
) -> None:
    """Add a row for each page of a file, with an error for what cannot be read, and a table of its cells."""
    place = {"image": file.path, **parse_name(file.path)._asdict()}
    target = labels_file(task.out, file.path)
    with contextlib.ExitStack() as opened:
        path = None
        try:
            path = opened.enter_context(storage.local_copy(storage.join(task.source, file.path)))
            stack = opened.enter_context(Stack(path))
        except (UserError, OSError) as error:
            rows.append(_failure(place, 0, str(error).replace(str(path), file.path)))
            storage.remove(target)
            return
        pages: outputs.LabelPages | None = None
        for page in range(stack.pages):
            try:
                image = stack.read(page)
                found = predictor.predict(image)
            except UserError as error:
                rows.append(_failure(place, page, str(error).replace(str(path), file.path)))
                continue
            cells = outputs.number_cells(found.filter(task.score))
            table = outputs.cell_table(cells, image)
            frame = {**place, "page": page}
            rows.append(_image_row(frame, cells, table, found.truncated))
            tables.append(_cells_of(frame, table))
            if not task.labels or cells.labels is None:
                continue
            if pages is None:
                local = opened.enter_context(storage.writing(target))
                wide = predictor.config.data.max_instances > np.iinfo(np.uint16).max
                wide = wide or cells.labels.size > LARGE
                pages = opened.enter_context(outputs.LabelPages(local, stack.pages, stack.axis, wide))
            pages.add(cells.labels, page)
        if pages is None:
            storage.remove(target)  # of an earlier time, when it could be read


def _failure(place: dict[str, Any], page: int, reason: str) -> dict[str, Any]:
    return {**place, "page": page, "error": " ".join(reason.split()) or "cannot be read"}


def _image_row(
    frame: dict[str, Any], cells: outputs.NumberedCells, table: pd.DataFrame, truncated: bool
) -> dict[str, Any]:
    result, count = cells.result, len(cells.result)
    measured = count > 0 and cells.labels is not None
    return {
        **frame,
        "height": result.height,
        "width": result.width,
        "cells": count,
        "mean_score": float(result.scores.mean()) if count else None,
        "mean_area": float(table["area"].mean()) if measured else None,
        "covered": None if cells.labels is None else float((cells.labels > 0).mean()),
        "truncated": bool(truncated),
        "error": "",
    }


def _cells_of(frame: dict[str, Any], table: pd.DataFrame) -> pa.Table:
    count = len(table)
    columns = [pa.array([frame[name]] * count, kind) for name, kind in _PLACE]
    columns += [
        pa.array(table[name], CELL_SCHEMA.field(name).type, from_pandas=True) for name in outputs.CELL_COLUMNS
    ]
    return pa.table(columns, schema=CELL_SCHEMA)
