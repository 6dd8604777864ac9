"""The LIVECell suite: what it runs, that it goes on where it stopped, and its tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.livecell_like import generate
from effdet_tf.data.livecell_names import CELL_TYPES
from effdet_tf.data.manifest import load_manifest
from effdet_tf.errors import UserError
from training import benchmark
from training.benchmark import SHARES, Suite
from training.benchmark_tables import PUBLISHED, count_figures, count_table, transfer_matrix, transfer_table

TYPES = ("A172", "SKOV3")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A generated LIVECell: 24 / 8 / 8 images of 96 px, a few cells each."""
    folder = tmp_path_factory.mktemp("livecell")
    generate(folder, {"train": 24, "val": 8, "test": 8}, (96, 96), (4, 9), different=3, counted=2)
    return folder


def report(value: float) -> dict:
    """A report as `training.evaluate` writes it, as far as the tables read it."""
    figures = {"AP": value, "AP50": value + 0.1, "AFNR": 0.5}
    group = {"images": 3, "cells": 1234, "bbox": figures, "segm": figures}
    return {"livecell": {"all": group, "by": {name: group for name in TYPES}}}


@pytest.fixture
def steps(monkeypatch):
    """The trainings and evaluations that were asked for; they write what the suite looks for, at once."""
    asked = []

    def value(words: list[str], option: str) -> Path:
        return Path(words[words.index(option) + 1])

    def train(words: list[str]) -> int:
        run = value(words, "--out")
        assert load_manifest(value(words, "--data")).images and load_manifest(value(words, "--val")).images
        run.mkdir(parents=True)
        (run / "metrics.json").write_text("{}")
        asked.append(("train", run.name, value(words, "--data").name, value(words, "--val").name))
        return 0

    def judge(words: list[str]) -> int:
        run, data, out = (value(words, option) for option in ("--run", "--data", "--out"))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report(0.1 + 0.01 * len(asked))))
        asked.append(("judge", run.name, data.name))
        return 0

    monkeypatch.setattr("training.benchmark.training_main.main", train)
    monkeypatch.setattr("training.benchmark.evaluate.main", judge)
    return asked


def test_wide_trains_on_all_types(source, tmp_path, steps):
    table = Suite(source, tmp_path, []).wide()
    assert steps == [("train", "wide", "wide-train", "wide-val"), ("judge", "wide", "wide-test")]
    assert load_manifest(tmp_path / "data/wide-train").images == 24
    lines = table.splitlines()
    assert (
        lines[2] == "| all | 3 | 1,234 | 11.0 / 21.0 | 11.0 / 21.0 | 50.0 | 48.45 / 47.78 | 48.43 / 47.89 |"
    )
    assert [line.split("|")[1].strip() for line in lines[3:]] == list(TYPES)
    assert lines[3].endswith("| - | - |")  # the published figures of a type are of another experiment


def test_transfer_reuses_the_networks_of_single_type(source, tmp_path, steps):
    suite = Suite(source, tmp_path, [], TYPES)
    assert "| A172 | 3 | 1,234 |" in suite.single_type() and "31.49 / 34.57" in suite.single_type()
    trained = [step for step in steps if step[0] == "train"]
    assert trained == [
        ("train", "a172", "a172-train", "a172-val"),
        ("train", "skov3", "skov3-train", "skov3-val"),
    ]
    assert load_manifest(tmp_path / "data/a172-train").images == 3
    assert len(steps) == 4
    table = suite.transfer()
    assert len(steps) == 6 and {step[1:] for step in steps[4:]} == {
        *(("a172", "skov3-test"), ("skov3", "a172-test"))
    }
    assert table.splitlines()[2].startswith("| A172 | **")
    assert (tmp_path / "transfer.png").read_bytes()[:4] == b"\x89PNG"
    Suite(source, tmp_path, [], TYPES).transfer()
    assert len(steps) == 6


def test_size_takes_shares_of_the_training_images(source, tmp_path, steps):
    table = Suite(source, tmp_path, []).size()
    assert [step[1] for step in steps if step[0] == "train"] == [
        *("train2percent", "train4percent", "train5percent", "train25percent", "train50percent", "wide")
    ]
    assert {step[2] for step in steps if step[0] == "judge"} == {"wide-test"}
    images = [int(line.split("|")[2]) for line in table.splitlines()[2:]]
    assert images == [1, 1, 1, 6, 12, 24] and list(SHARES) == [2, 4, 5, 25, 50, 100]
    assert (tmp_path / "size.png").read_bytes()[:4] == b"\x89PNG"


def test_a_step_that_fails_stops_the_suite_and_is_done_next_time(source, tmp_path, steps, monkeypatch):
    train = benchmark.training_main.main
    monkeypatch.setattr("training.benchmark.training_main.main", lambda words: 1)
    with pytest.raises(
        UserError, match=r"stopped at `python -m training.main --data .*; its message stands above"
    ):
        Suite(source, tmp_path, ["--epochs", "1"]).wide()
    assert steps == []
    monkeypatch.setattr("training.benchmark.training_main.main", train)
    Suite(source, tmp_path, ["--epochs", "1"]).wide()
    assert len(steps) == 2


def test_networks_of_other_trainings_are_not_mixed(source, tmp_path, steps):
    Suite(source, tmp_path, ["--epochs", "1"]).wide()
    with pytest.raises(
        UserError, match="suite.json: its networks were trained otherwise .*--epochs 1.; repeat"
    ):
        Suite(source, tmp_path, ["--epochs", "30"])
    with pytest.raises(UserError, match="trained otherwise"):
        Suite(tmp_path, tmp_path, ["--epochs", "1"])


def test_names_of_a_set_of_the_published_size_are_all_different(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.livecell_like.Drawer.draw", lambda *words: [])
    generate(tmp_path, {"train": 3253, "val": 570, "test": 1564})


def test_the_command_writes_its_tables_and_hands_on_what_it_does_not_know(source, tmp_path, steps, capsys):
    words = [
        "livecell",
        "--source",
        str(source),
        "--out",
        str(tmp_path),
        "--experiment",
        "wide",
        "single-type",
    ]
    assert benchmark.main([*words, "--types", "A172", "--epochs", "7"]) == 0
    assert "--epochs 7 --out" in capsys.readouterr().out
    assert "48.45 / 47.78" in (tmp_path / "wide.md").read_text()
    assert "31.49 / 34.57" in (tmp_path / "single-type.md").read_text()
    for own in (["--data", "x"], ["--val=x"]):
        with pytest.raises(SystemExit):
            benchmark.main([*words, *own])
        assert "the suite chooses the images" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_and_its_counts_for_real(source, tmp_path, tiny_config, monkeypatch):
    path = tmp_path / "tiny.yaml"
    tiny_config.override(["train.batch=4", "train.learning_rate=3e-3"]).save(path)
    suite = Suite(source, tmp_path / "out", ["--config", str(path), "--epochs", "1"])
    assert "| all | 8 |" in suite.wide()
    assert {row.split("|")[1].strip() for row in suite.wide().splitlines()[3:]} == set(CELL_TYPES)
    lines = suite.counts().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["A172", "A549"]
    rows = json.loads((tmp_path / "out/results/counts-A549.json").read_text())
    marked = json.loads((source / "nuclear_count_benchmark/A549_counts.json").read_text())
    assert {row["image"]: row["marked"] for row in rows} == {name: int(n) for name, n in marked.items()}
    assert (tmp_path / "out/counts.png").read_bytes()[:4] == b"\x89PNG"


def test_counts_that_are_missing_are_told(source, tmp_path, steps):
    with pytest.raises(UserError, match="download livecell --annotations counts"):
        Suite(tmp_path, tmp_path / "out", []).counts()


def test_figures_of_counts():
    same = count_figures([1, 2, 3], [1, 2, 3])
    assert same["r2"] == same["r2_line"] == 1 and same["mean_error"] == 0
    double = count_figures([2, 4, 6], [1, 2, 3])
    assert double["r2_line"] == pytest.approx(1) and double["r2"] == pytest.approx(1 - 14 / 2)
    assert double["mean_error"] == 2 and double["mean_found"] == 4
    flat = count_figures([5, 5], [3, 3])
    assert math.isnan(flat["r2"]) and math.isnan(flat["r2_line"])
    assert "| A172 | 3 | 2.0 | 4.0 | 2.0 | 1.000 | -6.000 |" in count_table({"A172": ([2, 4, 6], [1, 2, 3])})


def test_the_matrix_is_trained_on_by_tested_on():
    reports = {(a, b): report(k / 10) for k, (a, b) in enumerate([(a, b) for a in TYPES for b in TYPES])}
    reports["SKOV3", "A172"]["livecell"]["all"]["segm"] = {"AP": None, "AP50": None, "AFNR": 1.0}
    matrix = transfer_matrix(reports, TYPES)
    np.testing.assert_array_equal(matrix, [[0, 0.1], [np.nan, 0.3]])
    assert transfer_table(matrix, TYPES).splitlines()[2:] == [
        "| A172 | **0.0** | 10.0 |",
        "| SKOV3 | - | **30.0** |",
    ]


def test_all_types_have_published_figures():
    assert set(PUBLISHED) == {"all", *CELL_TYPES}
