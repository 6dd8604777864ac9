"""True and found cells of one image, compared once and counted at any score.

Found cells are made disjoint first: each pixel goes to the highest score. A cell of lower score never
changes one of higher score, so the cells above any score are a prefix of the list and nothing is compared
twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effdet_tf.geometry.masks import Patch, resolve_overlaps
from effdet_tf.metrics.instances import IOU_THRESHOLDS

_IGNORED_SHARE = 0.5
_TIE = 1e-9  # an IoU must be above a threshold, and rounding is not


@dataclass(frozen=True, eq=False)
class ImageMatch:
    """What one image's cells and detections have in common.

    Attributes:
        true_areas: int64 `[G]`, pixels of each true cell; true cells may overlap.
        found_areas: int64 `[P]`, pixels of each found cell, disjoint.
        scores: float64 `[P]`, falling.
        pair_true: int64 `[K]`, index of the true cell of each pair that shares a pixel.
        pair_found: int64 `[K]`, index of its found cell.
        pair_overlap: int64 `[K]`, pixels they share.
        pair_iou: float64 `[K]`, intersection over union.
        true_index: int64 `[G]`, place of each true cell among those that were given.
        found_index: int64 `[P]`, place of each found cell among those that were given.
    """

    true_areas: np.ndarray
    found_areas: np.ndarray
    scores: np.ndarray
    pair_true: np.ndarray
    pair_found: np.ndarray
    pair_overlap: np.ndarray
    pair_iou: np.ndarray
    true_index: np.ndarray
    found_index: np.ndarray

    def partners(self) -> np.ndarray:
        """The true cell of each found one, int64 `[P]`: that of the highest IoU above .5; -1 for none."""
        near = self.pair_iou > IOU_THRESHOLDS[0] + _TIE
        pair_true, pair_found, iou = self.pair_true[near], self.pair_found[near], self.pair_iou[near]
        order = np.argsort(iou, kind="stable")
        partners = np.full(len(self.found_areas), -1, dtype=np.int64)
        partners[pair_found[order]] = pair_true[order]  # the best is written last
        return partners


@dataclass(frozen=True, eq=False)
class ImageTally:
    """Counts of one image at one score; everything the figures are made of.

    Attributes:
        true: number of true cells.
        found: number of found cells.
        matched: int64 `[10]`, one-to-one matches with an IoU above each of `IOU_THRESHOLDS`.
        matched_iou: sum of the IoUs of the matches above .5.
        seg: sum over true cells of the IoU with the found cell that covers more than half of it.
        aji_overlap: pixels, numerator of the aggregated Jaccard index.
        aji_union: pixels, its denominator.
    """

    true: int
    found: int
    matched: np.ndarray
    matched_iou: float
    seg: float
    aji_overlap: int
    aji_union: int


def match_image(
    true: Sequence[Patch],
    found: Sequence[Patch],
    scores: Sequence[float] | np.ndarray,
    height: int,
    width: int,
    ignored: Sequence[Patch] = (),
) -> ImageMatch:
    """Make the found cells disjoint and compare them with the true cells.

    A found cell that lies by more than half in an ignored region, and has no true cell above IoU .5, is
    left out.

    Args:
        true: G annotated cells, none of them empty.
        found: detected cells, none of them empty.
        scores: one per detected cell.
        height: frame height, pixels.
        width: frame width, pixels.
        ignored: regions in which nothing is judged (`iscrowd`).
    """
    scores = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    labels = np.zeros((height, width), dtype=np.int32)
    kept = order[resolve_overlaps([found[k] for k in order.tolist()], labels)]
    areas = np.bincount(labels.ravel(), minlength=len(kept) + 1)[1:]
    true_areas = np.array([np.count_nonzero(cell.mask) for cell in true], dtype=np.int64)
    pair_true, pair_found, overlap = _overlaps(true, labels)
    iou = overlap / (true_areas[pair_true] + areas[pair_found] - overlap)
    judged = np.ones(len(kept), dtype=bool)
    if len(ignored):
        region = np.zeros((height, width), dtype=bool)
        for patch in ignored:
            h, w = patch.mask.shape
            region[patch.y : patch.y + h, patch.x : patch.x + w] |= patch.mask
        inside = np.bincount(labels[region], minlength=len(kept) + 1)[1:]
        judged = inside <= _IGNORED_SHARE * areas
        judged[pair_found[iou > IOU_THRESHOLDS[0]]] = True
    number = np.cumsum(judged) - 1
    valid = judged[pair_found]
    return ImageMatch(
        true_areas=true_areas,
        found_areas=areas[judged],
        scores=scores[kept][judged],
        pair_true=pair_true[valid],
        pair_found=number[pair_found[valid]],
        pair_overlap=overlap[valid],
        pair_iou=iou[valid],
        true_index=np.arange(len(true)),
        found_index=np.asarray(kept, dtype=np.int64)[judged],
    )


def tally(match: ImageMatch, score: float) -> ImageTally:
    """Count at a score: only found cells of at least this score exist.

    At an IoU above .5 a true cell has at most one found cell, since those are disjoint. A found cell may
    have several true cells where the annotation overlaps itself, and is given the best. So the matching is
    one-to-one and the largest there is, without a search.
    """
    found = int(np.count_nonzero(match.scores >= score))
    pairs = match.pair_found < found
    pair_true, pair_found = match.pair_true[pairs], match.pair_found[pairs]
    overlap, iou = match.pair_overlap[pairs], match.pair_iou[pairs]
    best = np.zeros(found)
    np.maximum.at(best, pair_found, iou)
    matched = np.count_nonzero(best[None, :] > IOU_THRESHOLDS[:, None] + _TIE, axis=1)
    covers = 2 * overlap > match.true_areas[pair_true]
    aji_overlap, aji_union = _aggregated_jaccard(match, found, pair_true, pair_found, overlap, iou)
    return ImageTally(
        true=len(match.true_areas),
        found=found,
        matched=matched,
        matched_iou=float(best[best > IOU_THRESHOLDS[0]].sum()),
        seg=float(iou[covers].sum()),
        aji_overlap=aji_overlap,
        aji_union=aji_union,
    )


def _overlaps(true: Sequence[Patch], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of the true cell, index of the found cell and shared pixels of each pair that shares any."""
    pair_true, pair_found, shared = [], [], []
    for index, (y, x, mask) in enumerate(true):
        below = labels[y : y + mask.shape[0], x : x + mask.shape[1]][mask]
        values, counts = np.unique(below[below > 0], return_counts=True)
        pair_true.append(np.full(values.size, index, dtype=np.int64))
        pair_found.append(values.astype(np.int64) - 1)
        shared.append(counts.astype(np.int64))
    if not pair_true:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty
    return np.concatenate(pair_true), np.concatenate(pair_found), np.concatenate(shared)


def _aggregated_jaccard(
    match: ImageMatch,
    found: int,
    pair_true: np.ndarray,
    pair_found: np.ndarray,
    overlap: np.ndarray,
    iou: np.ndarray,
) -> tuple[int, int]:
    """Numerator and denominator of the index, pixels.

    Each true cell takes the found cell of highest IoU, however low; found cells that nobody takes add to the
    union.
    """
    order = np.lexsort((-iou, pair_true))
    first = order[np.diff(pair_true[order], prepend=-1) > 0]
    union = match.true_areas.sum() + match.found_areas[pair_found[first]].sum() - overlap[first].sum()
    unused = np.ones(found, dtype=bool)
    unused[pair_found[first]] = False
    union += match.found_areas[:found][unused].sum()
    return int(overlap[first].sum()), int(union)
