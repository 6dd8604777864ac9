"""Label assignment: match anchors to cells, on the device, without a full anchors x cells matrix.

Only anchors near a cell's centre can match it, so every cell is compared with a window of
locations around its centre; the best matches are scattered into the anchors with one segment maximum.
Memory grows with cells x window, not with cells x anchors: 2,000 cells train at any input size.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from effdet_tf.config import AnchorConfig, AssignConfig
from effdet_tf.geometry import boxes as box_ops
from effdet_tf.geometry.boxes import Tensor
from effdet_tf.model import anchors as anchor_ops


class State(enum.IntEnum):
    """What an anchor is to the losses."""

    IGNORE = -1
    NEGATIVE = 0
    POSITIVE = 1


class Assignment(NamedTuple):
    """One anchor's share of the targets; all `[B, A]`."""

    state: Tensor  # int32, a State
    matched: Tensor  # int32 index of the cell; 0 where there is none
    # float32, how well the anchor fits its cell, 0..1: its weight, and the score to be learned. None where
    # every positive counts alike.
    alignment: Tensor | None = None


class Predictions(NamedTuple):
    """What the network says at this step; no gradient flows through it."""

    boxes: Tensor  # [B, A, 4] yxyx, px
    scores: Tensor  # [B, A, K] probability of each class
    classes: Tensor  # [B, M] int32 class of each cell; padding may hold anything


class _Candidates(NamedTuple):
    """The anchors of all levels in a window around each cell's centre."""

    anchor: Tensor  # [B, M, N] int32, in the order of `anchors.grid`
    inside: Tensor  # [B, M, N] bool: in the input
    covered: Tensor  # [B, M, N] bool: its location lies in the cell's box
    nearest: Tensor  # [B, M, N] bool: the location of the finest level that the cell's centre lies in
    distance: Tensor  # [B, M, N] of location and centre, squared, in strides
    iou: Tensor  # [B, M, N] of anchor and cell, -1 outside the input
    level_sizes: tuple[int, ...]  # candidates of each level; N is their sum
    total: int | Tensor  # all anchors of an image


def _reach(shapes: np.ndarray, stride: int, threshold: float) -> np.ndarray:
    """How many locations from a cell's centre an anchor may reach IoU >= threshold.

    For anchor side a and cell side c, IoU >= t needs c <= a / t and an offset of at most
    (a / t - a) / 2; one location more covers the rounding of the centre. `shapes [S, 2]` are height and width
    of the anchors and `stride` that of the level, px.
    """
    return np.floor((1 / threshold - 1) / 2 * shapes.max(0) / stride + 0.5).astype(int) + 1


def _window(reach: np.ndarray) -> np.ndarray:
    """Offsets `[W, 2]` int32 of all locations up to `reach [2]` rows, columns away."""
    rows, columns = np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij")
    return np.stack([rows.reshape(-1), columns.reshape(-1)], axis=1).astype(np.int32)


def _level_candidates(
    cells: Tensor,
    feature_size: tuple[int | Tensor, int | Tensor],
    strides: tuple[Tensor, Tensor],
    sides: Tensor,
    window: np.ndarray,
) -> tuple[Tensor, ...]:
    """Anchor (within the level), inside, covered, distance and IoU of one level, each `[B, M, W * S]`.

    `cells [B, M, 4]` and `sides [S, 2]` of the anchors are in px, `window [W, 2]` are offsets.
    """
    y0, x0, y1, x1 = (cells[..., k, None] for k in range(4))
    spans, indices, inside, covered, distance = [], [], [], [], []
    for axis, (low, high) in enumerate(((y0, y1), (x0, x1))):
        middle = (low + high) / 2 / strides[axis]
        center = ops.cast(ops.floor(middle), "int32")
        index = ops.clip(center, 0, feature_size[axis] - 1) + window[:, axis]  # [B, M, W]
        place = ops.cast(index, "float32") + 0.5
        position = place * strides[axis]
        half = sides[:, axis] / 2
        end = ops.minimum(high[..., None], position[..., None] + half)
        spans.append(end - ops.maximum(low[..., None], position[..., None] - half))
        inside.append((index >= 0) & (index < feature_size[axis]))
        covered.append((position > low) & (position < high))
        distance.append((place - middle) ** 2)
        indices.append(ops.clip(index, 0, feature_size[axis] - 1))
    overlap = ops.maximum(spans[0], 0.0) * ops.maximum(spans[1], 0.0)  # [B, M, W, S]
    union = box_ops.area(cells)[..., None, None] + ops.prod(sides, axis=1) - overlap
    within = inside[0] & inside[1]
    iou = ops.where(within[..., None], overlap / ops.maximum(union, box_ops.EPSILON), -1.0)
    kinds = sides.shape[0]
    location = indices[0] * feature_size[1] + indices[1]
    anchor = location[..., None] * kinds + np.arange(kinds, dtype=np.int32)
    batch, count = ops.shape(cells)[:2]
    flat = (batch, count, len(window) * kinds)

    def each(values: Tensor) -> Tensor:
        return ops.repeat(values, kinds, axis=-1) if kinds > 1 else values

    return (
        ops.reshape(anchor, flat),
        each(within),
        each(covered[0] & covered[1]),
        each(distance[0] + distance[1]),
        ops.reshape(iou, flat),
    )


def _candidates(
    cells: Tensor,
    image_size: Sequence[int | Tensor],
    anchors: AnchorConfig,
    levels: range,
    reach: Callable[[np.ndarray, int], np.ndarray],
) -> _Candidates:
    """Anchors near each cell; `reach` maps (anchor sides, stride) of a level to rows, columns."""
    parts, first, sizes, nearest = [], 0, [], []
    features = anchor_ops.feature_sizes(*image_size, levels[0], levels[-1])
    for level, feature_size in zip(levels, features, strict=True):
        shapes = anchor_ops.shapes(anchors, level, levels[0])
        # In strides, anchors that follow the true stride are those of the nominal one.
        window = _window(reach(shapes, 2**level))
        strides = tuple(anchor_ops.stride(p, n) for p, n in zip(image_size, feature_size, strict=True))
        sides = anchor_ops.sides(anchors, level, levels[0], strides)
        found = _level_candidates(cells, feature_size, strides, sides, window)
        parts.append((first + found[0], *found[1:]))
        home = (window == 0).all(1) & (level == levels[0])
        nearest.append(np.repeat(home, len(shapes)))
        sizes.append(len(window) * len(shapes))
        first = first + feature_size[0] * feature_size[1] * len(shapes)
    anchor, inside, covered, distance, iou = (
        ops.concatenate([part[k] for part in parts], axis=-1) for k in range(5)
    )
    home = ops.broadcast_to(np.concatenate(nearest), ops.shape(anchor))
    return _Candidates(anchor, inside, covered, home, distance, iou, tuple(sizes), first)


class _Claims:
    """Cells that claim anchors; every anchor goes to the strongest claim.

    One integer orders the claims on an anchor: forced first, then the value 0..1, then the cell's index.
    Value, anchor, claimed and forced are `[B, M, N]`; there are `total` anchors, at most `max_cells` cells.
    """

    def __init__(
        self,
        value: Tensor,
        anchor: Tensor,
        claimed: Tensor,
        forced: Tensor,
        total: int | Tensor,
        max_cells: int,
    ):
        batch, count, width = ops.shape(value)
        bits = max(8, math.ceil(math.log2(max_cells + 1)))
        self._steps, self._unit = 2 ** (30 - bits) - 1, 2**bits
        self._flat = (batch * count * width,)
        self._total, self._batch = total, batch
        self._cell = ops.arange(count, dtype="int32")[None, :, None]
        key = ops.cast(ops.clip(value, 0.0, 1.0) * self._steps, "int32") * self._unit + self._cell
        key = ops.where(claimed | forced, key + ops.where(forced, 2**30, 0), -1)
        segment = anchor + ops.arange(batch, dtype="int32")[:, None, None] * total
        self._segment = ops.reshape(segment, self._flat)
        self._won = self._scatter(key)
        self.taken = self._won >= 0  # [B, A]
        self._forced = self._won >= 2**30
        self._rest = ops.where(self._forced, self._won - 2**30, ops.maximum(self._won, 0))
        self.owner = ops.where(self.taken, self._rest % self._unit, 0)  # [B, A]
        self._claimed = claimed | forced

    def _scatter(self, values: Tensor) -> Tensor:
        """Largest of the values `[B, M, N]` at each anchor, `[B, A]`."""
        largest = ops.segment_max(
            ops.reshape(values, self._flat), self._segment, num_segments=self._batch * self._total
        )
        return ops.reshape(largest, (self._batch, self._total))

    def reaching(self, minimum: float) -> Tensor:
        """Anchors `[B, A]` whose claim is forced or of at least this value."""
        # Rounded as the keys are, so that a value of exactly the threshold reaches it.
        enough = int(np.float32(minimum) * np.float32(self._steps))
        return self.taken & (self._forced | (self._rest // self._unit >= enough))

    def held(self) -> Tensor:
        """Claims `[B, M, N]` that were won."""
        owner = ops.take(ops.reshape(self.owner, (-1,)), self._segment)
        shape = ops.shape(self._claimed)
        return self._claimed & (ops.reshape(owner, shape) == self._cell)

    def at_anchors(self, values: Tensor) -> Tensor:
        """Values `[B, M, N]`, at least 0, of the winning claims at their anchors, `[B, A]`; else 0."""
        return ops.where(self.taken, ops.maximum(self._scatter(values), 0.0), 0.0)


def leave_out(
    state: Tensor,
    regions: Tensor,
    input_size: Sequence[int | Tensor],
    anchors: AnchorConfig,
    min_level: int,
    max_level: int,
) -> Tensor:
    """Ignore the background anchors whose location lies in a region that is neither cell nor background.

    Memory grows with R x (rows + columns), not with R x A.

    Args:
        state: `[B, A]` int32, which is returned with changes.
        regions: `[B, R, 4]` yxyx, px; empty ones are padding.
        input_size: height, width of the input, px.
        anchors: their number at a location counts.
        min_level: first level.
        max_level: last level.
    """
    levels = []
    for rows, columns in anchor_ops.feature_sizes(*input_size, min_level, max_level):
        spans = []
        for axis, count in enumerate((rows, columns)):
            middle = anchor_ops.centers(count, anchor_ops.stride(input_size[axis], count))
            low, high = regions[..., axis, None], regions[..., axis + 2, None]
            spans.append(ops.cast((middle >= low) & (middle < high), "float32"))
        hits = ops.matmul(ops.swapaxes(spans[0], -1, -2), spans[1])  # [B, rows, columns]
        hits = ops.reshape(hits, (ops.shape(hits)[0], -1))
        levels.append(ops.repeat(hits, anchors.per_location, axis=1))
    inside = ops.concatenate(levels, axis=1) > 0
    return ops.where(inside & (state == int(State.NEGATIVE)), int(State.IGNORE), state)


def assign(
    cells: Tensor,
    valid: Tensor,
    image_size: Sequence[int | Tensor],
    anchors: AnchorConfig,
    rules: AssignConfig,
    min_level: int,
    max_level: int,
    max_cells: int = 2000,
    predictions: Predictions | None = None,
) -> Assignment:
    """Match anchors, in the order of `anchors.grid`, to cells by `rules.method`.

    "iou" (Ren et al., Faster R-CNN, 2015): an anchor belongs to the cell it overlaps most. It is
    positive from `positive_iou` on, or when it is the best anchor of a cell (`force_match`);
    ignored between the two thresholds; negative below.

    "atss" (Zhang et al., CVPR 2020): of the `candidates` locations of each level that are nearest to the
    cell's centre, those are positive whose anchor's IoU reaches the mean plus the standard deviation of
    all of them and whose centre lies in the cell's box. `force_match` as above.

    "task_aligned" (Feng et al., TOOD, ICCV 2021): the `candidates` anchors in the cell's box, near its
    centre, that the network itself does best with, by score^`score_power` x IoU^`iou_power` of the
    predicted box. Where cells compete the higher IoU wins.

    Args:
        cells: `[B, M, 4]` yxyx, px.
        valid: `[B, M]` bool; False marks padding.
        image_size: height, width of the input, px.
        anchors: sizes and ratios.
        rules: method, thresholds and powers.
        min_level: first level.
        max_level: last level.
        max_cells: largest M, where M is known only at run time.
        predictions: of the network, for "task_aligned".
    """
    levels = range(min_level, max_level + 1)
    max_cells = cells.shape[1] or max_cells
    if rules.method == "task_aligned":
        assert predictions is not None, "task_aligned needs the predictions"
        near = _candidates(cells, image_size, anchors, levels, lambda *_: np.full(2, rules.reach))
        return _task_aligned(cells, valid, near, rules, predictions, max_cells)
    atss, threshold = rules.method == "atss", min(rules.negative_iou, rules.positive_iou)
    reach = (lambda *_: np.full(2, 2)) if atss else (lambda *shape: _reach(*shape, threshold))
    near = _candidates(cells, image_size, anchors, levels, reach)
    iou = ops.where(valid[..., None], near.iou, -1.0)
    if atss:
        claimed, minimum = _atss(near, iou, rules.candidates * anchors.per_location) & valid[..., None], 0.0
    else:
        claimed, minimum = iou >= rules.negative_iou, rules.positive_iou
    best = ops.max(iou, axis=-1, keepdims=True)
    forced = (iou >= best) & (iou > 0) & rules.force_match
    claims = _Claims(iou, near.anchor, claimed, forced, near.total, max_cells)
    positive = claims.reaching(minimum)
    others = ops.where(claims.taken, int(State.IGNORE), int(State.NEGATIVE))
    state = ops.where(positive, int(State.POSITIVE), others)
    return Assignment(ops.cast(state, "int32"), claims.owner)


def _atss(near: _Candidates, iou: Tensor, count: int) -> Tensor:
    """Claims `[B, M, N]` of ATSS: the `count` nearest of each level, then the statistical threshold."""
    chosen, start = [], 0
    for size in near.level_sizes:
        part = slice(start, start + size)
        # Of equally near ones all come.
        far = ops.where(near.inside[..., part], near.distance[..., part], np.inf)
        last = -ops.top_k(-far, min(count, size))[0][..., -1:]
        chosen.append(far <= last)
        start += size
    nearest = ops.concatenate(chosen, axis=-1) & near.inside
    weight = ops.cast(nearest, "float32")
    number = ops.maximum(ops.sum(weight, axis=-1, keepdims=True), 1.0)
    mean = ops.sum(weight * iou, axis=-1, keepdims=True) / number
    deviation = ops.sqrt(ops.sum(weight * (iou - mean) ** 2, axis=-1, keepdims=True) / number)
    return nearest & near.covered & (iou >= mean + deviation)


def _task_aligned(
    cells: Tensor,
    valid: Tensor,
    near: _Candidates,
    rules: AssignConfig,
    predictions: Predictions,
    max_cells: int,
) -> Assignment:
    batch, count, width = ops.shape(near.anchor)
    flat = ops.reshape(near.anchor, (batch, -1))
    boxes = ops.take_along_axis(predictions.boxes, flat[..., None], axis=1)
    boxes = ops.reshape(boxes, (batch, count, width, 4))
    overlap = box_ops.iou(boxes, cells[:, :, None])
    kinds = predictions.scores.shape[-1]
    classes = ops.clip(predictions.classes, 0, kinds - 1)[..., None]
    place = ops.reshape(near.anchor * kinds + classes, (batch, -1))
    scores = ops.take_along_axis(ops.reshape(predictions.scores, (batch, -1)), place, axis=1)
    scores = ops.reshape(scores, (batch, count, width))
    metric = scores**rules.score_power * overlap**rules.iou_power
    # A cell between all locations would have no match: it gets the nearest one.
    allowed = near.inside & valid[..., None] & (near.covered | near.nearest)
    top, index = ops.top_k(ops.where(allowed, metric, -1.0), min(rules.candidates, sum(near.level_sizes)))
    claimed = top >= 0
    metric, overlap = ops.maximum(top, 0.0), ops.take_along_axis(overlap, index, axis=-1)
    anchor = ops.take_along_axis(near.anchor, index, axis=-1)
    claims = _Claims(overlap, anchor, claimed, ops.zeros_like(claimed), near.total, max_cells)
    held = claims.held()
    strongest = ops.max(ops.where(held, metric, 0.0), axis=-1, keepdims=True)
    widest = ops.max(ops.where(held, overlap, 0.0), axis=-1, keepdims=True)
    alignment = metric / ops.maximum(strongest, 1e-12) * widest
    state = ops.where(claims.taken, int(State.POSITIVE), int(State.NEGATIVE))
    aligned = claims.at_anchors(ops.where(held, alignment, 0.0))
    return Assignment(ops.cast(state, "int32"), claims.owner, aligned)
