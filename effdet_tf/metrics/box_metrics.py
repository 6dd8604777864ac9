"""Scores of boxes at one detection score, for what has no masks: F1, precision, recall and counts.

A match is one-to-one with an IoU of .5 or more, best scores first, as in COCO's protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.metrics.cell_metrics import SCORE_GRID, count_figures, detection_figures
from effdet_tf.metrics.confusion import Outcome
from effdet_tf.metrics.instances import Cell, Found, ImageCase, ImageGroups, image_cases, unknown_class
from effdet_tf.metrics.precision import Assigned, assign_detections, box_cells, box_detections

IOU_STEP = 0  # of IOU_THRESHOLDS: .5
ANY_AREA = (0.0, 1e10)


@dataclass(frozen=True, eq=False)
class BoxMatch:
    """The boxes of one image.

    Attributes:
        true: number of true boxes, crowd regions left out.
        scores: float64 `[P]` of the found boxes, those on crowd regions left out.
        hits: bool `[P]`, whether a found box has a true one of its own.
    """

    true: int
    scores: np.ndarray
    hits: np.ndarray


def score_boxes(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    score_threshold: float | None = None,
    by: str | None = "cell_type",
    per_class: bool = False,
    grid: Sequence[float] = SCORE_GRID,
) -> dict[str, Any]:
    """Score boxes at one detection score.

    Args:
        ground_truth: COCO dict; regions with `iscrowd` are not judged.
        predictions: COCO results with a bbox each.
        score_threshold: least score of a box; None takes the best of `grid` by F1, on these very predictions
            (an upper bound: choose it on other images for an honest figure).
        by: image field to split the figures by; None for no split.
        per_class: whether a match must have the right class.
        grid: the scores to try.

    Returns:
        `{"score_threshold", "chosen": "given" or "best here", "best_score_threshold", "best_f1", "all":
        figures, "by": {value: figures}}`; figures are images, true_cells, found_cells, precision, recall, f1
        and counts, as `metrics.cells` defines them; None stands for "not defined".

    Raises:
        UserError: for a detection on an unknown image or class, or without a finite score.
    """
    judge = BoxJudge(ground_truth["categories"], score_threshold, by, per_class, grid)
    for case in image_cases(ground_truth, predictions):
        judge.add(case)
    return judge.report()


class BoxJudge:
    """Takes annotated images one by one, and has the figures of `score_boxes` in the end."""

    def __init__(
        self,
        categories: Sequence[dict[str, Any]],
        score_threshold: float | None = None,
        by: str | None = "cell_type",
        per_class: bool = False,
        grid: Sequence[float] = SCORE_GRID,
    ) -> None:
        """Set the rules, as of `score_boxes`; `categories` are COCO's, `{"id", "name"}`."""
        self.given, self.grid = score_threshold, tuple(grid)
        self.classes = [int(category["id"]) for category in categories] if per_class else None
        self._groups = ImageGroups(by)
        self._matches: dict[Any, BoxMatch] = {}

    def add(self, case: ImageCase) -> Outcome:
        """Judge the boxes found in one image.

        Returns:
            What became of each, whatever its class.

        Raises:
            UserError: for a detection of an unknown class, when classes count, or without a box.
        """
        self._groups.add(case.image)
        _check(case, self.classes)
        given = _assign(case.cells, case.found)
        self._matches[case.image["id"]] = _matched(case, self.classes, given)
        return _outcome(case, given)

    def by_image(self, score: float) -> dict[Any, dict[str, Any]]:
        """Figures of each image, by its id, at a score: true, found and f1."""
        return {
            identity: {
                "true": figures["true_cells"],
                "found": figures["found_cells"],
                "f1": figures["f1"],
            }
            for identity, match in self._matches.items()
            for figures in [_figures([match], score)]
        }

    def report(self) -> dict[str, Any]:
        """The figures; see `score_boxes`."""
        matches = self._matches
        curve = [(_figures(list(matches.values()), score)["f1"] or 0.0, -score) for score in self.grid]
        best, negative = max(curve)
        chosen = -negative if self.given is None else float(self.given)
        return {
            "score_threshold": chosen,
            "chosen": "best here" if self.given is None else "given",
            "best_score_threshold": -negative,
            "best_f1": best,
            "all": _figures(list(matches.values()), chosen),
            "by": {
                name: _figures([matches[image] for image in sorted(ids)], chosen)
                for name, ids in self._groups.split().items()
            },
        }


def match_boxes(case: ImageCase, classes: Sequence[int] | None = None) -> BoxMatch:
    """Match found boxes to true ones by falling score, once: those above any score are a prefix.

    Args:
        case: one image.
        classes: a match must have the right one of these; None where classes do not count.

    Raises:
        UserError: for a detection of an unknown class, when classes count, or without a box.
    """
    _check(case, classes)
    return _matched(case, classes, _assign(case.cells, case.found))


def _check(case: ImageCase, classes: Sequence[int] | None) -> None:
    for number, entry in enumerate(case.found):
        if entry.box is None:
            raise UserError(f"{case.what(number)} has no box to score")
        if classes is not None and entry.category_id not in classes:
            raise unknown_class(case.what(number), entry.category_id, classes)


def _matched(case: ImageCase, classes: Sequence[int] | None, given: Assigned) -> BoxMatch:
    """The match of an image, of which `given` is the one without classes."""
    if classes is None:
        return _kept(case.found, given)
    parts = [
        _match(
            [cell for cell in case.cells if cell.category_id == kind],
            [entry for entry in case.found if entry.category_id == kind],
        )
        for kind in classes
    ]
    return BoxMatch(
        sum(part.true for part in parts),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.hits for part in parts]),
    )


def _match(cells: Sequence[Cell], found: Sequence[Found]) -> BoxMatch:
    """Match the boxes of one image and class."""
    return _kept(found, _assign(cells, found))


def _assign(cells: Sequence[Cell], found: Sequence[Found]) -> Assigned:
    return assign_detections(box_cells(cells), box_detections(found), [ANY_AREA], len(found))


def _kept(found: Sequence[Found], given: Assigned) -> BoxMatch:
    """What is kept of an assignment."""
    judged = ~given.ignored[0, IOU_STEP]
    scores = np.array([found[number].score for number in given.order[judged]], np.float64)
    return BoxMatch(int(given.counts[0]), scores, given.hits[0, IOU_STEP][judged])


def _outcome(case: ImageCase, given: Assigned) -> Outcome:
    judged = ~given.ignored[0, IOU_STEP]
    true = [cell for cell in case.cells if not cell.crowd]
    found = [case.found[number] for number in given.order[judged]]
    partners = [None if k < 0 else case.cells[k].category_id for k in given.cells[0, IOU_STEP][judged]]
    boxes = [entry.box or (0.0, 0.0, 0.0, 0.0) for entry in found]
    return Outcome(
        [cell.category_id for cell in true],
        np.array([cell.box[2] * cell.box[3] for cell in true], np.float64),
        np.array([entry.score for entry in found], np.float64),
        [entry.category_id for entry in found],
        np.array([box[2] * box[3] for box in boxes], np.float64),
        partners,
    )


def _figures(matches: Sequence[BoxMatch], score: float) -> dict[str, Any]:
    true = np.array([match.true for match in matches], dtype=np.int64)
    found = np.array([np.count_nonzero(match.scores >= score) for match in matches], dtype=np.int64)
    hits = sum(int(match.hits[match.scores >= score].sum()) for match in matches)
    return {
        "images": len(matches),
        "true_cells": int(true.sum()),
        "found_cells": int(found.sum()),
        **detection_figures(hits, int(true.sum()), int(found.sum())),
        **count_figures(true, found),
    }
