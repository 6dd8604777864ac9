"""One page of an image file with what was found in it, as every kind of file takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from effdet_tf.outputs.cells import NumberedCells


@dataclass(frozen=True)
class ImageInfo:
    """What is the same for all pages of an image file.

    Attributes:
        file_name: as the files shall state it.
        pages: how many the file has.
        axis: what changes from page to page: "T" time, "Z" depth, "C" channel.
        um_per_px: side of a pixel in micrometres, or None.
        category_ids: COCO category id of each class.
        class_names: name of each class.
    """

    file_name: str
    category_ids: Sequence[int]
    class_names: Sequence[str]
    pages: int = 1
    axis: str = "T"
    um_per_px: float | None = None


@dataclass(frozen=True, eq=False)
class Page:
    """One page.

    Attributes:
        number: from 0.
        image: `[H, W]` or `[H, W, C]` in its own units.
        cells: found in it, numbered.
        table: of them, see `outputs.table`.
    """

    number: int
    image: np.ndarray
    cells: NumberedCells
    table: pd.DataFrame
