"""Calibration and trust, against draws whose probabilities are known."""

from __future__ import annotations

import numpy as np
import pytest

from effdet_tf.config import Config, PostprocessConfig, TrustConfig
from effdet_tf.errors import UserError
from effdet_tf.metrics.calibration import JudgedImage, Reliability, fit_lines, fit_trust
from effdet_tf.metrics.instances import image_instances
from effdet_tf.metrics.matching import match_boxes
from effdet_tf.metrics.tuning import as_reported, tuned
from effdet_tf.prediction.trust import judge


def drawn(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and matches whose probability is the square of the score."""
    scores = random.random(count)
    return scores, random.random(count) < scores**2


def test_lines_make_probabilities_of_scores():
    random = np.random.default_rng(0)
    scores, hits = drawn(random, 20_000)
    lines = fit_lines(scores.astype(np.float32), hits)
    assert all(type(value) is float for pair in lines for value in pair)  # they go into JSON and YAML
    calibrated = PostprocessConfig(calibration=lines).calibrated
    at = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(calibrated(at), at**2, atol=0.025)
    x, y = np.array(lines).T
    assert (np.diff(x) > 0).all() and (np.diff(y) > 0).all() and lines[0] == (0, 0) and lines[-1] == (1, 1)


def test_scores_that_fall_with_matches_still_rise():
    random = np.random.default_rng(1)
    scores = random.random(2_000)
    lines = fit_lines(scores, random.random(2_000) < 1 - scores)
    x, y = np.array(lines).T
    assert (np.diff(y) > 0).all()
    # Pooled: all of them match in half of the cases.
    np.testing.assert_allclose(np.interp(0.5, x, y), 0.5, atol=0.05)


@pytest.mark.parametrize("hits", [0, 49, 2_000])
def test_too_few_cells_calibrate_nothing(hits):
    scores = np.linspace(0.01, 0.99, 2_000)
    assert fit_lines(scores, np.arange(2_000) >= 2_000 - hits) == ()


def boxes(count: int, image: int, score: float, hits: int) -> Reliability:
    """`count` predictions of one score, of which `hits` match."""
    reliability = Reliability("source")
    truth = [{"category_id": 1, "bbox": [20 * k, 0, 10, 10]} for k in range(hits)]
    found = [
        {"category_id": 1, "bbox": [20 * k, 0, 10, 10], "score": score, "image_id": image}
        for k in range(count)
    ]
    one = {"id": image, "height": 10, "width": 20 * count, "source": "a" if image % 2 else "b"}
    instances = image_instances(one, truth, found)
    reliability.add(one, match_boxes(instances.ground_truth, instances.predictions))
    return reliability


def test_the_error_is_the_distance_of_score_and_share_of_matches():
    report = boxes(10, 1, 0.75, 4).report()
    assert report["all"] == {"cells": 10, "error": pytest.approx(0.35), "bins": [[0.75, 0.4, 10]]}
    assert set(report["by"]) == {"a"} and report["lines"] == []
    assert Reliability().report()["all"] == {"cells": 0, "error": None, "bins": []}


def test_a_report_is_told_in_the_scores_that_are_reported():
    lines = [[0.0, 0.0], [0.2, 0.5], [1.0, 1.0]]
    cells = {"score_threshold": 0.1, "best_score_threshold": 0.6, "report_score": 0.2}
    calibration = {
        "all": {"error": 0.3},
        "by": {},
        "lines": lines,
        "after": {"all": {"error": 0.0}, "by": {}},
    }
    report = {"boxes_only": None, "cells": cells, "boxes": None, "calibration": calibration}
    chosen = tuned(PostprocessConfig(report_score=0.9), report)
    assert (chosen.report_score, chosen.calibration) == (0.5, ((0, 0), (0.2, 0.5), (1, 1)))
    told = as_reported(report, chosen)
    assert told["cells"] == {"score_threshold": 0.25, "best_score_threshold": 0.75, "report_score": 0.5}
    assert (told["calibration"]["all"], told["calibration"]["before"]) == ({"error": 0.0}, {"error": 0.3})
    assert chosen.as_given() == PostprocessConfig(report_score=0.2)
    none = {**report, "cells": {**cells, "report_score": None}}
    assert tuned(PostprocessConfig(), none) is None


def images(random: np.random.Generator, count: int, source: str = "a") -> list[JudgedImage]:
    """Images whose mean score says what share of the cells is found, and how many of those are right."""
    made = []
    for _ in range(count):
        quality, true = random.uniform(0.3, 0.95), int(random.integers(20, 300))
        found = max(round(true * quality * np.exp(random.normal(0, 0.1))), 1)
        made.append(JudgedImage(source, False, true, found, round(min(found, true) * quality), quality))
    return made


def test_what_is_expected_comes_true():
    random = np.random.default_rng(3)
    f1, count = fit_trust(images(random, 300))
    config = Config(trust=TrustConfig(f1, count)).replace(postprocess__report_score=0.1)
    errors, inside = [], []
    for one in images(random, 300):
        trust = judge(config, np.zeros((8, 8)), np.full(one.found, one.mean, np.float32))
        errors.append(trust.f1 - 2 * one.matched / (one.found + one.true))
        inside.append(trust.least <= one.true <= trust.most)
        assert trust.unlike is None and trust.score == 0.1
    assert np.abs(errors).mean() < 0.05 and 0.84 < np.mean(inside) < 0.97


def test_each_source_counts_the_same():
    """A hundred images of one source that are found whole, three of another of which half is found."""
    many = [JudgedImage("a", False, 100, 100, 90, 0.9)] * 100
    few = [JudgedImage("b", False, 200, 100, 90, 0.9)] * 3
    _, count = fit_trust([*many, *few])
    config = Config(trust=TrustConfig((0.0, 1.0), count)).replace(postprocess__report_score=0.1)
    trust = judge(config, np.zeros((8, 8)), np.full(100, 0.9))
    assert trust.least <= 100 and trust.most >= 199


@pytest.mark.parametrize("setting", ["f1=[1e6, 0]", "count=[0, 0, 0, .inf]", "f1=[.nan, 1]"])
def test_numbers_that_no_fit_gives_are_refused(setting):
    """A stranger's network must not break every image, nor promise what is no number."""
    with pytest.raises(UserError, match=r"trust\.(f1|count) .*: take -100 to 100"):
        Config().override([f"trust.{setting}"])


@pytest.mark.parametrize("ends", [(0.5, 0.0, 1.0, 0.0), (-1.0, 0.0, -0.5, 0.0)])
def test_what_was_found_lies_within_the_interval(ends):
    """Where other sources' cells were missed, or seen twice, this one's may all be right."""
    config = Config(trust=TrustConfig((0.0, 1.0), ends)).replace(postprocess__report_score=0.1)
    trust = judge(config, np.zeros((8, 8)), np.full(20, 0.9))
    assert trust.least <= 20 <= trust.most and trust.most - trust.least >= 3


def test_cells_below_the_score_do_not_count():
    config = Config(trust=TrustConfig((0.0, 1.0), (0.0, 0.0, 1.0, 0.0)))
    config = config.replace(postprocess__report_score=0.5)
    image = np.zeros((8, 8))
    assert judge(config, image, np.array([0.9, 0.6, 0.3])) == judge(config, image, np.array([0.9, 0.6]))
    nothing = judge(config, image, np.zeros(0))
    assert nothing == (0.5, None, None, None, None) and nothing.words.startswith("no cell found")
    steep = config.replace(trust__count=(0.0, 0.0, 0.0, 50.0))
    assert judge(steep, image, np.array([0.5])).most == 30  # not e^18
    assert judge(Config(), image, np.array([0.9])) is None
    assert judge(config, image, np.array([0.9])).words.startswith("1 to ")
