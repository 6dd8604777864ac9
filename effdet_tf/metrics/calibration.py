"""Scores as probabilities, and what they tell of a whole image: how true that is, and what makes it so.

A score is calibrated when of all cells of score .7 seven in ten match an annotated cell at IoU .5 (Guo et al.
2017, "On calibration of modern neural networks"). Networks learn to score by the IoU that they expect.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from effdet_tf.config import PostprocessConfig
from effdet_tf.metrics.instances import Fields, ImageGroups
from effdet_tf.metrics.matching import Match
from effdet_tf.prediction.trust import count_spread, log_odds

BINS = 10  # of equal width, in the reliability diagram and its error
Lines = tuple[tuple[float, float], ...]

_FEWEST = 50  # cells that match, and cells that do not, below which no lines are fitted
_LINES = 12  # at most, and one at either end
_ENDS = (0.05, 0.95)  # of the interval of counts
_USUAL = 1.0  # how much of a spread, in log odds, counts for an expected F1 that moves as the mean score does
_WORSE = 1 / 16
_STEEPEST = 50.0  # of the lines of counts


class Reliability:
    """Collects the scores of predictions, and whether each matches, of images that are added one by one."""

    def __init__(self, by: Fields = "cell_type") -> None:
        """`by`: the image field, or fields, to split by."""
        self._groups = ImageGroups(by)
        self._found: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, image: dict[str, Any], match: Match) -> None:
        """Take an image, COCO's, and the match of its predictions."""
        self._groups.add(image)
        self._found[image["id"]] = match.scores.astype(np.float32), match.matched_gt >= 0

    def report(self) -> dict[str, Any]:
        """How far the scores are from probabilities, of all images and of each group.

        Returns:
            `{"all": group, "by": {value: group}, "lines", "after": {"all", "by"}}`, each group `{"cells",
            "error", "bins"}`. error is the expected calibration error: the mean difference of score and share
            of matches of `BINS` bins, weighted by their cells; None without cells. bins has `[mean score,
            share that match, cells]` of those that hold any. lines are `fit_lines` of all, and "after" is
            what they make of the same cells.
        """
        every = self._joined(self._found)
        groups = {name: self._joined(ids) for name, ids in self._groups.split().items()}
        lines = fit_lines(*every)

        def bins(scores: np.ndarray, hits: np.ndarray) -> dict[str, Any]:
            return bins_of(PostprocessConfig(calibration=lines).calibrated(scores), hits)

        return {
            "all": bins_of(*every),
            "by": {name: bins_of(*group) for name, group in groups.items()},
            "lines": [list(pair) for pair in lines],
            "after": {"all": bins(*every), "by": {name: bins(*group) for name, group in groups.items()}},
        }

    def _joined(self, ids: Collection[Any]) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._found[identity] for identity in sorted(ids)]
        scores, hits = zip(*parts, strict=True) if parts else ([np.zeros(0)], [np.zeros(0, bool)])
        return np.concatenate(scores), np.concatenate(hits)


def fit_lines(scores: np.ndarray, hits: np.ndarray) -> Lines:
    """The rising lines from (0, 0) to (1, 1) that make probabilities of scores: `postprocess.calibration`.

    Centred isotonic regression (Oron and Flournoy 2017) over `_LINES` parts of as many cells: lines run
    through mean score and share of matches of each part, parts pooled where the share would fall. It measures
    better than Platt's logistic curve (`benchmarks/trust.md`).

    Args:
        scores: `[N]`, 0 to 1.
        hits: bool `[N]`, whether each matches.

    Returns:
        Pairs; none where fewer than 50 cells match, or do not.
    """
    if min(np.count_nonzero(hits), np.count_nonzero(~hits)) < _FEWEST:
        return ()
    order = np.argsort(scores, kind="stable")
    parts = np.array_split(order, _LINES)
    x, y = ([float(values[part].mean(dtype=np.float64)) for part in parts] for values in (scores, hits))
    blocks: list[list[float]] = []  # cells, and their mean score and share of matches
    for own_x, own_y, part in zip(x, y, parts, strict=True):
        blocks.append([float(len(part)), own_x, own_y])
        while len(blocks) > 1 and blocks[-2][2] >= blocks[-1][2]:  # pool adjacent violators
            mass, *means = blocks.pop()
            before = blocks[-1]
            total = before[0] + mass
            pooled = [(before[0] * a + mass * b) / total for a, b in zip(before[1:], means, strict=True)]
            blocks[-1] = [total, *pooled]
    # No two scores become one: lines rise to their ends, too.
    points = [(0.0, 0.0)]
    for _, *block in blocks:
        pair = round(block[0], 4), round(block[1], 4)
        if all(before < value < 1 for before, value in zip(points[-1], pair, strict=True)):
            points.append(pair)
    return (*points, (1.0, 1.0))


class JudgedImage(NamedTuple):
    """An annotated image, and what was found in it from the score on that cells are reported from."""

    source: str
    worse: bool  # whether it was spoiled on purpose
    true: int  # annotated cells
    found: int
    matched: int  # of them, at IoU .5
    mean: float  # of the scores of what was found; 0 where nothing was


def fit_trust(images: Collection[JudgedImage]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What `prediction.trust.judge` needs to know, `trust.f1` and `trust.count`.

    Each source weighs the same. For counts a spoiled image weighs a sixteenth: with the weight of a good one
    it makes all intervals several times as wide.

    Args:
        images: of every quality that the network is to judge; at least one.
    """
    names = [image.source for image in images]
    weights = np.array([1 / names.count(name) for name in names])
    numbers = np.array([image[1:] for image in images], np.float64)
    worse, true, found, matched, mean = numbers.T
    some = (found > 0) & (true > 0)
    f1 = 2 * matched[some] / (found + true)[some]
    quality = _line(log_odds(mean[some]), log_odds(f1), weights[some])
    ratio = np.log((true + 0.5) / (found + 0.5)) / count_spread(found)
    weights *= np.where(worse > 0, _WORSE, 1.0)
    ends = [number for end in _ENDS for number in _quantile_line(1 - mean, ratio, weights, end)]
    return _short(quality), _short(ends)


def _quantile_line(x: np.ndarray, y: np.ndarray, weights: np.ndarray, share: float) -> tuple[float, float]:
    """Offset and slope of the line below which a share of the points lies (Koenker and Bassett 1978)."""

    def offset(slope: float) -> float:
        rest = y - slope * x
        order = np.argsort(rest)
        reached = np.cumsum(weights[order]) / weights.sum()
        return float(rest[order][min(int(np.searchsorted(reached, share)), len(rest) - 1)])

    def cost(slope: float) -> float:
        rest = y - slope * x - offset(slope)
        return float(weights @ np.where(rest > 0, share * rest, (share - 1) * rest))

    low, high = -_STEEPEST, _STEEPEST
    while high - low > 1e-4:  # the cost has one minimum
        third = (high - low) / 3
        low, high = (low, high - third) if cost(low + third) <= cost(high - third) else (low + third, high)
    slope = (low + high) / 2
    return offset(slope), slope


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Offset and slope of the line through points, by least squares; a slope that little tells is near 1."""
    if not len(x):
        return 0.0, 1.0
    weights = weights / weights.sum()
    x_mean, y_mean = weights @ x, weights @ y
    together, spread = weights @ ((x - x_mean) * (y - y_mean)), weights @ (x - x_mean) ** 2
    slope = (together + _USUAL) / (spread + _USUAL)
    return float(y_mean - slope * x_mean), float(slope)


def _short(values: Collection[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def bins_of(scores: np.ndarray, hits: np.ndarray) -> dict[str, Any]:
    """`{"cells", "error", "bins"}` of cells, as of `Reliability.report`; of no probabilities no bins."""
    if np.any((scores < 0) | (scores > 1)) or np.all(scores == 1):  # 1: there were none in the file
        return {"cells": len(scores), "error": None, "bins": []}
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    cells = np.bincount(place, minlength=BINS)
    used = cells > 0
    mean, share = (np.bincount(place, own, BINS)[used] / cells[used] for own in (scores, hits))
    error = float((np.abs(mean - share) * cells[used]).sum() / cells.sum()) if len(scores) else None
    rows = zip(mean.tolist(), share.tolist(), cells[used].tolist(), strict=True)
    return {"cells": len(scores), "error": error, "bins": [list(row) for row in rows]}
