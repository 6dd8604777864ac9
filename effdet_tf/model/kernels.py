"""TensorFlow kernels that keras.ops has no name for; imported only where that backend is active."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def replicas() -> int:
    """Number of replicas of the strategy that the current code runs under."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def fused_batch_norm(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
    training: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Batch normalisation in one kernel: on a CPU its gradient costs a fraction of that of the parts.

    `x` is `[B, H, W, C]`, the weights `[C]` float32; mean and variance count when not training.

    Returns:
        The normalised x, and the mean and variance that it was normalised with (the variance with
        Bessel's correction when training).
    """
    empty = tf.zeros((0,), tf.float32)
    y, used_mean, used_variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=empty if training else mean,
        variance=empty if training else variance,
        epsilon=epsilon,
        is_training=training,
    )
    return y, used_mean, used_variance


def shared_batch_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, guess: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Batch normalisation in training, by the statistics of all replicas; else as the fused kernel.

    `x` is `[B, H, W, C]`, the others are `[C]` float32. `guess`, the same on every replica, is near the mean,
    such as the running one: sums are taken about it, so that the variance is no small difference of large
    numbers.

    Returns:
        The normalised x, the mean, and the variance with Bessel's correction.
    """
    context = tf.distribute.get_replica_context()
    shifted = tf.cast(x, tf.float32) - guess
    count = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
    sums = [tf.reduce_sum(values, [0, 1, 2]) for values in (shifted, tf.square(shifted))]
    sums = tf.stack([*sums, count * tf.ones_like(guess)])
    first, second, count = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.SUM, sums))
    off = first / count
    variance = tf.maximum(second / count - tf.square(off), 0.0)
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    y = tf.cast((shifted - off) * scale + beta, x.dtype)
    return y, guess + off, variance * count / tf.maximum(count - 1.0, 1.0)


def non_max_suppression(
    boxes: tf.Tensor, scores: tf.Tensor, limit: int, iou: float, score: float, sigma: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Greedy suppression by the kernel that converts to a TFLite builtin.

    Args:
        boxes: `[N, 4]` float32.
        scores: `[N]` float32.
        limit: maximum number of boxes.
        iou: overlap from which the worse box goes.
        score: minimum score.
        sigma: of Gaussian soft suppression; 0 for hard.

    Returns:
        Indices int32 `[limit]`, best first, padded with 0; their scores; how many of them count.
    """
    return tf.raw_ops.NonMaxSuppressionV5(
        boxes=boxes,
        scores=scores,
        max_output_size=limit,
        iou_threshold=iou,
        score_threshold=score,
        soft_nms_sigma=sigma,
        pad_to_max_output_size=True,
    )


def one_by_one(
    function: Callable[[tuple[tf.Tensor, ...]], tf.Tensor],
    parts: tuple[tf.Tensor, ...],
    shape: tuple[int, ...],
) -> tf.Tensor:
    """Apply a function to each row of `parts`, one at a time; float32 `[rows, *shape]`."""
    return tf.map_fn(
        function, parts, fn_output_signature=tf.TensorSpec(shape, tf.float32), parallel_iterations=1
    )
