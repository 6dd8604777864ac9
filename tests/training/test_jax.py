"""Training with JAX where TensorFlow is not: the same losses, gradients, steps, files and outputs.

Everything under JAX runs in processes of their own. By default they are of this Python, where JAX is
installed, with TensorFlow and all else that training there must not need made unfindable. The tests marked
slow make an environment that has keras, jax, numpy, pyyaml and tqdm alone; EFFDET_JAX_PYTHON may name the
Python of one that is there already.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf import cli
from effdet_tf.config import Config, DataConfig, load_config
from effdet_tf.data.packed import PackedSet, load_packed, save_packed
from effdet_tf.data.store import RecordStore
from effdet_tf.model.anchors import grid
from effdet_tf.model.network import Network, build_network
from effdet_tf.model.weights import assign_arrays, named_variables, read_arrays, save_arrays, to_arrays
from effdet_tf.prediction.load import load
from training import jax_main
from training.arrays import training_batches
from training.assignment import Predictions, State, assign
from training.losses import combine, detection_losses
from training.optimizer import make_optimizer
from training.order import epoch_plan
from training.progress import FED, TERMS
from training.trainer import Trainer, make_step
from training.vectors import Vectors

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("jax_probe.py")
NEEDED = ("keras>=3.15,<4", "jax>=0.5", "numpy", "pyyaml", "tqdm", "filelock")
UNNEEDED = (
    "tensorflow", "tensorboard", "cv2", "pycocotools", "faster_coco_eval", "pandas", "PIL", "tifffile",
    "imagecodecs", "google", "ijson", "skimage",
)  # fmt: skip
GUARD = """
import runpy, sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Guard())
sys.argv = sys.argv[1:]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""

Jax = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", params=["here", pytest.param("own environment", marks=pytest.mark.slow)])
def jax(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jax]:
    """`jax(module or script, *arguments)` runs it under JAX; `fails=True` when it must not end with 0."""
    if request.param == "here" and importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed here; the slow tests make an environment that has it")
    own = tmp_path_factory.mktemp("venv")
    python = sys.executable if request.param == "here" else own_python(own)
    guard = GUARD.format(names=UNNEEDED if request.param == "here" else ())
    environment = {k: v for k, v in os.environ.items() if k not in ("KERAS_BACKEND", "PYTHONPATH")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "KERAS_HOME": str(tmp_path_factory.mktemp("keras")),
        # The same small steps are compiled by several processes.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def run(*words: object, fails: bool = False, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-c", guard, *map(str, words)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment | extra, capture_output=True, text=True, timeout=900
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done

    yield run
    shutil.rmtree(own)  # 600 MB


def own_python(folder: Path) -> str:
    """The Python of an environment that has what JAX training needs, and nothing else."""
    python = os.environ.get("EFFDET_JAX_PYTHON")
    if python is None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(folder / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDED], check=True)
    for name in UNNEEDED:
        absent = subprocess.run([python, "-c", f"import {name}"], capture_output=True, text=True)
        assert "ModuleNotFoundError" in absent.stderr, f"{name} is in {python}"
    return python


@pytest.fixture(scope="module")
def packed(train_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "train.npz"
    assert cli.main(["pack", str(train_data), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def config_file(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs of two steps, random depth, whose state must survive a stop; the presets' mask head."""
    config = tiny_config.override(
        [
            "train.batch=2",
            "train.epochs=4",
            "train.ema=0.8",
            "train.learning_rate=0.02",
            "model.drop_connect=0.2",
            "model.mask.head=convolution",
        ]
    )
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.replace(category_ids=(5,)).save(path)
    return path


@pytest.fixture(scope="module")
def finished(jax: Jax, packed: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run under JAX: two epochs of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "jax"
    words = ["--data", packed, "--config", config_file, "--epochs", "2", "--out", folder]
    done = jax("training.jax_main", *words)
    assert "4 images, 2 steps an epoch" in done.stdout and "JAX " in done.stdout
    assert f"python -m training.evaluate --run {folder}" in done.stdout.splitlines()[-1]
    return folder


def test_a_run_leaves_the_folder_that_the_library_reads(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        *("config.yaml", "last.npz", "state.npz", "state.previous.npz", "log.csv")
    }
    with open(finished / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "4")]
    for row in rows:
        parts = float(row["class"]) + 2 * float(row["box"]) + float(row["mask"])
        assert float(row["total"]) == pytest.approx(parts, rel=1e-3) and float(row["positives"]) > 0
    assert load_config(finished / "config.yaml").category_ids == (5,)


def test_weights_trained_under_jax_give_equal_outputs_under_tensorflow(
    finished: Path, jax: Jax, tmp_path: Path
) -> None:
    predictor = load(finished)
    images = np.random.default_rng(3).normal(size=(2, 96, 64, 1)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    words = [finished / "config.yaml", finished / "last.npz", tmp_path / "images.npy", tmp_path / "out.npz"]
    jax(PROBE, "outputs", *words)
    found = read_arrays(tmp_path / "out.npz")
    expected = predictor.network.dense(images, training=False)
    assert set(found) == set(expected) == {"class_logits", "box_deltas", "codes", "mask_feature"}
    for name, value in expected.items():
        assert value.numpy().std() > 1e-3, name
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


def test_a_run_under_jax_goes_on_under_tensorflow(finished: Path, train_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "taken over"
    shutil.copytree(finished, folder)
    trainer = Trainer(load_config(folder / "config.yaml"), RecordStore(train_data), folder, None)
    assert (trainer.step, trainer.epoch, trainer.progress()) == (4, 2, 1.0)
    assert len(trainer.log.history) == 2
    last = read_arrays(folder / "last.npz")
    for name, value in trainer.averaged_arrays().items():
        np.testing.assert_array_equal(value, last[name])


def test_the_same_command_again_changes_nothing(
    finished: Path, jax: Jax, packed: Path, config_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    words = ["--data", packed, "--config", config_file, "--epochs", "2", "--out", folder]
    assert "trained to its end, 4 steps" in jax("training.jax_main", *words).stdout
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert {path.name for path in folder.iterdir()} == {*before}
    done = jax("training.jax_main", *words, "--batch", "1", fails=True)
    assert "train.batch was 2, now 1" in done.stderr


def test_mixed_precision_trains_from_the_weights_of_another_run(
    finished: Path, jax: Jax, packed: Path, config_file: Path, tmp_path: Path
) -> None:
    words = ["--data", packed, "--config", config_file, "--epochs", "1", "--out", tmp_path / "run"]
    settings = ["--init", finished, "--strict", "--set", "train.mixed_precision=on"]
    done = jax("training.jax_main", *words, *settings)
    assert f"start: run {finished}" in done.stdout
    first, last = (read_arrays(folder / "last.npz") for folder in (finished, tmp_path / "run"))
    assert set(first) == set(last)
    for name, value in last.items():
        assert value.dtype == np.float32 and np.isfinite(value).all(), name
        if name.endswith("kernel"):  # two small steps from there; random weights would be 1.4 times as far
            assert np.linalg.norm(value - first[name]) <= 0.5 * np.linalg.norm(first[name]), name
    assert any(not np.array_equal(value, first[name]) for name, value in last.items())


VARIANTS = {
    "cells": ["train.optimizer=sgd", "train.clip_norm=0.5"],
    "points": [
        "anchors.code=sides",
        "anchors.ratios=[1]",
        "anchors.sizes=[[12], [24]]",
        # By place alone: what task-aligned assignment picks hangs on the last digits of the outputs. It is
        # compared on equal outputs below.
        "assign.method=atss",
        "loss.box_loss=ciou",
        "data.zoom=1.5",
        "train.optimizer=sgd",
        "train.clip_norm=0.5",
    ],
    "published": [
        "model.backbone=efficientnet-b0",
        "model.fusion=fast",
        "model.activation=swish",
        "loss.class_loss=focal",
        "loss.box_loss=huber",
        "train.optimizer=sgd",
        "train.weight_decay=0.1",
    ],
}
# The few positives of points hang on single ReLUs and poolings: an image changed by 1e-6 moves their
# gradients by up to 1.5 % under TensorFlow alone, those of anchors by .01 %.
POINTS_SLACK = 10


@pytest.fixture(scope="module", params=VARIANTS)
def learned(
    request: pytest.FixtureRequest, jax: Jax, tiny_config: Config, packed: Path, tmp_path_factory
) -> tuple[Config, Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Configuration, start weights, batch, and what JAX makes of them: for one network and its losses."""
    config = tiny_config.override(VARIANTS[request.param])
    folder = tmp_path_factory.mktemp("learn")
    keras.utils.set_random_seed(1)
    network = build_network(config)
    rng = np.random.default_rng(1)
    arrays = {
        # Off the start values, where many gradients are 0 or alike.
        name: (value + rng.normal(size=value.shape) * 0.05).astype(np.float32)
        for name, value in to_arrays(network).items()
    }
    arrays |= {name: np.abs(value) + 0.1 for name, value in arrays.items() if "moving_variance" in name}
    data = load_packed(packed)
    (batch,) = islice(training_batches(data, config.data, config.augment, 3, seed=2), 1)
    batch = {name: batch[name] for name in FED}
    assert batch["ignored"].any()
    config.save(folder / "config.yaml")
    save_arrays(folder / "weights.npz", arrays)
    save_arrays(folder / "batch.npz", batch)
    names = ("config.yaml", "weights.npz", "batch.npz", "out.npz")
    jax(PROBE, "learn", *(folder / name for name in names))
    return config, folder / "weights.npz", batch, read_arrays(folder / "out.npz")


def started(config: Config, weights: Path) -> Network:
    network = build_network(config)
    assign_arrays(network, read_arrays(weights), str(weights))
    return network


def assert_near(found: np.ndarray, expected: np.ndarray, share: float, name: str) -> None:
    """The difference is a small share of the expected array, both taken as vectors."""
    gap = np.linalg.norm(found - expected)
    assert gap <= share * np.linalg.norm(expected) + 1e-7, f"{name}: {gap} of {np.linalg.norm(expected)}"


def slack(config: Config) -> int:
    return POINTS_SLACK if config.anchors.code == "sides" else 1


def test_losses_and_gradients_are_those_of_tensorflow(learned) -> None:
    config, weights, batch, found = learned
    network = started(config, weights)
    with tf.GradientTape() as tape:
        outputs = network.dense(batch["image"], training=True)
        sums = detection_losses(config, network.mask_head, outputs, batch, tf.constant(0))
        terms = combine(config, sums, sums["positives"], sums["instances"])
    gradients = tape.gradient(terms["total"], network.trainable_variables)
    expected = [*(terms[name] for name in TERMS), sums["positives"], sums["instances"]]
    np.testing.assert_allclose(found["figures"], np.float32(expected), rtol=1e-3)
    assert all(value > 0 for value in found["figures"])
    total = np.sqrt(sum(float(tf.reduce_sum(g**2)) for g in gradients))
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        value = np.asarray(gradient)
        if np.linalg.norm(value) > 1e-4 * total:  # below it, sums that cancel are rounding alone
            share = 2e-3 * slack(config)
            assert_near(found[f"gradient/{variable.path}"], value, share, variable.path)
    everything = [
        np.concatenate([np.ravel(g) for g in kind])
        for kind in (
            [found[f"gradient/{v.path}"] for v in network.trainable_variables],
            [np.asarray(g) for g in gradients],
        )
    ]
    assert_near(*everything, 1e-3 * slack(config), "all gradients")


def test_two_steps_lead_where_those_of_tensorflow_lead(learned) -> None:
    config, weights, batch, found = learned
    network = started(config, weights)
    optimizer = make_optimizer(config)
    optimizer.build(network.trainable_variables)
    average = [
        keras.Variable(np.asarray(v).copy(), trainable=False) for v in named_variables(network).values()
    ]
    state = Vectors(network, average, optimizer)
    step = make_step(config, network, state, 28)
    for number in range(2):
        figures = step(
            {name: tf.constant(value) for name, value in batch.items()},
            tf.constant(number),
            tf.constant(0.1 / (1 + number)),
        )
    np.testing.assert_allclose(found["last"], figures, rtol=5e-3 * slack(config))
    state.settle()
    start = read_arrays(weights)
    for (name, variable), mean in zip(named_variables(network).items(), average, strict=True):
        # TensorFlow's fused kernel keeps the variance with Bessel's correction, Keras under JAX without.
        share = 0.05 if "moving_variance" in name else 5e-3 * slack(config)
        for kind, value in (("after", np.asarray(variable)), ("average", np.asarray(mean))):
            moved = np.linalg.norm(value - start[name])
            gap = np.linalg.norm(found[f"{kind}/{name}"] - value)
            assert gap <= share * moved + 1e-5, f"{kind} {name}: {gap}, moved by {moved}"


def test_task_aligned_assignment_is_that_of_tensorflow(jax: Jax, tiny_points: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    low = rng.uniform(0, 80, (2, 30, 2))
    cells = np.concatenate([low, np.minimum(low + rng.uniform(4, 40, (2, 30, 2)), 96)], -1).astype(np.float32)
    classes = np.where(np.arange(30) < [[30], [17]], 0, -1).astype(np.int32)
    levels = (tiny_points.model.min_level, tiny_points.model.max_level)
    anchors = np.concatenate([np.asarray(a) for a in grid(96, 96, tiny_points.anchors, *levels)])
    boxes = (anchors + rng.normal(0, 3, (2, *anchors.shape))).astype(np.float32)
    scores = rng.uniform(0.01, 0.9, (2, len(anchors), 1)).astype(np.float32)
    tiny_points.save(tmp_path / "config.yaml")
    np.savez(tmp_path / "in.npz", cells=cells, classes=classes, boxes=boxes, scores=scores)
    jax(PROBE, "assigned", *(tmp_path / name for name in ("config.yaml", "in.npz", "out.npz")))
    found = read_arrays(tmp_path / "out.npz")
    seen = Predictions(boxes, scores, classes)
    expected = assign(
        cells, classes >= 0, (96, 96), tiny_points.anchors, tiny_points.assign, *levels, predictions=seen
    )
    assert int(np.sum(np.asarray(expected.state) == State.POSITIVE)) > 100
    np.testing.assert_array_equal(found["state"], expected.state)
    np.testing.assert_array_equal(found["matched"], expected.matched)
    np.testing.assert_allclose(found["alignment"], expected.alignment, rtol=1e-4, atol=1e-7)


def test_a_stopped_run_ends_as_one_in_one_go(
    jax: Jax, packed: Path, config_file: Path, tmp_path: Path
) -> None:
    done = jax(PROBE, "stop", config_file, packed, tmp_path)
    assert "stopped at 6" in done.stdout  # the step that Ctrl-C came in is counted
    states = [read_arrays(tmp_path / name / "state.npz") for name in ("whole", "stopped")]
    progress = [json.loads(state.pop("progress").tobytes()) for state in states]
    assert [p["step"] for p in progress] == [8, 8] and [p["epoch"] for p in progress] == [4, 4]
    assert set(states[0]) == set(states[1]) and len(states[0]) > 100
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, atol=1e-6, err_msg=name)
    totals = [[row["total"] for row in p["history"]] for p in progress]
    np.testing.assert_allclose(totals[0], totals[1], rtol=1e-4)
    assert len(set(totals[0])) == 4


def late_meeting(data: PackedSet, image_id: int, per_image: int) -> tuple[int, list[int], int]:
    """A seed with which an image comes late, two in a batch: (number of the step, its image ids, seed)."""
    for seed in range(1000):
        numbers, _ = epoch_plan(data, DataConfig(crops_per_image=per_image), seed, 0)
        ids = data.arrays["image_id"][numbers].reshape(-1, 2)
        number = int((ids == image_id).any(1).argmax())
        if number >= 4:
            return number + 1, ids[number].tolist(), seed
    raise AssertionError("no seed does that")


def test_a_loss_that_is_not_finite_is_found_with_its_step_and_images(
    jax: Jax, packed: Path, config_file: Path, tmp_path: Path
) -> None:
    good = load_packed(packed)
    mean = good.arrays["mean"].copy()
    mean[1] = np.nan
    named = (good.class_names, good.category_ids, good.fingerprint, good.masks)
    save_packed(tmp_path / "bad.npz", PackedSet({**good.arrays, "mean": mean}, *named))
    # The figures are read several steps later, and yet the faulty step is the one that is named.
    number, ids, seed = late_meeting(good, 102, per_image=5)
    words = ["--data", tmp_path / "bad.npz", "--config", config_file, "--out", tmp_path / "run"]
    settings = ["--set", f"train.seed={seed}", "--set", "data.crops_per_image=5"]
    done = jax("training.jax_main", *words, *settings, fails=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "loss is not finite (total, class, box" in lines[0]
    assert f"step {number}: " in lines[0] and f"images {ids[0]}, {ids[1]};" in lines[0]
    assert not (tmp_path / "run" / "state.npz").exists() or "unharmed" in lines[0]


def test_another_backend_is_refused(jax: Jax, packed: Path, tmp_path: Path) -> None:
    words = ["--data", packed, "--out", tmp_path / "run"]
    done = jax("training.jax_main", *words, fails=True, KERAS_BACKEND="torch")
    assert done.stderr == "error: this trains with JAX, Keras is set to torch; set KERAS_BACKEND=jax\n"
    assert not (tmp_path / "run").exists()


def test_in_a_process_that_runs_tensorflow_it_is_refused(monkeypatch, capsys) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert jax_main.main(["--data", "x.npz"]) == 1
    assert "Keras is set to tensorflow; set KERAS_BACKEND=jax" in capsys.readouterr().err


def test_without_jax_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert jax_main.main(["--data", "x.npz"]) == 1
    assert capsys.readouterr().err.startswith("error: training with JAX needs jax, which is not installed")


def test_a_wrong_setting_comes_first_and_val_is_not_offered(capsys) -> None:
    assert jax_main.main(["--data", "x.npz", "--set", "train.bach=2"]) == 1
    assert "did you mean train.batch" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        jax_main.main(["--data", "x.npz", "--val", "y"])
    assert left.value.code == 2
