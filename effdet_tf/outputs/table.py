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

import os

import numpy as np
import pandas as pd

from effdet_tf.data.image_io import to_gray
from effdet_tf.files import atomic_write
from effdet_tf.measure import measure_cells
from effdet_tf.outputs.cells import Cells

_MEASURES = {
    "area": 0,
    "centroid_y": 2,
    "centroid_x": 2,
    "perimeter": 2,
    "eccentricity": 4,
    "mean_intensity": 3,
}
CELL_COLUMNS = ("cell", "class", "score", "y0", "x0", "y1", "x1", *_MEASURES)


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
