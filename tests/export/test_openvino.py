"""OpenVINO, a runtime that shares nothing with TensorFlow, reads the exported network and agrees."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# In a process of its own: it may be another environment, and must not meet TensorFlow's libraries.
PROGRAM = """
import sys
import numpy as np
import openvino

core = openvino.Core()
compiled = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
found = compiled(np.load(sys.argv[2]))
np.savez(sys.argv[3], **{output.any_name: array for output, array in found.items()})
"""


@pytest.fixture(scope="module")
def python():
    """A Python that has OpenVINO."""
    named = os.environ.get("EFFDET_OPENVINO_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed, and EFFDET_OPENVINO_PYTHON names no Python that has it")
    return sys.executable


@pytest.fixture
def both(python, exported, tmp_path):
    """Runs a signature with OpenVINO and with TensorFlow."""

    def run(signature, images):
        # OpenVINO takes the default signature: the same file, with another one under that name.
        copy = tmp_path / signature
        shutil.copytree(exported.version, copy)
        saved = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
        signatures = saved.meta_graphs[0].signature_def
        wanted = type(signatures[signature])()
        wanted.CopyFrom(signatures[signature])
        signatures.clear()
        signatures["serving_default"].CopyFrom(wanted)
        (copy / "saved_model.pb").write_bytes(saved.SerializeToString())
        np.save(tmp_path / "images.npy", images)
        files = [str(copy), str(tmp_path / "images.npy"), str(tmp_path / "found.npz")]
        done = subprocess.run(
            [python, "-c", PROGRAM, *files], capture_output=True, text=True, timeout=200, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / "found.npz") as found:
            theirs = dict(found)
        model = tf.saved_model.load(str(exported.version))
        ours = model.signatures[signature](images=tf.constant(images))
        return theirs, {name: value.numpy() for name, value in ours.items()}

    return run


def test_the_networks_raw_outputs_are_the_same(both):
    images = np.random.default_rng(0).standard_normal((2, 64, 96, 1)).astype(np.float32)
    theirs, ours = both("network", images)
    assert set(theirs) == set(ours) == {"class_logits", "box_deltas", "codes", "mask_feature"}
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, atol=1e-4, rtol=1e-4, err_msg=name)


def test_the_cells_are_the_same(both, picture_png):
    image = tf.io.decode_png(picture_png).numpy().astype(np.float32)
    theirs, ours = both("tensor", np.stack([image, image[:, ::-1]]))
    assert theirs["count"].tolist() == ours["count"].tolist() == [60, 60]
    np.testing.assert_allclose(theirs["scores"], ours["scores"], atol=1e-5)
    for k in range(2):
        # Equal scores may change places: each cell has a partner wherever it stands.
        distance = np.abs(theirs["boxes"][k][:, None] - ours["boxes"][k][None]).max(-1)
        partner = distance.argmin(1)
        assert (distance.min(1) < 0.01).mean() > 0.95
        near = distance.min(1) < 0.01
        masks = [array["masks"][k].astype(int) for array in (theirs, ours)]
        assert np.abs(masks[0] - masks[1][partner])[near].max() <= 1
        np.testing.assert_allclose(
            theirs["mask_boxes"][k][near], ours["mask_boxes"][k][partner][near], atol=0.02
        )
