"""Checkpoints of the original EfficientDet: equal outputs for every scheme of names, and what is refused.

The checkpoints are written anew from listings of the original's own, see `checkpoints/`.
"""

from __future__ import annotations

import collections

import numpy as np
import pytest

from benchmarks.parity_cases import image, summary
from effdet_tf.errors import UserError
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import assign_arrays, named_variables
from effdet_tf.presets import IMAGENET_MEAN, IMAGENET_STD, LITE_MEAN, LITE_STD, preset
from effdet_tf.pretrained.automl_names import from_automl
from effdet_tf.pretrained.effdet_names import rows
from effdet_tf.pretrained.source import UNIT_RANGE
from effdet_tf.pretrained.tensorflow_checkpoint import read_variables
from tests.pretrained.checkpoints.rebuild import golden, listing, write

TOLERANCE = 1e-4
SIZES = ((256, 256), (203, 267))
STEM = "efficientnet-b0/stem/conv2d/kernel"
OBJECT_STEM = "backbone/_stem/_conv_stem/kernel"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def network_of(name, classes=90):
    config = preset(name).replace(model__mask__enabled=False, data__channels=3)
    return build_network(
        config.replace(class_names=tuple(map(str, range(classes))), category_ids=tuple(range(classes)))
    )


@pytest.fixture(scope="module")
def d0():
    return network_of("d0")


def empty(case, **changed):
    """The variables of a case without memory, and without what `read_variables` leaves out."""
    names = {v.name.split("|")[-1].removesuffix(":0"): v.shape for v in listing(case) if v.dtype != "string"}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in (names | changed).items()}


def by_level(values, height, width):
    """Cut `[A, K]` into levels."""
    counts, level = [], 3
    while sum(counts) < len(values):
        counts.append(-(-height // 2**level) * -(-width // 2**level) * 9)
        level += 1
    assert sum(counts) == len(values)
    return np.split(values, np.cumsum(counts)[:-1])


def assert_equal_outputs(network, case, sizes=SIZES):
    recorded = golden(case)
    for height, width in sizes:
        found = network.dense(image(height, width), training=False)
        for output in ("class_logits", "box_deltas"):
            kept = summary(by_level(np.asarray(found[output])[0], height, width))
            for part in ("values", "mean", "std", "count"):
                wanted = recorded[f"{height}x{width}/{output}/{part}"]
                assert kept[part].shape == wanted.shape
                worst = np.abs(kept[part] - wanted).max()
                assert worst <= TOLERANCE, f"{case} {height}x{width} {output} {part}: {worst}"
        assert np.abs(recorded[f"{height}x{width}/class_logits/values"]).max() > 0.5


@pytest.mark.parametrize("case", ["d0_tf1", "d0_keras_optimizer", "d0_h5"])
def test_d0_of_every_scheme_gives_the_originals_outputs(case, d0, tmp_path):
    path = write(case, tmp_path)
    assign_arrays(d0, from_automl(read_variables(path), str(path)).arrays, case)
    assert_equal_outputs(d0, case)


def test_lite0_gives_the_originals_outputs(tmp_path):
    path = write("lite0_keras", tmp_path)
    source = from_automl(read_variables(path), str(path))
    assert (source.mean, source.std) == (LITE_MEAN, LITE_STD)
    network = network_of("lite0")
    assign_arrays(network, source.arrays, "lite0")
    assert_equal_outputs(network, "lite0_keras")


@pytest.mark.slow
def test_d1_gives_the_originals_outputs(tmp_path):
    network = network_of("d1")
    path = write("d1_tf1", tmp_path)
    assign_arrays(network, from_automl(read_variables(path), str(path)).arrays, "d1")
    assert_equal_outputs(network, "d1_tf1")


def test_small_faults_show(d0, tmp_path):
    path = write("d0_h5", tmp_path)
    arrays = from_automl(read_variables(path), str(path)).arrays
    for name, moved in (("fpn0_td6_fuse/weight_0", 0.05), ("class_bn1_level6/moving_mean", 0.1)):
        assign_arrays(d0, arrays | {name: arrays[name] + np.float32(moved)}, "a fault")
        with pytest.raises(AssertionError, match="d0_h5 203x267"):
            assert_equal_outputs(d0, "d0_h5", SIZES[1:])


def test_every_variable_is_there_in_its_shape(d0):
    shapes = {path: tuple(v.shape) for path, v in named_variables(d0).items()}
    for case in ("d0_tf1", "d0_keras_optimizer", "d0_h5"):
        found = from_automl(empty(case), case).arrays
        assert {name: array.shape for name, array in found.items()} == shapes
        assert {array.dtype for array in found.values()} == {np.dtype("float32")}


def test_d7x_has_a_level_more():
    source = from_automl(empty("d7x_keras"), "a folder")
    assert source.arrays.keys() == {row.ours for row in rows(preset("d7x"))}
    assert {"fpn7_td7_conv/bias", "fpn7_bu8_bn/gamma", "box_bn4_level8/beta"} < source.arrays.keys()
    assert "d7x" in source.origin


def test_tf1_averages_are_preferred_to_what_they_follow():
    variables = empty("d0_tf1")
    variables[STEM] = np.full((3, 3, 3, 32), 1)
    variables[f"{STEM}/ExponentialMovingAverage"] = np.full((3, 3, 3, 32), 2)
    variables[f"{STEM}/Momentum"] = np.full((3, 3, 3, 32), 3)
    source = from_automl(variables, "d0")
    assert (source.arrays["stem_conv/kernel"] == 2).all()
    assert source.unused[STEM] == "its moving average is taken"
    assert source.unused[f"{STEM}/Momentum"] == "only the original's training reads it"
    assert source.unused["global_step"] == "only the original's training reads it"
    assert collections.Counter(source.unused.values()) == {
        "its moving average is taken": 709,
        "only the original's training reads it": 494,
    }
    assert "moving averages preferred (709 tensors)" in source.origin


def test_without_averages_the_weights_are_taken():
    variables = {n: v for n, v in empty("d0_tf1").items() if not n.endswith("/ExponentialMovingAverage")}
    variables[STEM] = np.full((3, 3, 3, 32), 1)
    source = from_automl(variables, "d0")
    assert (source.arrays["stem_conv/kernel"] == 1).all()
    assert "no moving averages" in source.origin


def test_keras_averages_are_preferred_but_for_statistics_that_no_step_averages():
    variables = empty("d0_keras_optimizer")
    slot = "/.OPTIMIZER_SLOT/optimizer/average"
    statistics = "backbone/_stem/_bn/moving_variance"
    for name, value in (
        (OBJECT_STEM, 1),
        (f"{OBJECT_STEM}{slot}", 2),
        (statistics, 3),
        (f"{statistics}{slot}", 4),
    ):
        name += VALUE
        assert name in variables
        variables[name] = np.full(variables[name].shape, value)
    source = from_automl(variables, "d0")
    assert (source.arrays["stem_conv/kernel"] == 2).all()
    assert (source.arrays["stem_bn/moving_variance"] == 3).all()
    assert source.unused[f"{statistics}{slot}{VALUE}"] == "an average that no training step moves"
    assert "moving averages preferred (493 tensors)" in source.origin


def test_other_batch_norms_of_tf1_have_other_names():
    variables = {
        n.replace("tpu_batch_normalization", "batch_normalization"): v for n, v in empty("d0_h5").items()
    }
    assert "block3_project_bn/gamma" in from_automl(variables, "d0").arrays


def test_blocks_without_expansion_number_their_layers_from_the_projection():
    variables = empty("d0_tf1")
    for block, name, value in ((0, "", 1), (0, "_1", 2), (1, "", 3), (1, "_1", 4), (1, "_2", 5)):
        norm = f"efficientnet-b0/blocks_{block}/tpu_batch_normalization{name}/beta/ExponentialMovingAverage"
        variables[norm] = np.full(variables[norm].shape, value)
    arrays = from_automl(variables, "d0").arrays
    found = [arrays[f"block{n}_bn/beta"][0] for n in ("0_dw", "0_project", "1_expand", "1_dw", "1_project")]
    assert found == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("path", "asked", "wanted"),
    [
        ("coco2/efficientdet-d0", None, (IMAGENET_MEAN, IMAGENET_STD)),
        ("advprop/efficientdet-d0", None, (UNIT_RANGE, UNIT_RANGE)),
        ("AdvProp/efficientdet-d0", False, (IMAGENET_MEAN, IMAGENET_STD)),
        ("coco2/efficientdet-d0", True, (UNIT_RANGE, UNIT_RANGE)),
    ],
)
def test_advprop_is_recorded(path, asked, wanted):
    source = from_automl(empty("d0_h5"), path, asked)
    assert (source.mean, source.std) == wanted
    assert any("AdvProp" in note for note in source.notes) == (wanted[0] == UNIT_RANGE)


def fault(variables, where="file.h5"):
    with pytest.raises(UserError) as caught:
        from_automl(variables, where)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_tensors_are_named():
    variables = empty("d0_h5")
    for name in [n for n in variables if n.startswith("box_net/box-predict/")]:
        del variables[name]
    del variables["fpn_cells/cell_1/fnode4/WSM_1"]
    found = fault(variables)
    assert found.startswith("file.h5: d0 is not whole: fpn1_bu4_fuse/weight_1 is missing; ")
    assert "box_predict/depthwise_kernel is missing" in found
    assert found.endswith("(4 in all)")


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("class_net/class-1-bn-5/beta", (63,), "has shape (63,), not (64,)"),
        ("fpn_cells/cell_0/fnode0/WSM", (64,), "has shape (64,), not ()"),
        ("class_net/class-predict/bias", (811,), "has shape (811,), not (810,)"),
        ("class_net/class-predict/bias", (819,), "class-predict/pointwise_kernel has shape (1, 1, 64, 810)"),
        ("box_net/box-predict/bias", (24,), "has shape (24,), not (36,)"),
        ("efficientnet-b0/stem_1/conv2d_1/kernel", (), "has shape (), no convolution's"),
    ],
)
def test_wrong_shapes_are_named(name, shape, wanted):
    assert wanted in fault(empty("d0_h5", **{name: shape}))


def test_unknown_architectures_are_refused():
    variables = empty("d0_h5")
    assert "holds no EfficientNet" in fault({"dense/kernel": np.zeros((3, 4))})
    shorter = {n: v for n, v in variables.items() if "blocks_15/" not in n}
    assert "an EfficientNet of 15 blocks" in fault(shorter)
    assert "none of d0, d1" in fault({n: v for n, v in variables.items() if "cell_2" not in n})
    more = variables | {"fpn_cells/cell_0/fnode8/WSM": np.zeros(())}
    assert "its pyramid has 9 nodes, a BiFPN up to P7 has 8" in fault(more)
    assert "box_conv3/bias" not in from_automl(variables, "d0").arrays
    more = variables | {"box_net/box-3/bias": np.zeros(64)}
    assert "box_net/box-3/bias has no place in it" in fault(more)


def test_two_tensors_for_one_variable_are_refused():
    assert "are the same variable" in fault(empty("d0_h5", **{STEM: (3, 3, 3, 32)}))


def test_the_rest_is_listed_with_a_reason():
    variables = empty("d0_h5") | {
        "segmentation_head/bn_0/gamma": np.zeros(4),
        "efficientnet-b0/head/dense/bias": np.zeros(9),
    }
    assert from_automl(variables, "d0").unused == {
        "segmentation_head/bn_0/gamma": "no variable of EfficientDet",
        "efficientnet-b0/head/dense/bias": "no variable of EfficientDet",
    }
