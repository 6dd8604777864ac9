"""Bilinear scaling of images in numpy, equal to TensorFlow's."""

from __future__ import annotations

import numpy as np


def resize(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return float32 `image [h, w, C]` in the size `target [2]`; shrunk by more than 1.5 with a low-pass."""
    size = np.array(image.shape[:2])
    if (size == target).all():
        return image
    low_pass = bool((2 * size > 3 * target).any())
    for axis in (0, 1):
        if size[axis] != target[axis]:
            image = _along(image, int(target[axis]), axis, low_pass)
    return image


def _along(image: np.ndarray, target: int, axis: int, low_pass: bool) -> np.ndarray:
    """Scale one axis: every new row is a weighted sum of a few old ones."""
    index, weights = _taps(image.shape[axis], target, low_pass)
    shape = [1, 1, 1]
    shape[axis] = target
    result = image.take(index[0], axis) * weights[0].reshape(shape)
    for rows, weight in zip(index[1:], weights[1:], strict=True):
        result += image.take(rows, axis) * weight.reshape(shape)
    return result


def _taps(size: int, target: int, low_pass: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which old samples make each new one: int and float32 `[taps, target]`.

    The triangle reaches one old sample to each side or, with the low-pass, one new one; what it leaves
    the image with is shared out among the rest.
    """
    ratio = size / target
    reach = max(ratio, 1.0) if low_pass else 1.0
    centre = (np.arange(target) + 0.5) * ratio - 0.5
    first = np.floor(centre - reach).astype(int) + 1
    index = first + np.arange(int(np.ceil(2 * reach)))[:, None]
    weights = np.maximum(1 - np.abs(index - centre) / reach, 0)
    if low_pass:
        weights[(index < 0) | (index >= size)] = 0
        weights /= weights.sum(0)
    return np.clip(index, 0, size - 1), weights.astype(np.float32)
