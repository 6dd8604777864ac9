"""One page of an image file with the cells found in it: what every writer of files takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from effdet_tf.images.tif_metadata import Axes
from effdet_tf.outputs.cells import NumberedCells, number_cells
from effdet_tf.outputs.table import cell_table
from effdet_tf.prediction.results import Result


@dataclass(frozen=True)
class ImageInfo:
    """What is the same for all pages of an image file."""

    file_name: str  # as the files shall state it
    category_ids: Sequence[int]  # COCO's, of each class
    class_names: Sequence[str]
    axes: Axes = Axes()  # along what its pages lie
    um_per_px: float | None = None  # side of a pixel in micrometres
    ome: bool = False  # whether the file describes itself as OME does

    @property
    def pages(self) -> int:
        """How many pages the file has."""
        return self.axes.pages


@dataclass(frozen=True, eq=False)
class Page:
    """One page."""

    number: int  # from 0
    image: np.ndarray  # [H, W] or [H, W, C] in its own units
    cells: NumberedCells  # found in it
    table: pd.DataFrame  # of them, see `outputs.table`


# A writer is a context manager `writer(base, info)`, where `base` is the path of its file without suffix. It
# yields a function that adds a page; the file appears at the end.
AddPage = Callable[[Page], None]
SUFFIXES = {
    "labels": ".labels.tif",
    "table": ".cells.csv",
    "coco": ".coco.json",
    "overlay": ".overlay.png",
    "imagej": ".rois.zip",
    "geojson": ".geojson",
    "yolo": ".txt",
}
OVERLAY_STACK = ".overlay.tif"


def make_page(result: Result, image: np.ndarray, number: int = 0, um_per_px: float | None = None) -> Page:
    """Number and measure the cells that are to be written of a page.

    Args:
        result: the cells, those with a sufficient score alone.
        image: the page, `[H, W]` or `[H, W, C]`, for measurements of brightness.
        number: of the page, from 0.
        um_per_px: side of a pixel in micrometres, where it is known.
    """
    cells = number_cells(result)
    return Page(number, image, cells, cell_table(cells, image, um_per_px))
