"""The error types that a person sees in one image: cells missed, false, merged and split."""

from __future__ import annotations

import numpy as np

from effdet_tf.metrics.matching import Match, merged_and_split

ERROR_TYPES = ("right", "missed", "false", "merged", "split")


def error_types(match: Match) -> tuple[list[str], list[str]]:
    """Name the error type of each cell.

    A prediction is `right` when it matches an annotated cell at IoU .5; else `merged` or `split`, see
    `merged_and_split`; else `false`. An annotated cell is `right` when it is matched, else `missed`.

    Args:
        match: of masks, or of boxes with their overlaps.

    Returns:
        One of `ERROR_TYPES` of each annotated cell and of each prediction, in the order of `match`.
    """
    matched = match.matched_gt
    merged, split = merged_and_split(match, len(matched))
    predictions = np.select([matched >= 0, merged, split], ["right", "merged", "split"], "false")
    ground_truth = np.full(len(match.gt_areas), "missed")
    ground_truth[matched[matched >= 0]] = "right"
    return ground_truth.tolist(), predictions.tolist()
