"""From a run folder and image files to files on disk, by the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
import tifffile

from effdet_tf import cli
from effdet_tf.config import Config, load_config
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import save_arrays, to_arrays
from effdet_tf.prediction.load import load
from effdet_tf.runs import BEST_FILE, CONFIG_FILE


@pytest.fixture(scope="module")
def run_folder(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network that reports everything it sees: enough to exercise the whole path."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config.override(
        [
            "postprocess.score_threshold=0.001",
            "postprocess.report_score=0.002",
            "data.max_instances=2000",
        ]
    )
    config.save(folder / CONFIG_FILE)
    network = build_network(config)
    assert network.mask_head is not None
    base = network.mask_head.base.numpy()
    base[-1] = 5.0  # the bias of the last filter: every mask covers its box
    network.mask_head.base.assign(base)
    save_arrays(folder / BEST_FILE, to_arrays(network))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    gray = np.random.default_rng(0).integers(60, 200, (70, 90)).astype(np.uint8)
    cv2.imwrite(str(folder / "gray.png"), gray)
    tifffile.imwrite(folder / "deep.tif", gray.astype(np.uint16) * 257)
    (folder / "sub").mkdir()
    cv2.imwrite(str(folder / "sub" / "colour.jpg"), np.repeat(gray[..., None], 3, axis=-1))
    return folder


def test_every_image_gets_its_files(run_folder: Path, images: Path, tmp_path: Path) -> None:
    code = cli.main(
        ["predict", "--run", str(run_folder), str(images), "--out", str(tmp_path / "out"), "--sartorius"]
        + [str(tmp_path / "submission.csv")]
    )
    assert code == 0
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert len(summary) == 3 and (summary["cells"] > 0).all()
    labels = tifffile.imread(tmp_path / "out" / "gray.labels.tif")
    table = pd.read_csv(tmp_path / "out" / "gray.cells.csv")
    assert labels.shape == (70, 90) and labels.max() == len(table)
    assert (tmp_path / "out" / "sub" / "colour.overlay.png").exists()
    # Bit depth changes nothing: the 16-bit copy has the same cells.
    assert np.array_equal(labels, tifffile.imread(tmp_path / "out" / "deep.labels.tif"))
    predicted = pd.read_csv(tmp_path / "submission.csv")
    own = predicted[predicted["id"] == "gray"]["predicted"].dropna()
    covered = np.zeros(70 * 90, int)
    for text in own:
        numbers = np.array(text.split(), int)
        for start, length in zip(numbers[::2] - 1, numbers[1::2], strict=True):
            covered[start : start + length] += 1
    assert len(own) and covered.max() == 1


def test_an_unreadable_file_does_not_stop_the_rest(run_folder: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    command = ["predict", "--run", str(run_folder), str(images / "gray.png"), str(tmp_path / "broken.png")]
    done = subprocess.run(
        [sys.executable, "-m", "effdet_tf", *command, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3, done.stderr
    assert "broken.png" in done.stderr
    assert (tmp_path / "out" / "gray.labels.tif").exists()


def test_a_missing_run_is_one_line(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(
        ["predict", "--run", str(tmp_path / "none"), str(images / "gray.png"), "--out", str(tmp_path / "out")]
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 1
    assert error.startswith("error: ") and "no such run folder" in error


def test_info_describes_a_run(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(run_folder)]) == 0
    text = capsys.readouterr().out
    assert BEST_FILE in text and "P2-P3" in text and "0.00" in text


def test_info_without_a_run_names_versions_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert "tensorflow 2." in text and "cells-lite0" in text


def test_all_candidates_come_from_the_library_the_threshold_only_from_the_command(
    run_folder: Path, images: Path, tmp_path: Path
) -> None:
    found = load(run_folder).predict(images / "gray.png")
    assert (
        cli.main(
            [
                "predict",
                "--run",
                str(run_folder),
                str(images / "gray.png"),
                "--out",
                str(tmp_path),
                "--score",
                "1",
            ]
        )
        == 0
    )
    assert len(found) > 0
    assert pd.read_csv(tmp_path / "summary.csv")["cells"].item() == 0


def test_a_cut_at_max_instances_is_told(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / BEST_FILE).write_bytes((run_folder / BEST_FILE).read_bytes())
    load_config(run_folder / CONFIG_FILE).replace(data__max_instances=3).save(run / CONFIG_FILE)
    assert load(run).predict(images / "gray.png").truncated
    assert not load(run_folder).predict(images / "gray.png").truncated
    assert (
        cli.main(["predict", "--run", str(run), str(images / "gray.png"), "--out", str(tmp_path / "o")]) == 0
    )
    assert "more cells than the network reports at once" in capsys.readouterr().err
