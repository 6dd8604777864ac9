"""How sure the difference of two sets of predictions is: a paired bootstrap over the images.

Images are drawn again with replacement, the same ones for both, and each metric is computed anew of every
draw (Efron and Tibshirani 1993, "An Introduction to the Bootstrap"): cells of one image are alike, so images
are what is drawn, not cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from effdet_tf.metrics.matching import MatchCounts
from effdet_tf.metrics.precision import PackedMatch, precision_of_draws

if TYPE_CHECKING:
    from effdet_tf.metrics.scores import Evaluator

SAMPLES, AP_SAMPLES = 10_000, 500
_INTERVAL = (2.5, 97.5)  # percentiles
_AT_ONCE = 2_000_000  # draws x images
_ACCURACY = "matching_accuracy"  # the mean of those at each IoU, whose names end with it in %


class Difference(NamedTuple):
    """A metric of two sets of predictions; None where one of them is not defined."""

    first: float | None
    second: float | None
    difference: float | None  # second - first
    low: float | None  # 95 % interval of the difference
    high: float | None
    p: float | None  # two-sided: how often a difference of the other sign, or none, is drawn


def compare(first: Evaluator, second: Evaluator) -> dict[str, Difference]:
    """Compare two sets of predictions on the same images, each at the score of a cell that its report has.

    Gives AP, AP50 and AFNR of the LIVECell protocol, of masks where they are scored, and what
    `compare_counts` has.

    Raises:
        UserError: for predictions that do not fit the images.
    """
    (counts, matches), (other_counts, other_matches) = first.counted(), second.counted()
    return compare_precision(matches, other_matches) | compare_counts(counts, other_counts)


def compare_counts(
    first: Sequence[MatchCounts], second: Sequence[MatchCounts], samples: int = SAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Compare what was counted on the same images, in the same order.

    Args:
        first: one of each image.
        second: likewise, of the other predictions.
        samples: draws.
        seed: of the draws.

    Returns:
        By name, as of `summarise_counts`: all metrics that are shares or means, but the correlation.
    """
    terms = [[_terms(one) for one in counts] for counts in (first, second)]
    names = list(terms[0][0])
    tables = [np.array([list(one.values()) for one in own]) for own in terms]
    accuracies = [k for k, name in enumerate(names) if name.startswith(_ACCURACY)]

    def metrics(draws: np.ndarray) -> list[np.ndarray]:
        ratios = [_ratios(table, draws) for table in tables]
        return [np.column_stack([own, own[:, accuracies].mean(1)]) for own in ratios]

    compared = _compare([*names, _ACCURACY], metrics, len(first), samples, seed)
    spare = [f"{_ACCURACY}{step}" for step in range(50, 100, 5) if step not in (50, 75)]
    spare += [_ACCURACY] if len(accuracies) == 1 else []  # boxes are matched at .5 alone
    return {name: one for name, one in compared.items() if name not in spare}


def compare_precision(
    first: Sequence[PackedMatch], second: Sequence[PackedMatch], samples: int = AP_SAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Compare AP, AP50 and AFNR of what was matched on the same images; see `compare_counts`."""

    def metrics(draws: np.ndarray) -> list[np.ndarray]:
        return [precision_of_draws(matches, draws) for matches in (first, second)]

    return _compare(["AP", "AP50", "AFNR"], metrics, len(first), samples, seed)


def _compare(
    names: Sequence[str],
    metrics: Callable[[np.ndarray], list[np.ndarray]],  # of draws: `[draws, metrics]` of each set
    images: int,
    samples: int,
    seed: int,
) -> dict[str, Difference]:
    first, second = (values[0] for values in metrics(np.ones((1, images))))
    drawn = np.concatenate([np.subtract(*metrics(draws)[::-1]) for draws in _draws(images, samples, seed)])
    return {name: _difference(first[k], second[k], drawn[:, k]) for k, name in enumerate(names)}


def _draws(images: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, float64 `[draws, images]`, in parts."""
    generator = np.random.default_rng(seed)
    part = max(1, _AT_ONCE // images)
    for start in range(0, samples, part):
        number = min(part, samples - start)
        yield generator.multinomial(images, np.full(images, 1 / images), number).astype(np.float64)


def _terms(counts: MatchCounts) -> dict[str, tuple[float, float]]:
    """What an image adds to the numerator and the denominator of each metric; see `summarise_counts`."""
    true, found, hits = counts.true, counts.found, int(counts.matched[0])
    both, union = true + found, true + found - counts.matched
    accuracy = np.where(union > 0, counts.matched / np.maximum(union, 1), 1.0)
    terms = {"sartorius": (float(accuracy.mean()), 1.0)} if len(counts.matched) > 1 else {}
    terms |= {
        "f1": (2 * hits, both),
        "mean_f1": (2 * hits / both if both else 1.0, 1.0),
        "precision": (hits, found),
        "recall": (hits, true),
        "count_mean_error": (abs(found - true), 1.0),
        "count_bias": (found - true, 1.0),
    }
    terms |= {
        f"{_ACCURACY}{50 + 5 * step}": (int(matched), both - int(matched))
        for step, matched in enumerate(counts.matched)
    }
    if len(counts.matched) > 1:
        jaccard = (counts.aji_overlap / counts.aji_union, 1.0) if counts.aji_union else (0.0, 0.0)
        terms |= {"pq": (counts.matched_iou, both / 2), "aji": jaccard, "seg": (counts.seg, true)}
    return terms


def _ratios(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Metrics `[draws, metrics]` of terms `[images, metrics, 2]` and draws; NaN where one is not defined."""
    parts, wholes = (np.einsum("si,im->sm", weights, table[:, :, k]) for k in (0, 1))
    return np.divide(parts, wholes, out=np.full(parts.shape, np.nan), where=wholes > 0)


def _difference(first: float, second: float, drawn: np.ndarray) -> Difference:
    known = drawn[np.isfinite(drawn)]
    if not (np.isfinite(first) and np.isfinite(second) and len(known)):
        one, other = (float(value) if np.isfinite(value) else None for value in (first, second))
        return Difference(one, other, None, None, None, None)
    low, high = np.percentile(known, _INTERVAL)
    beyond = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0))
    p = min(1.0, 2 * (beyond + 1) / (len(known) + 1))
    return Difference(float(first), float(second), float(second - first), float(low), float(high), p)
