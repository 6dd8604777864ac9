"""Partial loading: between networks that differ in classes, channels, levels, mask head or fusion."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import to_arrays
from effdet_tf.pretrained.fit import fold_channels, part, start_from, summary, write_rows
from effdet_tf.pretrained.source import Pretrained


@pytest.fixture(scope="module")
def arrays(tiny_config):
    """Weights of the tiny network, every one different from a fresh network's."""
    generator = np.random.default_rng(3)
    network = build_network(tiny_config)
    return {name: generator.normal(0, 1, value.shape) for name, value in to_arrays(network).items()}


def source(arrays, kind="run"):
    return Pretrained(arrays, "the source", kind, unused={"step": "a counter"})


def outcomes(rows, *names):
    return {row.name: (row.outcome, row.reason) for row in rows if not names or row.name in names}


def test_the_same_network_takes_everything(tiny_config, arrays):
    network = build_network(tiny_config)
    rows = start_from(network, source(arrays), strict=True)
    assert {row.outcome for row in rows if row.name != "step"} == {"loaded"}
    assert outcomes(rows, "step") == {"step": ("skipped", "a counter")}
    for name, value in to_arrays(network).items():
        np.testing.assert_array_equal(value, arrays[name].astype(np.float32))


def test_other_classes_and_another_mask_head_keep_the_rest(tiny_config, arrays):
    config = tiny_config.replace(class_names=("a", "b"), category_ids=(1, 2), model__mask__channels=4)
    network = build_network(config)
    before = to_arrays(network)
    rows = start_from(network, source(arrays))
    after = to_arrays(network)
    fresh = {row.name for row in rows if row.outcome == "fresh"}
    assert {"class_predict/pointwise_kernel", "class_predict/bias"} < fresh
    assert all(name.startswith(("class_predict/", "mask_")) for name in fresh)
    # The mask head's hidden layers do not depend on its input; that of the first does.
    assert {"mask_conv0/kernel", "mask_head/filters/kernel"} & fresh
    reason = dict((row.name, row.reason) for row in rows)["class_predict/bias"]
    assert reason == "shape (12,) here, (6,) in the source"
    for name in after:
        expected = before[name] if name in fresh else arrays[name].astype(np.float32)
        np.testing.assert_array_equal(after[name], expected)


def test_strict_refuses_what_stays_fresh(tiny_config, arrays):
    network = build_network(tiny_config.replace(class_names=("a", "b"), category_ids=(1, 2)))
    before = to_arrays(network)
    with pytest.raises(UserError, match=r"strict: 2 variables .* class_predict/pointwise_kernel: shape"):
        start_from(network, source(arrays), strict=True)
    after = to_arrays(network)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_backbone_fills_the_backbone_and_strict_asks_no_more(tiny_config, arrays):
    backbone = {name: value for name, value in arrays.items() if part(name) == "backbone"}
    backbone["block99_expand_conv/kernel"] = np.zeros((1, 1, 8, 8))
    rows = start_from(build_network(tiny_config), source(backbone, "backbone"), strict=True)
    assert {row.part for row in rows if row.outcome == "loaded"} == {"backbone"}
    assert outcomes(rows, "block99_expand_conv/kernel") == {
        "block99_expand_conv/kernel": ("skipped", "this network has no such variable")
    }
    del backbone["block1_dw_bn/gamma"]
    with pytest.raises(UserError, match="strict: 1 variables .* block1_dw_bn/gamma: not in the source"):
        start_from(build_network(tiny_config), source(backbone, "backbone"), strict=True)


@pytest.mark.parametrize(("found", "wanted"), [(3, 1), (1, 3), (3, 4)])
def test_folded_channels_answer_gray_images_alike(found, wanted):
    kernel = np.random.default_rng(0).normal(size=(3, 3, found, 5))
    folded, line = fold_channels(kernel, wanted)
    assert folded.shape == (3, 3, wanted, 5)
    np.testing.assert_allclose(folded.sum(2), kernel.sum(2))
    assert line.startswith(f"{found} input channels folded into {wanted}")


def test_three_channels_start_a_gray_network(tiny_config):
    rgb = build_network(tiny_config.replace(data__channels=3))
    gray = build_network(tiny_config)
    rows = start_from(gray, source(to_arrays(rgb)), strict=True)
    assert outcomes(rows, "stem_conv/kernel")["stem_conv/kernel"][0] == "adapted"
    image = np.random.default_rng(1).normal(size=(1, 64, 64, 1)).astype(np.float32)
    want = rgb.dense(np.repeat(image, 3, axis=3), training=False)
    found = gray.dense(image, training=False)
    for name in want:
        np.testing.assert_allclose(found[name], want[name], atol=1e-4)


def test_nothing_that_fits_is_an_error(tiny_config):
    with pytest.raises(UserError, match="nothing of the source fits this network"):
        start_from(build_network(tiny_config), source({"stem_conv/kernel": np.zeros((7, 7, 3, 9))}))


def test_the_table_counts_by_part_and_names_every_reason(tiny_config, arrays, tmp_path):
    config = tiny_config.replace(class_names=("a", "b"), category_ids=(1, 2))
    foreign = {**arrays, "dense/kernel": np.zeros(3)}
    del foreign["fpn0_td2_bn/gamma"]
    rows = start_from(build_network(config), source(foreign))
    text = summary(rows)
    counts = {line[:12].strip(): line[12:].split() for line in text.splitlines()}
    total = len([name for name in arrays if part(name) == "class head"])
    assert counts["class head"] == [str(total), str(total - 2), "0", "2"]
    assert counts["BiFPN"][2:] == ["0", "1"] and counts["backbone"][2:] == ["0", "0"]
    assert "fresh: fpn0_td2_bn/gamma: not in the source" in text
    assert "fresh: class_predict/bias: shape (12,) here, (6,) in the source" in text
    assert "skipped: dense/kernel: this network has no such variable" in text
    assert "skipped: step: a counter" in text
    write_rows(tmp_path / "init.csv", rows)
    with open(tmp_path / "init.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in written] == [tuple(row) for row in rows]
    assert len(rows) == len(to_arrays(build_network(config))) + 2
