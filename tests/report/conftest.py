"""Evaluations of hand-made predictions, written as `training.evaluate` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import CATEGORIES, CELLS, make_record, predictions
from training import evaluate


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, write_records: Callable[..., Path]) -> Path:
    """Three images of two classes and two cell types."""
    folder = tmp_path_factory.mktemp("data") / "held & out"
    return write_records(folder, [make_record(image_id, True) for image_id in CELLS], CATEGORIES)


@pytest.fixture(scope="session")
def boxes_data(tmp_path_factory: pytest.TempPathFactory, write_records: Callable[..., Path]) -> Path:
    """The same, annotated by boxes alone."""
    folder = tmp_path_factory.mktemp("boxes") / "data"
    return write_records(folder, [make_record(image_id, False) for image_id in CELLS], CATEGORIES)


Evaluated = Callable[..., Path]


@pytest.fixture(scope="session")
def evaluated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """`evaluated(found, *options, data=...)` evaluates COCO results; returns the JSON beside the page."""

    def run(found: list[dict[str, Any]], *options: str, data: Path = data) -> Path:
        folder = tmp_path_factory.mktemp("evaluated")
        (folder / "found.json").write_text(json.dumps(found))
        out = folder / "evaluation.json"
        words = ["--predictions", str(folder / "found.json"), "--data", str(data), "--out", str(out)]
        assert evaluate.main([*words, *options]) == 0
        return out

    return run


@pytest.fixture(scope="session")
def usual(evaluated: Evaluated) -> Path:
    """The evaluation of masks, class by class too."""
    return evaluated(predictions(True), "--score", "0.5", "--coco")
