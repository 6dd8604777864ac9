"""Scale images, alike in training and prediction, in TensorFlow operations."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def resize(image: tf.Tensor, size: tf.Tensor, target: tf.Tensor | Sequence[int]) -> tf.Tensor:
    """Return `image [h, w, C]` of int32 `size [2]` in the size `target [2]`, bilinear.

    Shrinking by more than 1.5 goes through a low-pass. Up to there plain bilinear sampling still gives
    every source pixel a say (it reaches 1 px to each side), at a quarter of the time.
    """
    target = tf.convert_to_tensor(target, tf.int32)

    def plain() -> tf.Tensor:
        return tf.raw_ops.ResizeBilinear(images=image[None], size=target, half_pixel_centers=True)[0]

    def low_pass() -> tf.Tensor:
        return tf.image.resize(image, target, antialias=True)

    def unequal() -> tf.Tensor:
        return tf.cond(tf.reduce_any(2 * size > 3 * target), low_pass, plain)

    return tf.cond(tf.reduce_all(size == target), lambda: image, unequal)


def fit_scale(size: tf.Tensor, canvas: tuple[int, int]) -> tf.Tensor:
    """Return the scale, float32, at which an image of int32 `size [2]` just fits into a canvas."""
    return tf.reduce_min(tf.constant(canvas, tf.float32) / tf.cast(size, tf.float32))


def scaled_size(size: tf.Tensor, scale: tf.Tensor, canvas: tuple[int, int]) -> tf.Tensor:
    """Return int32 `size [2]` times `scale` in whole pixels: at least 1, at most those of the canvas."""
    scaled = tf.cast(tf.round(tf.cast(size, tf.float32) * scale), tf.int32)
    return tf.clip_by_value(scaled, 1, tf.constant(canvas))


def zoomed_size(size: tf.Tensor, zoom: float) -> tf.Tensor:
    """Return int32 `size [2]` times `zoom` in whole pixels, at least 1."""
    return tf.maximum(tf.cast(tf.round(tf.cast(size, tf.float32) * zoom), tf.int32), 1)


def pad(
    image: tf.Tensor, size: tf.Tensor, canvas: tf.Tensor | Sequence[int], value: float | tf.Tensor = 0.0
) -> tf.Tensor:
    """Return `image [h, w, C]` of int32 `size [2]` at the top left of a canvas `[2]`, height and width."""
    room = tf.convert_to_tensor(canvas, tf.int32) - size
    paddings = tf.stack([tf.stack([0, room[0]]), tf.stack([0, room[1]]), tf.zeros(2, tf.int32)])
    return tf.pad(image, paddings, constant_values=value)
