"""Box arithmetic on `yxyx` pixels: conversions, IoU, GIoU, and the anchor-relative encodings.

Everything is keras.ops, so it runs in graphs of every backend and on plain arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

Tensor = Any  # of whichever backend is active

EPSILON = 1e-8


def xywh_to_yxyx(boxes: np.ndarray) -> np.ndarray:
    """COCO's [x, y, width, height] to [y0, x0, y1, x1]; `[N, 4]` float32, pixels."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    x, y, w, h = boxes.T
    return np.stack([y, x, y + h, x + w], axis=1)


def yxyx_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """[y0, x0, y1, x1] to COCO's [x, y, width, height]; `[N, 4]` float32, pixels."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    y0, x0, y1, x1 = boxes.T
    return np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)


def to_center(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split `[..., 4]` yxyx boxes into centre y, centre x, height, width, each `[...]`."""
    y0, x0, y1, x1 = (boxes[..., k] for k in range(4))
    return (y0 + y1) / 2, (x0 + x1) / 2, y1 - y0, x1 - x0


def area(boxes: Tensor) -> Tensor:
    """Area of `[..., 4]` yxyx boxes, px^2; an inverted box has area 0."""
    return ops.maximum(boxes[..., 2] - boxes[..., 0], 0.0) * ops.maximum(boxes[..., 3] - boxes[..., 1], 0.0)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    low = ops.maximum(a[..., :2], b[..., :2])
    high = ops.minimum(a[..., 2:], b[..., 2:])
    sides = ops.maximum(high - low, 0.0)
    return sides[..., 0] * sides[..., 1]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes `[..., 4]` yxyx px, pair by pair: `[...]`; 0 for two empty ones."""
    inner = _intersection(a, b)
    return inner / ops.maximum(area(a) + area(b) - inner, EPSILON)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes `[..., 4]` yxyx px, pair by pair: `[...]`, -1 to 1.

    Source: Rezatofighi et al., CVPR 2019.
    """
    inner = _intersection(a, b)
    union = area(a) + area(b) - inner
    low = ops.minimum(a[..., :2], b[..., :2])
    high = ops.maximum(a[..., 2:], b[..., 2:])
    hull = ops.maximum(high[..., 0] - low[..., 0], 0.0) * ops.maximum(high[..., 1] - low[..., 1], 0.0)
    return inner / ops.maximum(union, EPSILON) - (hull - union) / ops.maximum(hull, EPSILON)


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU pair by pair: IoU less distance of centres and difference of shape (Zheng et al., 2020).

    Boxes are `[..., 4]` yxyx px, the result `[...]`, at most 1. `a` is the prediction. No gradient flows
    through the weight of the shape term, as in the paper.
    """
    overlap = iou(a, b)
    low = ops.minimum(a[..., :2], b[..., :2])
    high = ops.maximum(a[..., 2:], b[..., 2:])
    diagonal = ops.sum((high - low) ** 2, axis=-1)
    distance = ops.sum((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) ** 2, axis=-1) / 4

    def angle(boxes: Tensor) -> Tensor:
        _, _, h, w = to_center(boxes)
        return ops.arctan(ops.maximum(w, EPSILON) / ops.maximum(h, EPSILON))

    shape = 4 / np.float32(np.pi**2) * (angle(a) - angle(b)) ** 2
    weight = ops.stop_gradient(shape / ops.maximum(1 - overlap + shape, EPSILON))
    return overlap - distance / ops.maximum(diagonal, EPSILON) - weight * shape


def encode(boxes: Tensor, anchors: Tensor, encoding: str = "center") -> Tensor:
    """Encode boxes relative to anchors.

    Args:
        boxes: `[..., 4]` yxyx, px.
        anchors: `[..., 4]` yxyx, px, same shape.
        encoding: "center" (Ren et al., Faster R-CNN, 2015) or "sides" (Tian et al., FCOS, 2019), in which the
            anchor's centre must lie in the box, or the side that it lies beyond is lost.

    Returns:
        `[..., 4]`: "center": dy, dx in anchor sides, then log height ratio, log width ratio; "sides": log of
        the distances of the upper, left, lower and right side from the anchor's centre, in half anchor sides.
    """
    ay, ax, ah, aw = to_center(anchors)
    if encoding == "sides":
        y0, x0, y1, x1 = (boxes[..., k] for k in range(4))
        away = ops.stack([(ay - y0) / ah, (ax - x0) / aw, (y1 - ay) / ah, (x1 - ax) / aw], axis=-1)
        return ops.log(ops.maximum(2 * away, EPSILON))
    y, x, h, w = to_center(boxes)
    h, w = ops.maximum(h, EPSILON), ops.maximum(w, EPSILON)
    return ops.stack([(y - ay) / ah, (x - ax) / aw, ops.log(h / ah), ops.log(w / aw)], axis=-1)


def decode(deltas: Tensor, anchors: Tensor, encoding: str = "center") -> Tensor:
    """Undo `encode`: boxes `[..., 4]` yxyx, px, from deltas `[..., 4]` and anchors `[..., 4]` yxyx, px.

    A log ratio is cut at 4 (55 times the anchor), so a wild output early in training gives a
    large box, not infinity.
    """
    ay, ax, ah, aw = to_center(anchors)
    if encoding == "sides":
        center, half = ops.stack([ay, ax], axis=-1), ops.stack([ah, aw], axis=-1) / 2
        away = ops.exp(ops.minimum(deltas, 4.0))
        return ops.concatenate([center - away[..., :2] * half, center + away[..., 2:] * half], axis=-1)
    y = deltas[..., 0] * ah + ay
    x = deltas[..., 1] * aw + ax
    h = ops.exp(ops.minimum(deltas[..., 2], 4.0)) * ah
    w = ops.exp(ops.minimum(deltas[..., 3], 4.0)) * aw
    return ops.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], axis=-1)


def grow(boxes: Tensor, share: float) -> Tensor:
    """Move every side of `[..., 4]` yxyx boxes outwards by `share` of the box's own side."""
    y, x, h, w = to_center(boxes)
    h, w = h * (0.5 + share), w * (0.5 + share)
    return ops.stack([y - h, x - w, y + h, x + w], axis=-1)
