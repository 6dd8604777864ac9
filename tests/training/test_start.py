"""`--init`: a run starts from other weights, says what it took, and keeps to it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.config import Config, load_config
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import read_arrays, save_arrays, to_arrays
from effdet_tf.runs import CONFIG_FILE, LAST_FILE
from training import main as command
from training import trainer as trainer_lib
from training.options import wanted_config
from training.state import TABLE_FILE


@pytest.fixture(scope="module")
def earlier(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two classes and three channels."""
    folder = tmp_path_factory.mktemp("earlier")
    config = tiny_config.replace(class_names=("a", "b"), category_ids=(1, 2), data__channels=3)
    config.save(folder / CONFIG_FILE)
    save_arrays(folder / LAST_FILE, to_arrays(build_network(config)))
    return folder


@pytest.fixture
def arguments(train_data: Path, run_config: Path, tmp_path: Path, monkeypatch) -> list[str]:
    """A command that stops where its training would begin."""
    monkeypatch.setattr(trainer_lib, "make_step", lambda *_: None)
    monkeypatch.setattr(trainer_lib.Trainer, "run", lambda self: self.save())
    return [
        "--data",
        str(train_data),
        "--config",
        str(run_config),
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]


def state(run: Path, config: Config) -> dict[str, np.ndarray]:
    """The weights in a run's state, and those of its average."""
    arrays = read_arrays(run / "state.npz")
    names = [v.path for v in build_network(config).variables]
    found = {name: arrays[f"network/{k}"] for k, name in enumerate(names)}
    floats = [name for name in names if found[name].dtype == np.float32]
    return found | {f"average {name}": arrays[f"average/{k}"] for k, name in enumerate(floats)}


def test_whatever_fits_is_loaded_and_the_table_is_printed_and_kept(arguments, earlier, tmp_path, capsys):
    assert command.main([*arguments, "--init", str(earlier)]) == 0
    run = tmp_path / "run"
    printed = capsys.readouterr().out
    assert f"start: run {earlier} (last.npz)" in printed
    assert "stem_conv/kernel: 3 input channels folded into 1" in printed
    assert "class_predict/bias: shape (6,) here, (12,) in the source" in printed
    config = load_config(run / CONFIG_FILE)
    assert config.train.init == str(earlier)
    found, wanted = state(run, config), read_arrays(earlier / LAST_FILE)
    with open(run / TABLE_FILE, newline="") as file:
        rows = {row["name"]: row["outcome"] for row in csv.DictReader(file)}
    assert rows["stem_conv/kernel"] == "adapted" and rows["class_predict/bias"] == "fresh"
    loaded = [name for name, outcome in rows.items() if outcome == "loaded"]
    assert len(loaded) > 100
    for name in loaded:
        np.testing.assert_array_equal(found[name], wanted[name])
        np.testing.assert_array_equal(found[f"average {name}"], wanted[name])


def test_strict_ends_with_one_line(arguments, earlier, capsys):
    assert command.main([*arguments, "--init", str(earlier), "--strict"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: strict: 2 variables") and "class_predict/bias" in error


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("no/such/file", "no such file or folder; weights may be `imagenet`"),
        ("no/such.pth", "no such file"),
        ("imagenet:efficientnet-lite9", "no ImageNet weights are known"),
    ],
)
def test_a_wrong_source_ends_with_one_line(arguments, init, message, capsys):
    assert command.main([*arguments, "--init", init]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_strict_without_init_is_refused(arguments, capsys):
    assert command.main([*arguments, "--strict"]) == 1
    assert "--strict goes with --init" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_state_and_refuses_another_start(arguments, earlier, tmp_path, capsys):
    assert command.main([*arguments, "--init", str(earlier)]) == 0
    (tmp_path / "run" / TABLE_FILE).unlink()
    capsys.readouterr()
    assert command.main([*arguments, "--init", str(earlier)]) == 0
    assert "start: " not in capsys.readouterr().out
    assert not (tmp_path / "run" / TABLE_FILE).exists()
    assert command.main([*arguments, "--init", "imagenet"]) == 1
    assert "train.init was" in capsys.readouterr().err


def test_without_a_preset_the_network_is_that_of_the_run(earlier, tmp_path):
    def wanted(*given: str) -> Config:
        return wanted_config(command._parse(["--data", "x", *given]))

    config = load_config(earlier / CONFIG_FILE)
    found = wanted("--init", str(earlier), "--minutes", "5")
    assert (found.model, found.anchors, found.data) == (config.model, config.anchors, config.data)
    assert found.train.minutes == 5 and found.train.init == str(earlier)
    # Shares of sources that other data do not have would be refused.
    config.replace(data__source_share={"theirs": 0.5}, data__crops_per_image=99).save(earlier / CONFIG_FILE)
    assert wanted("--init", str(earlier)).data == config.data
    config.save(earlier / CONFIG_FILE)
    assert wanted("--init", str(earlier), "--preset", "cells-d0").preset == "cells-d0"
    assert wanted("--init", str(earlier), "--preset", "cells-lite0").data.channels == 1
    for start in ("imagenet", str(tmp_path), "no such place"):
        assert wanted("--init", start).model == wanted().model
