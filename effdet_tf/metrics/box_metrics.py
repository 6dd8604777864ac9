"""Scores of boxes at one detection score, for what has no masks: F1, precision, recall and counts.

A match is one-to-one with an IoU of .5 or more, best scores first, as in COCO's protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.metrics.cell_metrics import SCORE_GRID, CellEvaluator, summarise_counts
from effdet_tf.metrics.instances import Fields, ImageInstances, Instance, iterate_instances, unknown_class
from effdet_tf.metrics.matching import Match, MatchCounts, match_boxes

_OF_MASKS = {"sartorius", "pq", "aji", "seg", "missed", "merged", "split", "false"}
_OF_MASKS |= {"matching_accuracy50", "matching_accuracy75", "matching_accuracy"}


def score_boxes(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    score_threshold: float | None = None,
    by: Fields = "cell_type",
    per_class: bool = False,
    grid: Sequence[float] = SCORE_GRID,
) -> dict[str, Any]:
    """Score boxes at one detection score.

    Args:
        ground_truth: COCO dict; regions with `iscrowd` are not evaluated.
        predictions: COCO results with a bbox each.
        score_threshold: minimum score of a box; None takes the best of `grid` by F1, on these very
            predictions (an upper bound: choose it on other images for an honest result).
        by: image field to split the images by, or several; None for no split.
        per_class: whether a match must have the right class.
        grid: the scores to try.

    Returns:
        `{"score_threshold", "chosen": "given" or "best here", "best_score_threshold", "best_f1",
        "report_score", "all": metrics, "by": {value: metrics}}`; metrics are images, true_cells, found_cells,
        precision, recall, f1, mean_f1 and counts, as `summarise_counts` defines them; None stands for "not
        defined". "report_score" is that of `score_cells`, by boxes.

    Raises:
        UserError: for a prediction on an unknown image or class, or without a finite score.
    """
    evaluator = BoxEvaluator(ground_truth["categories"], score_threshold, by, per_class, grid)
    for image in iterate_instances(ground_truth, predictions):
        evaluator.add(image)
    return evaluator.report()


class BoxEvaluator(CellEvaluator):
    """Computes the metrics of `score_boxes` of annotated images that are added one by one."""

    best_by = "f1"

    def __init__(
        self,
        categories: Sequence[dict[str, Any]],
        score_threshold: float | None = None,
        by: Fields = "cell_type",
        per_class: bool = False,
        grid: Sequence[float] = SCORE_GRID,
    ) -> None:
        """Set the rules, as of `score_boxes`; `categories` are COCO's, `{"id", "name"}`."""
        super().__init__(score_threshold, by, grid)
        self.classes = [int(category["id"]) for category in categories] if per_class else None

    def add(self, image: ImageInstances) -> Match:
        """Evaluate the boxes predicted in one image; gives their match, whatever their class.

        Raises:
            UserError: for a prediction of an unknown class, when classes count, or without a box.
        """
        for number, entry in enumerate(image.predictions):
            if entry.box is None:
                raise UserError(f"{image.name(number)} has no box to score")
            if self.classes is not None and entry.category_id not in self.classes:
                raise unknown_class(image.name(number), entry.category_id, self.classes)
        match = match_boxes(image.ground_truth, image.predictions)
        matches = [match] if self.classes is None else match_boxes_by_class(image, self.classes)
        true = sum(len(one.gt_areas) for one in matches)
        scores = np.concatenate([one.scores for one in matches])
        hits = np.concatenate([one.matched_gt for one in matches]) >= 0
        self._groups.add(image.image)
        for score, counts in self._counts.items():
            shown = scores >= score
            matched = np.count_nonzero(hits & shown)
            counts[image.image["id"]] = MatchCounts(true, int(shown.sum()), np.array([matched]))
        return match

    def summarise(self, counts: Sequence[MatchCounts]) -> dict[str, Any]:
        """The metrics of some images that boxes have."""
        return {name: value for name, value in summarise_counts(counts).items() if name not in _OF_MASKS}


def match_boxes_by_class(image: ImageInstances, classes: Sequence[int]) -> list[Match]:
    """Match the boxes of each class alone."""

    def own(kind: int, part: Sequence[Instance]) -> list[Instance]:
        return [one for one in part if one.category_id == kind]

    return [match_boxes(own(kind, image.ground_truth), own(kind, image.predictions)) for kind in classes]
