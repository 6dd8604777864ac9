"""TensorFlow's own command line shows and runs the SavedModel."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from effdet_tf.images.read import read_image


def saved_model_cli(*arguments):
    run = subprocess.run(
        [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", *map(str, arguments)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_it_shows_every_signature(exported):
    text = saved_model_cli("show", "--dir", exported.version, "--all")
    for name in ("serving_default", "tensor", "label_map", "network", "info"):
        assert f"signature_def['{name}']:" in text
    assert "inputs['image_bytes'] tensor_info:\n        dtype: DT_STRING\n        shape: (-1)" in text
    for name in ("boxes", "scores", "classes", "masks", "mask_boxes", "count", "ok", "error", "labels"):
        assert f"outputs['{name}'] tensor_info:" in text
    assert "dtype: DT_UINT8\n        shape: (-1, -1, 28, 28)" in text


def test_it_runs_on_the_bytes_of_a_file(exported, picture_png, tmp_path):
    (tmp_path / "image.png").write_bytes(picture_png)
    np.save(tmp_path / "bytes.npy", np.array([picture_png, picture_png[:50]]))
    saved_model_cli(
        *("run", "--dir", exported.version, "--tag_set", "serve", "--signature_def", "serving_default"),
        *("--inputs", f"image_bytes={tmp_path / 'bytes.npy'}", "--outdir", tmp_path / "out"),
    )
    found = {path.stem: np.load(path, allow_pickle=True) for path in (tmp_path / "out").glob("*.npy")}
    expected = exported.predictor.predict(read_image(tmp_path / "image.png"))
    assert found["ok"].tolist() == [True, False] and found["count"].tolist() == [len(expected), 0]
    np.testing.assert_allclose(found["scores"][0], expected.scores, atol=1e-5)
    np.testing.assert_allclose(found["boxes"][0], expected.boxes, atol=2e-3)
    assert np.abs(found["masks"][0].astype(int) - expected.masks).max() <= 1
    assert b"damaged" in found["error"][1]
