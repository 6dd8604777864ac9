"""The SavedModel serves without Python: a C program on TensorFlow's library finds the same cells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from effdet_tf.images.read import read_image

SOURCE = Path(__file__).with_name("predict.c")
LIBRARIES = ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    lib = Path(tf.sysconfig.get_lib())
    if not all((lib / name).exists() for name in LIBRARIES):
        pytest.skip("this TensorFlow ships no C library")
    built = tmp_path_factory.mktemp("c") / "predict"
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-isystem{tf.sysconfig.get_include()}"]
    command += ["-o", built, SOURCE, f"-L{lib}", f"-Wl,-rpath,{lib}", *[f"-l:{name}" for name in LIBRARIES]]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return built


@pytest.fixture(scope="module")
def call(program, exported):
    """Runs the program on an image."""
    saved = saved_model_pb2.SavedModel.FromString((exported.version / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["serving_default"]
    outputs = [signature.outputs[name].name for name in ("count", "boxes", "scores", "ok", "error")]
    names = [signature.inputs["image_bytes"].name, *outputs]

    def run(image):
        return subprocess.run(
            [program, exported.version, image, *names],
            env={"TF_CPP_MIN_LOG_LEVEL": "3"},  # no PATH: nothing of Python's is found
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_a_c_program_finds_the_same_cells(call, exported, picture_png, tmp_path):
    (tmp_path / "image.png").write_bytes(picture_png)
    run = call(tmp_path / "image.png")
    assert run.returncode == 0, run.stderr
    first, *lines = run.stdout.splitlines()
    rows = np.array([line.split() for line in lines], np.float32)
    found = exported.predictor.predict(read_image(tmp_path / "image.png"))
    assert first == f"count {len(found)}" and len(rows) == len(found) == 60
    np.testing.assert_allclose(rows[:, 0], found.scores, atol=1e-5)
    np.testing.assert_allclose(rows[:, 1:], found.boxes, atol=2e-3)


def test_a_c_program_is_told_what_is_wrong(call, tmp_path):
    (tmp_path / "image.png").write_bytes(b"no image")
    run = call(tmp_path / "image.png")
    assert run.returncode == 1 and run.stdout == ""
    assert "is neither PNG nor JPEG" in run.stderr
