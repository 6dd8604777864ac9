"""`effdet_tf info`: what is here, and what a network is."""

from __future__ import annotations

import json

import pytest

from effdet_tf import cli
from effdet_tf._version import __version__
from effdet_tf.commands.info import describe_machine
from effdet_tf.errors import UserError
from effdet_tf.prediction.metadata import describe
from effdet_tf.report import inventory
from effdet_tf.runs import MODELS
from tests.mistakes import places


@pytest.fixture(scope="module")
def machine():
    return inventory.machine()


def test_the_machine_is_described(machine, capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"effdet_tf {__version__} in {MODELS.parent}" in text and "CPU core" in text
    for name, version in machine["packages"].items():
        assert version and f"  {name} {version}\n" in text
    assert set(machine["packages"]) >= {
        "tensorflow",
        "keras",
        "numpy",
        "opencv-python-headless",
        "pycocotools",
        "tifffile",
    }
    assert set(machine["optional"]) >= {"ai-edge-litert", "jax", "napari", "apache-beam"}
    assert "GiB of memory" in text and "cells-lite0, cells-lite2" in text
    assert (
        "mask AP 26.7" in text and "48 validation images" in text and "Non-commercial research only" in text
    )


def test_json_says_the_same_to_programs(machine, capsys):
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(machine))


def test_what_is_not_installed_and_gpus_are_told(machine):
    optional = dict.fromkeys(machine["optional"], None)
    devices = {"cpu_cores": 8, "memory_gib": None, "gpus": ["NVIDIA H100", "NVIDIA H100"]}
    lines = describe_machine(machine | {"optional": optional, "devices": devices})
    assert "  jax is not installed (training with JAX)" in lines
    assert "devices: 8 CPU cores; NVIDIA H100, NVIDIA H100" in lines


def test_names_of_gpus_are_asked_of_tensorflow(monkeypatch):
    import tensorflow as tf

    class Gpu:
        name = "/physical_device:GPU:0"

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [Gpu(), Gpu()])
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda gpu: {"device_name": "NVIDIA H100"}
    )
    assert inventory.machine()["devices"]["gpus"] == ["NVIDIA H100", "NVIDIA H100"]


def test_a_network_of_the_package(capsys):
    assert cli.main(["info", "cells-large"]) == 0
    text = capsys.readouterr().out
    assert "best.npz (5,100,022 parameters, 10.8 MB)" in text and "preset cells-lite2" in text
    assert "mask AP 27.9" in text and "licence     Non-commercial research only" in text
    assert cli.main(["info", "cells-large", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 5_100_022 and found["figures"]["cells"] == 5862


def test_a_tflite_file_needs_no_runtime(tiny_config, tmp_path, capsys):
    places.write_tflite(tmp_path / "a.tflite", tiny_config)
    assert cli.main(["info", str(tmp_path / "a.tflite")]) == 0
    text = capsys.readouterr().out
    assert "tflite (float32, by effdet_tf" in text and "64x64 px" in text and "BiFPN 8 x 1" in text


def test_a_saved_model_is_read_without_loading_it(tiny_config, tmp_path, capsys):
    extra = tmp_path / "exported" / "3" / "assets.extra"
    extra.mkdir(parents=True)
    (extra.parent / "saved_model.pb").write_bytes(b"")
    (extra / "effdet_tf.json").write_text(json.dumps(describe(tiny_config, "float32")))
    (extra / "MODEL_CARD.md").write_text("# x\n\n## Licence of the weights\n\nCC BY 4.0.\n\n## Limits\n")
    assert cli.main(["info", str(tmp_path / "exported")]) == 0
    text = capsys.readouterr().out
    assert f"{extra.parent}: saved_model (float32" in text and "licence     CC BY 4.0." in text


def test_a_saved_model_of_another_program_is_told(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(UserError, match="so of another program; export one with"):
        inventory.network(tmp_path)


def test_a_run_without_validation_has_no_figures(tiny_config, tmp_path, capsys):
    places.write_run(tmp_path / "run", tiny_config)
    assert cli.main(["info", str(tmp_path / "run")]) == 0
    assert "no figures: it was not validated" in capsys.readouterr().out
    (tmp_path / "run" / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="holds no figures of an evaluation"):
        inventory.network(tmp_path / "run")
