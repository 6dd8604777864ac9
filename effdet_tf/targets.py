"""Cells to training targets, on the device, without a full anchors x cells matrix.

Only anchors near a cell's centre can overlap it enough, so every cell is compared with a window
of locations around its centre; the winners are scattered into the anchors with one segment
maximum. Memory grows with cells x window, not with cells x anchors: 2,000 cells train at any
input size. The result equals the full matrix (Ren et al., 2015, with the best anchor of every
cell forced), which a test checks.
"""

from __future__ import annotations

import enum
import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from effdet_tf import anchors as anchor_ops
from effdet_tf import boxes as box_ops
from effdet_tf.config import AnchorConfig, AssignConfig

Tensor = Any


class State(enum.IntEnum):
    """What an anchor is to the losses."""

    IGNORE = -1
    NEGATIVE = 0
    POSITIVE = 1


class Assignment(NamedTuple):
    """One anchor's share of the targets; all `[B, A]`."""

    state: Tensor  # int32, a State
    matched: Tensor  # int32 index of the cell; 0 where there is none


def _window(shapes: np.ndarray, stride: int, threshold: float) -> np.ndarray:
    """Locations around a cell's centre at which an anchor may reach IoU >= threshold.

    For anchor side a and cell side c, IoU >= t needs c <= a / t and an offset of at most
    (a / t - a) / 2; one location more covers the rounding of the centre.

    Args:
        shapes: `[S, 2]` height, width of the anchors, px.
        stride: of the level, px.
        threshold: smallest IoU that matters.

    Returns:
        `[W, 2]` int32 offsets in rows, columns.
    """
    reach = np.floor((1 / threshold - 1) / 2 * shapes.max(0) / stride + 0.5).astype(int) + 1
    rows, columns = np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij")
    return np.stack([rows.reshape(-1), columns.reshape(-1)], axis=1).astype(np.int32)


def _candidates(
    cells: Tensor,
    feature_size: tuple[Any, Any],
    strides: tuple[Tensor, Tensor],
    sides: Tensor,
    window: np.ndarray,
) -> tuple[Tensor, Tensor]:
    """IoU of every cell with the anchors of one level in a window of locations.

    Args:
        cells: `[B, M, 4]` yxyx, px.
        feature_size: rows, columns of the level.
        strides: of the level, vertical and horizontal, px.
        sides: `[S, 2]` height, width of the anchors, px.
        window: `[W, 2]` offsets.

    Returns:
        IoU `[B, M, W * S]` (-1 outside the frame) and anchor index within the level, int32.
    """
    y0, x0, y1, x1 = (cells[..., k, None] for k in range(4))
    spans, indices, inside = [], [], []
    for axis, (low, high) in enumerate(((y0, y1), (x0, x1))):
        center = ops.cast(ops.floor((low + high) / 2 / strides[axis]), "int32")
        index = ops.clip(center, 0, feature_size[axis] - 1) + window[:, axis]  # [B, M, W]
        position = ((ops.cast(index, "float32") + 0.5) * strides[axis])[..., None]
        half = sides[:, axis] / 2
        spans.append(
            ops.minimum(high[..., None], position + half) - ops.maximum(low[..., None], position - half)
        )
        inside.append((index >= 0) & (index < feature_size[axis]))
        indices.append(ops.clip(index, 0, feature_size[axis] - 1))
    overlap = ops.maximum(spans[0], 0.0) * ops.maximum(spans[1], 0.0)  # [B, M, W, S]
    union = box_ops.area(cells)[..., None, None] + ops.prod(sides, axis=1) - overlap
    iou = ops.where((inside[0] & inside[1])[..., None], overlap / ops.maximum(union, box_ops.EPSILON), -1.0)
    kinds = sides.shape[0]
    location = indices[0] * feature_size[1] + indices[1]
    anchor = location[..., None] * kinds + np.arange(kinds, dtype=np.int32)
    batch, count = ops.shape(cells)[:2]
    flat = (batch, count, len(window) * kinds)
    return ops.reshape(iou, flat), ops.reshape(anchor, flat)


def assign(
    cells: Tensor,
    valid: Tensor,
    image_size: tuple[Any, Any],
    anchors: AnchorConfig,
    rules: AssignConfig,
    min_level: int,
    max_level: int,
    max_cells: int = 2000,
) -> Assignment:
    """Match anchors to cells.

    An anchor belongs to the cell it overlaps most. It is positive from `positive_iou` on, or when
    it is the best anchor of a cell (`force_match`); ignored between the two thresholds; negative
    below.

    Args:
        cells: `[B, M, 4]` yxyx, px.
        valid: `[B, M]` bool; False marks padding.
        image_size: height, width of the input, px.
        anchors: sizes and ratios.
        rules: thresholds.
        min_level: first level.
        max_level: last level.
        max_cells: largest M, where M is known only at run time.

    Returns:
        `Assignment` over all anchors, in the order of `anchors.grid`.
    """
    batch, count = ops.shape(cells)[:2]
    index_bits = max(8, math.ceil(math.log2((cells.shape[1] or max_cells) + 1)))
    threshold = min(rules.negative_iou, rules.positive_iou)
    levels, first = [], 0
    sizes = anchor_ops.feature_sizes(*image_size, min_level, max_level)
    for level, feature_size in zip(range(min_level, max_level + 1), sizes, strict=True):
        shapes = anchor_ops.shapes(anchors, level, min_level)
        # In strides, anchors that follow the true stride are those of the nominal one.
        window = _window(shapes, 2**level, threshold)
        strides = tuple(anchor_ops.stride(p, n) for p, n in zip(image_size, feature_size, strict=True))
        sides = anchor_ops.sides(anchors, level, min_level, strides)
        iou, anchor = _candidates(cells, feature_size, strides, sides, window)
        levels.append((ops.where(valid[..., None], iou, -1.0), first + anchor))
        first = first + feature_size[0] * feature_size[1] * len(shapes)
    total = first
    iou = ops.concatenate([part[0] for part in levels], axis=-1)  # [B, M, candidates]
    anchor = ops.concatenate([part[1] for part in levels], axis=-1)
    width = ops.shape(iou)[-1]

    # One integer orders the claims on an anchor: forced first, then IoU, then the cell's index.
    steps = 2 ** (30 - index_bits) - 1
    cell = ops.arange(count, dtype="int32")[None, :, None]
    best = ops.max(iou, axis=-1, keepdims=True)
    forced = (iou >= best) & (iou > 0) & rules.force_match
    claimed = (iou >= rules.negative_iou) | forced
    key = ops.cast(ops.clip(iou, 0.0, 1.0) * steps, "int32") * 2**index_bits + cell
    key = ops.where(claimed, key + ops.where(forced, 2**30, 0), -1)
    segment = anchor + ops.arange(batch, dtype="int32")[:, None, None] * total
    flat = (batch * count * width,)
    won = ops.segment_max(ops.reshape(key, flat), ops.reshape(segment, flat), num_segments=batch * total)
    won = ops.reshape(won, (batch, total))
    is_forced = won >= 2**30
    rest = ops.where(is_forced, won - 2**30, ops.maximum(won, 0))
    # Rounded as the keys are, so that an overlap of exactly the threshold reaches it.
    enough = int(np.float32(rules.positive_iou) * np.float32(steps))
    positive = (won >= 0) & (is_forced | (rest // 2**index_bits >= enough))
    state = ops.where(
        positive, int(State.POSITIVE), ops.where(won >= 0, int(State.IGNORE), int(State.NEGATIVE))
    )
    return Assignment(ops.cast(state, "int32"), ops.where(won >= 0, rest % 2**index_bits, 0))


def sample_instances(assignment: Assignment, cells: Any, samples: int, step: Tensor) -> tuple[Tensor, Tensor]:
    """Choose which instances train the mask head: at most one anchor a cell, at random.

    By cell, not by anchor, so that large cells with many anchors do not crowd out small ones.

    Args:
        assignment: of the batch, `[B, A]`.
        cells: padded number of cells M, an int or a scalar int tensor.
        samples: wanted per image.
        step: int32 scalar; another step draws others, the same step the same.

    Returns:
        anchor index int32 `[B, samples]` and weight float32 `[B, samples]` (0 = no instance).
    """
    batch, total = ops.shape(assignment.state)

    # A multiplicative hash in place of a random generator: it needs no state, so a resumed run
    # draws what the first one would have drawn.
    def mix(value: Tensor) -> Tensor:
        value = value * np.int32(1664525) + np.int32(1013904223)
        return ops.bitwise_and(value ^ ops.right_shift(value, 13), np.int32(2**31 - 1))

    def draw(count: Any, salt: int) -> Tensor:
        order = ops.arange(count, dtype="int32")
        return mix(mix(order) ^ mix(ops.cast(step, "int32") + salt))

    priority = ops.reshape(draw(batch * total, 0), (batch, total))
    positive = assignment.state == int(State.POSITIVE)
    segment = assignment.matched + ops.arange(batch, dtype="int32")[:, None] * cells
    flat = (batch * total,)
    key = ops.reshape(ops.where(positive, priority, -1), flat)
    segment = ops.reshape(segment, flat)
    best = ops.segment_max(key, segment, num_segments=batch * cells)
    winner = (key >= 0) & (key == ops.take(best, segment))
    index = ops.broadcast_to(ops.arange(total, dtype="int32")[None], (batch, total))
    anchor = ops.where(winner, ops.reshape(index, flat), -1)
    anchor = ops.reshape(ops.segment_max(anchor, segment, num_segments=batch * cells), (batch, cells))
    # Cells are drawn anew: the best of many anchors would nearly always beat the one of a small cell.
    rank = ops.where(anchor >= 0, ops.reshape(draw(batch * cells, 2**30), (batch, cells)), -1)
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
    stored = bitmaps.shape[-1]
    steps = (ops.arange(size, dtype="float32") + 0.5) / size
    index = ops.arange(stored, dtype="float32")

    def weights(axis: int) -> Tensor:
        low, high = crops[..., axis, None], crops[..., axis + 2, None]
        start = cells[..., axis, None]
        side = ops.maximum(cells[..., axis + 2, None] - start, 1e-3)
        position = (low + steps * (high - low) - start) / side  # 0..1 over the bitmap
        outside = (position < 0) | (position > 1)
        source = ops.clip(position * stored - 0.5, 0.0, stored - 1.0)
        tent = ops.maximum(1.0 - ops.abs(source[..., None] - index), 0.0)  # [B, K, size, m]
        return ops.where(outside[..., None], 0.0, tent)

    values = ops.cast(bitmaps, "float32") / 255.0
    return ops.matmul(ops.matmul(weights(0), values), ops.swapaxes(weights(1), -1, -2))
