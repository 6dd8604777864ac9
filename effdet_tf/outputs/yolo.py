"""Outlines as YOLO segmentation labels: a line `class x y x y ...` for each cell, as shares of the image."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from effdet_tf.files import atomic_write
from effdet_tf.geometry.masks import patch_to_pieces
from effdet_tf.outputs.cells import NumberedCells, visible_shapes

CLASSES = "classes.txt"


def write_yolo(path: str | os.PathLike[str], cells: NumberedCells) -> None:
    """Write the cells of one image.

    The format has one outline for a cell: pieces are joined by lines without width, holes are filled.

    Args:
        path: the text file; YOLO wants it named as its image.
        cells: numbered cells; boxes are written as rectangles.
    """
    size = np.array([cells.result.width, cells.result.height], np.float64)
    lines = []
    for number, patch in visible_shapes(cells):
        outline = joined([rings[0] for rings in patch_to_pieces(patch)]) / size
        numbers = " ".join(f"{value:.6f}" for value in outline.ravel())
        lines.append(f"{cells.result.classes[number - 1]} {numbers}\n")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def write_classes(path: str | os.PathLike[str], class_names: Sequence[str]) -> None:
    """Write the names of the classes, a line each."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One closed outline `[K, 2]` around all rings `[k, 2]`: each is entered and left where it is nearest."""
    whole = rings[0]
    for ring in rings[1:]:
        apart = ((whole[:, None] - ring[None]) ** 2).sum(-1)
        at, start = np.unravel_index(int(apart.argmin()), apart.shape)
        around = np.concatenate([np.roll(ring, -int(start), axis=0), ring[start : start + 1]])
        whole = np.concatenate([whole[: at + 1], around, whole[at:]])
    return whole
