"""The cell table: one row per cell, best score first.

Columns of `NAME.cells.csv`:

- page: of a stack, from 1, and t, z, c, from 1, along which its pages lie; images of one page have none
- cell: its number in the label image; class, score (0 to 1)
- y0, x0, y1, x1: its box in pixels; y1 and x1 are the edges after the last pixel
- area to intensity_max: as scikit-image's `regionprops` defines and names them (`centroid_y` and `centroid_x`
  are its centroid), of the label image: where cells overlap, the one with the higher score has the pixel.
  Lengths are in pixels, orientation in radians, intensities in the image's own units; empty without masks
- area_um2 to feret_diameter_max_um: the same in micrometres, where the size of a pixel is known
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd

from effdet_tf.files import atomic_write
from effdet_tf.outputs.appended_csv import table_text
from effdet_tf.outputs.cells import NumberedCells
from effdet_tf.outputs.measurements import measure_cells

_DECIMALS = {
    name: decimals
    for decimals, names in (
        (0, "area"),
        (2, "centroid_y centroid_x perimeter axis_major_length axis_minor_length"),
        (4, "orientation eccentricity"),
        (2, "equivalent_diameter_area feret_diameter_max"),
        (4, "extent solidity"),
        (3, "intensity_mean intensity_std intensity_min intensity_max"),
    )
    for name in names.split()
}
CELL_COLUMNS = ("cell", "class", "score", "y0", "x0", "y1", "x1", *_DECIMALS)
# Column in micrometres: the one in pixels, and the power of a pixel's side. Lengths have two decimals.
_MICROMETRES = {"area_um2": ("area", 2)}
_MICROMETRES |= {f"{name}_um": (name, 1) for name, decimals in _DECIMALS.items() if decimals == 2}
MICROMETRE_COLUMNS = tuple(_MICROMETRES)


def cell_table(cells: NumberedCells, image: np.ndarray, um_per_px: float | None = None) -> pd.DataFrame:
    """Tabulate the cells; the columns are described at the top of this module.

    Args:
        cells: numbered cells.
        image: `[H, W]` or `[H, W, C]` in its own units.
        um_per_px: side of a pixel in micrometres, or None.

    Returns:
        One row per cell with `CELL_COLUMNS`, and `MICROMETRE_COLUMNS` where the size of a pixel is known.
    """
    result, count = cells.result, len(cells.result)
    columns: dict[str, object] = {
        "cell": np.arange(1, count + 1),
        "class": pd.Series([result.class_names[index] for index in result.classes], dtype=object),
        "score": np.round(result.scores.astype(np.float64), 4),
    }
    columns |= dict(
        zip(("y0", "x0", "y1", "x1"), np.round(result.boxes.astype(np.float64), 2).T, strict=True)
    )
    if cells.labels is None:
        measures = dict.fromkeys(_DECIMALS, np.full(count, np.nan))
    else:
        measures = measure_cells(cells.labels, image, count)
    columns |= {name: np.round(measures[name], decimals) for name, decimals in _DECIMALS.items()}
    if um_per_px is not None:
        for name, (source, power) in _MICROMETRES.items():
            columns[name] = np.round(measures[source] * um_per_px**power, 4)
    table = pd.DataFrame(columns)
    return table if cells.labels is None else table.astype({"area": np.int64})


def write_table(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as CSV with a header, UTF-8."""
    with atomic_write(path) as temporary:
        table.map(table_text).to_csv(temporary, index=False, lineterminator="\n")
