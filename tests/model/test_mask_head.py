from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from keras import ops
from scipy.signal import correlate

from effdet_tf.config import MaskConfig
from effdet_tf.geometry.resample import sample_crops
from effdet_tf.model.mask_head import MaskHead


def array(value):
    return ops.convert_to_numpy(value)


def ramp(rows, columns, stride=1):
    """A feature whose value at each input pixel is its y and x: cell k's centre is at (k + .5) * stride."""
    y, x = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
    return (np.stack([y, x], -1)[None] * stride).astype(np.float32)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_samples_lie_at_the_centres_of_a_grid_over_the_box(stride):
    # Linear features are reproduced exactly between the centres of the first and last cell.
    box = np.array([[[9, 12, 25, 20]]], np.float32)
    found = array(sample_crops(ramp(40 // stride, 48 // stride, stride), box, stride, 4))[0, 0].reshape(
        4, 4, 2
    )
    np.testing.assert_allclose(found[:, 0, 0], [11, 15, 19, 23], atol=1e-4)
    np.testing.assert_allclose(found[0, :, 1], [13, 15, 17, 19], atol=1e-4)
    assert np.allclose(found[..., 0], found[:, :1, 0]) and np.allclose(found[..., 1], found[:1, :, 1])


def test_a_sample_at_a_cell_centre_is_that_cell():
    feature = np.random.default_rng(0).normal(size=(1, 6, 7, 3)).astype(np.float32)
    box = np.array([[[4, 8, 12, 16]]], np.float32)  # stride 4: rows 1-2, columns 2-3
    found = array(sample_crops(feature, box, 4, 2))[0, 0].reshape(2, 2, 3)
    np.testing.assert_allclose(found, feature[0, 1:3, 2:4], atol=1e-6)


def test_outside_the_image_the_edge_is_repeated():
    box = np.array([[[-40, -40, -20, -20], [100, 100, 140, 140]]], np.float32)
    found = array(sample_crops(ramp(8, 10), box, 1, 3))[0]
    assert (found[0] == 0.5).all()
    assert (found[1] == [7.5, 9.5]).all()


def test_each_image_is_sampled_from_its_own_feature():
    feature = np.stack([np.zeros((4, 4, 1)), np.ones((4, 4, 1))]).astype(np.float32)
    boxes = np.tile(np.float32([0, 0, 4, 4]), (2, 3, 1))
    found = array(sample_crops(feature, boxes, 1, 2))
    assert found.shape == (2, 3, 4, 1)
    assert (found[0] == 0).all() and (found[1] == 1).all()


CONFIG = MaskConfig(stride=2, channels=3, hidden=4, size=6, expand=0.1)


@pytest.fixture
def head():
    head = MaskHead(CONFIG)
    head.build((None, None, None, 3), (None, None, 5), (None, None, 4))
    return head


@pytest.fixture
def convolution():
    head = MaskHead(dataclasses.replace(CONFIG, head="convolution"))
    head.build((None, None, None, 3), (None, None, 5), (None, None, 4))
    return head


def test_crops_are_grown_by_the_configured_share(head):
    found = array(head.crop_boxes(np.float32([[[10, 10, 20, 30]]])))
    assert found[0, 0] == pytest.approx([9, 8, 21, 32], abs=1e-4)


def instances():
    """A feature, codes and boxes of three instances in each of two images, and what both heads start from.

    The last is `[2, 3, 36, 5]`: the samples of every crop, and their place in it.
    """
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    codes = rng.normal(size=(2, 3, 5)).astype(np.float32)
    boxes = np.tile(np.float32([2, 2, 13, 11]), (2, 3, 1))
    steps = (np.arange(6) + 0.5) / 6 * 2 - 1
    place = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(36, 2)
    crops = array(sample_crops(feature, boxes, 2, 6))
    return feature, codes, boxes, np.concatenate([crops, np.tile(place, (2, 3, 1, 1))], -1)


def test_the_filters_are_applied_as_written_down(head):
    feature, codes, boxes, start = instances()
    found = array(head(feature, codes, boxes))
    assert found.shape == (2, 3, 6, 6)
    kernel, bias = (array(w) for w in head.filters.weights)
    for b, k in ((0, 0), (1, 2)):
        p = codes[b, k] @ kernel + bias + array(head.base)
        values = start[b, k]
        for inputs, outputs, last in ((5, 4, False), (4, 4, False), (4, 1, True)):
            values = values @ p[: inputs * outputs].reshape(inputs, outputs)
            values = values + p[inputs * outputs : inputs * outputs + outputs]
            values = values if last else np.maximum(values, 0)
            p = p[inputs * outputs + outputs :]
        np.testing.assert_allclose(found[b, k].reshape(36, 1), values, atol=1e-4)
        assert p.size == 0


def test_the_convolutions_are_applied_as_written_down(convolution):
    feature, codes, boxes, start = instances()
    rng = np.random.default_rng(1)
    for layer in convolution.convolutions:
        layer.bias.assign(rng.normal(size=layer.bias.shape))
    found = array(convolution(feature, codes, boxes))
    assert found.shape == (2, 3, 6, 6)
    for b, k in ((0, 0), (1, 2)):
        values = start[b, k].reshape(6, 6, 5)
        for number, layer in enumerate(convolution.convolutions):
            kernel, bias = array(layer.kernel), array(layer.bias)  # [3, 3, inputs, outputs]
            maps = [
                sum(correlate(values[..., i], kernel[..., i, o], "same") for i in range(values.shape[-1]))
                for o in range(kernel.shape[-1])
            ]
            values = np.stack(maps, -1) + bias
            if number == 0:
                values = values + codes[b, k] @ array(convolution.code.kernel)
            values = np.maximum(values, 0) if number < 2 else values
        np.testing.assert_allclose(found[b, k], values[..., 0], atol=1e-4)


def test_an_embedding_of_zeros_is_the_plain_shared_head(head):
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(1, 8, 8, 3)).astype(np.float32)
    boxes = np.tile(np.float32([2, 2, 13, 11]), (1, 2, 1))
    codes = np.zeros((1, 2, 5), np.float32)
    found = array(head(feature, codes, boxes))
    np.testing.assert_array_equal(found[0, 0], found[0, 1])
    assert found.std() > 0
    codes[0, 1] = 3
    assert (array(head(feature, codes, boxes))[0, 1] != found[0, 1]).any()


@pytest.mark.parametrize("kind", ["head", "convolution"])
def test_an_instance_sees_its_own_crop_only(kind, request):
    head = request.getfixturevalue(kind)
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(1, 16, 16, 3)).astype(np.float32)
    codes = rng.normal(size=(1, 1, 5)).astype(np.float32)
    box = np.float32([[[4, 4, 12, 12]]])
    before = array(head(feature, codes, box))
    assert before.std() > 0
    feature[:, 8:] += 100  # from input pixel 16 on
    np.testing.assert_array_equal(array(head(feature, codes, box)), before)
