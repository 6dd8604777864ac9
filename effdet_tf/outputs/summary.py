"""One row for each image, or page of a stack: summary.csv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from effdet_tf.outputs.page import ImageInfo, Page
from effdet_tf.outputs.wells import parse_name

_PLACE = ("image", "page", "well", "site", "minutes")


def summary_columns(class_names: Sequence[str]) -> list[str]:
    """Columns of summary.csv; `error` is empty when the image went well.

    `page` is that of a stack, from 1; well, site and minutes are read from names as Incucyte and LIVECell
    write them; `covered` is the share of the image under cells; mean_score and mean_area are empty without
    cells, um_per_px and mean_area_um2 where the size of a pixel is not known.
    """
    return [
        *_PLACE,
        *("height", "width", "um_per_px", "cells"),
        *(f"cells_{name}" for name in class_names),
        *("mean_score", "mean_area", "mean_area_um2", "covered", "error"),
    ]


def summary_row(image: str, page: Page, info: ImageInfo) -> list[Any]:
    """The row of one page for `summary_columns`; `image` is its name there."""
    cells, table = page.cells, page.table
    result = cells.result
    counts = np.bincount(result.classes, minlength=len(result.class_names)).tolist()
    measured = len(result) > 0 and cells.labels is not None
    mean_area = float(table["area"].mean()) if measured else None
    scale = info.um_per_px
    return [
        *_place(image, page.number, info.pages),
        *(result.height, result.width, "" if scale is None else round(scale, 6), len(result), *counts),
        round(float(result.scores.mean()), 4) if len(result) else "",
        "" if mean_area is None else round(mean_area, 2),
        "" if mean_area is None or scale is None else round(mean_area * scale**2, 3),
        "" if cells.labels is None else round(np.count_nonzero(cells.labels) / cells.labels.size, 4),
        "",
    ]


def failed_row(image: str, page: int, pages: int, class_names: Sequence[str], reason: str) -> list[Any]:
    """The row of a page that could not be predicted, and why."""
    place = _place(image, page, pages)
    return [*place, *[""] * (len(summary_columns(class_names)) - len(place) - 1), reason]


def _place(image: str, page: int, pages: int) -> list[Any]:
    place = parse_name(image)
    known = place.well != ""
    return [
        image,
        page + 1 if pages > 1 else "",
        place.well,
        place.site if known else "",
        "" if place.minutes is None else place.minutes,
    ]
