"""How far two networks agree: their cells, matched image by image."""

from __future__ import annotations

from typing import Any

import numpy as np

from effdet_tf.config import Config
from effdet_tf.geometry.boxes import iou
from effdet_tf.model.postprocess import mask_quality
from effdet_tf.prediction.results import Result

MATCH_IOU = 0.9
NEAR = 1e-3  # a class score this near the threshold may fall on either side of it


class Agreement:
    """Compares the cells of two networks, image by image.

    A cell that one of them lacks counts against the agreement, unless its class score is within `NEAR` of the
    minimum that is reported (that of `postprocess`, or the weakest cell of a network that found as
    many as it may report): rounding decides on which side of it such a cell lies.
    """

    def __init__(self, config: Config) -> None:
        """Start without images; `config` is that of the networks."""
        self._postprocess = config.postprocess
        self._counts: list[tuple[int, ...]] = []  # cells, matched and reported cells: one row an image
        self._mask_ious = [np.zeros(0)]  # of the matched cells
        self._score_difference = 0.0

    def add(self, reference: Result, candidate: Result) -> None:
        """Compare the cells of one image."""
        a, b = match(reference, candidate)
        # One limit for both: the one that found too many says from where on cells may be missing.
        limit = max(self._minimum(reference), self._minimum(candidate)) + NEAR
        pairs = ((reference, a), (candidate, b))
        cells = [self._counted(result, matched, limit) for result, matched in pairs]
        reported = [int((result.scores >= self._postprocess.report_score).sum()) for result, _ in pairs]
        self._counts.append((*cells, len(a), *reported))
        if len(a):
            # As the networks give them: calibration is the same lines in all, some of them steep.
            given = self._postprocess.uncalibrated
            worst = np.abs(given(reference.scores[a]) - given(candidate.scores[b])).max()
            self._score_difference = max(self._score_difference, float(worst))
        if reference.masks is not None and candidate.masks is not None:
            self._mask_ious.append(mask_iou(reference.masks[a], candidate.masks[b]))

    def metrics(self) -> dict[str, Any]:
        """Metrics of all images, ready for JSON; None where nothing was found or there are no masks."""
        counts = np.array(self._counts, np.int64).reshape(-1, 5)
        reference, candidate, matched, reference_reported, reported = counts.sum(0).tolist()
        ious = np.concatenate(self._mask_ious)
        return {
            "images": len(counts),
            "reference_cells": reference,
            "cells": candidate,
            "matched": matched,
            "matched_share": 2 * matched / (reference + candidate) if reference + candidate else None,
            "largest_score_difference": self._score_difference if matched else None,
            "mean_mask_iou": float(ious.mean()) if len(ious) else None,
            "least_mask_iou": float(ious.min()) if len(ious) else None,
            "report_score": self._postprocess.report_score,
            "reference_reported": reference_reported,
            "reported": reported,
            "count_difference": int(np.abs(counts[:, 3] - counts[:, 4]).sum()),
        }

    def _minimum(self, result: Result) -> float:
        """The class score that a cell of this result had to reach, as the network gives it."""
        least = float(self._postprocess.uncalibrated(self._postprocess.min_score))
        threshold = max(self._postprocess.score_threshold, least)
        return max(threshold, float(self._class_scores(result).min())) if result.truncated else threshold

    def _counted(self, result: Result, matched: np.ndarray, limit: float) -> int:
        """Number of matched cells and of unmatched ones above the limit."""
        unmatched = np.delete(self._class_scores(result), matched)
        return len(matched) + int((unmatched > limit).sum())

    def _class_scores(self, result: Result) -> np.ndarray:
        """Scores as the network gives them without the quality of the mask; 0 for an empty mask."""
        scores = self._postprocess.uncalibrated(result.scores)
        if result.masks is None or not self._postprocess.mask_scoring:
            return scores
        quality = np.asarray(mask_quality(result.masks / np.float32(255), self._postprocess.mask_sure))
        return scores / np.maximum(quality, 0.5)  # below .5 for a mask of less than one pixel alone


def match(reference: Result, candidate: Result) -> tuple[np.ndarray, np.ndarray]:
    """Match the cells of two results: best score first, each takes the free cell of its class nearest to it.

    Gives indices int64 `[matches]` into each of them.
    """
    matches = []
    if len(reference) and len(candidate):
        overlap = np.array(iou(reference.boxes[:, None], candidate.boxes[None]))
        overlap[reference.classes[:, None] != candidate.classes[None]] = 0
        for row in np.flatnonzero((overlap >= MATCH_IOU).any(1)):
            column = int(overlap[row].argmax())
            if overlap[row, column] >= MATCH_IOU:
                matches.append((row, column))
                overlap[:, column] = 0
    rows, columns = np.array(matches, np.int64).reshape(-1, 2).T
    return rows, columns


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of bitmaps pair by pair: two times uint8 `[N, m, m]` to float64 `[N]`; 1 for two empty masks."""
    inside_a, inside_b = a > 127, b > 127
    both = (inside_a & inside_b).sum((1, 2))
    either = (inside_a | inside_b).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
