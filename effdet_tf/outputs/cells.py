"""The cells of one image as they are written: numbered, best score first, with a label image."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from effdet_tf.geometry.masks import mask_to_patch
from effdet_tf.geometry.rle import Patch
from effdet_tf.prediction.results import Result

_LARGE = 2**26  # pixels from which a label image lies in a file, of which memory holds what is in use


@dataclass(frozen=True, eq=False)
class NumberedCells:
    """The cells of one image as they are written: cell k + 1 is `result` entry k and label k + 1."""

    result: Result  # the cells that are written
    labels: np.ndarray | None  # int32 `[H, W]`, or None for a network without mask head


def number_cells(result: Result, min_visible: float = 0.5) -> NumberedCells:
    """Number the cells, best score first, without those of which better ones leave less than a share."""
    if result.masks is None:
        return NumberedCells(result, None)
    size = (result.height, result.width)
    if result.height * result.width < _LARGE:
        labels = np.zeros(size, np.int32)
    else:
        with tempfile.TemporaryFile() as file:
            labels = np.memmap(file, np.int32, "w+", shape=size)
    labels, kept = result.paint(labels, min_visible)
    return NumberedCells(result.take(kept), labels)


def visible_shapes(cells: NumberedCells) -> Iterator[tuple[int, Patch]]:
    """Number and pixels of each cell: as in the label image, or its box's for a network without masks."""
    labels, result = cells.labels, cells.result
    size = np.array([result.height, result.width])
    if labels is None or result.mask_boxes is None:
        edges = np.round(result.boxes).astype(int)
        low = np.clip(edges[:, :2], 0, size - 1)
        high = np.clip(edges[:, 2:], low + 1, size)
    else:
        low = np.clip(np.floor(result.mask_boxes[:, :2]), 0, size).astype(int)
        high = np.clip(np.ceil(result.mask_boxes[:, 2:]), 0, size).astype(int)
    for number, (y0, x0, y1, x1) in enumerate(np.concatenate([low, high], axis=1).tolist(), start=1):
        if labels is None:
            yield number, Patch(y0, x0, np.ones((y1 - y0, x1 - x0), bool))
        elif (patch := mask_to_patch(labels[y0:y1, x0:x1] == number, y0, x0)) is not None:
            yield number, patch  # looked for in the box of its mask: the whole label image is never searched
