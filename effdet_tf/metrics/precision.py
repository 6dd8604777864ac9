"""COCO's matching and average precision, image by image: what is kept of an image are a few bits a detection.

The same figures as pycocotools and faster-coco-eval, to the last digit (tests hold it to both), without all
annotations and detections in memory, and faster: a detection is compared with the few cells that it overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.metrics.instances import IOU_THRESHOLDS, Cell, Found

RECALLS = np.linspace(0, 1, 101)


class Cells(NamedTuple):
    """The cells of one image and class.

    Attributes:
        shapes: float64 `[G, 4]` boxes x, y, w, h, or a list of G RLEs.
        areas: float64 `[G]`, px^2.
        crowd: uint8 `[G]`, 1 for a region that is not judged.
    """

    shapes: Any
    areas: np.ndarray
    crowd: np.ndarray


class Detections(NamedTuple):
    """The detections of one image and class; `shapes` and `areas` as of `Cells`, `scores` float64 `[D]`."""

    shapes: Any
    areas: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class MatchedImage:
    """What became of the detections of one image and class.

    Attributes:
        scores: float64 `[D]`, falling.
        hits: bool `[A, T, D]`, packed along D: has a cell of its own, in each area range at each IoU.
        ignored: likewise: neither true nor false.
        cells: int64 `[A]`, cells of each area range.
    """

    scores: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    cells: np.ndarray

    def bits(self, name: str, area: int, step: int) -> np.ndarray:
        """Of `hits` or `ignored`: bool `[D]` of one area range and IoU."""
        return np.unpackbits(getattr(self, name)[area, step], count=len(self.scores)).view(bool)


class Assigned(NamedTuple):
    """Which cell each detection was given.

    Attributes:
        order: int64 `[D]`, the detections, best first; what follows is in this order.
        hits: bool `[A, T, D]`, whether it has a cell, in each area range at each IoU.
        ignored: bool `[A, T, D]`, neither true nor false.
        cells: int32 `[A, T, D]`, the place of its cell; -1 for none.
        counts: int64 `[A]`, cells of each area range.
    """

    order: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    cells: np.ndarray
    counts: np.ndarray


def box_cells(cells: Sequence[Cell]) -> Cells:
    """Cells by their boxes; the areas are the masks' where there are masks."""
    return Cells(_boxes(cells), *_areas_and_crowds(cells))


def mask_cells(cells: Sequence[Cell]) -> Cells:
    """Cells by their masks."""
    return Cells([cell.rle for cell in cells], *_areas_and_crowds(cells))


def box_detections(found: Sequence[Found]) -> Detections:
    """Detections by their boxes and the areas of those."""
    boxes = _boxes(found)
    return Detections(boxes, boxes[:, 2] * boxes[:, 3], _scores(found))


def mask_detections(found: Sequence[Found]) -> Detections:
    """Detections by their masks and the areas of those."""
    areas = np.array([entry.area for entry in found], np.float64)
    return Detections([entry.rle for entry in found], areas, _scores(found))


def match_detections(
    cells: Cells, found: Detections, area_ranges: Sequence[Sequence[float]], most: int
) -> MatchedImage:
    """What is kept of `assign_detections`, which has the arguments."""
    given = assign_detections(cells, found, area_ranges, most)
    return MatchedImage(
        found.scores[given.order],
        np.packbits(given.hits, axis=-1),
        np.packbits(given.ignored, axis=-1),
        given.counts,
    )


def assign_detections(
    cells: Cells, found: Detections, area_ranges: Sequence[Sequence[float]], most: int
) -> Assigned:
    """Give each detection, best first, the cell of highest IoU that is left: COCO's greedy matching.

    Args:
        cells: of the image.
        found: of the image, in any order; among equal scores the first comes first.
        area_ranges: A pairs, px^2; cells outside are not judged, nor are unmatched detections.
        most: detections that count, best first.
    """
    order = np.argsort(-found.scores, kind="stable")[:most]
    shapes = found.shapes[order] if isinstance(found.shapes, np.ndarray) else [found.shapes[k] for k in order]
    low, high = np.array(area_ranges, dtype=np.float64).T[:, :, None]
    crowd = cells.crowd.astype(bool)
    outside = (cells.areas < low) | (cells.areas > high) | crowd  # [A, G]
    strange = (found.areas[order] < low) | (found.areas[order] > high)  # [A, D]
    steps = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    hits = np.zeros((len(low), len(steps), len(order)), bool)
    ignored = np.zeros_like(hits)
    given = np.full(hits.shape, -1, np.int32)
    if len(order) and len(crowd):
        overlaps = coco_mask.iou(shapes, cells.shapes, cells.crowd)  # of a crowd region: over the detection
        taken = np.zeros((len(low), len(steps), len(crowd)), bool)
        rows, columns = np.nonzero(overlaps >= steps[0])
        ends = np.searchsorted(rows, np.arange(len(order) + 1))
        for row in np.unique(rows):
            near = columns[ends[row] : ends[row + 1]]
            iou = overlaps[row, near]
            free = (~taken[:, :, near] | crowd[near]) & (iou >= steps[:, None])
            # Cells that are judged come first, then the highest IoU, the last one among equals.
            rank = np.where(free, iou + 2.0 * ~outside[:, None, near], -1.0)
            choice = len(near) - 1 - rank[:, :, ::-1].argmax(-1)
            area, step = np.nonzero(free.any(-1))
            cell = near[choice[area, step]]
            taken[area, step, cell] = True
            hits[area, step, row] = True
            given[area, step, row] = cell
            ignored[area, step, row] = outside[area, cell]
    ignored |= ~hits & strange[:, None]
    return Assigned(order, hits, ignored, given, np.count_nonzero(~outside, axis=1))


def precision_and_recall(
    images: Sequence[MatchedImage], area: int, limits: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Join images and follow precision over recall.

    Args:
        images: of one class, in the order of their ids, which decides among equal scores.
        area: which range.
        limits: detections of an image that count, rising.

    Returns:
        precision float64 `[T, 101]` with the last limit, recall float64 `[T, limits]`: the highest that is
        reached; -1 where there is no cell.
    """
    thresholds = len(IOU_THRESHOLDS)
    precision = np.full((thresholds, len(RECALLS)), -1.0)
    recall = np.full((thresholds, len(limits)), -1.0)
    cells = sum(int(image.cells[area]) for image in images)
    if not cells:
        return precision, recall
    for slot, limit in enumerate(limits):
        scores = np.concatenate([image.scores[:limit] for image in images])
        order = np.argsort(-scores, kind="stable")
        for step in range(thresholds):
            hits, ignored = (
                np.concatenate([image.bits(name, area, step)[:limit] for image in images])[order]
                for name in ("hits", "ignored")
            )
            true = np.cumsum(hits & ~ignored, dtype=np.float64)
            recall[step, slot] = true[-1] / cells if len(true) else 0.0
            if slot == len(limits) - 1:
                false = np.cumsum(~hits & ~ignored, dtype=np.float64)
                curve = true / (false + true + np.spacing(1))
                curve = np.maximum.accumulate(curve[::-1])[::-1]
                places = np.searchsorted(true / cells, RECALLS, side="left")
                precision[step] = np.append(curve, 0.0)[places]
    return precision, recall


def _boxes(entries: Sequence[Cell] | Sequence[Found]) -> np.ndarray:
    return np.array([entry.box for entry in entries], np.float64).reshape(-1, 4)


def _areas_and_crowds(cells: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c.area for c in cells], np.float64), np.array([c.crowd for c in cells], np.uint8)


def _scores(found: Sequence[Found]) -> np.ndarray:
    return np.array([entry.score for entry in found], np.float64)
