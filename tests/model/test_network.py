from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.model.anchors import grid
from effdet_tf.model.network import build_network, check_levels
from effdet_tf.presets import PRESETS, preset


@pytest.fixture(scope="module")
def network(tiny_config):
    return build_network(tiny_config)


def outputs(network, height, width, batch=1, seed=0):
    image = np.random.default_rng(seed).normal(size=(batch, height, width, 1)).astype(np.float32)
    return {k: v.numpy() for k, v in network.dense(image, training=False).items()}


def test_every_class_starts_at_one_percent(network):
    layer = network.dense.get_layer("class_predict")
    bias = layer.bias.numpy()
    np.testing.assert_allclose(bias, -math.log(99), rtol=1e-6)
    assert bias.shape == (6,)  # two sizes, three ratios, one class
    # Not the box head's: that one starts at the anchor itself.
    assert (network.dense.get_layer("box_predict").bias.numpy() == 0).all()
    probability = 1 / (1 + np.exp(-outputs(network, 64, 64)["class_logits"]))
    assert probability.mean() == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 72), (41, 67)])
def test_outputs_fit_the_anchors(network, tiny_config, height, width):
    found = outputs(network, height, width, batch=2)
    anchors = sum(len(level) for level in grid(height, width, tiny_config.anchors, 2, 3))
    rows, columns = -(-height // 4), -(-width // 4)
    assert anchors == 6 * (rows * columns + -(-height // 8) * -(-width // 8))
    assert found["class_logits"].shape == (2, anchors, 1)
    assert found["box_deltas"].shape == (2, anchors, 4)
    assert found["codes"].shape == (2, anchors // 6, 8)
    assert found["mask_feature"].shape == (2, -(-height // 2), -(-width // 2), 8)
    assert all(np.isfinite(v).all() for v in found.values())


def test_outputs_stand_where_the_anchors_are(network, tiny_config):
    # A change at one place of the image moves the logits around it: order and geometry agree. Random
    # weights may put the largest change a few cells off; the centre of all changes stays.
    image = np.zeros((1, 64, 64, 1), np.float32)
    before = network.dense(image, training=False)["class_logits"].numpy()[0, :, 0]
    image[0, 44:48, 12:16] = 5
    after = network.dense(image, training=False)["class_logits"].numpy()[0, :, 0]
    change = np.square(after - before)[: 16 * 16 * 6].reshape(16, 16, 6).sum(-1)
    y, x = np.average(np.indices((16, 16)).reshape(2, -1), axis=1, weights=change.ravel())
    assert abs(y - 11) <= 2 and abs(x - 3) <= 2  # pixel 46, 14 at stride 4


def test_without_masks_there_is_no_mask_head(tiny_config):
    plain = build_network(tiny_config.override(["model.mask.enabled=false"]))
    assert plain.mask_head is None
    assert set(plain.dense.output) == {"class_logits", "box_deltas"}
    assert not any("mask" in v.path for v in plain.variables)


def test_the_variables_hold_both_parts(network):
    head = {id(v) for v in network.mask_head.variables}
    assert head and head < {id(v) for v in network.variables}
    assert {id(v) for v in network.trainable_variables} < {id(v) for v in network.variables}
    assert network.stride == 8


@pytest.mark.parametrize(("stem", "backbone_levels"), [(2, "[3, 4]"), (1, "[2, 3]")])
def test_a_finer_stem_halves_the_strides_with_the_same_weights(tiny_config, stem, backbone_levels):
    low = 3 if stem == 2 else 2
    config = tiny_config.override(
        [
            f"model.stem_stride={stem}",
            f"model.backbone_levels={backbone_levels}",
            f"model.min_level={low}",
            f"model.max_level={low + 1}",
            "model.mask.stride=4",
            "model.mask.enabled=false",
        ]
    )
    network = build_network(config)
    assert outputs(network, 64, 64)["box_deltas"].shape[1] == 6 * ((64 >> low) ** 2 + (64 >> low + 1) ** 2)
    shapes = {v.path: tuple(v.shape) for v in network.variables if v.path.startswith(("stem", "block"))}
    # P2-P3 behind a stem without stride are the layers of P3-P4 behind the usual one.
    settings = ["model.backbone_levels=[3, 4]", "model.min_level=3", "model.max_level=4"]
    reference = build_network(tiny_config.override([*settings, "model.mask.stride=4"]))
    expected = {v.path: tuple(v.shape) for v in reference.variables if v.path.startswith(("stem", "block"))}
    assert shapes == expected


def test_fusion_kinds_differ_by_their_weights(tiny_config):
    plain, fast = (build_network(tiny_config.override([f"model.fusion={kind}"])) for kind in ("sum", "fast"))
    names = {v.path for v in fast.variables} - {v.path for v in plain.variables}
    # P2 and P3 once: two nodes of two inputs each.
    assert len(names) == 4 and all("weight_" in n for n in names)


def test_levels_share_their_convolutions_but_not_their_statistics(network):
    names = [layer.name for layer in network.dense.layers]
    assert names.count("class_conv0") == 1
    assert {"class_bn0_level2", "class_bn0_level3", "box_bn0_level2", "box_bn0_level3"} <= set(names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.backbone_levels=[]"], "backbone_levels"),
        (["model.backbone_levels=[2, 4]"], "neighbouring"),
        (["model.backbone_levels=[3, 2]"], "neighbouring"),
        (["model.min_level=3"], "min_level 3"),
        (["model.max_level=2"], "max_level 2"),
        (["model.max_level=4"], "anchors.sizes has 2 levels, the pyramid P2-P4 has 3"),
        (["anchors.sizes=[[8, 12], [20]]"], "same number of sizes"),
        (["anchors.sizes=[[], []]"], "anchors"),
        (["anchors.sizes=[]", "anchors.octaves=0"], "anchors"),
        (["anchors.ratios=[]"], "anchors"),
        (["model.mask.stride=3"], "mask.stride 3"),
        (["model.fpn_channels=0"], "model.fpn_channels 0: take 1 or more"),
        (["model.mask.channels=0"], "model.mask.channels 0"),
        (["model.mask.hidden=0", "model.mask.head=convolution"], "model.mask.hidden 0"),
        (["model.mask.size=-1"], "model.mask.size -1"),
        (["model.mask.samples=0"], "model.mask.samples 0"),
        (["model.mask.stride=8"], "mask.stride 8"),
        (["model.mask.stride=1"], "mask.stride 1: the backbone has no feature"),
        (["model.backbone=vgg"], "unknown backbone 'vgg'"),
        (
            ["model.backbone_levels=[6, 7]", "model.min_level=6", "model.max_level=7"],
            "has no level 6",
        ),
    ],
)
def test_impossible_settings_are_refused_by_name(tiny_config, settings, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        build_network(tiny_config.override(settings))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_pyramid(name):
    check_levels(preset(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cells-lite0", "cells-d0"])
def test_cell_presets_reach_stride_four_and_two_for_masks(name):
    config = preset(name)
    network = build_network(config)
    found = outputs(network, 128, 128)
    low, high = config.model.min_level, config.model.max_level
    locations = sum((128 >> level) ** 2 for level in range(low, high + 1))
    assert low == 2
    assert found["class_logits"].shape == (1, locations * config.anchors.per_location, 1)
    assert found["mask_feature"].shape == (1, 64, 64, config.model.mask.channels)
    assert network.dense.count_params() < (1_500_000 if name == "cells-lite0" else 5_000_000)


def test_half_precision_leaves_outputs_in_single(tiny_config):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        found = outputs(build_network(tiny_config), 64, 64)
    finally:
        keras.config.set_dtype_policy(before)
    assert found["class_logits"].dtype == found["box_deltas"].dtype == np.float32
    assert found["mask_feature"].dtype == np.float16
