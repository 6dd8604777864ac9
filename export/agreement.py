"""How far two networks agree: their cells, matched image by image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from effdet_tf.config import Config
from effdet_tf.geometry.boxes import iou
from effdet_tf.prediction.results import Result

MATCH_IOU = 0.9
NEAR = 1e-3  # a class score this near the threshold may fall on either side of it


@dataclass
class Agreement:
    """What two networks have in common on the images given so far.

    A cell that one of them lacks counts against the agreement, unless its class score is within `NEAR` of the
    least that is reported (`postprocess.score_threshold`, or the weakest cell of a network that found as many
    as it may report): rounding decides on which side of it such a cell lies.

    Attributes:
        config: of the networks.
        images: number of images.
        reference: cells of the reference that count.
        candidate: cells of the candidate that count.
        matched: pairs of one class with a box IoU of `MATCH_IOU` or more.
        score_difference: largest absolute difference of a pair's scores.
        mask_ious: of the pairs, one array an image; empty for a network without masks.
        reported_reference: cells of `postprocess.report_score` and more.
        reported: likewise of the candidate.
        count_difference: sum over the images of |reported - reported_reference|.
    """

    config: Config
    images: int = 0
    reference: int = 0
    candidate: int = 0
    matched: int = 0
    score_difference: float = 0.0
    mask_ious: list[np.ndarray] = field(default_factory=list)
    reported_reference: int = 0
    reported: int = 0
    count_difference: int = 0

    def add(self, reference: Result, candidate: Result) -> None:
        """Compare the cells of one image."""
        a, b = match(reference, candidate)
        self.images += 1
        self.matched += len(a)
        # One limit for both: the one that found too many says from where on cells may be missing.
        limit = max(self._least(reference), self._least(candidate)) + NEAR
        self.reference += self._counting(reference, a, limit)
        self.candidate += self._counting(candidate, b, limit)
        if len(a):
            worst = np.abs(reference.scores[a] - candidate.scores[b]).max()
            self.score_difference = max(self.score_difference, float(worst))
        if reference.masks is not None and candidate.masks is not None:
            self.mask_ious.append(mask_iou(reference.masks[a], candidate.masks[b]))
        least = self.config.postprocess.report_score
        counts = [int((result.scores >= least).sum()) for result in (reference, candidate)]
        self.reported_reference += counts[0]
        self.reported += counts[1]
        self.count_difference += abs(counts[0] - counts[1])

    def figures(self) -> dict[str, Any]:
        """All figures, ready for JSON; None where nothing was found or there are no masks."""
        ious = np.concatenate([np.zeros(0), *self.mask_ious])
        cells = self.reference + self.candidate
        return {
            "images": self.images,
            "reference_cells": self.reference,
            "cells": self.candidate,
            "matched": self.matched,
            "matched_share": 2 * self.matched / cells if cells else None,
            "largest_score_difference": self.score_difference if self.matched else None,
            "mean_mask_iou": float(ious.mean()) if len(ious) else None,
            "least_mask_iou": float(ious.min()) if len(ious) else None,
            "report_score": self.config.postprocess.report_score,
            "reference_reported": self.reported_reference,
            "reported": self.reported,
            "count_difference": self.count_difference,
        }

    def _least(self, result: Result) -> float:
        """The class score that a cell of this result had to reach."""
        least = self.config.postprocess.score_threshold
        return max(least, float(self._class_scores(result).min())) if result.truncated else least

    def _counting(self, result: Result, matched: np.ndarray, limit: float) -> int:
        alone = np.ones(len(result), bool)
        alone[matched] = False
        return len(matched) + int((self._class_scores(result)[alone] > limit).sum())

    def _class_scores(self, result: Result) -> np.ndarray:
        """Scores without the quality of the mask; 0 for a cell with an empty mask."""
        if result.masks is None or not self.config.postprocess.mask_scoring:
            return result.scores
        inside = result.masks > 127
        total = (result.masks * inside).sum((1, 2), dtype=np.int64)
        quality = total / (255 * np.maximum(inside.sum((1, 2)), 1))
        return result.scores / np.maximum(quality, 0.5)  # above .5 wherever there is a mask


def match(reference: Result, candidate: Result) -> tuple[np.ndarray, np.ndarray]:
    """Pair the cells of two results: best score first, each takes the free cell of its class nearest to it.

    Args:
        reference: cells of one image.
        candidate: cells of the same image.

    Returns:
        Indices int64 `[pairs]` into each of them.
    """
    if not len(reference) or not len(candidate):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    overlap = np.array(iou(reference.boxes[:, None], candidate.boxes[None]))
    overlap[reference.classes[:, None] != candidate.classes[None]] = 0
    pairs = []
    for row in np.flatnonzero((overlap >= MATCH_IOU).any(1)):
        column = int(overlap[row].argmax())
        if overlap[row, column] >= MATCH_IOU:
            pairs.append((row, column))
            overlap[:, column] = 0
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of bitmaps pair by pair: two times uint8 `[N, m, m]` to float64 `[N]`; 1 for two empty masks."""
    inside_a, inside_b = a > 127, b > 127
    both = (inside_a & inside_b).sum((1, 2))
    either = (inside_a | inside_b).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
