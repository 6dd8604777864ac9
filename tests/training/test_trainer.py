"""The training loop. One compiled trainer serves all tests here: each winds it back to the first step."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.config import Config
from effdet_tf.data.ground_truth import decode_pixels
from effdet_tf.data.record import ImageRecord
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import named_variables, read_arrays, to_arrays
from effdet_tf.prediction.load import load
from effdet_tf.runs import LOG_FILE
from training import trainer as trainer_module
from training.optimizer import make_optimizer
from training.run_log import TENSORBOARD_FOLDER
from training.state import STATE_FILE
from training.trainer import Trainer

EPOCHS, STEPS = 2, 10
CLOCK = ("images_per_second", "minutes")  # columns that no two runs share


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    return tiny_config.override(
        [
            "train.batch=2",
            "data.crops_per_image=5",
            f"train.epochs={EPOCHS}",
            "train.learning_rate=1e-2",
            "train.ema=0.8",
            "model.batch_norm_momentum=0.8",
            "model.drop_connect=0.2",  # its random state must survive a stop, too
            "postprocess.score_threshold=0.001",
        ]
    )


@pytest.fixture(scope="module")
def store(train_data: Path) -> RecordStore:
    return RecordStore(train_data)


@pytest.fixture(scope="module")
def compiled(config: Config, store: RecordStore, val_data: Path, tmp_path_factory) -> tuple[Trainer, Path]:
    folder = tmp_path_factory.mktemp("start")
    trainer = Trainer(config, store, folder, val_data)
    trainer.save()
    return trainer, folder / STATE_FILE


Fresh = Callable[..., Trainer]


@pytest.fixture
def fresh(compiled: tuple[Trainer, Path], config: Config, store: RecordStore, val_data: Path) -> Fresh:
    """`fresh(folder, **train settings)`: the trainer as it was before its first step."""

    def wind_back(folder: Path, **settings: object) -> Trainer:
        trainer, start = compiled
        folder.mkdir(exist_ok=True)
        shutil.copy(start, folder / STATE_FILE)
        return take_up(trainer, folder, **settings)

    def take_up(trainer: Trainer, folder: Path, **settings: object) -> Trainer:
        trainer.config = dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))
        trainer.store, trainer.validation, trainer.folder = store, val_data, folder
        trainer.config.save(folder / "config.yaml")
        trainer.restore()
        return trainer

    return wind_back


class Scores:
    """In place of an evaluation: figures told beforehand; keeps what it was asked and the weights then."""

    def __init__(self, figures: list[float | BaseException]) -> None:
        self.figures = figures
        self.limits: list[int | None] = []
        self.weights: list[dict[str, np.ndarray]] = []

    def __call__(self, predictor, data, limit=None, progress=True, keep=None):
        self.limits.append(limit)
        self.weights.append(to_arrays(predictor.network))
        figure = self.figures[len(self.limits) - 1]
        if isinstance(figure, BaseException):
            raise figure
        boxes = {"score_threshold": 0.5, "report_score": None}
        return {"mask_AP": figure, "cells": None, "boxes": boxes, "boxes_only": "made up", "images": []}


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scores]:
    def replace(*figures: float | BaseException) -> Scores:
        stand_in = Scores(list(figures))
        monkeypatch.setattr(trainer_module, "evaluate_run", stand_in)
        monkeypatch.setattr(trainer_module, "headline", lambda report: {"mask_AP": report["mask_AP"]})
        return stand_in

    return replace


def values(trainer: Trainer) -> list[np.ndarray]:
    groups = trainer._groups().values()
    return [tf.convert_to_tensor(v).numpy().copy() for variables in groups for v in variables]


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / LOG_FILE, newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(compiled: tuple[Trainer, Path], config: Config, tmp_path_factory) -> tuple[Path, list[np.ndarray]]:
    """A run in one go, truly validated: its folder and all variables at its end."""
    trainer, start = compiled
    trainer.folder = tmp_path_factory.mktemp("whole")
    shutil.copy(start, trainer.folder / STATE_FILE)
    trainer.config = config
    trainer.config.save(trainer.folder / "config.yaml")
    trainer.restore()
    trainer.run()
    return trainer.folder, values(trainer)


def test_the_loss_falls_and_every_epoch_is_logged(whole: tuple[Path, list[np.ndarray]]) -> None:
    table = rows(whole[0])
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert [row["step"] for row in table] == ["10", "20"]
    # The class term rises for a while: its targets are the IoUs of the boxes, which grow from 0.
    for term, share in (("total", 0.98), ("box", 0.85), ("mask", 0.97)):
        assert float(table[-1][term]) < share * float(table[0][term]), term
    for row in table:
        parts = float(row["class"]) + 2 * float(row["box"]) + float(row["mask"])
        assert float(row["total"]) == pytest.approx(parts, rel=1e-3)
        assert row["cells_dropped"] == "0"
        assert 0 <= float(row["mask_AP"]) <= 1 and float(row["gradient_norm"]) > 0
    assert float(table[-1]["rate"]) < 0.2 * float(table[0]["rate"])


def test_tensorboard_holds_the_loss_terms(whole: tuple[Path, list[np.ndarray]]) -> None:
    found: dict[str, list[int]] = {}
    for path in (whole[0] / TENSORBOARD_FOLDER).glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    for tag in ("loss/total", "loss/class", "loss/box", "loss/mask", "rate"):
        assert found[tag] == [20]
    assert found["epoch/mask_AP"] == found["epoch/total"] == [10, 20]


def test_the_run_folder_alone_predicts_as_the_trainer_did(
    whole: tuple[Path, list[np.ndarray]],
    compiled: tuple[Trainer, Path],
    records: list[ImageRecord],
    tmp_path: Path,
) -> None:
    elsewhere = tmp_path / "copied"
    elsewhere.mkdir()
    for name in ("config.yaml", "best.npz"):
        shutil.copy(whole[0] / name, elsewhere / name)
    predictor = load(elsewhere)
    image = decode_pixels(records[4])
    trainer = compiled[0]
    for path, variable in {v.path: v for v in trainer.averaged.variables}.items():
        if path in (arrays := read_arrays(whole[0] / "best.npz")):
            variable.assign(arrays[path])
    expected, found = trainer.predictor.predict(image), predictor.predict(image)
    assert len(found) == len(expected) > 0
    for name in ("boxes", "scores", "classes", "masks"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-4)


def interrupt(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException) -> None:
    """Raise in place of step number `call`, counted from 0."""
    train, calls = trainer.step_function, iter(range(10**6))

    def step(*arguments):
        if next(calls) == call:
            raise error
        return train(*arguments)

    monkeypatch.setattr(trainer, "step_function", step)


@pytest.mark.parametrize(
    ("stop", "validation", "settings"),
    [
        (STEPS, None, {}),  # just after an epoch
        (STEPS + 4, None, {}),  # in the middle of one
        (None, 1, {}),  # while it validates
        (None, EPOCHS - 1, {}),  # in the last validation, when no step is left
        ("crash", None, {"save_minutes": 0.0}),  # not by Ctrl-C: the last timed checkpoint counts
    ],
    ids=["between epochs", "within an epoch", "validating", "last validation", "crash"],
)
def test_a_stopped_run_ends_as_one_in_one_go(
    stop, validation, settings, whole, fresh: Fresh, scores, tmp_path: Path, monkeypatch
) -> None:
    figures: list = [0.1] * (2 * EPOCHS)
    if validation is not None:
        figures[validation] = KeyboardInterrupt()
    scores(*figures)
    trainer = fresh(tmp_path, **settings)
    error = RuntimeError("power cut") if stop == "crash" else KeyboardInterrupt()
    with monkeypatch.context() as patch:
        interrupt(trainer, patch, -1 if stop is None else STEPS + 7 if stop == "crash" else stop, error)
        with pytest.raises(type(error)):
            trainer.run()
    for variable in [*trainer.network.variables, *trainer.average, *trainer.optimizer.variables]:
        variable.assign(tf.zeros_like(variable))  # nothing may survive in memory
    trainer.restore()
    trainer.run()
    assert (trainer.step, trainer.epoch, trainer.epoch_step) == (EPOCHS * STEPS, EPOCHS, 0)
    for after, expected in zip(values(trainer), whole[1], strict=True):
        np.testing.assert_allclose(after, expected, rtol=0, atol=1e-6)
    shared = [k for k in rows(whole[0])[0] if "AP" not in k and k != "rate"]
    for row, expected_row in zip(rows(tmp_path), rows(whole[0]), strict=True):
        assert row["mask_AP"] == "0.1"
        for column in shared:
            if column in row:
                assert float(row[column]) == pytest.approx(float(expected_row[column]), abs=2e-5), column
    assert (tmp_path / "last.npz").exists()


def test_the_averaged_weights_trail_the_network(fresh: Fresh, scores, tmp_path: Path) -> None:
    scores(0.1)
    trainer = fresh(tmp_path, epochs=1, ema=0.8)
    name = "class_predict/pointwise_kernel"
    place = list(named_variables(trainer.network)).index(name)
    variable = named_variables(trainer.network)[name]
    mean = np.asarray(trainer.average[place]).copy()
    train = trainer.step_function

    def step(batch, number, rate):
        nonlocal mean
        figures = train(batch, number, rate)
        keep = min(0.8, (1 + int(number)) / (10 + int(number)))
        mean = mean + (np.asarray(variable) - mean) * (1 - keep)
        return figures

    trainer.step_function = step
    try:
        trainer.run()
    finally:
        trainer.step_function = train
    last = read_arrays(tmp_path / "last.npz")[name]
    np.testing.assert_allclose(last, mean, atol=1e-5)
    assert np.abs(last - np.asarray(variable)).max() > 1e-3


def test_a_finished_run_does_not_go_on(fresh: Fresh, scores, tmp_path: Path) -> None:
    scores(0.1)
    trainer = fresh(tmp_path, epochs=1)
    trainer.run()
    before = values(trainer)
    trainer.restore()
    assert trainer.progress() == 1.0
    trainer.run()
    assert trainer.step == STEPS and len(rows(tmp_path)) == 1
    for a, b in zip(values(trainer), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_best_is_the_best_validation_and_last_the_last(fresh: Fresh, scores, tmp_path: Path) -> None:
    told = scores(0.2, 0.5, 0.4)
    trainer = fresh(tmp_path, epochs=3)
    trainer.run()
    for name, expected in (("best.npz", told.weights[1]), ("last.npz", told.weights[2])):
        found = read_arrays(tmp_path / name)
        assert set(found) == set(expected)
        assert all(np.array_equal(found[path], expected[path]) for path in found)
    assert any(not np.array_equal(told.weights[1][path], told.weights[2][path]) for path in told.weights[1])
    assert trainer.best == 0.5 and trainer.report["mask_AP"] == 0.5


def test_partial_validations_are_rare_cheap_and_give_way_to_the_full_one(
    fresh: Fresh, scores, tmp_path: Path
) -> None:
    told = scores(0.9, 0.2)
    trainer = fresh(tmp_path, epochs=3, evaluate_every=2, evaluate_images=1)
    trainer.run()
    assert told.limits == [1, None]
    assert [row["mask_AP"] for row in rows(tmp_path)] == ["", "0.9", "0.2"]
    best = read_arrays(tmp_path / "best.npz")
    assert trainer.best == 0.2 and all(np.array_equal(best[k], told.weights[1][k]) for k in best)


def test_without_validation_the_last_weights_are_there(fresh: Fresh, tmp_path: Path) -> None:
    trainer = fresh(tmp_path, epochs=1)
    trainer.validation = None
    trainer.run()
    assert (tmp_path / "last.npz").exists() and not (tmp_path / "best.npz").exists()
    assert "mask_AP" not in rows(tmp_path)[0]


def test_the_clock_ends_a_run_within_an_epoch(fresh: Fresh, scores, tmp_path: Path) -> None:
    told = scores(0.1)
    trainer = fresh(tmp_path, minutes=0.001)
    trainer.run()
    assert 1 <= trainer.step < EPOCHS * STEPS and told.limits == [None]
    assert int(rows(tmp_path)[-1]["step"]) == trainer.step
    done = trainer.step
    trainer.restore()
    trainer.run()
    assert trainer.step == done


def test_a_clock_that_jumps_back_changes_nothing(fresh: Fresh, scores, tmp_path: Path, monkeypatch) -> None:
    scores(0.1)
    clock = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    trainer = fresh(tmp_path, minutes=0.001)
    trainer.run()
    assert 1 <= trainer.step < EPOCHS * STEPS and 0 < trainer.elapsed < 60


@pytest.fixture
def poisoned(records: list[ImageRecord], write_records, tmp_path: Path) -> RecordStore:
    """Training images of which number 102 has a mean that is not a number."""
    faulty = [dataclasses.replace(r, mean=float("nan")) if r.image_id == 102 else r for r in records[:4]]
    return RecordStore(write_records(tmp_path / "poisoned", faulty))


def test_a_loss_that_is_not_finite_names_step_terms_and_images(
    fresh: Fresh, scores, poisoned: RecordStore, tmp_path: Path
) -> None:
    scores(0.1, 0.1)
    trainer = fresh(tmp_path / "run", epochs=1)
    trainer.run()
    trainer.config = dataclasses.replace(
        trainer.config, train=dataclasses.replace(trainer.config.train, epochs=2)
    )
    saved = (tmp_path / "run" / STATE_FILE).read_bytes()
    before = values(trainer)
    trainer.store = poisoned
    with pytest.raises(UserError) as caught:
        trainer.run()
    message = str(caught.value)
    assert f"step {trainer.step + 1}:" in message and STEPS <= trainer.step < 2 * STEPS
    assert "(total, class, box" in message and "102" in message and "unharmed" in message
    assert "\n" not in message
    assert (tmp_path / "run" / STATE_FILE).read_bytes() == saved
    trainer.restore()
    assert trainer.step == STEPS
    for a, b in zip(values(trainer), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(v).all() for v in read_arrays(tmp_path / "run" / "last.npz").values())


def test_gradients_that_are_not_finite_stop_it_too(
    fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = fresh(tmp_path)
    figures = tf.constant([2.0, 0.5, 0.5, 0.5, 9.0, 9.0, float("inf")])
    monkeypatch.setattr(trainer, "step_function", lambda *arguments: figures)
    with pytest.raises(UserError, match=r"step 1: .*\(gradient_norm\) on images 10\d, 10\d"):
        trainer.run()


def test_dropped_cells_are_counted_and_told(fresh: Fresh, scores, tmp_path: Path, capsys) -> None:
    scores(0.1)
    trainer = fresh(tmp_path, epochs=1)
    trainer.config = trainer.config.replace(data__max_instances=2)
    batches = trainer_module.training_dataset(
        trainer.store, trainer.config.data, trainer.config.augment, 2, trainer.config.train.seed
    )
    expected = sum(int(batch["dropped"].numpy().sum()) for batch in batches)
    trainer.run()
    assert expected > 0 and rows(tmp_path)[0]["cells_dropped"] == str(expected)
    assert f"{expected} cells did not fit into data.max_instances" in capsys.readouterr().out


def test_a_folder_with_the_state_of_another_network_is_refused(
    config: Config, store: RecordStore, compiled: tuple[Trainer, Path]
) -> None:
    other = config.override(["model.fpn_channels=16"])
    with pytest.raises(UserError, match="another network"):
        Trainer(other, store, compiled[1].parent, None)


def test_a_run_on_other_data_is_not_gone_on_with(
    config: Config, store: RecordStore, compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "fingerprint", "of other shards")
    with pytest.raises(UserError, match="other training data"):
        Trainer(config, store, compiled[1].parent, None)


def test_the_seed_makes_the_start(config: Config, store: RecordStore, compiled, tmp_path: Path) -> None:
    arrays = read_arrays(compiled[1])
    again = values(Trainer(config, store, tmp_path, None))
    count = sum(1 for name in arrays if name.startswith("network/"))
    assert all(np.array_equal(arrays[f"network/{k}"], again[k]) for k in range(count))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_weight_decay_spares_biases_norms_and_fusion_weights(kind: str, tiny_config: Config) -> None:
    config = tiny_config.override(
        [f"train.optimizer={kind}", "train.weight_decay=0.5", "model.fusion=fast", "model.activation=swish"]
    )
    network = build_network(config)
    optimizer = make_optimizer(config)
    optimizer.build(network.trainable_variables)
    for variable in network.trainable_variables:
        variable.assign(tf.ones_like(variable))
    optimizer.learning_rate.assign(0.1)
    optimizer.apply([tf.zeros_like(v) for v in network.trainable_variables], network.trainable_variables)
    decayed = {v.path for v in network.trainable_variables if float(np.max(v)) < 0.99}
    kernels = {v.path for v in network.trainable_variables if len(v.shape) > 1}
    assert decayed == kernels
