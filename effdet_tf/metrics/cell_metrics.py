"""Scores of the cell community: the Sartorius metric, F1, PQ, AJI, SEG, matching accuracy and counts.

All of them look at what a user gets: cells above one score, no pixel in two cells. True cells may overlap.
A match is one-to-one with an IoU strictly above the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from effdet_tf.geometry.masks import Patch, rle_to_patch
from effdet_tf.metrics.instances import ImageCase, ImageGroups, image_cases
from effdet_tf.metrics.matching import ImageMatch, ImageTally, match_image, tally

SCORE_GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))
# What a better count may cost of the Sartorius metric: two seeds of one training differ by as much.
COUNT_SLACK = 0.02


def score_cells(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    score_threshold: float | None = None,
    by: str | None = "cell_type",
    grid: Sequence[float] = SCORE_GRID,
) -> dict[str, Any]:
    """Score instance masks at one detection score.

    Args:
        ground_truth: COCO dict; regions with `iscrowd` are not judged.
        predictions: COCO results with a segmentation RLE each.
        score_threshold: least score of a cell; None takes the best of `grid` by the Sartorius metric, on
            these very predictions (an upper bound: choose it on other images for an honest figure).
        by: image field to split the images by; None for no split.
        grid: the scores to try.

    Returns:
        `{"score_threshold", "chosen": "given" or "best here", "best_score_threshold", "best_sartorius",
        "counting_score_threshold", "all": figures, "by": {value: figures}}`; see `summarise_tallies` for the
        figures. The counting score has the least count error among those whose Sartorius metric is within
        `COUNT_SLACK` of the best.

    Raises:
        UserError: for a detection on an unknown image or without a finite score.
    """
    judge = CellJudge(score_threshold, by, grid)
    for case in image_cases(ground_truth, predictions):
        judge.add(case)
    return judge.report()


class CellJudge:
    """Takes annotated images one by one, and has the figures of `score_cells` in the end."""

    def __init__(
        self,
        score_threshold: float | None = None,
        by: str | None = "cell_type",
        grid: Sequence[float] = SCORE_GRID,
    ) -> None:
        """Set the score, the split and the grid, as of `score_cells`."""
        self.given, self.grid = score_threshold, tuple(grid)
        self._scores = tuple(dict.fromkeys([*grid, *([] if score_threshold is None else [score_threshold])]))
        self._groups = ImageGroups(by)
        self._tallies: dict[float, dict[Any, ImageTally]] = {score: {} for score in self._scores}

    def add(self, case: ImageCase) -> ImageMatch:
        """Judge the cells found in one image; returns the comparison, as of `match_cells`."""
        match = match_cells(case, min(self._scores))
        self._groups.add(case.image)
        for score, tallies in self._tallies.items():
            tallies[case.image["id"]] = tally(match, score)
        return match

    def by_image(self, score: float) -> dict[Any, dict[str, Any]]:
        """Figures of each image, by its id, at one of the scores: true, found, sartorius and f1."""
        return {
            identity: {
                "true": one.true,
                "found": one.found,
                "sartorius": sartorius([one]),
                "f1": detection_figures(int(one.matched[0]), one.true, one.found)["f1"],
            }
            for identity, one in self._tallies[score].items()
        }

    def report(self) -> dict[str, Any]:
        """The figures; see `score_cells`."""
        curve = []
        for score in self.grid:
            tallies = list(self._tallies[score].values())
            error = float(np.mean([abs(t.found - t.true) for t in tallies])) if tallies else 0.0
            curve.append((sartorius(tallies), error, score))
        best, _, best_score = max(curve, key=lambda point: (point[0], -point[2]))
        near = [point for point in curve if point[0] >= (1 - COUNT_SLACK) * best]
        chosen = best_score if self.given is None else float(self.given)
        at_chosen = self._tallies[chosen]
        return {
            "score_threshold": chosen,
            "chosen": "best here" if self.given is None else "given",
            "best_score_threshold": best_score,
            "best_sartorius": best,
            "counting_score_threshold": min(near, key=lambda point: point[1:])[2],
            "all": summarise_tallies(list(at_chosen.values())),
            "by": {
                name: summarise_tallies([at_chosen[image] for image in sorted(ids)])
                for name, ids in self._groups.split().items()
            },
        }


def match_cells(case: ImageCase, min_score: float = 0.0) -> ImageMatch:
    """Compare the true and found masks of an image, once; empty masks are left out.

    Args:
        case: one image.
        min_score: detections below it are never asked for; leaving them out saves their decoding.

    Returns:
        The comparison; its places are those in `case.cells` and `case.found`.
    """
    true: dict[int, Patch] = {}
    ignored: list[Patch] = []
    found: dict[int, Patch] = {}
    for number, cell in enumerate(case.cells):
        patch = rle_to_patch(cell.rle) if cell.rle is not None else None
        if patch is not None and cell.crowd:
            ignored.append(patch)
        elif patch is not None:
            true[number] = patch
    for number, entry in enumerate(case.found):
        patch = rle_to_patch(entry.rle) if entry.rle is not None and entry.score >= min_score else None
        if patch is not None:
            found[number] = patch
    scores = [case.found[number].score for number in found]
    match = match_image(
        list(true.values()), list(found.values()), scores, case.image["height"], case.image["width"], ignored
    )
    return replace(
        match,
        true_index=np.array(list(true), dtype=np.int64),
        found_index=np.array(list(found), dtype=np.int64)[match.found_index],
    )


def summarise_tallies(tallies: Sequence[ImageTally]) -> dict[str, Any]:
    """Turn counts of images into figures; None stands for "not defined".

    Returns:
        images, true_cells, found_cells: numbers.
        sartorius: see `sartorius`.
        precision, recall, f1: at IoU .5, counts pooled over images; f1 = 2 TP / (2 TP + FP + FN).
        pq: panoptic quality at IoU .5, pooled: sum of matched IoUs / (TP + FP / 2 + FN / 2) (Kirillov et
            al. 2019, "Panoptic segmentation").
        matching_accuracy50: TP / (TP + FP + FN) at IoU .5, pooled. StarDist and Cellpose print it as "AP"
            (Schmidt et al. 2018; Caicedo et al. 2019); it has no precision-recall curve and is not COCO AP.
        aji: aggregated Jaccard index (Kumar et al. 2017, IEEE TMI 36, 1550), mean over the images that have
            any cell.
        seg: mean over true cells of the IoU with the found cell that covers more than half of it, else 0
            (Cell Tracking Challenge, Maska et al. 2014).
        count_mean_true: cells per image; count_mean_error: mean of |found - true|; count_bias: mean of
            found - true; count_correlation: Pearson's r over images.
    """
    true = np.array([t.true for t in tallies], dtype=np.int64)
    found = np.array([t.found for t in tallies], dtype=np.int64)
    hits = int(sum(t.matched[0] for t in tallies))
    false, missed = int(found.sum()) - hits, int(true.sum()) - hits
    jaccard = [t.aji_overlap / t.aji_union for t in tallies if t.aji_union]
    return {
        "images": len(tallies),
        "true_cells": int(true.sum()),
        "found_cells": int(found.sum()),
        "sartorius": sartorius(tallies),
        **detection_figures(hits, int(true.sum()), int(found.sum())),
        "pq": _ratio(sum(t.matched_iou for t in tallies), hits + (false + missed) / 2),
        "matching_accuracy50": _ratio(hits, hits + false + missed),
        "aji": float(np.mean(jaccard)) if jaccard else None,
        "seg": _ratio(sum(t.seg for t in tallies), int(true.sum())),
        **count_figures(true, found),
    }


def detection_figures(hits: int, true: int, found: int) -> dict[str, float | None]:
    """Precision, recall and f1 of `hits` matches between `true` and `found` cells."""
    return {
        "precision": _ratio(hits, found),
        "recall": _ratio(hits, true),
        "f1": _ratio(2 * hits, true + found),
    }


def count_figures(true: np.ndarray, found: np.ndarray) -> dict[str, float | None]:
    """Errors of the counts `[images]`, as `summarise_tallies` names them."""
    spread = len(true) > 1 and true.std() > 0 and found.std() > 0
    return {
        "count_mean_true": float(true.mean()),
        "count_mean_error": float(np.abs(found - true).mean()),
        "count_bias": float((found - true).mean()),
        "count_correlation": float(np.corrcoef(true, found)[0, 1]) if spread else None,
    }


def sartorius(tallies: Sequence[ImageTally]) -> float:
    """Mean over images of the mean over IoU .50:.05:.95 of TP / (TP + FP + FN).

    An image without cells scores 1 when nothing is found in it, else 0.

    Source: evaluation page of the Kaggle competition "Sartorius - Cell Instance Segmentation" (2021).
    """
    scores = []
    for counts in tallies:
        union = counts.true + counts.found - counts.matched
        scores.append(np.where(union > 0, counts.matched / np.maximum(union, 1), 1.0).mean())
    return float(np.mean(scores))


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
