from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from effdet_tf.model.layers import (
    BatchNorm,
    FastFusion,
    StochasticDepth,
    UpsampleLike,
    depthwise_products,
)


@pytest.mark.parametrize(("rows", "columns"), [(6, 8), (5, 7), (5, 8), (1, 1)])
def test_upsampling_fits_the_finer_feature(rows, columns):
    coarse = np.arange(3 * 4, dtype=np.float32).reshape(1, 3, 4, 1)[:, : -(-rows // 2), : -(-columns // 2)]
    found = ops.convert_to_numpy(UpsampleLike()([coarse, np.zeros((1, rows, columns, 5), np.float32)]))
    expected = coarse[:, np.arange(rows) // 2][:, :, np.arange(columns) // 2]
    np.testing.assert_array_equal(found, expected)


def test_fusion_starts_as_the_mean():
    a, b = np.float32([[1.0, 5.0]]), np.float32([[3.0, -1.0]])
    found = ops.convert_to_numpy(FastFusion()([a, b]))
    np.testing.assert_allclose(found, (a + b) / (2 + 1e-4), rtol=1e-6)


def test_fusion_weighs_and_never_subtracts():
    layer = FastFusion()
    a, b = np.float32([[1.0, 5.0]]), np.float32([[3.0, -1.0]])
    layer.build([a.shape, b.shape])
    layer.factors[0].assign(3.0)
    np.testing.assert_allclose(ops.convert_to_numpy(layer([a, b])), (3 * a + b) / (4 + 1e-4), rtol=1e-6)
    layer.factors[1].assign(-7.0)  # a negative weight counts as none
    np.testing.assert_allclose(ops.convert_to_numpy(layer([a, b])), 3 * a / (3 + 1e-4), rtol=1e-6)


def test_stochastic_depth_is_off_at_inference_and_keeps_the_mean_in_training():
    keras.utils.set_random_seed(0)
    layer = StochasticDepth(0.25)
    x = np.ones((4000, 1, 1, 2), np.float32)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x, training=False)), x)
    found = ops.convert_to_numpy(layer(x, training=True))
    assert set(np.unique(found).round(5)) == {0.0, np.float32(1 / 0.75).round(5)}
    assert (found[..., 0] == found[..., 1]).all()  # an example is dropped as a whole
    assert found.mean() == pytest.approx(1, abs=0.04)  # standard deviation .009
    assert (found == 0).mean() == pytest.approx(0.25, abs=0.03)
    assert (ops.convert_to_numpy(layer(x, training=True)) != found).any()


@pytest.mark.parametrize(
    ("rows", "columns", "side", "stride"), [(9, 8, 3, 1), (9, 8, 3, 2), (7, 12, 5, 2), (2, 1, 5, 1)]
)
def test_shifted_products_are_the_depthwise_convolution(rows, columns, side, stride):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, rows, columns, 4)).astype(np.float32)
    kernel = rng.normal(size=(side, side, 4, 1)).astype(np.float32)
    expected = tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), "SAME")
    found = ops.convert_to_numpy(depthwise_products(ops.convert_to_tensor(x), kernel, stride))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    half = depthwise_products(ops.convert_to_tensor(x, "bfloat16"), kernel, stride)
    assert half.dtype == tf.bfloat16  # but summed in float32
    np.testing.assert_allclose(tf.cast(half, tf.float32), expected, rtol=0.02, atol=0.05)


def pair():
    """Our batch norm and Keras's, with the same weights."""
    ours = BatchNorm(momentum=0.9, epsilon=1e-3)
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    rng = np.random.default_rng(1)
    weights = [rng.uniform(0.5, 2, 5), rng.normal(size=5), rng.normal(size=5), rng.uniform(0.5, 2, 5)]
    for layer in (ours, theirs):
        layer.build((None, None, None, 5))
        layer.set_weights([w.astype(np.float32) for w in weights])
    return ours, theirs


def features(count=3, side=6):
    x = np.random.default_rng(0).normal(2, 3, (count, side, side, 5))
    return tf.constant(x, tf.float32)


@pytest.mark.parametrize("training", [False, True])
def test_fused_batch_norm_equals_keras(training):
    ours, theirs = pair()
    x = features()
    results = []
    for layer in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            loss = tf.reduce_sum(y * tf.sin(x) + y**2 * 0.1)
        gradients = tape.gradient(loss, [x, *layer.trainable_variables])
        results.append((y, *gradients))
    assert len(results[0]) == 4
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4)
    before = pair()[0]
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, rtol=1e-5)
    if not training:
        np.testing.assert_array_equal(ours.moving_variance, before.moving_variance)
        return
    assert not np.allclose(ours.moving_mean, before.moving_mean)
    # The kernel's variance is the unbiased one: n / (n - 1) of the other, n = 3 * 6 * 6 = 108.
    start = before.moving_variance.numpy()
    step = theirs.moving_variance.numpy() - 0.9 * start
    np.testing.assert_allclose(ours.moving_variance, 0.9 * start + step * 108 / 107, rtol=1e-4)


def test_frozen_batch_norm_neither_moves_nor_uses_the_batch():
    ours, _ = pair()
    expected = ours(features(), training=False)
    before = [w.copy() for w in ours.get_weights()]
    ours.trainable = False
    np.testing.assert_allclose(ours(features(), training=True), expected, rtol=1e-6)
    for a, b in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_batch_norm_has_keras_weights_so_that_files_fit():
    ours, theirs = pair()
    assert [v.name for v in ours.variables] == [v.name for v in theirs.variables]
