"""COCO's matching and average precision, image by image, with a few bits a prediction in memory.

The same results as pycocotools and faster-coco-eval, to the last digit (tests hold it to both), without all
annotations and predictions in memory, and faster: a prediction is compared with the few cells that it
overlaps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.metrics.instances import IOU_THRESHOLDS, Instance

RECALLS = np.linspace(0, 1, 101)
_ANY_AREA = (0.0, 1e10)
_BAND = 200  # predictions of a band of rows


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
    thresholds: np.ndarray = IOU_THRESHOLDS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give each prediction, best first, the cell of highest IoU that is left: COCO's greedy matching.

    Args:
        ground_truth: G annotated cells of the image; their areas are the masks' where there are masks.
        predictions: of the image, in any order; among equal scores the first comes first.
        kind: what is compared: "bbox" or "segm".
        area_ranges: A pairs, px^2; cells outside are not evaluated, nor are unmatched predictions.
        maximum: predictions that count, best first; None for all.
        thresholds: T least IoUs of a match, rising.

    Returns:
        order int64 `[D]`, the predictions, best first; place of the cell of each, int32 `[A, T, D]` for each
        area range and IoU, -1 for none; whether it is ignored, neither true nor false, bool `[A, T, D]`;
        cells of each area range, int64 `[A]`.
    """
    order = np.argsort([-entry.score for entry in predictions], kind="stable")[:maximum]
    ordered = [predictions[k] for k in order]
    cell_areas = np.array([cell.area for cell in ground_truth], np.float64)
    crowd = np.array([cell.crowd for cell in ground_truth], bool)
    if kind == "bbox":
        areas = boxes_of(ordered)[:, 2:].prod(1)
    else:
        areas = np.array([entry.area for entry in ordered], np.float64)
    low, high = np.array(area_ranges, dtype=np.float64).T[:, :, None]
    outside = (cell_areas < low) | (cell_areas > high) | crowd  # [A, G]
    pred_outside = (areas < low) | (areas > high)  # [A, D]
    steps = np.minimum(thresholds, 1 - 1e-10)
    assigned = np.full((len(low), len(steps), len(order)), -1, np.int32)
    ignored = np.zeros(assigned.shape, bool)
    if len(order) and len(crowd):
        overlaps = _overlaps(ordered, ground_truth, kind, crowd)
        taken = np.zeros((len(low), len(steps), len(crowd)), bool)
        for row, near in _rounds(overlaps >= steps[0], crowd):
            iou = np.where(near >= 0, overlaps[row[:, None], near], -1.0)  # [R, K]
            free = (~taken[:, :, near] | crowd[near]) & (iou >= steps[:, None, None])  # [A, T, R, K]
            # Cells that are evaluated come first, then the highest IoU, the last one among equals.
            rank = np.where(free, iou + 2.0 * ~outside[:, None, near], -1.0)
            choice = near.shape[1] - 1 - rank[..., ::-1].argmax(-1)
            area, step, place = np.nonzero(free.any(-1))
            cell = near[place, choice[area, step, place]]
            taken[area, step, cell] = True
            assigned[area, step, row[place]] = cell
            ignored[area, step, row[place]] = outside[area, cell]
    ignored |= (assigned < 0) & pred_outside[:, None]
    return order, assigned, ignored, np.count_nonzero(~outside, axis=1)


def _overlaps(
    predictions: Sequence[Instance], ground_truth: Sequence[Instance], kind: str, crowd: np.ndarray
) -> np.ndarray:
    """IoU, with a crowd region the share of the prediction that lies in it, float64 `[D, G]`."""
    found = np.zeros((len(predictions), len(ground_truth)))
    # pycocotools compares all with all, so it is asked for one band of rows after the other.
    (top, bottom), (low, high) = (_rows(part, kind) for part in (predictions, ground_truth))
    order = np.argsort(top, kind="stable")
    for start in range(0, len(order), _BAND):
        own = order[start : start + _BAND]
        near = np.flatnonzero((low < bottom[own].max()) & (high > top[own[0]]))
        if not near.size:
            continue
        shapes: list[Any] = [[predictions[k] for k in own.tolist()], [ground_truth[k] for k in near.tolist()]]
        shapes = [boxes_of(part) if kind == "bbox" else [one.rle for one in part] for part in shapes]
        found[own[:, None], near] = coco_mask.iou(*shapes, crowd[near].astype(np.uint8))
    return found


def _rows(instances: Sequence[Instance], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """First row of each instance and the one behind its last, px, float64 `[N]` each."""
    masks = kind == "segm"
    boxes = coco_mask.toBbox([one.rle for one in instances]) if masks else boxes_of(instances)
    return boxes[:, 1], boxes[:, 1] + boxes[:, 3]


def _rounds(near: np.ndarray, crowd: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predictions that can choose at the same time: no two are near the same cell, all before have chosen.

    Args:
        near: which prediction, best first, is near which cell, bool `[D, G]`.
        crowd: cells that any number of predictions may have, bool `[G]`.

    Yields:
        The predictions of a round, int64 `[R]`, and the cells near each, int64 `[R, K]`, padded with -1.
    """
    rows, columns = np.nonzero(near)
    ends = np.cumsum(np.bincount(rows, minlength=len(near))).tolist()
    listed, shared = columns.tolist(), crowd.tolist()
    latest = [0] * near.shape[1]  # round of the last prediction near each cell
    rounds = np.zeros(len(near), np.int64)
    for row, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        own = [column for column in listed[start:end] if not shared[column]]
        if end > start:
            rounds[row] = number = 1 + max((latest[column] for column in own), default=0)
            for column in own:
                latest[column] = number
    counts = np.diff(ends, prepend=0)
    for number in range(1, rounds.max(initial=0) + 1):
        chosen = np.flatnonzero(rounds == number)
        places = np.arange(counts[chosen].max())
        own = np.minimum(np.array(ends)[chosen, None] - counts[chosen, None] + places, len(columns) - 1)
        yield chosen, np.where(places < counts[chosen, None], columns[own], -1)


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
    order = np.argsort(-np.concatenate([image.scores[: limits[-1]] for image in images]), kind="stable")
    for slot, limit in enumerate(limits):
        for step in range(thresholds):
            hits, ignored = np.concatenate([image.bits(area, step)[:, :limit] for image in images], axis=1)
            recall[step, slot] = np.count_nonzero(hits & ~ignored) / cells
            if slot == len(limits) - 1:
                true = np.cumsum((hits & ~ignored)[order], dtype=np.float64)
                false = np.cumsum((~hits & ~ignored)[order], dtype=np.float64)
                curve = true / (false + true + np.spacing(1))
                curve = np.maximum.accumulate(curve[::-1])[::-1]
                places = np.searchsorted(true / cells, RECALLS, side="left")
                precision[step] = np.append(curve, 0.0)[places]
    return precision, recall


def precision_of_draws(images: Sequence[PackedMatch], draws: np.ndarray) -> np.ndarray:
    """AP, AP50 and AFNR of one class and all areas, where each image counts so many times.

    Args:
        images: matched with the last limit of detections.
        draws: float64 `[S, images]`.

    Returns:
        float64 `[S, 3]`, NaN without a cell; of ones the same as `precision_and_recall` gives.
    """
    order = np.argsort(-np.concatenate([image.scores for image in images]), kind="stable")
    owner = np.repeat(np.arange(len(images)), [len(image.scores) for image in images])[order]
    cells = draws @ np.array([image.counts[0] for image in images], np.float64)
    curves = np.full((len(draws), len(IOU_THRESHOLDS)), np.nan)
    recalls = curves.copy()
    for step in range(len(IOU_THRESHOLDS)):
        hits, ignored = np.concatenate([image.bits(0, step) for image in images], axis=1)[:, order]
        found, wrong = hits & ~ignored, ~hits & ~ignored
        for row, (weights, total) in enumerate(zip(draws, cells, strict=True)):
            if total:
                own = weights[owner]
                true, false = np.cumsum(own * found), np.cumsum(own * wrong)
                curve = np.maximum.accumulate((true / (false + true + np.spacing(1)))[::-1])[::-1]
                places = np.searchsorted(true / total, RECALLS, side="left")
                curves[row, step] = np.append(curve, 0.0)[places].mean()
                recalls[row, step] = true[-1] / total if len(true) else 0.0
    return np.stack([curves.mean(1), curves[:, 0], 1 - recalls.mean(1)], axis=1)
