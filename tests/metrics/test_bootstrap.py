"""The paired bootstrap, against draws that are made by hand, and where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from effdet_tf.metrics.bootstrap import Difference, compare_counts, compare_precision
from effdet_tf.metrics.cell_metrics import summarise_counts
from effdet_tf.metrics.matching import MatchCounts
from effdet_tf.metrics.precision import PackedMatch, precision_and_recall, precision_of_draws


def counts(random: np.random.Generator, images: int, share: float) -> list[MatchCounts]:
    """Images of 5 to 30 cells of which about a share is found; every sixth is empty."""
    made = []
    for number in range(images):
        true = 0 if number % 6 == 5 else int(random.integers(5, 30))
        hits = int(random.binomial(true, share))
        matched = np.sort(random.integers(0, hits + 1, 10))[::-1].copy()
        matched[0] = hits
        found = hits + int(random.integers(0, 4))
        areas = 100 * (true + found)
        made.append(MatchCounts(true, found, matched, 0.8 * hits, 0.7 * hits, 80 * hits, areas))
    return made


def matches(random: np.random.Generator, images: int, share: float) -> list[PackedMatch]:
    """Matches of one area range; scores of hits are higher, many are equal."""
    made = []
    for _ in range(images):
        found = int(random.integers(1, 40))
        first = random.random(found) < share
        hits = first & (random.random((10, found)) < np.linspace(1, 0.1, 10)[:, None])
        scores = np.round(random.random(found) * 0.5 + 0.4 * first, 2)
        order = np.argsort(-scores, kind="stable")
        bits = np.stack([hits[None], random.random((1, 10, found)) < 0.05])[..., order]
        made.append(PackedMatch(scores[order], np.packbits(bits, axis=-1), np.array([found + 3])))
    return made


def test_the_figures_are_those_of_the_report():
    random = np.random.default_rng(0)
    first, second = counts(random, 40, 0.5), counts(random, 40, 0.7)
    found = compare_counts(first, second, samples=50)
    sums = {"images", "true_cells", "found_cells", "missed", "merged", "split", "false", "count_mean_true"}
    assert set(found) == set(summarise_counts(first)) - sums - {"count_correlation"}
    for name, one in found.items():
        assert one.first == pytest.approx(summarise_counts(first)[name]), name
        assert one.second == pytest.approx(summarise_counts(second)[name]), name
        assert one.difference == pytest.approx(one.second - one.first) and one.low <= one.high


def test_intervals_are_those_of_images_drawn_again():
    random = np.random.default_rng(1)
    first, second = counts(random, 30, 0.5), counts(random, 30, 0.55)
    drawn = {
        name: [] for name in ("f1", "pq", "seg", "aji", "sartorius", "count_mean_error", "matching_accuracy")
    }
    for _ in range(2000):
        chosen = random.integers(0, 30, 30)
        before, after = (summarise_counts([own[k] for k in chosen]) for own in (first, second))
        for name, values in drawn.items():
            values.append(after[name] - before[name])
    found = compare_counts(first, second, samples=4000)
    for name, values in drawn.items():
        low, high = np.percentile(values, [2.5, 97.5])
        width = high - low
        assert found[name].low == pytest.approx(low, abs=0.1 * width), name
        assert found[name].high == pytest.approx(high, abs=0.1 * width), name


def test_chance_is_told_from_a_difference():
    random = np.random.default_rng(2)
    first = counts(random, 60, 0.5)
    assert compare_counts(first, first)["f1"][2:] == (0.0, 0.0, 0.0, 1.0)
    better = compare_counts(first, counts(random, 60, 0.8))["f1"]
    assert better.low > 0 and better.p < 0.001
    # Of two that are equally good few differences are taken for one: .05 are by definition.
    p = [compare_counts(counts(random, 40, 0.6), counts(random, 40, 0.6), 500)["f1"].p for _ in range(100)]
    assert np.mean(np.array(p) < 0.05) < 0.13 and 0.35 < np.mean(p) < 0.65


def test_without_a_cell_nothing_is_defined():
    empty = [MatchCounts(0, 0, np.zeros(10, np.int64)) for _ in range(3)]
    found = compare_counts(empty, [replace(one, found=1) for one in empty], 100)
    assert found["recall"] == found["aji"] == Difference(None, None, None, None, None, None)
    assert found["count_mean_error"][:3] == (0.0, 1.0, 1.0)


def test_boxes_have_the_metrics_of_boxes():
    boxes = [MatchCounts(3, 3, np.array([2])), MatchCounts(4, 5, np.array([4]))]
    of_masks = {"sartorius", "pq", "aji", "seg", "matching_accuracy", "matching_accuracy75"}
    assert set(compare_counts(boxes, boxes, 10)) & of_masks == set()


def test_average_precision_of_draws_is_that_of_the_images_drawn():
    random = np.random.default_rng(3)
    images = matches(random, 9, 0.6)
    draws = np.array([[1] * 9, [2, 0, 1, 3, 0, 0, 1, 1, 1], [0, 0, 0, 0, 9, 0, 0, 0, 0]], float)
    found = precision_of_draws(images, draws)
    for row, weights in zip(found, draws, strict=True):
        repeated = [images[k] for k in range(9) for _ in range(int(weights[k]))]
        precision, recall = precision_and_recall(repeated, 0, (2000,))
        # Equal scores may come in another order within a draw.
        expected = [precision.mean(), precision[0].mean(), 1 - recall.mean()]
        assert row == pytest.approx(expected, abs=0.004)
    precision, recall = precision_and_recall(images, 0, (2000,))
    expected = [precision.mean(), precision[0].mean(), 1 - recall.mean()]
    assert found[0] == pytest.approx(expected, abs=1e-12)


def test_average_precision_is_compared():
    random = np.random.default_rng(4)
    first, second = matches(random, 25, 0.4), matches(random, 25, 0.8)
    found = compare_precision(first, second, 200)
    assert set(found) == {"AP", "AP50", "AFNR"} and found["AP50"].low > 0
    assert found["AP50"].p == pytest.approx(2 / 201)
    assert compare_precision(first, first, 50)["AP"][2:] == (0.0, 0.0, 0.0, 1.0)
