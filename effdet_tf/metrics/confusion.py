"""What became of every cell: confusion of the classes and sizes of true and found cells, at any score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from effdet_tf.metrics.instances import ImageCase
from effdet_tf.metrics.matching import ImageMatch

# Of the histograms, px: four bars to a doubling of the size.
SIZE_EDGES = tuple(round(2 ** (step / 4), 2) for step in range(4, 45))
_NONE, _UNKNOWN = -1, -2  # in place of a class: no true cell; one that the data do not have


class Outcome(NamedTuple):
    """The true and the found cells of one image, crowd regions left out.

    Attributes:
        true_kinds: category id of each of the G true cells.
        true_areas: float64 `[G]`, px^2.
        scores: float64 `[P]` of the found cells.
        kinds: category id of each found cell.
        areas: float64 `[P]`, px^2.
        partner_kinds: category id of the true cell that each found one matches at IoU .5; None for none.
    """

    true_kinds: Sequence[int]
    true_areas: np.ndarray
    scores: np.ndarray
    kinds: Sequence[Any]
    areas: np.ndarray
    partner_kinds: Sequence[int | None]


def mask_outcome(case: ImageCase, match: ImageMatch) -> Outcome:
    """The outcome of masks.

    Args:
        case: one image.
        match: `metrics.cells.match_cells` of it.
    """
    true_kinds = [case.cells[number].category_id for number in match.true_index]
    return Outcome(
        true_kinds,
        match.true_areas,
        match.scores,
        [case.found[number].category_id for number in match.found_index],
        match.found_areas,
        [None if number < 0 else true_kinds[number] for number in match.partners()],
    )


class OutcomeJudge:
    """Takes the outcomes of images; 13 bytes of a found cell stay in memory."""

    def __init__(self, categories: Sequence[dict[str, Any]]) -> None:
        """`categories` are COCO's, `{"id", "name"}`."""
        self._names = [str(category["name"]) for category in categories]
        self._places = {int(category["id"]): place for place, category in enumerate(categories)}
        self._true = np.zeros(len(self._names), np.int64)
        self._true_sizes = np.zeros(len(SIZE_EDGES) + 1, np.int64)
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, outcome: Outcome) -> None:
        """Take one image."""
        places = [self._places[kind] for kind in outcome.true_kinds]
        self._true += np.bincount(np.array(places, np.int64), minlength=len(self._true))
        self._true_sizes += np.bincount(_bars(outcome.true_areas), minlength=len(self._true_sizes))
        kinds = [self._places.get(kind, _UNKNOWN) for kind in outcome.kinds]
        partners = [_NONE if kind is None else self._places[kind] for kind in outcome.partner_kinds]
        bars = _bars(outcome.areas).astype(np.int8)
        self._found.append((outcome.scores, np.array(kinds, np.int16), np.array(partners, np.int16), bars))

    def report(self, score: float) -> dict[str, Any]:
        """The figures at a score.

        Returns:
            `{"confusion", "sizes"}`. confusion is `{"classes": [C names], "counts": [C][C] true by found,
            "missed": [C], "false": [C]}`, of matches at IoU .5 whatever the class; None where there is one
            class, or a found cell has a class that the data do not have. sizes is `{"edges": px, "true":
            counts, "found": counts}`, by the square root of the area; the first and the last of the counts
            are below and above all edges.
        """
        names = len(self._names)
        columns = zip(*self._found, strict=True) if self._found else [[np.zeros(0)]] * 4
        scores, kinds, partners, bars = (np.concatenate(column) for column in columns)
        shown = scores >= score
        kinds, partners, bars = (column[shown].astype(np.int64) for column in (kinds, partners, bars))
        sizes = np.bincount(bars, minlength=len(self._true_sizes))
        confusion = None
        if names > 1 and not (kinds == _UNKNOWN).any():
            matched = partners != _NONE
            pairs = np.bincount(partners[matched] * names + kinds[matched], minlength=names * names)
            counts = pairs.reshape(names, names)
            confusion = {
                "classes": self._names,
                "counts": counts.tolist(),
                "missed": (self._true - counts.sum(1)).tolist(),
                "false": np.bincount(kinds[~matched], minlength=names).tolist(),
            }
        return {
            "confusion": confusion,
            "sizes": {
                "edges": list(SIZE_EDGES),
                "true": self._true_sizes.tolist(),
                "found": sizes.tolist(),
            },
        }


def _bars(areas: np.ndarray) -> np.ndarray:
    """The bar of the histogram that each area belongs to."""
    return np.searchsorted(SIZE_EDGES, np.sqrt(np.maximum(areas, 0)), side="right")
