"""One row for each image, or page of a stack: summary.csv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from effdet_tf.outputs.page import ImageInfo, Page
from effdet_tf.outputs.wells import TRUST_COLUMNS, parse_name
from effdet_tf.prediction.trust import Trust


def summary_columns(class_names: Sequence[str]) -> list[str]:
    """Columns of summary.csv; `error` is empty when the image went well.

    `page` is that of a stack, from 1; well, site and minutes are read from names as Incucyte and LIVECell
    write them; `covered` is the share of the image under cells; mean_score and mean_area are empty without
    cells, um_per_px and mean_area_um2 where the size of a pixel is not known; `scale` is what the image was
    scaled by for the network, 1 as a rule. The number of cells that are there lies between cells_low and
    cells_high at 90 %, expected_f1 is the F1 at IoU .5 to expect, unlike is 1 where the image is unlike all
    training images, else 0: empty where the network does not say (unlike: where it does not know what they
    looked like), or for another score than its own.
    """
    return [
        *("image", "page", "well", "site", "minutes"),
        *("height", "width", "um_per_px", "scale", "cells"),
        *(f"cells_{name}" for name in class_names),
        *("mean_score", "mean_area", "mean_area_um2", "covered"),
        *(*TRUST_COLUMNS, "error"),
    ]


def summary_row(image: str, page: Page, info: ImageInfo) -> list[Any]:
    """The row of one page for `summary_columns`; `image` is its name there."""
    cells, result, scale = page.cells, page.cells.result, info.um_per_px
    counts = np.bincount(result.classes, minlength=len(result.class_names)).tolist()
    mean_score: float | str = ""
    mean_area = mean_area_um2 = covered = mean_score
    if len(result):
        mean_score = round(float(result.scores.mean()), 4)
    if cells.labels is not None:
        covered = round(np.count_nonzero(cells.labels) / cells.labels.size, 4)
        if len(result):
            area = float(page.table["area"].mean())
            mean_area = round(area, 2)
            mean_area_um2 = "" if scale is None else round(area * scale**2, 3)
    return [
        *_place(image, page.number, info.pages),
        *(result.height, result.width, "" if scale is None else round(scale, 6)),
        *(round(result.scale, 4), len(result), *counts),
        *(mean_score, mean_area, mean_area_um2, covered),
        *("" if value is None else value for value in trust_columns(result.trust).values()),
        "",
    ]


def trust_columns(trust: Trust | None) -> dict[str, float | None]:
    """What is expected of the cells of an image, by the names of the columns; None where it is not known."""
    if trust is None:
        return dict.fromkeys(TRUST_COLUMNS)
    f1 = None if trust.f1 is None else round(trust.f1, 3)
    unlike = None if trust.unlike is None else int(trust.unlike)
    return dict(zip(TRUST_COLUMNS, (trust.least, trust.most, f1, unlike), strict=True))


def failed_row(image: str, number: int, pages: int, class_names: Sequence[str], reason: str) -> list[Any]:
    """The row of page `number`, from 0, which could not be predicted, and why."""
    place = _place(image, number, pages)
    return [*place, *[""] * (len(summary_columns(class_names)) - len(place) - 1), reason]


def _place(image: str, number: int, pages: int) -> list[Any]:
    well, site, minutes = parse_name(image)
    known = [well, site if well else "", "" if minutes is None else minutes]
    return [image, number + 1 if pages > 1 else "", *known]
