"""Anchors of every level, and how to size them from the cells of a data set."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
from keras import ops

from effdet_tf.config import AnchorConfig
from effdet_tf.geometry.boxes import Tensor


def shapes(config: AnchorConfig, level: int, min_level: int) -> np.ndarray:
    """Height and width of the anchors at one location of a level whose stride is 2**level px.

    `min_level` is the level that `config.sizes[0]` belongs to.

    Returns:
        `[S, 2]` float32 height, width in px; all ratios of the first size, then of the second.
    """
    if config.sizes:
        sizes = config.sizes[level - min_level]
    else:
        sizes = tuple(config.scale * 2**level * 2 ** (o / config.octaves) for o in range(config.octaves))
    return np.array([(s / np.sqrt(r), s * np.sqrt(r)) for s in sizes for r in config.ratios], np.float32)


def sides(config: AnchorConfig, level: int, min_level: int, strides: tuple[Tensor, Tensor]) -> Tensor:
    """Height and width of the anchors at one location of a level in a given input.

    Anchors that are sized by the stride follow the true one, which is a little below 2**level where the
    input is no multiple of that, as the reference implementation has it; explicit sizes are in px.

    `strides` are input / feature size of the level, vertical and horizontal, px; the other arguments and the
    result, `[S, 2]` float32 in px, are as for `shapes`.
    """
    nominal = ops.convert_to_tensor(shapes(config, level, min_level))
    return nominal if config.sizes else nominal * ops.stack(strides) / 2**level


def stride(pixels: int | Tensor, cells: int | Tensor) -> Tensor:
    """Distance of neighbouring locations, px: input size / feature size, along one axis."""
    return ops.cast(pixels, "float32") / ops.cast(cells, "float32")


def feature_sizes(
    height: int | Tensor, width: int | Tensor, min_level: int, max_level: int
) -> list[tuple[int | Tensor, int | Tensor]]:
    """Height and width of each level's feature, min_level to max_level: halved and rounded up each time.

    Height and width of the input, px, are ints or scalar int tensors.
    """
    sizes = []
    for level in range(1, max_level + 1):
        height, width = (height + 1) // 2, (width + 1) // 2
        if level >= min_level:
            sizes.append((height, width))
    return sizes


def centers(count: int | Tensor, step: float | Tensor) -> Tensor:
    """Where a level's `count` rows or columns, `step` px apart, lie: `[count]` float32, px."""
    return (ops.cast(ops.arange(count), "float32") + 0.5) * step


def grid(
    height: int | Tensor, width: int | Tensor, config: AnchorConfig, min_level: int, max_level: int
) -> list[Tensor]:
    """All anchors of an input, level by level; location row-major, then size, then ratio.

    An input that is no multiple of a stride spreads its anchors evenly (stride = input / feature size), as
    the reference implementation does. Arguments are as for `feature_sizes`.

    Returns:
        Per level `[H_l * W_l * S, 4]` float32 yxyx, px.
    """
    levels = []
    sizes = feature_sizes(height, width, min_level, max_level)
    for level, (rows, columns) in zip(range(min_level, max_level + 1), sizes, strict=True):
        strides = (stride(height, rows), stride(width, columns))
        half = sides(config, level, min_level, strides) / 2
        y, x = centers(rows, strides[0]), centers(columns, strides[1])
        middle = ops.stack(ops.meshgrid(y, x, indexing="ij"), axis=-1)
        middle = ops.reshape(middle, (-1, 1, 2))
        boxes = ops.concatenate([middle - half[None], middle + half[None]], axis=-1)
        levels.append(ops.reshape(boxes, (-1, 4)))
    return levels


def at(
    index: Tensor,
    height: int | Tensor,
    width: int | Tensor,
    config: AnchorConfig,
    min_level: int,
    max_level: int,
) -> Tensor:
    """`concatenate(grid(...))[index]`, `[N, 4]` for int32 `[N]`, without making the other anchors."""
    sizes = feature_sizes(height, width, min_level, max_level)
    strides = [(stride(height, rows), stride(width, columns)) for rows, columns in sizes]
    starts = [0]
    for rows, columns in sizes[:-1]:
        starts.append(starts[-1] + rows * columns * config.per_location)
    # All starts, the first too: of a lone cast bool TFLite's converter makes an operator that it refuses.
    level = sum(ops.cast(index >= start, "int32") for start in starts) - 1

    def of_level(values: list[Any], dtype: str) -> Tensor:
        return ops.take(ops.stack([ops.cast(value, dtype) for value in values]), level)

    place = index - of_level(starts, "int32")
    shape, place = place % config.per_location, place // config.per_location
    columns = of_level([columns for _, columns in sizes], "int32")
    y = (ops.cast(place // columns, "float32") + 0.5) * of_level([y for y, _ in strides], "float32")
    x = (ops.cast(place % columns, "float32") + 0.5) * of_level([x for _, x in strides], "float32")
    levels = range(min_level, max_level + 1)
    half = [sides(config, k, min_level, pair) / 2 for k, pair in zip(levels, strides, strict=True)]
    half = ops.take(ops.concatenate(half, axis=0), level * config.per_location + shape, axis=0)
    centers = ops.stack([y, x], axis=-1)
    return ops.concatenate([centers - half, centers + half], axis=-1)


SMALLEST = 3.5  # anchor side in strides; below it a cell between two locations fits neither anchor
RATIO_CHOICES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


def suggest_anchors(
    sizes: np.ndarray,
    levels: tuple[int, ...],
    scales_per_level: int = 2,
    ratios: tuple[float, ...] | None = None,
    scale_range: tuple[float, float] = (1.0, 1.0),
) -> AnchorConfig:
    """Anchors that fit the cells of a data set.

    Every level serves the cells of at least `SMALLEST` strides that the next level does not; the
    finest serves all smaller ones too. Its base sizes are the evenly spaced quantiles of their
    sqrt(height x width). A level without cells gets sizes spread over its band, so that it stays
    usable. Ratios are 1 and the pair (r, 1/r) within 1/3..3 with the best recall at IoU .5-.7.

    Args:
        sizes: `[N, 2]` height, width of the cells, px.
        levels: pyramid levels, finest first.
        scales_per_level: base sizes on each level.
        ratios: width / height; None takes them from the cells.
        scale_range: smallest and largest magnification that training applies.

    Returns:
        An `AnchorConfig` with explicit sizes, 4-512 px.

    Raises:
        ValueError: when there is no cell.
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    if not len(sizes):
        raise ValueError("no cell sizes to choose anchors from")
    side = np.sqrt(np.maximum(sizes.prod(1), 1.0))
    side = np.concatenate([side * zoom for zoom in np.geomspace(*scale_range, 5)])
    steps = (np.arange(scales_per_level) + 0.5) / scales_per_level
    chosen = []
    for level in levels:
        low = SMALLEST * 2**level
        low, high = (0.0 if level == levels[0] else low), (np.inf if level == levels[-1] else 2 * low)
        own = side[(side >= low) & (side < high)]
        if len(own) < 10 * scales_per_level:
            own = SMALLEST * 2**level * 2**steps
        quantiles = np.clip(np.quantile(own, steps), 4.0, 512.0)
        for k in range(1, scales_per_level):  # cells of one size: equal anchors would be wasted
            quantiles[k] = max(quantiles[k], 1.15 * quantiles[k - 1])
        chosen.append(tuple(round(float(q), 1) for q in quantiles))
    found = dataclasses.replace(AnchorConfig(), sizes=tuple(chosen))
    if ratios is not None:
        return dataclasses.replace(found, ratios=tuple(ratios))
    choices = [(1.0,) if r == 1 else (1.0, r, round(1 / r, 3)) for r in RATIO_CHOICES]
    options = [dataclasses.replace(found, ratios=choice) for choice in choices]
    few = sizes[:: max(1, len(sizes) // 1000)]
    return max(options, key=lambda o: anchor_recall(few, o, levels, (0.5, 0.6, 0.7), positions=3).sum())


def anchor_recall(
    sizes: np.ndarray,
    config: AnchorConfig,
    levels: tuple[int, ...],
    thresholds: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7),
    positions: int = 5,
) -> np.ndarray:
    """Share of cells whose best anchor reaches each of `thresholds` of IoU, over where cells may lie.

    `sizes [N, 2]` are height and width, px, `levels` come finest first; `positions` offsets are tried per
    axis within half a stride.
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 1, 2)
    recall = np.zeros(len(thresholds))
    if not len(sizes):
        return recall
    offsets = (np.arange(positions) + 0.5) / positions / 2  # of a stride, one quadrant suffices
    for offset in itertools.product(offsets, offsets):
        best = np.zeros(len(sizes))
        for level in levels:
            anchor = shapes(config, level, levels[0])[None].astype(np.float64)
            shift = np.array(offset) * 2**level
            low, high = np.maximum(-sizes / 2, shift - anchor / 2), np.minimum(sizes / 2, shift + anchor / 2)
            overlap = np.maximum(high - low, 0).prod(-1)
            union = sizes.prod(-1) + anchor.prod(-1) - overlap
            best = np.maximum(best, (overlap / union).max(1))
        recall += [(best >= t).mean() for t in thresholds]
    return recall / positions**2
