"""The error types that a person sees in one image: cells missed, false, merged and split."""

from __future__ import annotations

import numpy as np

from effdet_tf.metrics.matching import Match

ERROR_TYPES = ("right", "missed", "false", "merged", "split")


def error_types(match: Match) -> tuple[list[str], list[str]]:
    """Name the error type of each cell.

    A prediction is `right` when it matches an annotated cell at IoU .5; else `merged` when it covers two
    annotated cells or more, each by more than half; else `split` when it lies by more than half in an
    annotated cell in which another prediction lies so too; else `false`. An annotated cell is `right` when it
    is matched, else `missed`.

    Args:
        match: of masks, or of boxes with their overlaps.

    Returns:
        One of `ERROR_TYPES` of each annotated cell and of each prediction, in the order of `match`.
    """
    matched, gt, pred = match.matched_gt, match.overlap_gt, match.overlap_pred
    covers = 2 * match.overlap_area > match.gt_areas[gt]
    inside = 2 * match.overlap_area > match.pred_areas[pred]
    covered = np.bincount(pred[covers], minlength=len(matched))
    held = np.bincount(gt[inside], minlength=len(match.gt_areas))
    shares = np.zeros(len(matched), bool)
    shares[pred[inside & (held[gt] > 1)]] = True
    predictions = np.select([matched >= 0, covered > 1, shares], ["right", "merged", "split"], "false")
    ground_truth = np.full(len(match.gt_areas), "missed")
    ground_truth[matched[matched >= 0]] = "right"
    return ground_truth.tolist(), predictions.tolist()
