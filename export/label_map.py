"""A label image out of cells, inside a graph: what `Result.filter` and `Result.label_image` do in numpy."""

from __future__ import annotations

import tensorflow as tf

from effdet_tf.model.postprocess import Detections

MIN_VISIBLE = 0.5  # share of its mask that a cell must keep
_THRESHOLD = 127.5  # of masks that are probability times 255


def label_map(
    found: Detections, height: tf.Tensor, width: tf.Tensor, min_score: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Give each pixel to one cell: the higher score wins, and who keeps less than half is left out.

    Args:
        found: ranked cells, in pixels of the image.
        height: of the image, px, int32.
        width: likewise.
        min_score: minimum score of a cell.

    Returns:
        (labels int32 `[height, width]`, 0 is background; int32 number of cells in it).
    """
    masks, boxes = found.masks, found.mask_boxes
    rank = tf.range(tf.shape(found.scores)[0])
    wanted = tf.reduce_sum(tf.cast((found.scores >= min_score) & (rank < found.count), tf.int32))

    def paste(index: tf.Tensor, number: tf.Tensor, flat: tf.Tensor) -> tuple[tf.Tensor, ...]:
        top, rows = _interpolate(boxes[index, 0], boxes[index, 2], height, masks.shape[1])
        left, columns = _interpolate(boxes[index, 1], boxes[index, 3], width, masks.shape[2])
        values = tf.matmul(tf.matmul(rows, tf.cast(masks[index], tf.float32)), columns, transpose_b=True)
        inside = tf.cast(tf.where(values > _THRESHOLD), tf.int32)
        place = (inside[:, 0] + top) * width + inside[:, 1] + left
        free = tf.boolean_mask(place, tf.equal(tf.gather(flat, place), 0))
        minimum = tf.maximum(1.0, MIN_VISIBLE * tf.cast(tf.size(place), tf.float32))
        kept = tf.cast(tf.size(free), tf.float32) >= minimum
        free = free[: tf.where(kept, tf.size(free), 0)]
        number += tf.cast(kept, tf.int32)
        flat = tf.tensor_scatter_nd_update(flat, free[:, None], tf.fill(tf.shape(free), number))
        return index + 1, number, flat

    flat = tf.zeros((height * width,), tf.int32)
    _, number, flat = tf.while_loop(
        lambda index, *_: index < wanted,
        paste,
        (0, 0, flat),
        shape_invariants=(tf.TensorShape(()), tf.TensorShape(()), tf.TensorShape((None,))),
        parallel_iterations=1,
    )
    return tf.reshape(flat, tf.stack([height, width])), number


def _interpolate(
    low: tf.Tensor, high: tf.Tensor, limit: tf.Tensor, cells: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """First pixel, and float32 `[pixels, cells]` weights of the pixels whose centres lie in [low, high).

    As `geometry.masks` has it, in the same precision: a pixel at the threshold must fall to the same side.
    """
    low, high = tf.cast(low, tf.float64), tf.cast(high, tf.float64)
    edge = tf.cast(limit, tf.float64)
    first = tf.maximum(tf.math.ceil(tf.maximum(low, 0.0) - 0.5), 0.0)
    last = tf.maximum(tf.minimum(tf.math.ceil(tf.minimum(high, edge) - 0.5), edge), first)
    last = tf.where(high > low, last, first)
    offset = tf.cast(0.5 - low, tf.float32)
    unit = tf.cast(cells / tf.where(high > low, high - low, 1.0), tf.float32)
    position = (tf.range(tf.cast(first, tf.float32), tf.cast(last, tf.float32)) + offset) * unit - 0.5
    position = tf.clip_by_value(position, 0.0, cells - 1.0)
    weights = 1.0 - tf.abs(position[:, None] - tf.range(cells, dtype=tf.float32))
    return tf.cast(first, tf.int32), tf.maximum(weights, 0.0)
