"""Predicts one shard of a plate and writes its labels, tables and mark."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from effdet_tf import outputs
from effdet_tf.errors import UserError, reason_of
from effdet_tf.images.read import Stack
from effdet_tf.images.tif_metadata import Axes
from effdet_tf.outputs.wells import parse_name
from effdet_tf.plates import storage
from effdet_tf.plates.plan import PlateFile, Shard, content_of, done_file
from effdet_tf.prediction.overlap import ahead, behind
from effdet_tf.prediction.predictor import LARGE, Predictor, is_large
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.sizing import AS_THEY_ARE, Sizing, predict_sized, scale_words

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
        ("scale", pa.float64()),
        ("cells", pa.int64()),
        ("mean_score", pa.float64()),
        ("mean_area", pa.float64()),
        ("covered", pa.float64()),
        ("truncated", pa.bool_()),
        ("cells_low", pa.int64()),
        ("cells_high", pa.int64()),
        ("expected_f1", pa.float64()),
        ("unlike", pa.int64()),
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
    sizing: Sizing = AS_THEY_ARE  # what is known of the size of cells


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
    score = predictor.config.postprocess.report_score if task.score is None else task.score
    many = predictor.config.data.max_instances > np.iinfo(np.uint16).max

    def write(found: Iterator[tuple[_Page, Result | None]]) -> None:
        for _, pages in itertools.groupby(found, lambda one: one[0].file.path):
            _write_file(task, pages, many, rows, tables)

    with behind(write) as hand:
        for page in ahead(_pages(task, shard, contents), lambda page: page.is_large):
            hand(_find(page, predictor, score, task.sizing), page.is_large)
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


class _Page(NamedTuple):
    """A page of an image file that was read."""

    file: PlateFile
    number: int
    image: np.ndarray | None
    error: str = ""  # why there is none
    axes: Axes | None = None  # of the file; None where it could not be opened
    um_per_px: float | None = None
    is_ome: bool = False

    @property
    def is_large(self) -> bool:
        return self.image is not None and is_large(self.image)


def _pages(task: Task, shard: Shard, contents: dict[str, str]) -> Iterator[_Page]:
    """The pages of all files; the SHA-256 of each file goes to `contents`, by path."""
    for file in shard.files:
        path = None

        def reason(error: Exception) -> str:
            return reason_of(error).replace(str(path), file.path) or "cannot be read"  # noqa: B023

        with contextlib.ExitStack() as opened:
            try:
                path = opened.enter_context(storage.local_copy(storage.join(task.source, file.path)))
                contents[file.path] = content_of(path)
                stack = opened.enter_context(Stack(path))
                chosen, left = stack.chosen(task.channel)
            except (UserError, OSError) as error:
                yield _Page(file, 0, None, reason(error))
                continue
            _tell(left, file.path)
            about = stack.axes, stack.um_per_px, stack.is_ome
            for number in chosen:
                try:
                    page = _Page(file, number, stack.read(number), "", *about)
                except Exception as error:  # whatever is wrong with one image, the others are predicted
                    page = _Page(file, number, None, reason(error), *about)
                yield page


def _find(page: _Page, predictor: Predictor, score: float, sizing: Sizing) -> tuple[_Page, Result | None]:
    """The cells of a page; None, and the error, where there are none to be had."""
    if page.image is None:
        return page, None
    try:
        return page, predict_sized(predictor, page.image, score, sizing, page.um_per_px)
    except Exception as error:
        return page._replace(error=reason_of(error) or "cannot be predicted"), None


def _write_file(
    task: Task,
    found: Iterable[tuple[_Page, Result | None]],
    many: bool,
    rows: list[dict[str, Any]],
    tables: list[pa.Table],
) -> None:
    """Add a row for each page of a file, with an error for what failed, and a table of its cells.

    With `many` the labels take 32 bits, however few there are in the first page.
    """
    labels, target = None, ""
    with contextlib.ExitStack() as opened:
        for page, result in found:
            place = {"image": page.file.path, **parse_name(page.file.path)._asdict()}
            target = labels_file(task.out, page.file.path)
            if result is None or page.image is None or page.axes is None:
                rows.append({**place, "page": page.number, "error": page.error})
                continue
            try:
                cells = outputs.number_cells(result)
                table = outputs.cell_table(cells, page.image)
            except Exception as error:
                rows.append({**place, "page": page.number, "error": reason_of(error)})
                continue
            if result.disturbed:
                logging.getLogger("effdet_tf").warning("%s: %s", page.file.path, result.disturbed)
            _tell(scale_words(result), page.file.path)
            rows.append({**place, "page": page.number, **_image_columns(cells, table, result.truncated)})
            table = table.assign(**place, page=page.number)
            tables.append(pa.Table.from_pandas(table, CELL_SCHEMA, preserve_index=False))
            if not task.labels or cells.labels is None:
                continue
            if labels is None:
                local = opened.enter_context(storage.writing(target))
                scale = task.sizing.um_per_px or page.um_per_px
                wide = many or cells.labels.size > LARGE
                labels = outputs.LabelPages(local, page.axes, wide, scale, page.is_ome)
                opened.enter_context(labels)
            labels.add(cells.labels, page.number)
        if labels is None:
            storage.remove(target)  # of an earlier time, when it could be read


_told: set[str] = set()  # by this worker


def _tell(words: str, path: str) -> None:
    """Say what is left out or scaled, once for all files like this one."""
    if words and words not in _told:
        _told.add(words)
        logging.getLogger("effdet_tf").warning("%s: %s (told once for files like this one)", path, words)


def _image_columns(cells: outputs.NumberedCells, table: pd.DataFrame, truncated: bool) -> dict[str, Any]:
    result, labels, count = cells.result, cells.labels, len(cells.result)
    return {
        "height": result.height,
        "width": result.width,
        "scale": result.scale,
        "cells": count,
        "mean_score": float(result.scores.mean()) if count else None,
        "mean_area": float(table["area"].mean()) if count and labels is not None else None,
        "covered": None if labels is None else float((labels > 0).mean()),
        "truncated": bool(truncated),
        **outputs.trust_columns(result.trust),
        "error": "",
    }
