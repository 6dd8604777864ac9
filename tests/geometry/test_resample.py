"""Bilinear sampling against a formula point by point, with unequal sides and several images."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from effdet_tf.geometry.resample import resample_bitmaps, resize, sample_crops, weights_at


def bilinear(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """The value at a place in sample coordinates; the edge is repeated."""
    y, x = min(max(y, 0), image.shape[0] - 1), min(max(x, 0), image.shape[1] - 1)
    top, left = int(y), int(x)
    low, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
    fy, fx = y - top, x - left
    above = image[top, left] * (1 - fx) + image[top, right] * fx
    below = image[low, left] * (1 - fx) + image[low, right] * fx
    return above * (1 - fy) + below * fy


@pytest.mark.parametrize("target", [(9, 4), (5, 14), (7, 9), (5, 6)])
def test_an_image_grows_or_shrinks_a_little(target) -> None:
    image = np.random.default_rng(0).random((6, 5, 2)).astype(np.float32)
    found = resize(image, np.array(target))
    assert found.shape == (*target, 2) and found.dtype == np.float32
    for i, j in np.ndindex(*target):
        expected = bilinear(image, (i + 0.5) * 6 / target[0] - 0.5, (j + 0.5) * 5 / target[1] - 0.5)
        np.testing.assert_allclose(found[i, j], expected, atol=1e-6)


@pytest.mark.parametrize(("side", "target"), [(9, 3), (10, 4), (12, 7)])
def test_an_image_that_shrinks_more_is_averaged_by_a_tent(side: int, target: int) -> None:
    image = np.random.default_rng(1).random((side, 3, 1)).astype(np.float32)
    found, ratio = resize(image, np.array([target, 3])), side / target
    for i in range(target):
        centre = (i + 0.5) * ratio - 0.5
        weights = np.maximum(1 - np.abs(np.arange(side) - centre) / ratio, 0)
        expected = (image[:, :, 0] * weights[:, None]).sum(0) / weights.sum()
        np.testing.assert_allclose(found[i, :, 0], expected, atol=1e-6)


def test_from_a_shrinking_by_a_half_the_low_pass_begins() -> None:
    step = np.zeros((9, 1, 1), np.float32)
    step[4] = 1  # two taps pass over it or meet it alone; the tent always sees it
    assert resize(step, np.array([6, 1])).max() == pytest.approx(0.25)  # 9 / 6 = 1.5: not yet
    assert resize(step, np.array([5, 1])).max() == pytest.approx(1 / (1 + 8 / 9), abs=1e-6)


def test_weights_sum_to_one_and_repeat_the_edge() -> None:
    weights = weights_at(np.array([-2.0, 0.25, 3.0, 9.0], np.float32), 4)
    np.testing.assert_allclose(weights, [[1, 0, 0, 0], [0.75, 0.25, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])


@pytest.mark.parametrize("xp", [np, ops], ids=["numpy", "keras.ops"])
def test_bitmaps_in_other_boxes(xp) -> None:
    bitmaps = np.random.default_rng(2).random((2, 4, 4)).astype(np.float32)
    boxes = np.array([[10, 20, 18, 32], [0, 0, 4, 8]], np.float32)
    targets = np.array([[12, 17, 20, 29], [1, 2, 3, 7]], np.float32)
    found = np.asarray(
        resample_bitmaps(xp.asarray(bitmaps) if xp is np else ops.array(bitmaps), boxes, targets, 3, xp)
    )
    for k, i, j in np.ndindex(2, 3, 3):
        (y0, x0, y1, x1), (top, left, low, right) = targets[k], boxes[k]
        y = (y0 + (i + 0.5) / 3 * (y1 - y0) - top) / (low - top)
        x = (x0 + (j + 0.5) / 3 * (x1 - x0) - left) / (right - left)
        inside = 0 <= y <= 1 and 0 <= x <= 1
        expected = bilinear(bitmaps[k], y * 4 - 0.5, x * 4 - 0.5) if inside else 0.0
        assert found[k, i, j] == pytest.approx(expected, abs=1e-6)


def test_crops_of_the_features_of_several_images() -> None:
    features = np.random.default_rng(3).random((3, 5, 7, 2)).astype(np.float32)
    boxes = np.random.default_rng(4).uniform(-6, 50, (3, 2, 4)).astype(np.float32)
    boxes = np.concatenate(
        [np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])], -1
    )
    found = np.asarray(sample_crops(ops.array(features), ops.array(boxes), 8, 3))
    assert found.shape == (3, 2, 9, 2)
    for b, k, i, j in np.ndindex(3, 2, 3, 3):
        y0, x0, y1, x1 = boxes[b, k]
        y, x = y0 + (i + 0.5) / 3 * (y1 - y0), x0 + (j + 0.5) / 3 * (x1 - x0)
        expected = bilinear(features[b], y / 8 - 0.5, x / 8 - 0.5)
        np.testing.assert_allclose(found[b, k, i * 3 + j], expected, atol=1e-5)
