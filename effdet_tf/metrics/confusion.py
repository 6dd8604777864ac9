"""Confusion matrix of the classes, and sizes of annotated and predicted cells, at any score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from effdet_tf.metrics.instances import ImageInstances
from effdet_tf.metrics.matching import Match

# Of the histograms, px: four bars to a doubling of the size.
SIZE_EDGES = tuple(round(2 ** (step / 4), 2) for step in range(4, 45))
_NONE, _UNKNOWN = -1, -2  # in place of a class: no annotated cell; one that the data do not have


class ConfusionMatrix:
    """Counts the matches of images by class; 13 bytes of a prediction stay in memory."""

    def __init__(self, categories: Sequence[dict[str, Any]]) -> None:
        """`categories` are COCO's, `{"id", "name"}`."""
        self._names = [str(category["name"]) for category in categories]
        self._places = {int(category["id"]): place for place, category in enumerate(categories)}
        self._true = np.zeros(len(self._names), np.int64)
        self._true_sizes = np.zeros(len(SIZE_EDGES) + 1, np.int64)
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, image: ImageInstances, match: Match) -> None:
        """Take one image and its match, whatever the classes."""
        places = [self._places[image.ground_truth[k].category_id] for k in match.gt_index]
        gt_classes = np.array([*places, _NONE], np.int16)  # the last is that of no match
        classes = [self._places.get(image.predictions[k].category_id, _UNKNOWN) for k in match.pred_index]
        self._true += np.bincount(gt_classes[:-1], minlength=len(self._true))
        self._true_sizes += np.bincount(_bars(match.gt_areas), minlength=len(self._true_sizes))
        bars = _bars(match.pred_areas).astype(np.int8)
        self._found.append((match.scores, np.array(classes, np.int16), gt_classes[match.matched_gt], bars))

    def report(self, score: float) -> dict[str, Any]:
        """Confusion matrix and sizes at a score.

        Returns:
            `{"confusion", "sizes"}`. confusion is `{"classes": [C names], "counts": [C][C] annotated by
            predicted, "missed": [C], "false": [C]}`, of matches at IoU .5 whatever the class; None where
            there is one class, or a prediction has a class that the data do not have. sizes is `{"edges": px,
            "true": counts, "found": counts}`, by the square root of the area; the first and the last of the
            counts are below and above all edges.
        """
        names = len(self._names)
        columns = zip(*self._found, strict=True) if self._found else [[np.zeros(0)]] * 4
        scores, *rest = (np.concatenate(column) for column in columns)
        classes, gt_classes, bars = (column[scores >= score].astype(np.int64) for column in rest)
        confusion = None
        if names > 1 and not (classes == _UNKNOWN).any():
            matched = gt_classes != _NONE
            pairs = np.bincount(gt_classes[matched] * names + classes[matched], minlength=names * names)
            counts = pairs.reshape(names, names)
            confusion = {
                "classes": self._names,
                "counts": counts.tolist(),
                "missed": (self._true - counts.sum(1)).tolist(),
                "false": np.bincount(classes[~matched], minlength=names).tolist(),
            }
        sizes = {
            "edges": list(SIZE_EDGES),
            "true": self._true_sizes.tolist(),
            "found": np.bincount(bars, minlength=len(self._true_sizes)).tolist(),
        }
        return {"confusion": confusion, "sizes": sizes}


def _bars(areas: np.ndarray) -> np.ndarray:
    """The bar of the histogram that each area belongs to."""
    return np.searchsorted(SIZE_EDGES, np.sqrt(np.maximum(areas, 0)), side="right")
