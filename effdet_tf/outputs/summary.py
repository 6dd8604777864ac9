"""One row for each image: summary.csv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from effdet_tf.outputs.cells import Cells


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
