"""State dicts of PyTorch's effdet; equal outputs are proven in tests/parity."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import named_variables
from effdet_tf.presets import IMAGENET_MEAN, IMAGENET_STD, REFERENCE_PRESETS, preset
from effdet_tf.pretrained.effdet_names import from_effdet, rows
from effdet_tf.pretrained.source import UNIT_RANGE

LISTING = Path(__file__).parent / "tf_efficientdet_d0.txt"  # by benchmarks/make_parity_goldens.py
FILE = "tf_efficientdet_d0_34-f153e0cf.pth"


@pytest.fixture(scope="module")
def published():
    """Random tensors under the names and shapes of the published tf_efficientdet_d0."""
    random, state = np.random.default_rng(0), {}
    for line in LISTING.read_text().splitlines():
        name, *shape = line.split()
        shape = tuple(map(int, shape[0].split("x"))) if shape else ()
        state[name] = random.random(shape, np.float32) if shape else np.array(1)
    return state


@pytest.fixture
def state(published):
    return dict(published)


@pytest.fixture(scope="module")
def imported(published):
    return from_effdet(published, FILE)


def made_up(name, classes=90, level_first=False):
    """A state dict of zeros that takes no memory, in the shapes of a preset."""
    listed = list(rows(preset(name), level_first))
    state = {}
    for row in listed:
        shape = [9 * (classes if "class" in row.ours else 4) if n is None else n for n in row.shape]
        if row.element is not None:
            shape = [sum(other.theirs == row.theirs for other in listed)]
        elif row.ours.endswith(("depthwise_kernel", "_dw_conv/kernel")):
            shape = [shape[2], 1, *shape[:2]]
        elif len(shape) == 4:
            shape = [shape[3], shape[2], *shape[:2]]
        state[row.theirs] = np.broadcast_to(np.float32(0), shape)
    return state


def test_every_variable_of_d0_is_there_in_its_shape(imported):
    config = preset("d0").replace(model__mask__enabled=False, data__channels=3)
    ids = tuple(range(1, 91))
    network = build_network(config.replace(category_ids=ids, class_names=tuple(map(str, ids))))
    wanted = {path: tuple(v.shape) for path, v in named_variables(network).items()}
    assert {path: array.shape for path, array in imported.arrays.items()} == wanted
    assert {(type(array), array.dtype.name) for array in imported.arrays.values()} == {
        (np.ndarray, "float32")
    }
    assert imported.unused == {} and imported.notes == () and imported.kind == "detector"
    assert (imported.mean, imported.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert imported.origin == "PyTorch state dict of effdet, d0"


@pytest.mark.parametrize(
    ("theirs", "ours", "layout"),
    [
        ("backbone.conv_stem.weight", "stem_conv/kernel", (2, 3, 1, 0)),
        ("backbone.bn1.running_var", "stem_bn/moving_variance", None),
        # The first block has no expansion: its `conv_pw` is the projection.
        ("backbone.blocks.0.0.conv_dw.weight", "block0_dw_conv/kernel", (2, 3, 0, 1)),
        ("backbone.blocks.0.0.conv_pw.weight", "block0_project_conv/kernel", (2, 3, 1, 0)),
        ("backbone.blocks.0.0.bn1.weight", "block0_dw_bn/gamma", None),
        ("backbone.blocks.0.0.bn2.bias", "block0_project_bn/beta", None),
        ("backbone.blocks.0.0.se.conv_reduce.weight", "block0_se_reduce/kernel", (2, 3, 1, 0)),
        # In the others it is the expansion. Stage 4 begins with block 8: 1 + 2 + 2 + 3 come before.
        ("backbone.blocks.4.1.conv_pw.weight", "block9_expand_conv/kernel", (2, 3, 1, 0)),
        ("backbone.blocks.4.1.conv_dw.weight", "block9_dw_conv/kernel", (2, 3, 0, 1)),
        ("backbone.blocks.4.1.conv_pwl.weight", "block9_project_conv/kernel", (2, 3, 1, 0)),
        ("backbone.blocks.4.1.bn1.running_mean", "block9_expand_bn/moving_mean", None),
        ("backbone.blocks.4.1.bn2.weight", "block9_dw_bn/gamma", None),
        ("backbone.blocks.4.1.bn3.weight", "block9_project_bn/gamma", None),
        ("backbone.blocks.6.0.se.conv_expand.bias", "block15_se_expand/bias", None),
        ("fpn.resample.3.conv.conv.weight", "p6_resample_conv/kernel", (2, 3, 1, 0)),
        ("fpn.resample.3.conv.bn.weight", "p6_resample_bn/gamma", None),
        # Nodes 0-3 go down from P6 to P3, 4-7 up from P4 to P7; input 1 is P4 of the backbone.
        ("fpn.cell.0.fnode.2.combine.resample.1.conv.conv.bias", "fpn0_td4_resample_conv/bias", None),
        ("fpn.cell.0.fnode.4.combine.resample.1.conv.bn.bias", "fpn0_bu4_resample_bn/beta", None),
        ("fpn.cell.2.fnode.0.after_combine.conv.conv_pw.bias", "fpn2_td6_conv/bias", None),
        (
            "fpn.cell.1.fnode.7.after_combine.conv.conv_dw.weight",
            "fpn1_bu7_conv/depthwise_kernel",
            (2, 3, 0, 1),
        ),
        ("fpn.cell.1.fnode.3.after_combine.conv.bn.weight", "fpn1_td3_bn/gamma", None),
        ("class_net.conv_rep.2.conv_pw.weight", "class_conv2/pointwise_kernel", (2, 3, 1, 0)),
        ("class_net.bn_rep.2.4.bn.weight", "class_bn2_level7/gamma", None),  # repeat, then level
        ("box_net.bn_rep.0.1.bn.running_var", "box_bn0_level4/moving_variance", None),
        ("box_net.predict.conv_dw.weight", "box_predict/depthwise_kernel", (2, 3, 0, 1)),
        ("class_net.predict.conv_pw.bias", "class_predict/bias", None),
    ],
)
def test_names_and_layouts(published, imported, theirs, ours, layout):
    expected = published[theirs] if layout is None else published[theirs].transpose(layout)
    np.testing.assert_array_equal(imported.arrays[ours], expected)


def test_fusion_weights_keep_their_order(published, imported):
    for node, name in ((0, "td6"), (5, "bu5")):
        weights = published[f"fpn.cell.1.fnode.{node}.combine.edge_weights"]
        found = [imported.arrays[f"fpn1_{name}_fuse/weight_{k}"] for k in range(len(weights))]
        assert len(found) == (2 if name == "td6" else 3)
        np.testing.assert_array_equal(found, weights)


# Trainable parameters with 90 classes, as published.
PUBLISHED = {"d0": 3_880_067, "d1": 6_625_898, "d3": 12_032_296, "d5": 33_653_315, "d7": 51_871_782}


@pytest.mark.parametrize("name", REFERENCE_PRESETS)
def test_every_published_architecture_is_recognised(name):
    state = made_up(name)
    found = from_effdet(state, f"tf_efficientdet_{name}_51-c79f9be6.pth")
    assert re.search(rf", {name}\b", found.origin)
    assert found.unused == {}
    if name in PUBLISHED:
        learned = sum(a.size for path, a in found.arrays.items() if "/moving_" not in path)
        assert learned == PUBLISHED[name]
    assert found.mean == (UNIT_RANGE if name.startswith("lite") else IMAGENET_MEAN)


def test_advprop_variants_have_their_own_normalisation(state):
    found = from_effdet(state, "weights_ap/tf_efficientdet_d0_ap-d0cdbd0a.pth")
    assert found.mean == found.std == (127.5,)
    assert "AdvProp" in found.notes[0]
    # The folder says nothing.
    assert from_effdet(state, f"weights_ap/{FILE}").mean == IMAGENET_MEAN
    assert from_effdet(state, FILE, advprop=True).mean == UNIT_RANGE
    assert from_effdet(state, "tf_efficientdet_d0_ap-d0cdbd0a.pth", advprop=False).mean == IMAGENET_MEAN


def test_level_first_batch_norms(published):
    state = {}
    for name, value in published.items():
        match = re.match(r"(\w+)\.bn_rep\.(\d)\.(\d)\.bn\.(\w+)", name)
        state["{0}.bn_rep.{2}.{1}.{3}".format(*match.groups()) if match else name] = value
    assert "class_net.bn_rep.4.2.weight" in state
    found, expected = from_effdet(state, FILE), from_effdet(published, FILE)
    assert found.arrays.keys() == expected.arrays.keys()
    for path, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[path], array)


def test_averages_are_preferred_and_the_rest_is_told(published, imported):
    state = {f"state_dict.model.{name}": value * 0 for name, value in published.items()}
    state |= {f"state_dict_ema.module.model.{name}": value for name, value in published.items()}
    state |= {"epoch": np.array(3), "state_dict.model.anchors.boxes": np.zeros((4, 4))}
    found = from_effdet(state, FILE)
    np.testing.assert_array_equal(found.arrays["stem_bn/gamma"], imported.arrays["stem_bn/gamma"])
    assert found.origin.endswith("d0, from state_dict_ema.module.model")
    tensors = [name for name in published if not name.endswith("num_batches_tracked")]
    assert set(found.unused) - {"epoch", "state_dict.model.anchors.boxes"} == {
        f"state_dict.model.{name}" for name in tensors
    }
    assert found.unused["state_dict.model.backbone.bn1.bias"] == (
        "a second copy; state_dict_ema.module.model. was taken"
    )
    assert found.unused["state_dict.model.anchors.boxes"] == "anchors are computed, not stored"
    assert found.unused["epoch"] == "not part of the network"


def test_an_unknown_tensor_is_told(state):
    state["backbone.conv_head.weight"] = np.zeros((1280, 320, 1, 1))
    assert from_effdet(state, FILE).unused == {"backbone.conv_head.weight": "d0 has no such layer"}


def bare(state):
    """What `efficientdet_d0` holds: no bias in front of a batch norm."""
    return {
        name: value
        for name, value in state.items()
        if not re.search(r"(combine\.conv|conv_rep\.\d)\.conv_pw\.bias|conv\.conv\.bias", name)
    }


def test_left_out_biases_are_zero_with_a_note(state):
    found = from_effdet(bare(state), "efficientdet_d0-f3276ba8.pth")
    assert len(state) - len(bare(state)) == 1 + 5 + 3 * 8 + 2 * 3
    assert found.arrays["fpn0_td6_conv/bias"].tolist() == [0] * 64
    assert found.arrays["p6_resample_conv/bias"].shape == (64,)
    assert found.arrays["class_predict/bias"].any()
    (note,) = found.notes
    assert "symmetric padding" in note and "not equal" in note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("backbone.blocks.3.1.bn2.bias"), r"backbone.blocks.3.1.bn2.bias is missing \(1 in"),
        (lambda s: s.pop("box_net.bn_rep.1.3.bn.running_var"), r"box_net.bn_rep.1.3.bn.running_var is miss"),
        (lambda s: s.pop("class_net.predict.conv_pw.bias"), r"class_net.predict.conv_pw.bias is missing"),
        # One of the biases that some variants leave out, but only one.
        (lambda s: s.pop("class_net.conv_rep.0.conv_pw.bias"), r"class_net.conv_rep.0.conv_pw.bias is miss"),
        (
            lambda s: s.update({"backbone.blocks.1.0.conv_dw.weight": np.zeros((96, 1, 5, 5))}),
            r"blocks.1.0.conv_dw.weight has shape \(96, 1, 5, 5\), not \(96, 1, 3, 3\)",
        ),
        (
            lambda s: s.update({"fpn.cell.0.fnode.4.combine.edge_weights": np.zeros(2)}),
            r"fnode.4.combine.edge_weights has shape \(2,\), not \(3,\)",
        ),
        (
            lambda s: s.update({"box_net.predict.conv_pw.weight": np.zeros((36, 60, 1, 1))}),
            r"box_net.predict.conv_pw.weight has shape \(36, 60, 1, 1\), not \(any, 64, 1, 1\)",
        ),
        (lambda s: s.update({"backbone.conv_stem.weight": np.zeros(7)}), r"shape \(7,\), no convolution's"),
        (lambda s: s.pop("backbone.conv_stem.weight"), r"no state dict of effdet"),
        (lambda s: s.clear(), r"no state dict of effdet"),
        # The "quad" pyramid of efficientdet_q0 has D0's channels.
        (
            lambda s: s.update({f"fpn.cell.0.fnode.{k}.x": np.zeros(1) for k in range(8, 21)}),
            r"its pyramid has 21 nodes, a BiFPN of 5 levels has 8",
        ),
        (
            lambda s: s.update(
                {"fpn.cell.0.fnode.0.after_combine.conv.conv_pw.weight": np.zeros((80, 80, 1, 1))}
            ),
            r"efficientnet-b0 with a BiFPN of 80 channels x 3 .* is none of d0",
        ),
        (
            lambda s: s.update({"backbone.blocks.6.1.conv_pwl.weight": np.zeros((320, 1920, 1, 1))}),
            r"an EfficientNet of 17 blocks",
        ),
        (
            lambda s: [s.pop(k) for k in list(s) if k.startswith("fpn.")],
            r"holds efficientnet-b0 but no BiFPN",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(state, change, message):
    change(state)
    with pytest.raises(UserError, match=message) as error:
        from_effdet(state, "some.pth")
    assert str(error.value).startswith("some.pth: ") and "\n" not in str(error.value)
