"""Exports on photographs of cells, in one piece and in tiles, 8 and 16 bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effdet_tf.cli import main as effdet_main
from effdet_tf.config import Config
from effdet_tf.images.read import read_image
from effdet_tf.model.weights import save_arrays, to_arrays
from effdet_tf.prediction.load import load
from effdet_tf.runs import CONFIG_FILE, LAST_FILE
from export.agreement import Agreement
from export.main import main


@pytest.mark.real_data
def test_exports_agree_on_photographs(
    real_data: Path, tiny_config: Config, lively: Any, tmp_path: Path
) -> None:
    root = real_data / "sartorius"
    ids = (root / "val_ids.txt").read_text().split()[:2]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    arguments = ["--classes", "one", "--ids", str(tmp_path / "ids.txt")]
    assert effdet_main(["convert", "sartorius", str(root), str(tmp_path / "data"), *arguments]) == 0
    config = tiny_config.override(
        # Nothing is cut off: tiles would have more room than the whole.
        ["postprocess.score_threshold=0.9", "postprocess.top_k=1000000", "data.max_instances=5000"]
    )
    run = tmp_path / "run"
    run.mkdir()
    config.save(run / CONFIG_FILE)
    save_arrays(run / LAST_FILE, to_arrays(lively(config).network))

    out = tmp_path / "out"
    formats = ["--formats", "saved_model,tflite-fp32", "--data", str(tmp_path / "data")]
    assert main(["--run", str(run), "--out", str(out), *formats]) == 0
    report = json.loads((out / "parity.json").read_text())
    assert report["size"] == [520, 704] and report["images"] == {
        "number": 2,
        "what": f"annotated images of {tmp_path / 'data'}",
        "annotated": True,
    }
    for figures in report["artifacts"].values():
        assert figures["verdict"] == "passed" and figures["reference_cells"] > 100
        assert figures["AP"] is not None

    # Larger than the input of the file, and 16 bit: the same picture, twice.
    picture = np.tile(read_image(root / "train" / f"{ids[0]}.png"), (2, 1, 1)).astype(np.uint16) * 200
    whole = load(out / "saved_model").predict(picture)
    tiled = load(out / "tflite" / "float32.tflite").predict(picture)
    assert whole.height == tiled.height == 1040 and len(whole) > 100
    agreement = Agreement(config)
    agreement.add(whole, tiled)
    assert agreement.metrics()["matched"] > 50 and agreement.metrics()["matched_share"] > 0.99
