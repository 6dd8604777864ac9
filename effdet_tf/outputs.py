"""Files that a person opens: label tif, cell table, COCO json, overlay picture, summary and submission.

Per image: `NAME.labels.tif` (uint16, uint32 above 65,535 cells; 0 is background), `NAME.cells.csv`,
`NAME.coco.json` and `NAME.overlay.png`. A cell has the same number in all of them.

Columns of `NAME.cells.csv`, one row per cell, best score first:

- cell: its number in the label image; class, score (0 to 1)
- y0, x0, y1, x1: its box in pixels; y1 and x1 are the edges after the last pixel
- area: pixels of the label image; where cells overlap, the one with the higher score has the pixel
- centroid_y, centroid_x: pixels; 0 is the centre of the first pixel
- perimeter: pixels, along the centres of the border pixels
- eccentricity: of the ellipse with the same second moments; 0 is a circle, near 1 a line
- mean_intensity: of the gray image, in the image's own units

area to mean_intensity are as scikit-image's `regionprops` defines them, and empty without a mask head.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile
from pycocotools import mask as coco_mask

from effdet_tf.data.image_io import encode_png, to_gray
from effdet_tf.files import atomic_write, write_json
from effdet_tf.masks import labels_to_patches
from effdet_tf.measure import measure_cells
from effdet_tf.results import Result

LABELS, TABLE, COCO, OVERLAY = ".labels.tif", ".cells.csv", ".coco.json", ".overlay.png"
_MEASURES = {
    "area": 0,
    "centroid_y": 2,
    "centroid_x": 2,
    "perimeter": 2,
    "eccentricity": 4,
    "mean_intensity": 3,
}
CELL_COLUMNS = ("cell", "class", "score", "y0", "x0", "y1", "x1", *_MEASURES)
_OVERLAY_SIDE = (
    1400  # smaller images are enlarged to about this, so that outlines stay thin beside tiny cells
)


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one image as they are written: cell k + 1 is `result` entry k and label k + 1.

    Attributes:
        result: the cells that are written.
        labels: int32 `[H, W]`, or None for a network without mask head.
    """

    result: Result
    labels: np.ndarray | None


def number_cells(result: Result, min_visible: float = 0.5) -> Cells:
    """Give each cell its number, best score first.

    Args:
        result: what was found.
        min_visible: a cell of whose mask less than this share is left by better cells is dropped.

    Returns:
        The numbered cells.
    """
    if result.masks is None:
        return Cells(result, None)
    labels, kept = result.label_image(min_visible)
    return Cells(result.take(kept), labels)


def write_labels(path: str | os.PathLike[str], labels: np.ndarray) -> None:
    """Write a label image as zlib-compressed tif: uint16, or uint32 when there are more than 65,535 labels.

    Args:
        path: the tif.
        labels: integers `[H, W]`, 0 is background.
    """
    dtype = np.uint16 if labels.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32
    with atomic_write(path) as temporary:
        tifffile.imwrite(temporary, labels.astype(dtype), compression="zlib", photometric="minisblack")


def cell_table(cells: Cells, image: np.ndarray) -> pd.DataFrame:
    """Tabulate the cells; the columns are described at the top of this module.

    Args:
        cells: numbered cells.
        image: `[H, W]` or `[H, W, C]` in its own units.

    Returns:
        One row per cell with `CELL_COLUMNS`.
    """
    result, count = cells.result, len(cells.result)
    table = pd.DataFrame(
        {
            "cell": np.arange(1, count + 1),
            "class": pd.Series([result.class_names[index] for index in result.classes], dtype=object),
            "score": np.round(result.scores.astype(np.float64), 4),
        }
    )
    for column, name in enumerate(("y0", "x0", "y1", "x1")):
        table[name] = np.round(result.boxes[:, column].astype(np.float64), 2)
    if cells.labels is None:
        return table.assign(**{name: np.full(count, np.nan) for name in _MEASURES})
    measures = measure_cells(cells.labels, to_gray(image), count)
    for name, decimals in _MEASURES.items():
        table[name] = np.round(measures[name], decimals)
    return table.astype({"area": np.int64})


def write_table(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as CSV with a header, UTF-8."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def write_coco(
    path: str | os.PathLike[str], cells: Cells, file_name: str, category_ids: Sequence[int], image_id: int = 1
) -> None:
    """Write the cells as a COCO file with one image.

    An annotation's id is the cell's number; its mask is the whole cell, also where another cell has the
    pixels in the label image. `score` is added to the usual fields.

    Args:
        path: the json.
        cells: numbered cells.
        file_name: name of the image, as the file shall state it.
        category_ids: COCO category id of each class.
        image_id: id of the image.
    """
    result = cells.result
    annotations = []
    for number, entry in enumerate(result.to_coco(image_id, category_ids), start=1):
        box = entry["bbox"]
        area = box[2] * box[3]
        if "segmentation" in entry:
            area = int(coco_mask.area(entry["segmentation"]))
        annotations.append({"id": number, **entry, "area": area, "iscrowd": 0})
    image = {"id": image_id, "file_name": file_name, "width": result.width, "height": result.height}
    categories = [
        {"id": int(category), "name": name, "supercategory": "cell"}
        for category, name in zip(category_ids, result.class_names, strict=True)
    ]
    document = {"images": [image], "annotations": annotations, "categories": categories}
    write_json(path, document, indent=None)


def draw_overlay(image: np.ndarray, cells: Cells) -> np.ndarray:
    """Draw the outline of each cell, in a colour of its own, on the contrast-stretched image.

    Small images are enlarged by a whole factor first. Without masks the boxes are drawn, with the name of the
    class where there are several.

    Args:
        image: `[H, W]` or `[H, W, C]`, C 1 or 3 (RGB), any real type.
        cells: numbered cells.

    Returns:
        uint8 RGB `[H * factor, W * factor, 3]`.
    """
    gray = stretch_contrast(to_gray(image))
    height, width = gray.shape
    factor = int(np.clip(round(_OVERLAY_SIDE / max(height, width)), 1, 4))
    if factor > 1:
        gray = cv2.resize(gray, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)
    canvas = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    for number, outline in _outlines(cells):
        # 4 fractional bits; the centre of pixel 0 lies at (factor - 1) / 2 of the enlarged image
        points = np.round(((outline + 0.5) * factor - 0.5) * 16).astype(np.int32)
        cv2.polylines(canvas, [points], True, _colour(number), 1, cv2.LINE_AA, 4)
    if cells.labels is None and len(cells.result.class_names) > 1:
        for number, (box, index) in enumerate(zip(cells.result.boxes, cells.result.classes, strict=True), 1):
            corner = int(box[1] * factor) + 2, int(box[0] * factor) + 12
            name = cells.result.class_names[index]
            cv2.putText(canvas, name, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.4, _colour(number), 1, cv2.LINE_AA)
    return canvas


def write_overlay(path: str | os.PathLike[str], image: np.ndarray, cells: Cells) -> None:
    """Write `draw_overlay` as PNG."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_png(draw_overlay(image, cells)))


def stretch_contrast(gray: np.ndarray) -> np.ndarray:
    """Stretch an image for the eye: its percentiles 0.2 and 99.8 become 0 and 255.

    Args:
        gray: `[H, W]`, any real type.

    Returns:
        uint8 `[H, W]`; a flat image becomes middle gray.
    """
    low, high = np.percentile(gray, (0.2, 99.8))
    if high <= low:
        return np.full(gray.shape, 128, np.uint8)
    return np.clip((gray - low) * (255 / (high - low)), 0, 255).astype(np.uint8)


def _outlines(cells: Cells) -> Iterable[tuple[int, np.ndarray]]:
    """Number of a cell and one closed outline float64 `[K, 2]`, x and y of pixel centres."""
    if cells.labels is None:
        for number, (y0, x0, y1, x1) in enumerate(cells.result.boxes.astype(np.float64), start=1):
            yield number, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) - 0.5
        return
    for number, patch in labels_to_patches(cells.labels):
        contours, _ = cv2.findContours(
            patch.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(patch.x, patch.y)
        )
        for contour in contours:
            yield number, contour[:, 0].astype(np.float64)


def _colour(number: int) -> tuple[int, int, int]:
    """A bright colour; consecutive numbers get hues far apart (steps of the golden ratio)."""
    hue = int(number * 0.6180339887 % 1 * 180)
    pixel = cv2.cvtColor(np.array([[[hue, (150, 215)[number % 2], 255]]], np.uint8), cv2.COLOR_HSV2RGB)
    red, green, blue = pixel[0, 0].tolist()
    return red, green, blue


def submission_rows(image: str, labels: np.ndarray) -> list[tuple[str, str]]:
    """Rows of a Sartorius submission; no pixel is in two of them.

    Args:
        image: id of the image (its file name without suffix).
        labels: integers `[H, W]`, 0 is background.

    Returns:
        `(image, "start length start length ...")` per cell, row-major and 1-based; one row with an empty code
        when there is no cell.
    """
    flat = labels.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    # A run may go on in the next row of pixels, as the code allows.
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    values = flat[starts]
    starts, lengths, values = starts[values > 0] + 1, lengths[values > 0], values[values > 0]
    order = np.argsort(values, kind="stable")
    starts, lengths, values = starts[order], lengths[order], values[order]
    pairs = np.stack([starts, lengths], 1)
    groups = np.split(pairs, np.flatnonzero(np.diff(values)) + 1) if len(values) else []
    return [(image, " ".join(map(str, group.ravel().tolist()))) for group in groups] or [(image, "")]


def summary_columns(class_names: Sequence[str]) -> list[str]:
    """Columns of summary.csv: one row per image; `error` is empty when the image went well.

    `covered` is the share of the image under cells; mean_score and mean_area are empty without cells.
    """
    return [
        *("image", "height", "width", "cells"),
        *(f"cells_{name}" for name in class_names),
        *("mean_score", "mean_area", "covered", "error"),
    ]


def summary_row(image: str, cells: Cells, table: pd.DataFrame) -> list[Any]:
    """The row of one image for `summary_columns`."""
    result = cells.result
    counts = np.bincount(result.classes, minlength=len(result.class_names)).tolist()
    measured = len(result) > 0 and cells.labels is not None
    return [
        *(image, result.height, result.width, len(result), *counts),
        round(float(result.scores.mean()), 4) if len(result) else "",
        round(float(table["area"].mean()), 2) if measured else "",
        "" if cells.labels is None else round(float((cells.labels > 0).mean()), 4),
        "",
    ]


class AppendedCsv:
    """A CSV that grows while a long run goes on, and keeps every row if the run dies.

    The file with its header appears whole; after that, the rows of one image are written in one piece and
    forced to the disk before the next image begins.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        self.path = Path(path)
        with atomic_write(self.path) as temporary:
            temporary.write_text(_csv([columns]), encoding="utf-8")
        self._file = self.path.open("ab", buffering=0)

    def append(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add the rows of one image."""
        self._file.write(_csv(rows).encode("utf-8"))
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; more rows cannot follow."""
        self._file.close()

    def __enter__(self) -> AppendedCsv:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
