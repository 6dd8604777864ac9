"""Test-time augmentation: mirrored, turned and scaled views of an image, their cells merged.

Merging follows weighted boxes fusion (Solovyev et al., 2021), with the masks averaged beside the boxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from effdet_tf.config import TrustConfig
from effdet_tf.geometry.resample import resample_bitmaps
from effdet_tf.images.normalize import Brightness
from effdet_tf.model.detections import Detections
from effdet_tf.prediction.predictor import Predictor, missing_from
from effdet_tf.prediction.results import Result


class View(NamedTuple):
    """One way to look at an image: scaled, then transposed, then mirrored."""

    scale: float
    transpose: bool
    flip_y: bool
    flip_x: bool

    def enter(self, image: np.ndarray) -> np.ndarray:
        """The view of an image `[H, W]` or `[H, W, C]`."""
        if self.scale != 1:
            height, width = (max(1, round(side * self.scale)) for side in image.shape[:2])
            way = cv2.INTER_LINEAR if self.scale > 1 else cv2.INTER_AREA
            kind = image.dtype
            plain = kind in (np.uint8, np.uint16, np.float32, np.float64)  # others OpenCV does not know
            image = cv2.resize(
                image if plain else image.astype(np.float64), (width, height), interpolation=way
            )
            image = image if plain or kind.kind == "f" else np.rint(image).astype(kind)
        image = image.swapaxes(0, 1) if self.transpose else image
        image = image[::-1] if self.flip_y else image
        return np.ascontiguousarray(image[:, ::-1] if self.flip_x else image)

    def leave(self, found: Result, height: int, width: int) -> Result:
        """Cells of the view, in the pixels of the image of `height` x `width`."""

        def boxes(values: np.ndarray) -> np.ndarray:
            y0, x0, y1, x1 = values.T
            if self.flip_y:
                y0, y1 = found.height - y1, found.height - y0
            if self.flip_x:
                x0, x1 = found.width - x1, found.width - x0
            sides, shown = (y0, x0, y1, x1), (found.height, found.width)
            if self.transpose:
                sides, shown = (x0, y0, x1, y1), shown[::-1]
            factor = np.tile(np.array([height, width], np.float32) / np.array(shown, np.float32), 2)
            return np.stack(sides, axis=1).astype(np.float32) * factor

        masks = found.masks
        if masks is not None:
            masks = masks[:, ::-1] if self.flip_y else masks
            masks = masks[:, :, ::-1] if self.flip_x else masks
            masks = masks.swapaxes(1, 2) if self.transpose else masks
        mask_boxes = None if found.mask_boxes is None else boxes(found.mask_boxes)
        size: dict[str, Any] = {"height": height, "width": width}
        return dataclasses.replace(
            found, boxes=boxes(found.boxes), masks=masks, mask_boxes=mask_boxes, **size
        )


def make_views(flips: bool = True, scales: Sequence[float] = (1.0,)) -> list[View]:
    """Every scale, as it is or in all eight ways to mirror and turn it by right angles."""
    choices = (False, True) if flips else (False,)
    return [View(s, t, y, x) for s in scales for t in choices for y in choices for x in choices]


class AugmentedPredictor(Predictor):
    """A predictor that looks at every image in several views; it takes as many times as long."""

    def __init__(self, predictor: Predictor, views: Sequence[View]) -> None:
        """Wrap a predictor; `views`, at least one, are of `make_views`."""
        # Scores of several views are their mean: what is expected by those of one view is not true of them.
        super().__init__(dataclasses.replace(predictor.config, trust=TrustConfig()))
        self._predictor, self._views = predictor, list(views)

    def _detect(self, image: np.ndarray, part_of: Brightness | None, score: float = 0.0) -> Result:
        height, width = image.shape[:2]

        def find(view: np.ndarray) -> Result:
            whole = part_of is None  # a magnified view may be large
            # All that a view shows: what is weak in one may be strong in the others.
            return self._predictor.predict(view) if whole else self._predictor._detect(view, part_of)

        found = [view.leave(find(view.enter(image)), height, width) for view in self._views]
        limit = self.config.data.max_instances
        merged = merge(found, self.config.postprocess.nms_iou, self.per_class, limit)
        missing = merged.truncated and missing_from(merged.scores, len(merged), score)
        return dataclasses.replace(merged, truncated=missing)


def merge(found: Sequence[Result], iou: float, per_class: bool, limit: int) -> Result:
    """Join the cells that several views of one image show.

    Cells of different views that overlap by `iou` are one: box and mask are their means, weighted by score;
    the score is their sum divided by the number of views, so that what one view alone shows counts little.
    With `per_class` cells of different classes stay apart; the `limit` best ones are given, best first.
    """
    first = found[0]
    view = np.repeat(np.arange(len(found)), [len(one) for one in found])
    cells = Detections.joined([one.detections for one in found])
    order = np.argsort(-cells.scores, kind="stable")
    cells, view = cells.take(order), view[order]
    groups = _same_cells(cells, view, iou, per_class)
    total = np.array([cells.scores[group].sum() / len(found) for group in groups], np.float32)
    best = np.argsort(-total, kind="stable")[:limit]
    groups = [groups[k] for k in best]
    weights = [cells.scores[group] / max(float(cells.scores[group].sum()), 1e-9) for group in groups]

    def mean(values: np.ndarray) -> np.ndarray:
        rows = [weight @ values[group] for group, weight in zip(groups, weights, strict=True)]
        return np.array(rows, np.float32).reshape(-1, 4)

    masks = mask_boxes = None
    if cells.masks is not None and cells.mask_boxes is not None:
        mask_boxes = mean(cells.mask_boxes)
        masks = np.zeros((0, *cells.masks.shape[1:]), np.uint8)
        if groups:
            counts = [len(group) for group in groups]
            members = cells.take(np.concatenate(groups))
            assert members.masks is not None and members.mask_boxes is not None
            values, targets = members.masks.astype(np.float32), mask_boxes.repeat(counts, axis=0)
            placed = resample_bitmaps(values, members.mask_boxes, targets, values.shape[-1])
            placed *= np.concatenate(weights)[:, None, None].astype(np.float32)
            starts = np.cumsum([0, *counts[:-1]])
            masks = np.rint(np.add.reduceat(placed, starts, axis=0)).astype(np.uint8)
    classes = np.array([cells.classes[group[0]] for group in groups], np.int32)
    truncated = any(one.truncated for one in found) or len(total) > limit
    size = (first.height, first.width)
    return Result(
        mean(cells.boxes), total[best], classes, masks, mask_boxes, *size, first.class_names, truncated
    )


def _same_cells(cells: Detections, view: np.ndarray, iou: float, per_class: bool) -> list[np.ndarray]:
    """Indices of the detections of each cell, its best first; `cells` fall in score."""
    boxes, classes = cells.boxes, cells.classes
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    free = np.ones(len(boxes), bool)
    groups = []
    for head in range(len(boxes)):
        if not free[head]:
            continue
        low = np.maximum(boxes[head, :2], boxes[head:, :2])
        high = np.minimum(boxes[head, 2:], boxes[head:, 2:])
        shared = np.maximum(high - low, 0).prod(1)
        overlap = shared / np.maximum(area[head] + area[head:] - shared, 1e-6)
        near = head + np.flatnonzero((overlap >= iou) & free[head:])
        if per_class:
            near = near[classes[near] == classes[head]]
        near = near[near != head]
        free[near], free[head] = False, False
        # At most one of each view: its best; others of the same view were neighbours that NMS let stand.
        _, one = np.unique(view[near], return_index=True)
        members = near[np.sort(one)]
        groups.append(np.array([head, *members[view[members] != view[head]]]))
    return groups
