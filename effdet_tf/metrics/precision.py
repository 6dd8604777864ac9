"""COCO's matching and average precision, image by image, with a few bits a prediction in memory.

The same results as pycocotools and faster-coco-eval, to the last digit (tests hold it to both), without all
annotations and predictions in memory, and faster: a prediction is compared with the few cells that it
overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.metrics.instances import IOU_THRESHOLDS, Instance

RECALLS = np.linspace(0, 1, 101)
_ANY_AREA = (0.0, 1e10)


class PackedMatch(NamedTuple):
    """What precision and recall need of one image and class.

    `hits_and_ignored` says whether a prediction has a cell of its own, and whether it is neither true nor
    false, in each area range at each IoU.
    """

    scores: np.ndarray  # float64 [D], falling
    hits_and_ignored: np.ndarray  # bool [2, A, T, D], packed along D
    counts: np.ndarray  # int64 [A], annotated cells of each area range

    def bits(self, area: int, step: int) -> np.ndarray:
        """Hits and ignored of one area range and IoU, bool `[2, D]`."""
        packed = self.hits_and_ignored[:, area, step]
        return np.unpackbits(packed, axis=1, count=len(self.scores)).view(bool)


def boxes_of(instances: Sequence[Instance]) -> np.ndarray:
    """Boxes x, y, w, h, px, float64 `[N, 4]`."""
    return np.array([instance.box for instance in instances], np.float64).reshape(-1, 4)


def match_precision(
    ground_truth: Sequence[Instance],
    predictions: Sequence[Instance],
    kind: str,
    area_ranges: Sequence[Sequence[float]],
    maximum: int,
) -> PackedMatch:
    """What is kept of `assign_predictions`, which has the arguments."""
    found = assign_predictions(ground_truth, predictions, kind, area_ranges, maximum)
    order, assigned, ignored, counts = found
    scores = np.array([predictions[k].score for k in order], np.float64)
    return PackedMatch(scores, np.packbits([assigned >= 0, ignored], axis=-1), counts)


def assign_predictions(
    ground_truth: Sequence[Instance],
    predictions: Sequence[Instance],
    kind: str,
    area_ranges: Sequence[Sequence[float]] = (_ANY_AREA,),
    maximum: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give each prediction, best first, the cell of highest IoU that is left: COCO's greedy matching.

    Args:
        ground_truth: G annotated cells of the image; their areas are the masks' where there are masks.
        predictions: of the image, in any order; among equal scores the first comes first.
        kind: what is compared: "bbox" or "segm".
        area_ranges: A pairs, px^2; cells outside are not evaluated, nor are unmatched predictions.
        maximum: predictions that count, best first; None for all.

    Returns:
        order int64 `[D]`, the predictions, best first; place of the cell of each, int32 `[A, T, D]` for each
        area range and IoU, -1 for none; whether it is ignored, neither true nor false, bool `[A, T, D]`;
        cells of each area range, int64 `[A]`.
    """
    order = np.argsort([-entry.score for entry in predictions], kind="stable")[:maximum]
    ordered = [predictions[k] for k in order]
    cell_areas = np.array([cell.area for cell in ground_truth], np.float64)
    crowd = np.array([cell.crowd for cell in ground_truth], bool)
    shapes: list[Any]
    if kind == "bbox":
        shapes = [boxes_of(ordered), boxes_of(ground_truth)]
        areas = shapes[0][:, 2:].prod(1)
    else:
        shapes = [[instance.rle for instance in part] for part in (ordered, ground_truth)]
        areas = np.array([entry.area for entry in ordered], np.float64)
    low, high = np.array(area_ranges, dtype=np.float64).T[:, :, None]
    outside = (cell_areas < low) | (cell_areas > high) | crowd  # [A, G]
    pred_outside = (areas < low) | (areas > high)  # [A, D]
    steps = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    assigned = np.full((len(low), len(steps), len(order)), -1, np.int32)
    ignored = np.zeros(assigned.shape, bool)
    if len(order) and len(crowd):
        # Of a crowd region: the overlap over the area of the prediction.
        overlaps = coco_mask.iou(*shapes, crowd.astype(np.uint8))
        taken = np.zeros((len(low), len(steps), len(crowd)), bool)
        rows, columns = np.nonzero(overlaps >= steps[0])
        ends = np.searchsorted(rows, np.arange(len(order) + 1))
        for row in np.unique(rows):
            near = columns[ends[row] : ends[row + 1]]
            iou = overlaps[row, near]
            free = (~taken[:, :, near] | crowd[near]) & (iou >= steps[:, None])
            # Cells that are evaluated come first, then the highest IoU, the last one among equals.
            rank = np.where(free, iou + 2.0 * ~outside[:, None, near], -1.0)
            choice = len(near) - 1 - rank[:, :, ::-1].argmax(-1)
            area, step = np.nonzero(free.any(-1))
            cell = near[choice[area, step]]
            taken[area, step, cell] = True
            assigned[area, step, row] = cell
            ignored[area, step, row] = outside[area, cell]
    ignored |= (assigned < 0) & pred_outside[:, None]
    return order, assigned, ignored, np.count_nonzero(~outside, axis=1)


def precision_and_recall(
    images: Sequence[PackedMatch], area: int, limits: Sequence[int]
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
    cells = sum(int(image.counts[area]) for image in images)
    if not cells:
        return precision, recall
    for slot, limit in enumerate(limits):
        scores = np.concatenate([image.scores[:limit] for image in images])
        order = np.argsort(-scores, kind="stable")
        for step in range(thresholds):
            bits = np.concatenate([image.bits(area, step)[:, :limit] for image in images], axis=1)
            hits, ignored = bits[:, order]
            true = np.cumsum(hits & ~ignored, dtype=np.float64)
            recall[step, slot] = true[-1] / cells if len(true) else 0.0
            if slot == len(limits) - 1:
                false = np.cumsum(~hits & ~ignored, dtype=np.float64)
                curve = true / (false + true + np.spacing(1))
                curve = np.maximum.accumulate(curve[::-1])[::-1]
                places = np.searchsorted(true / cells, RECALLS, side="left")
                precision[step] = np.append(curve, 0.0)[places]
    return precision, recall
