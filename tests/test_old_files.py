"""Files of an earlier state of the code work, and give what they gave then (tests/before/README.md).

Where they were written results are the same to the bit, and files to the byte. Other processors add up
convolutions in another order, so float32 results are held to `CLOSE`, and bitmaps, which are rounded to
0-255, to one level.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from effdet_tf import cli
from effdet_tf.data.manifest import load_manifest
from effdet_tf.data.packed import load_packed
from effdet_tf.data.record import iterate_records
from effdet_tf.data.store import RecordStore
from effdet_tf.prediction import predictor as tiling
from effdet_tf.prediction.load import load
from effdet_tf.prediction.results import Result
from training import evaluate
from training import main as training

BEFORE = Path(__file__).parent / "before"
RESULTS = BEFORE / "results"
NETWORKS = ("run", "saved_model", "tflite")
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}
# Options of the training, see the README.
TRAIN = ["--epochs", "12", "--set", "train.evaluate_every=12", "--set", "train.learning_rate=0.006"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The networks by name; the SavedModel lies packed, for its graph is large."""
    unpacked = tmp_path_factory.mktemp("exports") / "saved_model"
    with zipfile.ZipFile(BEFORE / "exports" / "saved_model.zip") as archive:
        archive.extractall(unpacked)
    run = shutil.copytree(BEFORE / "run", tmp_path_factory.mktemp("runs") / "run")
    return {"run": run, "saved_model": unpacked, "tflite": BEFORE / "exports" / "float32.tflite"}


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested JSON, with its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}/{key}")
    elif isinstance(value, list):
        for k, inner in enumerate(value):
            yield from numbers(inner, f"{name}/{k}")
    else:
        yield name, value


def same_bits(result: Result, network: str) -> bool:
    """Whether a result equals that of then in every bit."""
    with np.load(RESULTS / f"{network}.npz") as then:
        return all(np.array_equal(getattr(result, name), then[name]) for name in then.files)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_finds_the_cells_that_it_found(sources: dict[str, Path], network: str, caplog) -> None:
    with caplog.at_level(logging.WARNING, "effdet_tf"):
        result = load(sources[network]).predict(BEFORE / "image.tif")
    assert not [record for record in caplog.records if record.name == "effdet_tf"]
    with np.load(RESULTS / f"{network}.npz") as then:
        assert len(result) == len(then["scores"]) > 10
        np.testing.assert_array_equal(result.classes, then["classes"])
        for name in ("boxes", "scores", "mask_boxes"):
            np.testing.assert_allclose(getattr(result, name), then[name], **CLOSE, err_msg=name)
            assert getattr(result, name).dtype == then[name].dtype
        assert result.masks is not None and result.masks.dtype == then["masks"].dtype
        assert np.abs(result.masks.astype(int) - then["masks"]).max() <= 1


def test_an_export_without_the_signature_part_says_so_once(
    sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    for name, pixels in (("LARGE", 80 * 80), ("TILE", 64), ("OVERLAP", 32)):
        monkeypatch.setattr(tiling, name, pixels)
    predictor = load(sources["saved_model"])
    with caplog.at_level(logging.WARNING, "effdet_tf"):
        found = [len(predictor.predict(BEFORE / "image.tif")) for _ in range(2)]
    assert found[0] == found[1] > 0
    lines = [record.getMessage() for record in caplog.records if record.name == "effdet_tf"]
    assert len(lines) == 1 and "older export" in lines[0] and "\n" not in lines[0]
    assert str(sources["saved_model"]) in lines[0]


@pytest.mark.parametrize("network", NETWORKS)
def test_info_and_predict_take_a_network(
    sources: dict[str, Path], network: str, tmp_path: Path, capsys
) -> None:
    assert cli.main(["info", str(sources[network])]) == 0
    assert "cell" in capsys.readouterr().out
    out = tmp_path / "found"
    arguments = ["predict", str(BEFORE / "image.tif"), "--run", str(sources[network]), "--out", str(out)]
    assert cli.main([*arguments, "--formats", "labels,table,coco"]) == 0
    if network != "run":
        return
    then, names = (
        RESULTS / "predicted",
        ("image.labels.tif", "image.cells.csv", "image.coco.json", "summary.csv"),
    )
    assert {path.name for path in out.iterdir()} >= set(names)
    if same_bits(load(sources["run"]).predict(BEFORE / "image.tif"), "run"):
        for name in names:
            assert (out / name).read_bytes() == (then / name).read_bytes(), name
    # A bitmap of another level may move the outline of a cell by a pixel.
    labels = [tifffile.imread(folder / "image.labels.tif") for folder in (out, then)]
    assert labels[0].dtype == labels[1].dtype and (labels[0] != labels[1]).mean() < 0.002
    tables = [pd.read_csv(folder / "image.cells.csv") for folder in (out, then)]
    assert list(tables[0]) == list(tables[1])
    place = ["cell", "class", "score", "y0", "x0", "y1", "x1"]
    pd.testing.assert_frame_equal(tables[0][place], tables[1][place], **CLOSE)


def test_evaluation_gives_the_metrics_that_it_gave(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "evaluation.json"
    assert (
        evaluate.main(["--run", str(sources["run"]), "--data", str(BEFORE / "val"), "--out", str(out)]) == 0
    )
    now, then = (json.loads(path.read_text()) for path in (out, RESULTS / "evaluation.json"))
    assert set(now.pop("calibration")) == {"all", "by", "lines", "after"}  # told since
    assert now.keys() == then.keys()
    for document in (now, then):
        del document["about"], document["evaluated"]
    values = dict(numbers(now))
    # Another score is reported since: that of the best F1, mean of the images.
    del then["cells"]["counting_score_threshold"]
    new = ("/mean_f1", "/matching_accuracy75", "/matching_accuracy", "/missed", "/merged", "/split", "/false")
    added = {name for name in values if name.endswith(new)} | {"/cells/report_score"}
    assert values.keys() - added == dict(numbers(then)).keys() and len(added) == 7 * 3 + 1
    for name, value_then in numbers(then):
        assert values[name] == (
            pytest.approx(value_then, rel=1e-4) if isinstance(value_then, float) else value_then
        ), name


def test_the_report_of_a_run_is_written_again(sources: dict[str, Path]) -> None:
    assert cli.main(["report", str(sources["run"])]) == 0
    assert (sources["run"] / "report.html").stat().st_size > 50_000


def test_records_and_the_packed_file_hold_the_same_images() -> None:
    folder = BEFORE / "train"
    manifest, packed = load_manifest(folder), load_packed(BEFORE / "train.npz")
    assert (manifest.images, manifest.cells, packed.images, packed.cells.sum()) == (6, 57, 6, 57)
    assert (
        load_manifest(BEFORE / "val").cells
        == sum(len(r.boxes) for r in iterate_records(BEFORE / "val"))
        == 20
    )
    for k, record in enumerate(iterate_records(folder)):
        one = packed.fetch(k)
        assert record.image_id == one["image_id"] and record.height == record.width == 96
        for name in ("boxes", "classes", "masks"):
            np.testing.assert_array_equal(getattr(record, name), one[name], err_msg=name)
    store = RecordStore(folder)
    assert store.fingerprint == packed.fingerprint
    for name, array in store.to_arrays().items():
        np.testing.assert_array_equal(array, packed.arrays[name], err_msg=name)


def test_an_interrupted_training_goes_on_to_the_weights_of_one_that_was_not(tmp_path: Path, capsys) -> None:
    folder = shutil.copytree(BEFORE / "stopped", tmp_path / "stopped")
    with np.load(folder / "state.npz") as state:
        progress = json.loads(state["progress"].tobytes())
        stopped = [state[f"average/{k}"] for k in range(sum(n.startswith("average/") for n in state))]
    assert (progress["epoch"], progress["epoch_step"]) == (11, 21)
    data = ["--data", str(BEFORE / "train"), "--val", str(BEFORE / "val")]
    config = ["--config", str(BEFORE / "tiny.yaml")]
    assert training.main([*data, *config, *TRAIN, "--out", str(folder)]) == 0
    assert len(pd.read_csv(folder / "log.csv")) == 12 and (folder / "best.npz").is_file()
    with np.load(folder / "last.npz") as now, np.load(BEFORE / "run" / "last.npz") as then:
        assert now.files == then.files and len(stopped) == len(then.files)
        # Not the statistics of batch normalisation: they are larger, and would hide the rest.
        learned = [(k, n) for k, n in enumerate(then.files) if "moving" not in n]
        left = np.sqrt(sum(((stopped[k] - then[n]) ** 2).sum() for k, n in learned))
        apart = np.sqrt(sum(((now[n] - then[n]) ** 2).sum() for _, n in learned))
    # Equal to the bit where the files were made; AdamW turns the last bits of a gradient near 0 into more.
    assert 0 < left and apart < 0.02 * left


def test_a_plate_that_is_done_is_not_done_again(tmp_path: Path, sources: dict[str, Path], capsys) -> None:
    pytest.importorskip("apache_beam", reason="the extra `plates` is not installed")
    plate = shutil.copytree(BEFORE / "plate", tmp_path / "plate")
    out = shutil.copytree(BEFORE / "plate_out", tmp_path / "out")
    for shard in json.loads((out / "plan.json").read_text())["shards"]:
        for name, _, modified in shard["files"]:  # a checkout gives files the time of now
            os.utime(plate / name, (modified, modified))
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    run = str(sources["run"])
    assert cli.main(["plate", str(plate), "--run", run, "--out", str(out)]) == 0
    assert "0 of 1 shards" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in out.rglob("*.*") if path in before}
    (out / "done" / "00000.json").unlink()  # and a plate that was stopped goes on

    (out / "counts.csv").unlink()
    assert cli.main(["plate", str(plate), "--run", run, "--out", str(out)]) == 0
    assert (out / "counts.csv").read_bytes() == before[out / "counts.csv"]
    mark = json.loads((out / "done" / "00000.json").read_bytes())
    assert len(mark.pop("contents")) == 2  # told since, for --verify
    assert mark == json.loads(before[out / "done" / "00000.json"])
