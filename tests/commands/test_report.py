"""The verb: what it writes where, and every refusal in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from effdet_tf import cli
from effdet_tf.config import Config


@pytest.fixture
def run_folder(tiny_config: Config, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    tiny_config.save(folder / "config.yaml")
    return folder


def test_a_report_of_a_run_is_written_where_it_belongs(run_folder, tmp_path, capsys):
    assert cli.main(["report", str(run_folder)]) == 0
    assert (run_folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {run_folder / 'report.html'}"
    assert cli.main(["report", str(run_folder), "--out", str(tmp_path / "new" / "x.html")]) == 0
    assert (tmp_path / "new" / "x.html").exists()


def test_a_network_of_the_package_needs_a_place(tmp_path, capsys):
    assert cli.main(["report", "cells"]) == 1
    assert "name a file to write with --out" in capsys.readouterr().err
    assert cli.main(["report", "cells", "--out", str(tmp_path / "cells.html")]) == 0
    text = (tmp_path / "cells.html").read_text()
    assert "of an earlier version" in text and "48 images" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file or folder"),
        ("", "not a JSON file"),
        ("{", "not a JSON file"),
        ("[]", "holds no evaluation"),
        ('{"livecell": {}}', "holds no evaluation"),
        ("\0", "not a JSON file"),
    ],
)
def test_a_file_that_is_no_evaluation_is_one_line(tmp_path, capsys, content, words):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert cli.main(["report", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}") and words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", "- a", "holds no configuration"),
        ("metrics.json", "[]", "holds no evaluation"),
        ("about.json", '{"date": 3}', "is damaged"),
        ("log.csv", "step,total\n1,high\n", "is no log of a training"),
        ("last.npz", "no archive", "not a readable weights file"),
    ],
)
def test_a_damaged_file_of_a_run_is_one_line(run_folder, capsys, name, content, words):
    (run_folder / name).write_text(content)
    assert cli.main(["report", str(run_folder)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {run_folder / name}") and words in error
    assert not (run_folder / "report.html").exists()


def test_a_folder_that_is_no_run_and_data_that_are_not_there_are_one_line(run_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "empty")]) == 1
    assert "config.yaml" in capsys.readouterr().err
    assert cli.main(["report", str(run_folder), "--data", str(tmp_path / "gone")]) == 1
    assert "no such folder of converted images" in capsys.readouterr().err
