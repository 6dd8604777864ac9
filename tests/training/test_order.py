from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from effdet_tf.config import DataConfig
from training.order import epoch_plan

CELLS = np.array([0, 1, 4, 100, 400, 9])


def plan(balance, per_image=1, epoch=0, cells=CELLS):
    store = SimpleNamespace(images=len(cells), cells=cells, sources=np.full(len(cells), "one"))
    return epoch_plan(store, DataConfig(balance=balance, crops_per_image=per_image), 3, epoch)


@pytest.mark.parametrize("per_image", [1, 5])
def test_without_balance_every_image_comes_as_often(per_image):
    numbers, seeds = plan(0.0, per_image)
    assert np.bincount(numbers).tolist() == [per_image] * len(CELLS)
    assert numbers.tolist() != sorted(numbers)
    assert len(np.unique(seeds, axis=0)) == len(numbers)


@pytest.mark.parametrize("balance", [0.5, 1.0])
@pytest.mark.parametrize("per_image", [1, 7])
def test_balance_gives_dense_images_their_share(balance, per_image):
    weight = np.maximum(CELLS, 1.0) ** balance
    expected = weight / weight.sum() * len(CELLS) * per_image
    total = np.zeros(len(CELLS))
    for epoch in range(400):
        numbers, seeds = plan(balance, per_image, epoch)
        assert len(numbers) == len(seeds) == len(CELLS) * per_image
        count = np.bincount(numbers, minlength=len(CELLS))
        assert (np.abs(count - expected) < 1).all()  # rounded, never drawn freely
        total += count
    np.testing.assert_allclose(total / 400, expected, atol=0.12)


def test_the_same_epoch_is_the_same_and_another_is_not():
    first, again, other = plan(0.5, 5, 1), plan(0.5, 5, 1), plan(0.5, 5, 2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first[0].tolist() != other[0].tolist()


def test_many_images_lose_no_crop_to_rounding():
    cells = np.random.default_rng(0).integers(0, 600, 5000)
    for epoch in range(20):
        assert len(plan(0.37, 3, epoch, cells)[0]) == 15000
