"""Bilinear sampling of images, box-aligned bitmaps and features: one definition in numpy and in keras.ops.

A sample d samples away weighs `max(1 - |d|, 0)`; beyond the outermost samples the edge is repeated.
"""

from __future__ import annotations

from functools import reduce
from operator import iadd
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from effdet_tf.geometry.boxes import Tensor


def resize(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Resize an image as TensorFlow does.

    Args:
        image: float32 `[h, w, C]`.
        target: `[2]` height, width, px.

    Returns:
        float32 `[*target, C]`; an image that shrinks by more than 1.5 goes through a low-pass.
    """
    size = np.array(image.shape[:2])
    low_pass = bool((2 * size > 3 * target).any())
    for axis in (0, 1):
        if size[axis] != target[axis]:
            index, weights = _taps(image.shape[axis], int(target[axis]), low_pass)
            shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
            taps = (
                image.take(i, axis) * weight.reshape(shape) for i, weight in zip(index, weights, strict=True)
            )
            image = reduce(iadd, taps)  # in place: a large image is held twice, not once for each tap
    return image


def _taps(size: int, target: int, low_pass: bool) -> tuple[np.ndarray, np.ndarray]:
    """Source samples of each new one and their weights: int and float32 `[taps, target]`.

    With the low-pass the tent is as wide as one new sample, and weights outside the image go to the others.
    """
    ratio = size / target
    reach = max(ratio, 1.0) if low_pass else 1.0
    centre = (np.arange(target) + 0.5) * ratio - 0.5
    index = np.floor(centre - reach).astype(int) + 1 + np.arange(int(np.ceil(2 * reach)))[:, None]
    weights = tent((index - centre) / reach)
    if low_pass:
        weights[(index < 0) | (index >= size)] = 0
        weights /= weights.sum(0)
    return np.clip(index, 0, size - 1), weights.astype(np.float32)


def tent(distance: Tensor, xp: ModuleType = np) -> Tensor:
    """Bilinear weight of a sample at `distance`, in samples; `xp` is numpy or keras.ops."""
    return xp.maximum(1.0 - xp.abs(distance), 0.0)


def weights_at(position: Tensor, count: int, xp: ModuleType = np) -> Tensor:
    """Bilinear weights `[..., count]` of samples 0 to `count - 1` at float32 `position [...]`."""
    position = xp.clip(position, 0.0, count - 1.0)
    return tent(position[..., None] - xp.arange(count, dtype="float32"), xp)


def resample_bitmaps(
    bitmaps: Tensor, boxes: Tensor, targets: Tensor, size: int, xp: ModuleType = np
) -> Tensor:
    """Resample box-aligned bitmaps to other boxes.

    Args:
        bitmaps: `[..., m, m]` float32, each over its box.
        boxes: `[..., 4]` yxyx of the bitmaps, px.
        targets: `[..., 4]` yxyx to sample, px.
        size: samples per side, at the centres of a size x size grid over the target.
        xp: numpy or keras.ops.

    Returns:
        `[..., size, size]` float32; 0 outside the bitmap's box.
    """
    stored = bitmaps.shape[-1]
    steps = (xp.arange(size, dtype="float32") + 0.5) / size

    def weights(axis: int) -> Tensor:
        low, high = targets[..., axis, None], targets[..., axis + 2, None]
        start = boxes[..., axis, None]
        side = xp.maximum(boxes[..., axis + 2, None] - start, 1e-3)
        position = (low + steps * (high - low) - start) / side  # 0..1 over the bitmap
        outside = (position < 0) | (position > 1)
        return xp.where(outside[..., None], 0.0, weights_at(position * stored - 0.5, stored, xp))

    return xp.matmul(xp.matmul(weights(0), bitmaps), xp.swapaxes(weights(1), -1, -2))


def sample_crops(feature: Tensor, boxes: Tensor, stride: int, size: int) -> Tensor:
    """Sample `size` x `size` values of a feature in each box, in keras.ops, by gather alone.

    Args:
        feature: `[B, H, W, C]`.
        boxes: `[B, K, 4]` yxyx in input pixels.
        stride: of the feature, input pixels.
        size: samples per side, at the centres of a size x size grid over the box.

    Returns:
        `[B, K, size * size, C]`; outside the feature the edge is repeated.
    """
    from keras import ops

    batch, rows, columns, channels = ops.shape(feature)
    steps = (ops.arange(size, dtype="float32") + 0.5) / size

    def neighbours(axis: int, limit: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]
        position = low + steps * (high - low)  # [B, K, size] input px
        position = ops.clip(position / stride - 0.5, 0.0, ops.cast(limit - 1, "float32"))
        first = ops.floor(position)
        index = ops.cast(first, "int32")
        return index, ops.minimum(index + 1, limit - 1), position - first

    y0, y1, fy = neighbours(0, rows)
    x0, x1, fx = neighbours(1, columns)
    flat = ops.reshape(feature, (-1, channels))
    start = ops.arange(batch, dtype="int32")[:, None, None, None] * (rows * columns)

    def pick(y: Tensor, x: Tensor) -> Tensor:
        return ops.take(flat, start + y[..., :, None] * columns + x[..., None, :], axis=0)

    fy, fx = fy[..., :, None, None], fx[..., None, :, None]
    top = pick(y0, x0) * (1 - fx) + pick(y0, x1) * fx
    bottom = pick(y1, x0) * (1 - fx) + pick(y1, x1) * fx
    return ops.reshape(top * (1 - fy) + bottom * fy, (batch, ops.shape(boxes)[1], size * size, channels))
