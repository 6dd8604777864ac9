"""Our network equals PyTorch's effdet: golden outputs, and each place where implementations differ.

The golden files are made by benchmarks/make_parity_goldens.py; the weights follow from a formula.
"""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from benchmarks import parity
from benchmarks import parity_cases as cases
from effdet_tf.geometry import boxes
from effdet_tf.model.anchors import grid
from effdet_tf.model.heads import build_predictor
from effdet_tf.model.layers import BatchNorm, FastFusion, UpsampleLike
from effdet_tf.presets import preset

TABLE = Path(parity.__file__).with_name("parity.md")
PIXELS = 5e-4  # tolerance of a box, whose coordinates reach 3,000 px
SLOW = ("d1", "d6", "d7x", "lite3")


@pytest.fixture(scope="module")
def d0():
    return parity.filled_network("d0")


@pytest.fixture(scope="module")
def golden_boxes():
    with np.load(cases.GOLDEN / "boxes.npz", allow_pickle=False) as archive:
        return dict(archive)


def table_rows():
    """(preset, size) -> figures of benchmarks/parity.md."""
    pattern = r"^\| (\w+) \| (\d+) x (\d+) \| \S+ \| ([\d.e-]+) \| ([\d.e-]+) \|$"
    found = re.findall(pattern, TABLE.read_text(), re.MULTILINE)
    return {(name, (int(h), int(w))): (float(a), float(b)) for name, h, w, a, b in found}


def check(network, name, size):
    """Every level within the tolerance, and as the table says but for another machine's rounding."""
    found = parity.differences(network, name, size)
    levels = preset(name).model.max_level - 2
    for (output, by_level), listed in zip(found.items(), table_rows()[name, size], strict=True):
        assert len(by_level) == levels
        assert max(by_level) < parity.TOLERANCE, (output, by_level)
        assert max(by_level) < 10 * listed, (output, by_level)


def test_the_table_has_every_case_within_the_tolerance():
    listed = table_rows()
    assert tuple(listed) == cases.CASES
    assert max(max(row) for row in listed.values()) < parity.TOLERANCE == 1e-4


@pytest.mark.parametrize("size", cases.SIZES["d0"])
def test_d0_equals_the_reference(d0, size):
    check(d0, "d0", size)


def test_lite0_equals_the_reference():
    network = parity.filled_network("lite0")
    for size in cases.SIZES["lite0"]:
        check(network, "lite0", size)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_larger_networks_equal_the_reference(name):
    network = parity.filled_network(name)
    for size in cases.SIZES[name]:
        check(network, name, size)


def test_a_small_fault_shows(d0):
    # One batch norm, of one level of one head, with PyTorch's default epsilon in place of 1e-3.
    layer = d0.dense.get_layer("box_bn1_level4")
    layer.epsilon = 1e-5
    try:
        found = parity.differences(d0, "d0", (200, 264))
    finally:
        layer.epsilon = 1e-3
    assert found["box_deltas"][1] > parity.TOLERANCE
    assert max(*found["class_logits"], *np.delete(found["box_deltas"], 1)) < parity.TOLERANCE


def test_other_shapes_than_the_references_are_an_error():
    with pytest.raises(ValueError, match="values by level"):
        parity.against_golden(np.zeros((49_104, 3), np.float32), "class_logits", "d0", (200, 264))


def same_convolution(x, kernel, stride):
    """TensorFlow's "same": the odd row of padding comes after, not before. Depthwise or full, in float64."""
    height, width, k = *x.shape[1:3], kernel.shape[0]
    rows, columns = -(-height // stride), -(-width // stride)
    pads = [max((n - 1) * stride + k - size, 0) for n, size in ((rows, height), (columns, width))]
    padded = np.pad(x.astype(np.float64), [(0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)])
    equation = "bhwc,hwc->bc" if kernel.shape[3] == 1 else "bhwc,hwco->bo"
    weights = kernel[..., 0] if kernel.shape[3] == 1 else kernel
    out = [
        [
            np.einsum(equation, padded[:, r : r + k, c : c + k], weights)
            for c in range(0, columns * stride, stride)
        ]
        for r in range(0, rows * stride, stride)
    ]
    return np.moveaxis(np.array(out), 2, 0)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 9), (8, 9), (5, 2), (1, 4)])
@pytest.mark.parametrize(
    ("name", "kernel"),
    [("stem_conv", 3), ("block1_dw_conv", 3), ("block3_dw_conv", 5), ("block5_dw_conv", 3)],
)
def test_padding_at_stride_two_is_tensorflows(d0, name, kernel, height, width):
    layer = d0.dense.get_layer(name)
    assert layer.kernel_size == (kernel, kernel) and layer.strides == (2, 2)
    weights = ops.convert_to_numpy(layer.kernel)
    x = np.random.default_rng(0).normal(size=(2, height, width, weights.shape[2])).astype(np.float32)
    expected = same_convolution(x, weights, 2)
    assert expected.shape[1:3] == (-(-height // 2), -(-width // 2))
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 7), (6, 7), (2, 3), (1, 1)])
def test_pooling_pads_with_minus_infinity(d0, height, width):
    # All values below 0: padding with 0 would win. Windows of 3 begin at 0 for even sizes, at -1 for odd.
    layer = d0.dense.get_layer("p6_pool")
    x = -1 - np.random.default_rng(1).random((1, height, width, 4), np.float32)
    found = ops.convert_to_numpy(layer(x))

    def windows(size):
        return [slice(max(0, k - size % 2), k - size % 2 + 3) for k in range(0, size, 2)]

    expected = [[x[:, r, c].max((1, 2)) for c in windows(width)] for r in windows(height)]
    np.testing.assert_array_equal(found, np.moveaxis(np.array(expected), 2, 0))


def test_every_batch_norm_has_the_references_epsilon(d0):
    norms = [layer for layer in d0.dense.layers if isinstance(layer, BatchNorm)]
    # Backbone 1 + 2 + 15 x 3, one above it, 3 x 8 nodes and 5 lateral convolutions, 2 heads x 3 x 5 levels.
    assert len(norms) == 1 + 2 + 45 + 1 + 24 + 5 + 30
    assert {layer.epsilon for layer in norms} == {1e-3}
    layer = d0.dense.get_layer("stem_bn")
    x = np.random.default_rng(2).normal(size=(1, 3, 3, 32)).astype(np.float32)
    gamma, beta, mean, variance = (ops.convert_to_numpy(v) for v in layer.weights)
    expected = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x, training=False)), expected, atol=2e-6)


@pytest.mark.parametrize("fine", [1, 2, 3, 5, 8, 13, 17, 25, 33, 34, 51, 67])
def test_upsampling_to_odd_sizes_takes_the_references_neighbour(fine):
    coarse = -(-fine // 2)
    x = np.arange(coarse, dtype=np.float32).reshape(1, coarse, 1, 1) * np.ones((1, 1, coarse, 1), np.float32)
    found = ops.convert_to_numpy(UpsampleLike()([x, np.zeros((1, fine, fine, 1), np.float32)]))
    # Nearest without half-pixel centres: source = floor(i x coarse / fine).
    np.testing.assert_array_equal(found[0, :, 0, 0], np.arange(fine) * coarse // fine)


def test_fusion_epsilon_and_relu():
    # Weights as small as the epsilon show its value: (1 a + 2 b) / (1 + 2 + 1), the negative one counts as 0.
    layer = FastFusion()
    a, b, c = (np.full((1, 1, 1, 2), value, np.float32) for value in (3.0, 5.0, 100.0))
    layer.build([a.shape] * 3)
    for weight, value in zip(layer.factors, (1e-4, 2e-4, -5e-4), strict=True):
        weight.assign(value)
    np.testing.assert_allclose(ops.convert_to_numpy(layer([a, b, c])), 13 / 4, rtol=1e-5)


def test_outputs_are_ordered_by_level_location_anchor_and_class():
    image = keras.Input((None, None, 2))
    features = {4: image[:, ::2, ::2], 3: image}
    predict = keras.Model(image, build_predictor(features, "predict", outputs=3, anchors=4, prior=False))
    layer = predict.get_layer("predict")
    # Channel 1 of the image is the location's number; channel a * 3 + k of the layer is 100 (3 a + k).
    kernels = [np.zeros(v.shape, np.float32) for v in (layer.depthwise_kernel, layer.pointwise_kernel)]
    kernels[0][1, 1, 1] = kernels[1][:, :, 1] = 1
    layer.set_weights([*kernels, 100 * np.arange(12, dtype=np.float32)])
    x = np.zeros((1, 4, 6, 2), np.float32)
    x[0, :, :, 1] = np.arange(24).reshape(4, 6)
    found = ops.convert_to_numpy(predict(x))[0]
    assert found.shape == ((24 + 6) * 4, 3)
    np.testing.assert_allclose(found[0], [0, 100, 200])  # first location, first anchor, the classes
    np.testing.assert_allclose(found[1], [300, 400, 500])
    np.testing.assert_allclose(found[4 * 7 + 2], [607, 707, 807])  # second row, second column, third anchor
    np.testing.assert_allclose(found[4 * 24 + 4 * 4], [14, 114, 214])  # P4, second row and column


@pytest.mark.parametrize(
    ("name", "size"), [(n, size) for n, sizes in cases.ANCHORS.items() for size in sizes]
)
def test_anchors_equal_the_reference(golden_boxes, name, size):
    config = preset(name)
    assert config.anchors.ratios == cases.RATIOS
    levels = grid(*size, config.anchors, config.model.min_level, config.model.max_level)
    levels = [ops.convert_to_numpy(level) for level in levels]
    found = np.concatenate(levels)
    key = f"anchors/{name}_{size[0]}x{size[1]}"
    assert len(found) == golden_boxes[f"{key}/count"]
    np.testing.assert_allclose(found.mean(0, dtype=np.float64), golden_boxes[f"{key}/mean"], atol=PIXELS)
    coarsest = golden_boxes[f"{key}/coarsest"]
    np.testing.assert_allclose(levels[-1], coarsest, atol=PIXELS)
    kept = found if name in cases.ALL_ANCHORS else found[cases.sample(len(found), cases.ANCHOR_SAMPLES)]
    np.testing.assert_allclose(kept, golden_boxes[key], atol=PIXELS)


def test_box_encodings_equal_the_reference(golden_boxes):
    anchors, decoded = golden_boxes["anchors/d7_1536x1536"], golden_boxes["decoded"]
    codes = cases.deltas(len(anchors))
    found = ops.convert_to_numpy(boxes.decode(codes, anchors))
    np.testing.assert_allclose(found, decoded, rtol=1e-5, atol=1e-3)
    again = ops.convert_to_numpy(boxes.encode(decoded, anchors))
    np.testing.assert_allclose(again, golden_boxes["encoded"], atol=1e-4)
    np.testing.assert_allclose(again, codes, atol=1e-4)
    # The one difference, on purpose: a log ratio above 4 counts as 4, the reference goes on to infinity.
    wild, cut = (np.float32([[0, 0, value, value]]) for value in (90, 4))
    np.testing.assert_array_equal(boxes.decode(wild, anchors[:1]), boxes.decode(cut, anchors[:1]))
