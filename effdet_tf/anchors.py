"""Anchors of every level, and how to size them from the cells of a data set."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from effdet_tf.config import AnchorConfig

Tensor = Any


def shapes(config: AnchorConfig, level: int, min_level: int) -> np.ndarray:
    """Height and width of the anchors at one location of a level.

    Args:
        config: sizes and ratios.
        level: the stride is 2**level px.
        min_level: the level that `config.sizes[0]` belongs to.

    Returns:
        `[S, 2]` float32 height, width in px; all ratios of the first size, then of the second.
    """
    if config.sizes:
        sizes = config.sizes[level - min_level]
    else:
        sizes = tuple(config.scale * 2**level * 2 ** (o / config.octaves) for o in range(config.octaves))
    return np.array([(s / np.sqrt(r), s * np.sqrt(r)) for s in sizes for r in config.ratios], np.float32)


def feature_sizes(height: Any, width: Any, min_level: int, max_level: int) -> list[tuple[Any, Any]]:
    """Height and width of each level's feature: halved and rounded up level by level.

    Args:
        height: of the input, px; an int or a scalar int tensor.
        width: likewise.
        min_level: first level returned.
        max_level: last level returned.
    """
    sizes = []
    for level in range(1, max_level + 1):
        height, width = (height + 1) // 2, (width + 1) // 2
        if level >= min_level:
            sizes.append((height, width))
    return sizes


def grid(height: Any, width: Any, config: AnchorConfig, min_level: int, max_level: int) -> list[Tensor]:
    """All anchors of an input, level by level; location row-major, then size, then ratio.

    An input that is no multiple of a stride spreads its anchors evenly (stride = input / feature
    size), as the reference implementation does.

    Args:
        height: of the input, px; an int or a scalar int tensor.
        width: likewise.
        config: sizes and ratios.
        min_level: first level.
        max_level: last level.

    Returns:
        Per level `[H_l * W_l * S, 4]` float32 yxyx, px.
    """
    levels = []
    sizes = feature_sizes(height, width, min_level, max_level)
    for level, (rows, columns) in zip(range(min_level, max_level + 1), sizes, strict=True):
        half = ops.convert_to_tensor(shapes(config, level, min_level) / 2)
        y = (ops.cast(ops.arange(rows), "float32") + 0.5) * _ratio(height, rows)
        x = (ops.cast(ops.arange(columns), "float32") + 0.5) * _ratio(width, columns)
        cy, cx = ops.meshgrid(y, x, indexing="ij")
        centers = ops.reshape(ops.stack([cy, cx], axis=-1), (-1, 1, 2))
        boxes = ops.concatenate([centers - half[None], centers + half[None]], axis=-1)
        levels.append(ops.reshape(boxes, (-1, 4)))
    return levels


def _ratio(pixels: Any, cells: Any) -> Tensor:
    return ops.cast(pixels, "float32") / ops.cast(cells, "float32")


def suggest_anchors(
    sizes: np.ndarray,
    levels: tuple[int, ...],
    scales_per_level: int = 2,
    ratios: tuple[float, ...] | None = None,
    scale_range: tuple[float, float] = (1.0, 1.0),
) -> AnchorConfig:
    """Anchors that fit the cells of a data set.

    Base sizes run geometrically from the 2nd to the 98th percentile of sqrt(height x width)
    (widened by the training scales, kept within 4-512 px and at least 2.5 strides of the level
    away from vanishing), ratios are 1 and the spread of the aspect ratios within 1/3..3.

    Args:
        sizes: `[N, 2]` height, width of the cells, px.
        levels: pyramid levels, finest first.
        scales_per_level: base sizes on each level.
        ratios: width / height; None takes them from the cells.
        scale_range: smallest and largest magnification that training applies.

    Returns:
        An `AnchorConfig` with explicit sizes.

    Raises:
        ValueError: when there is no cell.
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    if not len(sizes):
        raise ValueError("no cell sizes to choose anchors from")
    side = np.sqrt(np.maximum(sizes.prod(1), 1.0))
    low, high = np.quantile(side, [0.02, 0.98])
    low = float(np.clip(low * scale_range[0], 4.0, 256.0))
    high = float(np.clip(high * scale_range[1], 2.0 * low, 512.0))
    bases = np.geomspace(low, high, len(levels) * scales_per_level)
    if ratios is None:
        log_ratio = np.abs(np.log(np.maximum(sizes[:, 1], 1e-3) / np.maximum(sizes[:, 0], 1e-3)))
        spread = float(np.exp(np.clip(np.quantile(log_ratio, 0.7), np.log(1.25), np.log(3.0))))
        ratios = (1.0, round(spread, 2), round(1 / spread, 3))
    chosen = tuple(tuple(round(float(b), 1) for b in part) for part in np.split(bases, len(levels)))
    return dataclasses.replace(AnchorConfig(), sizes=chosen, ratios=tuple(ratios), from_data=False)


def anchor_recall(
    sizes: np.ndarray,
    config: AnchorConfig,
    levels: tuple[int, ...],
    thresholds: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7),
    positions: int = 5,
) -> np.ndarray:
    """Share of cells whose best anchor reaches an IoU, over where cells may lie on the grid.

    Args:
        sizes: `[N, 2]` height, width, px.
        config: the anchors.
        levels: pyramid levels, finest first.
        thresholds: IoU values.
        positions: offsets tried per axis within half a stride.

    Returns:
        `[len(thresholds)]` recall in 0..1, averaged over the offsets.
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 1, 2)
    recall = np.zeros(len(thresholds))
    if not len(sizes):
        return recall
    offsets = (np.arange(positions) + 0.5) / positions / 2  # of a stride, one quadrant suffices
    for oy in offsets:
        for ox in offsets:
            best = np.zeros(len(sizes))
            for level in levels:
                anchor = shapes(config, level, levels[0])[None].astype(np.float64)
                shift = np.array([oy, ox]) * 2**level
                overlap = np.clip(
                    np.minimum(sizes / 2, shift + anchor / 2) - np.maximum(-sizes / 2, shift - anchor / 2), 0, None
                ).prod(-1)
                union = sizes.prod(-1) + anchor.prod(-1) - overlap
                best = np.maximum(best, (overlap / union).max(1))
            recall += [(best >= t).mean() for t in thresholds]
    return recall / positions**2
