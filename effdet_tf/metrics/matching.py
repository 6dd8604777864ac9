"""`Match` the ground truth and the predictions of one image, by masks or by boxes; count it at any score.

Predicted masks are made disjoint first: each pixel goes to the highest score. A cell of lower score never
changes one of higher score, so the cells above any score are a prefix of the list and nothing is compared
twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effdet_tf.geometry.masks import resolve_overlaps
from effdet_tf.geometry.rle import Patch
from effdet_tf.metrics.instances import IOU_THRESHOLDS, Instance
from effdet_tf.metrics.precision import assign_predictions, boxes_of

_IGNORED_SHARE = 0.5
_TIE = 1e-9  # an IoU must be above a threshold, and rounding is not
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Match:
    """The ground truth (gt) of one image, its predictions (pred), which of them match and what they share."""

    gt_areas: np.ndarray  # `[G]`, px^2; annotated cells may overlap
    pred_areas: np.ndarray  # `[P]`, px^2; masks are disjoint
    scores: np.ndarray  # float64 `[P]`, falling
    # int64 `[P]`, the annotated cell that each prediction matches at IoU .5; -1 for none
    matched_gt: np.ndarray
    gt_index: np.ndarray  # int64 `[G]`, place of each annotated cell among those that were given
    pred_index: np.ndarray  # int64 `[P]`, place of each prediction among those that were given
    overlap_gt: np.ndarray  # int64 `[K]`, the annotated cell of each pair that overlaps
    overlap_pred: np.ndarray  # int64 `[K]`, its prediction
    overlap_area: np.ndarray  # `[K]`, px^2 that they share
    iou: np.ndarray  # float64 `[K]`, intersection over union


@dataclass(frozen=True, eq=False)
class MatchCounts:
    """Counts of one image at one score; the metrics are made of them.

    `matched` are one-to-one matches of masks with an IoU above each of `IOU_THRESHOLDS`, or of boxes at .5;
    `matched_iou` is the sum of the IoUs of those above .5, `seg` the sum over annotated cells of the IoU with
    the prediction that covers more than half of it, `aji_overlap` and `aji_union` are numerator and
    denominator, pixels, of the aggregated Jaccard index.
    """

    true: int  # annotated cells
    found: int  # predictions
    matched: np.ndarray  # int64 [10] of masks, [1] of boxes
    matched_iou: float = 0.0
    seg: float = 0.0
    aji_overlap: int = 0
    aji_union: int = 0
    merged: int = 0  # wrong predictions over several annotated cells
    split: int = 0  # wrong ones that are parts of one, see `merged_and_split`


def match_masks(
    ground_truth: Sequence[Patch],
    predictions: Sequence[Patch],
    scores: Sequence[float] | np.ndarray,
    height: int,
    width: int,
    ignored: Sequence[Patch] = (),
) -> Match:
    """Make the predicted cells disjoint and match them with the annotated ones.

    A prediction that lies by more than half in an ignored region, and has no annotated cell above IoU .5, is
    left out.

    Args:
        ground_truth: G annotated cells, none of them empty.
        predictions: predicted cells, none of them empty.
        scores: one per prediction.
        height: canvas height, pixels.
        width: canvas width, pixels.
        ignored: regions in which nothing is evaluated (`iscrowd`).
    """
    scores = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    labels = np.zeros((height, width), dtype=np.int32)
    kept = order[resolve_overlaps([predictions[k] for k in order.tolist()], labels)]
    areas = np.bincount(labels.ravel(), minlength=len(kept) + 1)[1:]
    gt_areas = np.array([np.count_nonzero(cell.mask) for cell in ground_truth], dtype=np.int64)
    gt, pred, overlap = _overlaps(ground_truth, labels)
    iou = overlap / (gt_areas[gt] + areas[pred] - overlap)
    evaluated = np.ones(len(kept), dtype=bool)
    if len(ignored):
        region = np.zeros((height, width), dtype=bool)
        for patch in ignored:
            h, w = patch.mask.shape
            region[patch.y : patch.y + h, patch.x : patch.x + w] |= patch.mask
        inside = np.bincount(labels[region], minlength=len(kept) + 1)[1:]
        evaluated = inside <= _IGNORED_SHARE * areas
        evaluated[pred[iou > IOU_THRESHOLDS[0]]] = True
    valid = evaluated[pred]
    gt, pred, overlap, iou = gt[valid], (np.cumsum(evaluated) - 1)[pred[valid]], overlap[valid], iou[valid]
    matched_gt = np.full(np.count_nonzero(evaluated), -1, dtype=np.int64)
    best_last = np.argsort(iou, kind="stable")
    best_last = best_last[iou[best_last] > IOU_THRESHOLDS[0] + _TIE]
    matched_gt[pred[best_last]] = gt[best_last]
    return Match(
        gt_areas=gt_areas,
        pred_areas=areas[evaluated],
        scores=scores[kept][evaluated],
        matched_gt=matched_gt,
        gt_index=np.arange(len(ground_truth)),
        pred_index=np.asarray(kept, dtype=np.int64)[evaluated],
        overlap_gt=gt,
        overlap_pred=pred,
        overlap_area=overlap,
        iou=iou,
    )


def match_boxes(
    ground_truth: Sequence[Instance], predictions: Sequence[Instance], overlaps: bool = False
) -> Match:
    """Match boxes at IoU .5 by falling score, as COCO does; crowd regions and what lies on them are left out.

    Args:
        ground_truth: annotated cells.
        predictions: predicted cells, each with a box.
        overlaps: whether to also compare each box with every other, for the pairs that overlap.
    """
    thresholds = IOU_THRESHOLDS[:1]
    found = assign_predictions(ground_truth, predictions, "bbox", thresholds=thresholds)
    order, assigned, ignored, _ = found
    evaluated = ~ignored[0, 0]
    pred_index = order[evaluated]
    gt_index = np.array([k for k, cell in enumerate(ground_truth) if not cell.crowd], np.int64)
    place = np.full(len(ground_truth) + 1, -1)  # one more: -1, none, is the last, and stays -1
    place[gt_index] = np.arange(len(gt_index))
    gt = boxes_of([ground_truth[k] for k in gt_index])
    pred = boxes_of([predictions[k] for k in pred_index])
    gt_areas, pred_areas = gt[:, 2:].prod(1), pred[:, 2:].prod(1)
    overlap_gt = overlap_pred = _NONE
    shared = iou = np.zeros(0)
    if overlaps:
        low = np.maximum(gt[:, None, :2], pred[None, :, :2])
        high = np.minimum((gt[:, :2] + gt[:, 2:])[:, None], (pred[:, :2] + pred[:, 2:])[None])
        areas = np.maximum(high - low, 0).prod(-1)
        overlap_gt, overlap_pred = np.nonzero(areas)
        shared = areas[overlap_gt, overlap_pred]
        iou = shared / (gt_areas[overlap_gt] + pred_areas[overlap_pred] - shared)
    return Match(
        gt_areas=gt_areas,
        pred_areas=pred_areas,
        scores=np.array([predictions[k].score for k in pred_index], np.float64),
        matched_gt=place[assigned[0, 0][evaluated]],
        gt_index=gt_index,
        pred_index=pred_index,
        overlap_gt=overlap_gt,
        overlap_pred=overlap_pred,
        overlap_area=shared,
        iou=iou,
    )


def count_matches(match: Match, score: float) -> MatchCounts:
    """Count a match of masks at a score: only predictions of at least this score exist.

    At an IoU above .5 an annotated cell has at most one prediction, since those are disjoint. A prediction
    may have several annotated cells where the annotation overlaps itself, and is given the best. So the
    matching is one-to-one and the largest there is, without a search.
    """
    found = int(np.count_nonzero(match.scores >= score))
    shown = match.overlap_pred < found
    gt, pred = match.overlap_gt[shown], match.overlap_pred[shown]
    overlap, iou = match.overlap_area[shown], match.iou[shown]
    best = np.zeros(found)
    np.maximum.at(best, pred, iou)
    covers = 2 * overlap > match.gt_areas[gt]
    # AJI: each annotated cell takes the prediction of highest IoU, however low; predictions that nobody
    # takes add to the union.
    order = np.lexsort((-iou, gt))
    first = order[np.diff(gt[order], prepend=-1) > 0]
    unused = np.ones(found, dtype=bool)
    unused[pred[first]] = False
    merged, split = merged_and_split(match, found)
    aji_overlap = overlap[first].sum()
    union = match.gt_areas.sum() + match.pred_areas[pred[first]].sum() - aji_overlap
    return MatchCounts(
        true=len(match.gt_areas),
        found=found,
        matched=np.count_nonzero(best[None, :] > IOU_THRESHOLDS[:, None] + _TIE, axis=1),
        matched_iou=float(best[best > IOU_THRESHOLDS[0]].sum()),
        seg=float(iou[covers].sum()),
        aji_overlap=int(aji_overlap),
        aji_union=int(union + match.pred_areas[:found][unused].sum()),
        merged=int(merged.sum()),
        split=int(split.sum()),
    )


def merged_and_split(match: Match, found: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the first predictions are wrong in these two ways, bool `[found]` each.

    One that matches nothing at IoU .5 is merged when it covers two annotated cells or more, each by more than
    half; else split when it lies by more than half in an annotated cell in which another one lies so too.
    """
    shown = match.overlap_pred < found
    gt, pred, area = match.overlap_gt[shown], match.overlap_pred[shown], match.overlap_area[shown]
    covered = np.bincount(pred[2 * area > match.gt_areas[gt]], minlength=found)
    inside = 2 * area > match.pred_areas[pred]
    held = np.bincount(gt[inside], minlength=len(match.gt_areas))
    part = np.zeros(found, bool)
    part[pred[inside & (held[gt] > 1)]] = True
    wrong = match.matched_gt[:found] < 0
    merged = wrong & (covered > 1)
    return merged, wrong & part & ~merged


def _overlaps(ground_truth: Sequence[Patch], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Annotated cell, prediction and shared pixels of each pair that overlaps, int64 `[K]` each."""
    gt, pred, shared = [_NONE], [_NONE], [_NONE]
    for index, (y, x, mask) in enumerate(ground_truth):
        below = labels[y : y + mask.shape[0], x : x + mask.shape[1]][mask]
        values, counts = np.unique(below[below > 0], return_counts=True)
        gt.append(np.full(values.size, index, dtype=np.int64))
        pred.append(values.astype(np.int64) - 1)
        shared.append(counts.astype(np.int64))
    return np.concatenate(gt), np.concatenate(pred), np.concatenate(shared)
