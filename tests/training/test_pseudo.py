"""Images that a network labels: a data set like any other to train on, and none to be judged by."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from effdet_tf import cli
from effdet_tf.data.manifest import load_manifest
from effdet_tf.data.packed import load_packed
from effdet_tf.data.record import iterate_records
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.metrics.evaluation import evaluate_run
from effdet_tf.prediction.results import Result
from effdet_tf.presets import preset
from tests.predictors import Finder
from training import main as training_main
from training.evaluate_job import evaluate_file


class Squares(Finder):
    """Finds bright squares; their score is their brightness."""

    class_names, category_ids, per_class = ("cell",), (5,), False
    config = preset("cells-lite0").replace(postprocess__report_score=0.5)

    def find(self, image):
        pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED) if isinstance(image, Path) else image[..., 0]
        pixels = np.asarray(pixels)
        count, _, stats, _ = cv2.connectedComponentsWithStats((pixels > 60).astype(np.uint8))
        boxes = np.array([[y, x, y + h, x + w] for x, y, w, h, _ in stats[1:count]], np.float32)
        boxes = boxes.reshape(-1, 4)
        scores = np.array([pixels[int(y), int(x)] / 255 for y, x, _, _ in boxes], np.float32)
        order = np.argsort(-scores, kind="stable")
        masks = np.full((len(boxes), 28, 28), 255, np.uint8)
        classes = np.zeros(len(boxes), np.int32)
        found = boxes[order]
        return Result(found, scores[order], classes, masks, found.copy(), *pixels.shape, ("cell",))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name, levels in (("a.png", (250, 200, 100)), ("deep/b.png", (240,)), ("empty.png", ())):
        pixels = np.full((64, 96), 20, np.uint8)
        for k, level in enumerate(levels):
            pixels[10 : 20 + k, 5 + 30 * k : 17 + 30 * k] = level
        cv2.imwrite(str(folder / name), pixels)
    return folder


@pytest.fixture
def labelled(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("effdet_tf.prediction.load.load", lambda path: Squares())
    out = tmp_path / "pseudo"
    assert cli.main(["pseudo", str(images), "--out", str(out), "--run", "mine"]) == 0
    return out


def test_the_set_holds_what_the_network_found(labelled: Path, capsys: pytest.CaptureFixture[str]):
    manifest = load_manifest(labelled)
    assert manifest.pseudo == {"network": "mine", "score": 0.5, "flips": False, "scales": [1.0]}
    assert (manifest.source, manifest.images, manifest.cells) == ("pseudo", 3, 3)  # 100 / 255 is below .5
    assert (manifest.class_names, manifest.category_ids) == (("cell",), (5,))
    records = {record.file_name: record for record in iterate_records(labelled)}
    assert set(records) == {"a.png", "deep/b.png", "empty.png"}
    assert records["a.png"].boxes.tolist() == [[10, 5, 20, 17], [10, 35, 21, 47]]
    assert len(records["empty.png"].boxes) == 0 and records["deep/b.png"].masks.shape == (1, 28, 28)


@pytest.mark.parametrize(("words", "cells"), [(["--score", "0.9"], 2), (["--score", "0"], 4), (["--tta"], 3)])
def test_score_and_views_are_the_users_choice(images, tmp_path, monkeypatch, words, cells):
    monkeypatch.setattr("effdet_tf.prediction.load.load", lambda path: Squares())
    assert cli.main(["pseudo", str(images), "--out", str(tmp_path / "out"), *words]) == 0
    manifest = load_manifest(tmp_path / "out")
    assert manifest.cells == cells
    assert manifest.pseudo["network"] == "cells" and manifest.pseudo["flips"] == (words == ["--tta"])


def test_people_and_networks_are_kept_apart(labelled: Path, train_data: Path):
    both = RecordStore(train_data, pseudo=[labelled])
    alone = RecordStore(train_data)
    assert both.images == alone.images + 3 and both.fingerprint != alone.fingerprint
    assert both.cells.tolist() == [*alone.cells.tolist(), 2, 1, 0]
    with pytest.raises(UserError, match="labelled by mine, not by people; .*--pseudo"):
        RecordStore([train_data, labelled])
    with pytest.raises(UserError, match="annotated by people"):
        RecordStore(train_data, pseudo=[train_data])


def test_no_network_is_evaluated_by_another(labelled: Path, tmp_path: Path):
    with pytest.raises(UserError, match="evaluate on annotated images"):
        evaluate_run(Squares(), labelled, progress=False)
    (tmp_path / "found.json").write_text("[]")
    with pytest.raises(UserError, match="evaluate on annotated images"):
        evaluate_file(tmp_path / "found.json", labelled)


def test_they_are_packed_beside_annotated_images(labelled: Path, train_data: Path, tmp_path: Path, capsys):
    out = str(tmp_path / "both.npz")
    assert cli.main(["pack", str(train_data), out, "--pseudo", str(labelled)]) == 0
    assert load_packed(out).cells.tolist() == RecordStore(train_data, pseudo=[labelled]).cells.tolist()
    assert cli.main(["pack", str(train_data), str(labelled), str(tmp_path / "no.npz")]) == 1
    assert "not by people" in capsys.readouterr().err


def test_training_takes_them_beside_annotated_images(labelled, train_data, run_config, tmp_path, capsys):
    words = ["--data", str(train_data), "--config", str(run_config), "--epochs", "1"]
    run = tmp_path / "run"
    assert training_main.main([*words, "--pseudo", str(labelled), "--out", str(run)]) == 0
    assert "7 images, 3 steps an epoch" in capsys.readouterr().out
    assert training_main.main([*words, "--val", str(labelled), "--out", str(tmp_path / "other")]) == 1
    assert "validate on annotated images" in capsys.readouterr().err


def test_a_wrong_name_is_told_before_the_network_loads(tmp_path, capsys):
    assert cli.main(["pseudo", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_a_source_that_no_image_has_is_told_before_the_first_step(train_data, run_config, tmp_path, capsys):
    words = ["--data", str(train_data), "--config", str(run_config), "--epochs", "1"]
    words += ["--set", "data.source_share={mine: 0.5}", "--out", str(tmp_path / "run")]
    assert training_main.main(words) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "error: data.source_share names mine; the sources of the data are made up"


def records_of(images: Path, out: Path, *words: str) -> dict:
    assert cli.main(["pseudo", str(images), "--out", str(out), *words]) == 0
    return {record.file_name: record for record in iterate_records(out)}


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effdet_tf.prediction.load.load", lambda path: Squares())


def test_weak_cells_are_regions_to_ignore(images, tmp_path, squares, capsys):
    # Scores of a.png: 250, 200 and 100 of 255.
    record = records_of(images, tmp_path / "out", "--score", "0.5", "--ignore-from", "0.3")["a.png"]
    assert record.iscrowd.tolist() == [0, 0, 1] and record.scores.tolist() == [1, 1, 1]
    assert record.boxes[2].tolist() == [10, 65, 22, 77]
    manifest = load_manifest(tmp_path / "out")
    assert manifest.pseudo["ignore_from"] == 0.3 and "soft" not in manifest.pseudo
    strict = records_of(images, tmp_path / "two", "--score", "0.5", "--ignore-from", "0.4")["a.png"]
    assert strict.iscrowd.tolist() == [0, 0]  # 100 / 255 is .39
    assert cli.main(["pseudo", str(images), "--out", str(tmp_path / "no"), "--ignore-from", "0.9"]) == 1
    assert "--ignore-from 0.9 is above the score of a cell, 0.5" in capsys.readouterr().err


def test_soft_labels_keep_scores_and_probabilities(images, tmp_path, monkeypatch):
    class Unsure(Squares):
        def find(self, image):
            found = super().find(image)
            half = np.linspace(100, 255, 28).astype(np.uint8)
            masks = np.broadcast_to(half[:, None], found.masks.shape).copy()
            return Result(found.boxes, found.scores, found.classes, masks, found.mask_boxes, *TALL)

    TALL = 64, 96, ("cell",)
    monkeypatch.setattr("effdet_tf.prediction.load.load", lambda path: Unsure())
    record = records_of(images, tmp_path / "soft", "--score", "0.3", "--soft", "--source", "taught")["a.png"]
    np.testing.assert_allclose(record.scores, np.array([250, 200, 100]) / 255, atol=1e-6)
    assert record.source == "taught" and load_manifest(tmp_path / "soft").pseudo["soft"] is True
    # Probabilities, not coverage: from a half, where the cell begins, to one.
    mask = record.masks[0].astype(int)
    assert 115 < mask[0].min() <= mask[0].max() < 150 and mask[-1].min() > 245
    # Of a calibrated network they are the scores that it gave itself; the option is of those that it reports.
    lines = ((0.0, 0.0), (0.5, 0.2), (1.0, 1.0))
    monkeypatch.setattr(Unsure, "config", Unsure.config.replace(postprocess__calibration=lines))
    calibrated = records_of(images, tmp_path / "calibrated", "--score", "0.75", "--soft")["a.png"]
    own = np.interp(np.array([250, 200]) / 255, (0, 0.2, 1), (0, 0.5, 1))
    np.testing.assert_allclose(calibrated.scores, own, atol=1e-6)
    monkeypatch.undo()
    monkeypatch.setattr("effdet_tf.prediction.load.load", lambda path: Unsure())
    hard = records_of(images, tmp_path / "hard", "--score", "0.3")["a.png"]
    assert hard.scores.tolist() == [1, 1, 1] and set(np.unique(hard.masks[0])) <= {0, 255}


def test_scores_and_sources_survive_packing_and_old_files_have_none(images, tmp_path, squares, train_data):
    records_of(images, tmp_path / "soft", "--score", "0.3", "--soft", "--source", "taught")
    store = RecordStore(train_data, pseudo=[tmp_path / "soft"])
    assert store.sources[-3:].tolist() == ["taught"] * 3 and "taught" not in store.sources[:-3]
    out = str(tmp_path / "both.npz")
    assert cli.main(["pack", str(train_data), out, "--pseudo", str(tmp_path / "soft")]) == 0
    packed = load_packed(out)
    assert packed.sources.tolist() == store.sources.tolist()
    np.testing.assert_allclose(np.sort(packed.arrays["scores"])[:2], [100 / 255, 200 / 255], atol=1e-6)
    for number in (0, packed.images - 3):
        np.testing.assert_array_equal(packed.fetch(number)["scores"], store.fetch(number)["scores"])
    with np.load(out) as arrays:
        old = {name: arrays[name] for name in arrays.files if name not in ("scores", "source")}
    np.savez(tmp_path / "old.npz", **old)
    assert (load_packed(tmp_path / "old.npz").arrays["scores"] == 1).all()
