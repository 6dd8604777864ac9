"""Turns results into what a viewer shows: labels, a table of cells, and shapes; without napari."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from effdet_tf import outputs
from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import labels_to_patches
from effdet_tf.geometry.polygons import patch_to_polygons
from effdet_tf.napari_plugin.pages import place_of
from effdet_tf.prediction.results import Result

_CORNERS = ("y0", "x0", "y1", "x1")


class PageMarks(NamedTuple):
    """The cells of one page: label image int32 `[H, W]` (None without mask head) and `cell_table`."""

    labels: np.ndarray | None
    table: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Marks:
    """The cells of all pages that were searched."""

    # int32 `[H, W]`, or `[*lead, H, W]` for pages of a stack; None for a network without mask head. No number
    # is used twice
    labels: np.ndarray | None
    # one row per cell, in the order of their numbers: `index`, the number; `frame`, for a stack, as the
    # viewer counts it, or `axis_0`, `axis_1`, ... for several axes of pages; then the columns of
    # `outputs.cell_table` but `cell`
    features: pd.DataFrame
    origin: tuple[int, ...]  # where the first of them lies along the axes of pages; none of an image

    def counts(self) -> str:
        """How many cells, of which class where there are several."""
        total = f"{len(self.features):,} cell{'' if len(self.features) == 1 else 's'}"
        classes = self.features["class"].value_counts()
        if len(classes) < 2:
            return total
        return f"{total}: " + ", ".join(f"{count:,} {name}" for name, count in classes.items())

    def boxes(self) -> Shapes:
        """The box of each cell."""
        y0, x0, y1, x1 = (self.features[name].to_numpy(float) for name in _CORNERS)
        corners = np.stack([np.stack([y0, y0, y1, y1], 1), np.stack([x0, x1, x1, x0], 1)], 2)
        rows = np.arange(len(self.features))
        return self._shapes("rectangle", list(corners), rows)

    def outlines(self) -> Shapes:
        """A closed line round each piece of each cell, along pixel edges; boxes without mask head.

        Lines, not polygons: napari takes 25 times as long to make polygons of them.
        """
        if self.labels is None:
            return self.boxes()
        lines, rows = [], []
        for plane in self.labels.reshape(-1, *self.labels.shape[-2:]):
            for label, patch in labels_to_patches(plane):
                for polygon in patch_to_polygons(patch):
                    lines.append(np.reshape([*polygon, *polygon[:2]], (-1, 2))[:, ::-1])
                    rows.append(label - 1)
        return self._shapes("path", lines, np.array(rows, np.intp))

    def _shapes(self, kind: str, corners: list[np.ndarray], rows: np.ndarray) -> Shapes:
        """From (y, x) counted from the corner of the first pixel to napari's, from its centre."""
        vertices = [points - 0.5 for points in corners]
        if self.origin:
            axes = _axes(self.origin)
            places = self.features[axes].to_numpy()[rows] - self.origin
            vertices = [
                np.concatenate([np.broadcast_to(place, (len(points), len(place))), points], axis=1)
                for points, place in zip(vertices, places, strict=True)
            ]
        return Shapes(kind, vertices, self.features.iloc[rows].reset_index(drop=True))


class Shapes(NamedTuple):
    """Shapes as napari takes them."""

    kind: str  # "rectangle" or "path"
    # float `[K, 2 + axes of pages]` per shape: place in the labels, y, x of pixel centres
    vertices: list[np.ndarray]
    features: pd.DataFrame  # one row per shape, that of its cell


def mark_page(result: Result, image: np.ndarray) -> PageMarks:
    """Number, paint and measure the cells of a page, as `effdet_tf predict` does.

    Args:
        result: the cells to take.
        image: the page, `[H, W]` or `[H, W, 3]`.
    """
    cells = outputs.number_cells(result)
    return PageMarks(cells.labels, outputs.cell_table(cells, image))


def join(parts: Sequence[PageMarks], first: int, lead: tuple[int, ...] = ()) -> Marks:
    """Put pages together; the numbers of a page go on from those of the page before.

    Args:
        parts: of consecutive pages: all, one, or some along a single axis.
        first: number of the first page.
        lead: lengths of the axes along which the pages lie; none of an image, which has one part.

    Raises:
        UserError: when the labels do not fit into memory.
    """
    axes = _axes(lead)
    tables, before = [], 0
    for number, part in enumerate(parts, start=first):
        rest = part.table.drop(columns="cell")
        rest = rest[[name for name in rest if name not in _CORNERS] + list(_CORNERS)]
        place = dict(
            zip(["index", *axes], [part.table["cell"] + before, *place_of(number, lead)], strict=True)
        )
        tables.append(pd.concat([pd.DataFrame(place, index=rest.index), rest], axis=1))
        before += len(rest)
    features = pd.concat(tables, ignore_index=True)
    planes = [part.labels for part in parts if part.labels is not None]
    if not planes or not lead:
        return Marks(planes[0] if planes else None, features, place_of(first, lead))
    try:
        labels = np.stack(planes)
    except MemoryError as error:
        raise UserError(f"the labels of {len(planes)} pages do not fit into memory; search fewer") from error
    offsets = np.cumsum([0, *(len(part.table) for part in parts)])
    for plane, offset in zip(labels, offsets, strict=False):
        plane[plane > 0] += offset
    shape = lead if len(parts) == math.prod(lead) else (*[1] * (len(lead) - 1), len(parts))
    return Marks(labels.reshape(*shape, *labels.shape[1:]), features, place_of(first, lead))


def _axes(lead: Sequence[int]) -> list[str]:
    """Columns that say on which page a cell lies."""
    return ["frame"] if len(lead) == 1 else [f"axis_{number}" for number in range(len(lead))]
