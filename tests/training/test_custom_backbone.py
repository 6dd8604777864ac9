"""Training on a Keras model as backbone: from Python, since a command line cannot pass one."""

from __future__ import annotations

import csv
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from effdet_tf.config import load_config
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.model.weights import read_arrays, to_arrays
from effdet_tf.prediction.load import load
from training import main
from training.options import open_run, resolve
from training.trainer import Trainer


def backbone(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    image = x = layers.Input((None, None, 1))
    outputs = {}
    for level in (1, 2, 3):
        x = layers.Conv2D(8, 3, 2, padding="same", activation="relu", name=f"own{level}")(x)
        outputs[f"P{level}"] = x
    return keras.Model(image, outputs)


def test_a_custom_backbone_trains_resumes_and_is_loaded(train_data, val_data, run_config, tmp_path):
    store = RecordStore(train_data)
    start = backbone(seed=3)
    kernel = np.array(start.get_layer("own1").kernel)

    def trained(epochs: int, model: keras.Model) -> Trainer:
        settings = ["model.backbone=custom", f"train.epochs={epochs}", "train.warmup=0.5"]
        config = open_run(resolve(load_config(run_config).override(settings), store), tmp_path)
        trainer = Trainer(config, store, tmp_path, val_data, backbone=model)
        trainer.run()
        return trainer

    first = trained(1, start)
    assert first.step == 2
    np.testing.assert_array_equal(
        start.get_layer("own1").kernel, kernel
    )  # the caller's model is a copy's source
    # Started from the model's weights: two slow steps lead not far away.
    after = read_arrays(tmp_path / "last.npz")["backbone/own1/kernel"]
    assert 0 < np.abs(after - kernel).max() < 0.02 < np.abs(kernel).max()
    second = trained(3, backbone(seed=8))  # what a resumed run is given does not matter
    assert second.step == 6
    assert np.abs(read_arrays(tmp_path / "last.npz")["backbone/own1/kernel"] - kernel).max() < 0.05
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert len(rows) == 3 and 0 <= float(rows[-1]["box_AP"]) <= 1
    predictor = load(tmp_path, backbone=backbone(seed=8))
    best = read_arrays(tmp_path / "best.npz")
    for name, value in to_arrays(predictor.network).items():
        np.testing.assert_array_equal(value, best[name])
    with pytest.raises(UserError, match="model.backbone is custom"):
        load(tmp_path)


def test_the_command_line_says_that_it_has_no_such_model(train_data, run_config, tmp_path: Path, capsys):
    arguments = ["--config", str(run_config), "--data", str(train_data), "--out", str(tmp_path / "run")]
    assert main.main([*arguments, "--set", "model.backbone=custom"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: model.backbone is custom") and "backbone=model" in line
