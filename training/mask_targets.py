"""Targets of the mask head: which instances train it in a step, and what they should look like."""

from __future__ import annotations

import numpy as np
from keras import ops

from effdet_tf.geometry.boxes import Tensor
from effdet_tf.geometry.resample import resample_bitmaps
from training.assignment import Assignment, State


def sample_instances(
    assignment: Assignment, cells: int | Tensor, samples: int, step: Tensor, first: int | Tensor = 0
) -> tuple[Tensor, Tensor]:
    """Choose which instances train the mask head: at most one anchor a cell, at random.

    By cell, not by anchor, so that large cells with many anchors do not crowd out small ones. What is chosen
    for an image depends on its place in the whole batch, not on the part of it that this device holds, nor
    on how far its cells are padded.

    Args:
        assignment: of the batch, `[B, A]`.
        cells: padded number of cells M, an int or a scalar int tensor.
        samples: wanted per image.
        step: int32 scalar; another step chooses others, the same step the same.
        first: place of the first image in the whole batch, where several devices share it.

    Returns:
        anchor index int32 `[B, samples]` and weight float32 `[B, samples]` (0 = no instance).
    """
    batch, total = ops.shape(assignment.state)

    # A multiplicative hash in place of a random generator: it needs no state, so a resumed run chooses as
    # the first one would have done.
    def mix(value: Tensor) -> Tensor:
        value = value * np.int32(1664525) + np.int32(1013904223)
        return ops.bitwise_and(value ^ ops.right_shift(value, 13), np.int32(2**31 - 1))

    def random(count: int | Tensor, stride: int | Tensor, salt: int) -> Tensor:
        image = ops.arange(batch, dtype="int32")[:, None] + first
        order = image * stride + ops.arange(count, dtype="int32")
        return mix(mix(order) ^ mix(ops.cast(step, "int32") + salt))

    priority = random(total, total, 0)
    positive = assignment.state == int(State.POSITIVE)
    segment = assignment.matched + ops.arange(batch, dtype="int32")[:, None] * cells
    flat = (batch * total,)
    key = ops.reshape(ops.where(positive, priority, -1), flat)
    segment = ops.reshape(segment, flat)
    best = ops.segment_max(key, segment, num_segments=batch * cells)
    chosen = (key >= 0) & (key == ops.take(best, segment))
    index = ops.broadcast_to(ops.arange(total, dtype="int32")[None], (batch, total))
    anchor = ops.where(chosen, ops.reshape(index, flat), -1)
    anchor = ops.reshape(ops.segment_max(anchor, segment, num_segments=batch * cells), (batch, cells))
    # Cells get new numbers: the best of many anchors would nearly always beat the one of a small cell.
    rank = ops.where(anchor >= 0, random(cells, 2**16, 2**30), -1)
    room = ((0, 0), (0, samples))  # so that there are `samples` to take even from fewer cells
    anchor, rank = ops.pad(anchor, room), ops.pad(rank, room, constant_values=-1)
    top, chosen = ops.top_k(rank, samples)
    picked = ops.take_along_axis(anchor, ops.cast(chosen, "int32"), axis=1)
    weight = ops.cast(top >= 0, "float32")
    return ops.maximum(picked, 0), weight


def mask_targets(bitmaps: Tensor, cells: Tensor, crops: Tensor, size: int) -> Tensor:
    """Resample box-aligned bitmaps to the crops that the mask head predicts on.

    Args:
        bitmaps: `[B, K, m, m]` uint8 coverage, 0..255, each over its cell's box.
        cells: `[B, K, 4]` yxyx boxes of the bitmaps, px.
        crops: `[B, K, 4]` yxyx boxes to predict on, px.
        size: side of the predicted bitmaps.

    Returns:
        `[B, K, size, size]` float32 in 0..1; 0 outside the cell's box.
    """
    values = ops.cast(bitmaps, "float32") / 255.0
    return resample_bitmaps(values, cells, crops, size, ops)
