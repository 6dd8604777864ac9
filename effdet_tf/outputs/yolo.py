"""Outlines as YOLO segmentation labels: a line `class x y x y ...` for each cell, as shares of the image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from effdet_tf.files import atomic_write
from effdet_tf.geometry.polygons import patch_to_pieces
from effdet_tf.outputs.cells import visible_shapes
from effdet_tf.outputs.page import SUFFIXES, AddPage, ImageInfo, Page


@contextlib.contextmanager
def yolo_file(base: str, info: ImageInfo) -> Iterator[AddPage]:
    """Write a text file for each page, named as its image, as YOLO wants it; boxes are written as rectangles.

    The format has one outline for a cell: pieces are joined by lines without width, holes are filled.
    """

    def add(page: Page) -> None:
        result = page.cells.result
        size = np.array([result.width, result.height], np.float64)
        lines = []
        for number, patch in visible_shapes(page.cells):
            outline = _joined([rings[0] for rings in patch_to_pieces(patch)]) / size
            numbers = " ".join(f"{value:.6f}" for value in outline.ravel())
            lines.append(f"{result.classes[number - 1]} {numbers}\n")
        suffix = f"_{page.number + 1:04d}" if info.pages > 1 else ""
        with atomic_write(base + suffix + SUFFIXES["yolo"]) as path:
            path.write_text("".join(lines), encoding="utf-8")

    yield add


def _joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One closed outline `[K, 2]` around all rings `[k, 2]`: each is entered and left where it is nearest."""
    whole = rings[0]
    for ring in rings[1:]:
        apart = ((whole[:, None] - ring[None]) ** 2).sum(-1)
        at, start = np.unravel_index(int(apart.argmin()), apart.shape)
        around = np.concatenate([np.roll(ring, -int(start), axis=0), ring[start : start + 1]])
        whole = np.concatenate([whole[: at + 1], around, whole[at:]])
    return whole
