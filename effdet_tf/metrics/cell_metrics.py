"""Scores of the cell community: the Sartorius metric, F1, PQ, AJI, SEG, matching accuracy and counts.

All of them look at what a user gets: cells above one score, no pixel in two cells. Annotated cells may
overlap. A match is one-to-one with an IoU strictly above the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from effdet_tf.geometry.rle import Patch, rle_to_patch
from effdet_tf.metrics.instances import Fields, ImageGroups, ImageInstances, iterate_instances
from effdet_tf.metrics.matching import Match, MatchCounts, count_matches, match_masks

SCORE_GRID = tuple(round(0.025 * step, 3) for step in range(2, 39))


def score_cells(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    score_threshold: float | None = None,
    by: Fields = "cell_type",
    grid: Sequence[float] = SCORE_GRID,
) -> dict[str, Any]:
    """Score instance masks at one detection score.

    Args:
        ground_truth: COCO dict; regions with `iscrowd` are not evaluated.
        predictions: COCO results with a segmentation RLE each.
        score_threshold: minimum score of a cell; None takes the best of `grid` by the Sartorius metric, on
            these very predictions (an upper bound: choose it on other images for an honest result).
        by: image field to split the images by, or several; None for no split.
        grid: the scores to try.

    Returns:
        `{"score_threshold", "chosen": "given" or "best here", "best_score_threshold", "best_sartorius",
        "report_score", "all": metrics, "by": {value: metrics}}`; see `summarise_counts` for the metrics.
        "report_score" is the score to report cells by: of those of `grid` at which a cell matches, the one
        of the best "mean_f1", the lowest of equals; None where none matches.

    Raises:
        UserError: for a prediction on an unknown image or without a finite score.
    """
    evaluator = CellEvaluator(score_threshold, by, grid)
    for image in iterate_instances(ground_truth, predictions):
        evaluator.add(image)
    return evaluator.report()


class CellEvaluator:
    """Computes the metrics of `score_cells` of annotated images that are added one by one."""

    best_by = "sartorius"  # the metric that chooses the score

    def __init__(
        self,
        score_threshold: float | None = None,
        by: Fields = "cell_type",
        grid: Sequence[float] = SCORE_GRID,
    ) -> None:
        """Set the score, the split and the grid, as of `score_cells`."""
        self.given, self.grid = score_threshold, tuple(grid)
        scores = [*grid, *([] if score_threshold is None else [score_threshold])]
        self._counts: dict[float, dict[Any, MatchCounts]] = {score: {} for score in scores}
        self._groups = ImageGroups(by)

    def add(self, image: ImageInstances) -> Match:
        """Evaluate the masks predicted in one image; returns the match, as of `match_cells`."""
        match = match_cells(image, min(self._counts))
        self._groups.add(image.image)
        for score, counts in self._counts.items():
            counts[image.image["id"]] = count_matches(match, score)
        return match

    def summarise(self, counts: Sequence[MatchCounts]) -> dict[str, Any]:
        """The metrics of some images."""
        return summarise_counts(counts)

    def by_image(self, score: float) -> dict[Any, dict[str, Any]]:
        """Metrics of each image, by its id, at one of the scores: true, found, f1, and sartorius of masks."""
        result = {}
        for identity, counts in self._counts[score].items():
            values = self.summarise([counts])
            metrics = {name: values[name] for name in ("sartorius", "f1") if name in values}
            result[identity] = {"true": counts.true, "found": counts.found} | metrics
        return result

    def counted(self) -> list[MatchCounts]:
        """The counts of each image, by rising id, at the score of `report`."""
        own = self._counts[self.report()["score_threshold"]]
        return [own[identity] for identity in sorted(own)]

    def report(self) -> dict[str, Any]:
        """The metrics of all images; see `score_cells`."""
        summaries = {score: self.summarise(list(counts.values())) for score, counts in self._counts.items()}
        quality = {score: summary[self.best_by] or 0.0 for score, summary in summaries.items()}
        best_score = max(self.grid, key=lambda score: (quality[score], -score))
        # Where nothing matches, a score is good for the images without cells alone.
        matching = [score for score in self.grid if summaries[score]["f1"]]
        report_score = max(matching, key=lambda score: (summaries[score]["mean_f1"], -score), default=None)
        chosen = best_score if self.given is None else float(self.given)
        own = self._counts[chosen]
        groups = {name: [own[image] for image in sorted(ids)] for name, ids in self._groups.split().items()}
        return {
            "score_threshold": chosen,
            "chosen": "best here" if self.given is None else "given",
            "best_score_threshold": best_score,
            f"best_{self.best_by}": quality[best_score],
            "report_score": report_score,
            "all": summaries[chosen],
            "by": {name: self.summarise(counts) for name, counts in groups.items()},
        }


def match_cells(image: ImageInstances, min_score: float = 0.0) -> Match:
    """Match the annotated and predicted masks of an image; empty masks are left out.

    Predictions below `min_score` are never asked for; leaving them out saves their decoding. The match's
    places are those in `image.ground_truth` and `image.predictions`.
    """
    ground_truth: dict[int, Patch] = {}
    ignored: list[Patch] = []
    predictions: dict[int, Patch] = {}
    for number, cell in enumerate(image.ground_truth):
        patch = rle_to_patch(cell.rle) if cell.rle is not None else None
        if patch is not None and cell.crowd:
            ignored.append(patch)
        elif patch is not None:
            ground_truth[number] = patch
    for number, entry in enumerate(image.predictions):
        patch = rle_to_patch(entry.rle) if entry.rle is not None and entry.score >= min_score else None
        if patch is not None:
            predictions[number] = patch
    scores = [image.predictions[number].score for number in predictions]
    size = image.image["height"], image.image["width"]
    match = match_masks(list(ground_truth.values()), list(predictions.values()), scores, *size, ignored)
    return replace(
        match,
        gt_index=np.array(list(ground_truth), dtype=np.int64),
        pred_index=np.array(list(predictions), dtype=np.int64)[match.pred_index],
    )


def summarise_counts(counts: Sequence[MatchCounts]) -> dict[str, Any]:
    """Turn counts of images into metrics; None stands for "not defined".

    Returns:
        images, true_cells, found_cells: numbers.
        sartorius: see `sartorius`.
        precision, recall, f1: at IoU .5, counts pooled over images; f1 = 2 TP / (2 TP + FP + FN).
        mean_f1: see `mean_f1`.
        pq: panoptic quality at IoU .5, pooled: sum of matched IoUs / (TP + FP / 2 + FN / 2) (Kirillov et
            al. 2019, "Panoptic segmentation").
        matching_accuracy50, matching_accuracy75: TP / (TP + FP + FN) at IoU .5 and .75, pooled. StarDist and
            Cellpose print it as "AP" (Schmidt et al. 2018; Caicedo et al. 2019); it has no precision-recall
            curve and is not COCO AP. matching_accuracy: its mean over IoU .50:.05:.95.
        aji: aggregated Jaccard index (Kumar et al. 2017, IEEE TMI 36, 1550), mean over the images that have
            any cell.
        seg: mean over annotated cells of the IoU with the prediction that covers more than half of it, else 0
            (Cell Tracking Challenge, Maska et al. 2014).
        missed, merged, split, false: how many annotated cells have no match, and how many of the predictions
            without one are of each kind, see `merged_and_split`; false ones are of neither.
        count_mean_true: cells per image; count_mean_error: mean of |found - true|; count_bias: mean of
            found - true; count_correlation: Pearson's r over images.
    """
    true = np.array([c.true for c in counts], dtype=np.int64)
    found = np.array([c.found for c in counts], dtype=np.int64)
    hits = int(sum(c.matched[0] for c in counts))
    true_cells, found_cells = int(true.sum()), int(found.sum())
    wrong, missed = found_cells - hits, true_cells - hits
    merged, split = sum(c.merged for c in counts), sum(c.split for c in counts)
    jaccard = [c.aji_overlap / c.aji_union for c in counts if c.aji_union]
    spread = len(true) > 1 and true.std() > 0 and found.std() > 0
    return {
        "images": len(counts),
        "true_cells": true_cells,
        "found_cells": found_cells,
        "sartorius": sartorius(counts),
        "precision": _ratio(hits, found_cells),
        "recall": _ratio(hits, true_cells),
        "f1": _ratio(2 * hits, true_cells + found_cells),
        "mean_f1": mean_f1(counts),
        "pq": _ratio(sum(c.matched_iou for c in counts), hits + (wrong + missed) / 2),
        "matching_accuracy50": _ratio(hits, hits + wrong + missed),
        **_accuracies(counts, true_cells + found_cells),
        "aji": float(np.mean(jaccard)) if jaccard else None,
        "seg": _ratio(sum(c.seg for c in counts), true_cells),
        "missed": missed,
        "merged": merged,
        "split": split,
        "false": wrong - merged - split,
        "count_mean_true": float(true.mean()),
        "count_mean_error": float(np.abs(found - true).mean()),
        "count_bias": float((found - true).mean()),
        "count_correlation": float(np.corrcoef(true, found)[0, 1]) if spread else None,
    }


def _accuracies(counts: Sequence[MatchCounts], cells: int) -> dict[str, float | None]:
    """Matching accuracy at IoU .75, and its mean over all IoUs; of boxes, matched at .5 alone, neither."""
    matched = np.sum([one.matched for one in counts], axis=0)
    if not cells or len(matched) == 1:
        return {"matching_accuracy75": None, "matching_accuracy": None}
    values = matched / (cells - matched)
    return {"matching_accuracy75": float(values[5]), "matching_accuracy": float(values.mean())}


def sartorius(counts: Sequence[MatchCounts]) -> float:
    """Mean over images of the mean over IoU .50:.05:.95 of TP / (TP + FP + FN).

    An image without cells scores 1 when nothing is found in it, else 0.

    Source: evaluation page of the Kaggle competition "Sartorius - Cell Instance Segmentation" (2021).
    """
    scores = []
    for one in counts:
        union = one.true + one.found - one.matched
        scores.append(np.where(union > 0, one.matched / np.maximum(union, 1), 1.0).mean())
    return float(np.mean(scores))


def mean_f1(counts: Sequence[MatchCounts]) -> float:
    """Mean over images of the image's own F1 at IoU .5: an image of few cells weighs as one of many.

    An image without cells scores 1 when nothing is found in it, else 0.
    """
    cells = [one.true + one.found for one in counts]
    pairs = zip(counts, cells, strict=True)
    return float(np.mean([2 * one.matched[0] / both if both else 1.0 for one, both in pairs]))


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
