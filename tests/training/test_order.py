from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from effdet_tf.config import DataConfig
from effdet_tf.errors import UserError
from training.order import crop_shares, epoch_plan

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


SOURCES = np.array(["a", "a", "b", "b", "b", "c"])


def shares(balance=0.0, **named):
    store = SimpleNamespace(images=len(CELLS), cells=CELLS, sources=SOURCES)
    return crop_shares(store, DataConfig(balance=balance, source_share=named))


def test_named_sources_give_their_share_and_the_others_divide_the_rest_by_images():
    np.testing.assert_allclose(shares(), np.full(6, 1 / 6))
    # a: half, on two images; b has three images of the rest and c one.
    np.testing.assert_allclose(shares(a=0.5), [0.25, 0.25, 0.125, 0.125, 0.125, 0.125])
    np.testing.assert_allclose(shares(a=0.0, b=0.3), [0, 0, 0.1, 0.1, 0.1, 0.7])
    # All are named: in proportion.
    np.testing.assert_allclose(shares(a=0.1, b=0.3, c=0.1), [0.1, 0.1, 0.2, 0.2, 0.2, 0.2])


def test_balance_divides_the_share_of_a_source_among_its_images():
    # b: 4, 100 and 400 cells, square roots 2, 10, 20.
    np.testing.assert_allclose(
        shares(balance=0.5, b=0.64)[2:5], np.array([2, 10, 20]) / 32 * 0.64, atol=1e-12
    )


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"d": 0.5}, "names d; the sources of the data are a, b, c"),
        ({"a": 0.7, "b": 0.5}, "gives 1.2 in all"),
        ({"a": 0.0, "b": 0.0, "c": 0.0}, "gives 0 in all"),
    ],
)
def test_shares_that_cannot_be_are_refused(named, said):
    with pytest.raises(UserError, match=said):
        shares(**named)


def test_an_epoch_holds_the_shares():
    store = SimpleNamespace(images=len(CELLS), cells=CELLS, sources=SOURCES)
    config = DataConfig(crops_per_image=100, source_share={"c": 0.5})
    numbers, seeds = epoch_plan(store, config, 3, 0)
    assert len(numbers) == len(seeds) == 600
    assert np.bincount(numbers).tolist() == pytest.approx([60, 60, 60, 60, 60, 300], abs=1)
