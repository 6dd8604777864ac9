"""The command line of `convert`, by subprocess: what it prints, what it leaves, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from effdet_tf.cli import main
from effdet_tf.data.manifest import load_manifest

ROOT = Path(__file__).resolve().parents[2]
SQUARE = [[2, 3, 8, 3, 8, 9, 2, 9]]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "effdet_tf", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=120
    )


@pytest.fixture
def livecell(tmp_path: Path) -> Path:
    """Two LIVECell images, nested by type, each with one cell, the second cell twice."""
    root = tmp_path / "livecell"
    images = [
        {"id": 10**10 + n, "file_name": f"{kind}_Phase_A{n}.tif", "height": 20, "width": 30}
        for n, kind in enumerate(("BV2", "SkBr3"))
    ]
    for entry in images:
        path = (
            root
            / "images"
            / "livecell_train_val_images"
            / entry["file_name"].split("_")[0]
            / entry["file_name"]
        )
        path.parent.mkdir(parents=True)
        tifffile.imwrite(path, np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8))
    annotations = {
        str(n): {
            "id": n, "image_id": images[min(n, 1)]["id"], "category_id": 1, "iscrowd": 0,
            "segmentation": SQUARE, "bbox": [2, 3, 6, 6],
        }
        for n in range(3)
    }  # fmt: skip
    path = root / "annotations" / "LIVECell" / "livecell_coco_train.json"
    path.parent.mkdir(parents=True)
    categories = [{"id": 1, "name": "cell"}]
    path.write_text(json.dumps({"annotations": annotations, "images": images, "categories": categories}))
    return root


def test_convert_reports_what_it_wrote_and_dropped(livecell: Path, tmp_path: Path) -> None:
    done = run("convert", "livecell", livecell, tmp_path / "out", "--classes", "type", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "2 images, 2 cells, 1 shards" in done.stdout
    assert "exact double of a cell: SkBr3_Phase_A1.tif (annotation 2)" in done.stdout
    assert "SkBr3" in done.stdout and "image/s" in done.stderr
    manifest = load_manifest(tmp_path / "out")
    assert manifest.cell_types == {"BV2": {"images": 1, "cells": 1}, "SkBr3": {"images": 1, "cells": 1}}
    again = run("convert", "livecell", livecell, tmp_path / "out", "--workers", 1)
    assert again.returncode == 1
    assert (
        again.stderr.startswith("error: ") and again.stderr.count("\n") == 1 and "--overwrite" in again.stderr
    )


def test_strict_fails_and_writes_nothing(
    livecell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", "livecell", str(livecell), str(tmp_path / "out"), "--strict", "--quiet"]
    assert main([*arguments, "--workers", "1"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "exact double of a cell" in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert"],
        ["convert", "unknown", "a", "b"],
        ["convert", "coco", "a"],
        ["convert", "coco", "a", "b", "--workers", "0"],
        ["convert", "coco", "a", "b", "--shards", "2", "--images-per-shard", "3"],
        ["convert", "livecell", "a", "b", "--split", "nonsense"],
        ["nonsense"],
        [],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["livecell", "sartorius", "coco", "labelmaps"])
def test_a_missing_source_is_one_line_and_exit_code_1(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", kind, str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "none: does not exist" in printed.err
    assert not (tmp_path / "out").exists()


def test_a_coco_set_in_one_folder(livecell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "coco", str(livecell), str(tmp_path / "out"), "--workers", "1", "--quiet"]) == 0
    assert "2 images, 2 cells" in capsys.readouterr().out


def test_help_names_the_verbs() -> None:
    done = run("--help")
    assert done.returncode == 0 and "convert" in done.stdout


@pytest.mark.parametrize(
    "statement", ["from effdet_tf.cli import build_parser; build_parser()", "import effdet_tf.data.build"]
)
def test_neither_the_parser_nor_the_workers_load_tensorflow(statement: str) -> None:
    code = f"import sys; {statement}; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.real_data
def test_a_few_real_sartorius_images(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = real_data / "sartorius"
    arguments = [
        "convert",
        "sartorius",
        root,
        tmp_path / "out",
        "--ids",
        root / "val_ids.txt",
        "--limit",
        4,
        "--quiet",
    ]
    assert main([str(argument) for argument in arguments]) == 0
    manifest = load_manifest(tmp_path / "out")
    assert (
        manifest.images == 4 and manifest.cells > 40 and manifest.class_names == ("shsy5y", "astro", "cort")
    )
    assert "pin holes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "coco", "src", "out", "--workers", "x"], "invalid whole number value: 'x'"),
        (["predict", "--run", "r", "i.png", "--out", "o", "--score", "abc"], "invalid number value: 'abc'"),
    ],
)
def test_a_wrong_value_is_named_in_plain_words(arguments, message, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "1025", "x"])
def test_a_mask_size_that_no_set_may_have_is_wrong_usage(tmp_path, capsys, size):
    with pytest.raises(SystemExit) as caught:
        main(["convert", "labelmaps", str(tmp_path), str(tmp_path / "out"), "--mask-size", size])
    assert caught.value.code == 2 and "--mask-size" in capsys.readouterr().err
