"""The learning rate: what it is at the marks, and that nothing jumps in between."""

from __future__ import annotations

import numpy as np
import pytest

from training.optimizer import learning_rate


@pytest.mark.parametrize(
    ("progress", "share"),
    [
        (0.0, 0.01),  # not 0: the first step must move something
        (0.05, 0.5),  # half of the warm-up
        (0.1, 1.0),
        (0.55, 0.505),  # half of the cosine, between 1 and the floor
        (1.0, 0.01),
        (1.7, 0.01),  # a little past the end, as the last step by the clock is
        (-0.1, 0.01),
    ],
)
def test_the_marks(progress: float, share: float) -> None:
    assert learning_rate(progress, 2e-3, 0.1) == pytest.approx(2e-3 * share)


def test_it_rises_then_falls_without_a_jump() -> None:
    rates = np.array([learning_rate(p, 1.0, 0.2) for p in np.linspace(0, 1, 501)])
    assert rates.argmax() == 100
    assert (np.diff(rates[:101]) >= 0).all() and (np.diff(rates[100:]) <= 0).all()
    assert np.abs(np.diff(rates)).max() < 0.011


def test_without_warmup_it_starts_at_the_peak_and_with_nothing_else_it_only_rises() -> None:
    assert learning_rate(0.0, 0.5, 0.0) == 0.5
    assert learning_rate(0.5, 0.5, 1.0) == 0.25


def test_the_floor_is_a_share_of_the_peak() -> None:
    assert learning_rate(1.0, 0.5, 0.1, floor=0.2) == pytest.approx(0.1)
