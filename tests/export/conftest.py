"""What the tests of exports share: networks, an exported one, and a server for it in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from effdet_tf.config import Config
from effdet_tf.images.read import encode_png

ROOT = Path(__file__).resolve().parents[2]


class Exported(NamedTuple):
    predictor: object  # the network in Keras
    folder: Path  # of the versions
    version: Path


class Served(NamedTuple):
    http: str
    grpc: str


@pytest.fixture(scope="session")
def lively() -> Callable[[Config], object]:
    """Makes a network of random weights that finds cells with scores of all kinds, in pixels it has seen."""
    import keras
    from scipy.ndimage import gaussian_filter

    from effdet_tf.model.network import build_network
    from effdet_tf.prediction.run import RunPredictor

    def make(config: Config) -> RunPredictor:
        keras.utils.set_random_seed(3)
        network = build_network(config.override(["model.batch_norm_momentum=0.0", "model.drop_connect=0.0"]))
        noise = np.random.default_rng(1).normal(size=(1, 128, 128, config.data.channels))
        network.dense(gaussian_filter(noise, (0, 2, 2, 0)).astype(np.float32) * 8, training=True)
        layer = network.dense.get_layer("class_predict")
        layer.bias.assign(layer.bias * 0 - 2)
        layer.pointwise_kernel.assign(layer.pointwise_kernel * 100)
        return RunPredictor(network, config)

    return make


@pytest.fixture(scope="session")
def exported(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An untrained network that reports what it sees, as version 4."""
    import keras

    from effdet_tf.model.network import build_network
    from effdet_tf.prediction.run import RunPredictor
    from export.saved_model import write_saved_model

    keras.utils.set_random_seed(0)
    config = tiny_config.override(
        [
            "postprocess.score_threshold=0.001",
            "postprocess.report_score=0.002",
            "data.max_instances=60",
        ]
    )
    predictor = RunPredictor(build_network(config), config)
    base = predictor.network.mask_head.base.numpy()
    base[-1] = 5.0  # the bias of the last filter: every mask covers its box
    predictor.network.mask_head.base.assign(base)
    folder = tmp_path_factory.mktemp("exported") / "saved_model"
    write_saved_model(predictor, folder / "4", max_pixels=100_000)
    return Exported(predictor, folder, folder / "4")


@pytest.fixture(scope="session")
def served(exported: Exported) -> Iterator[Served]:
    """`python -m export.server` on free ports; it must end well when it is told to."""
    pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed")
    command = [sys.executable, "-m", "export.server", str(exported.folder)]
    process = subprocess.Popen(
        [*command, "--rest-port", "0", "--grpc-port", "0", "--max-request", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        watchdog.cancel()
        found = re.fullmatch(r"serving cells, version 4: (http://\S+) (grpc://\S+)\n", line)
        assert found, f"the server did not start: {line!r}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", "127.0.0.1")
            yield Served(*found.groups())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def picture_png() -> bytes:
    """A gray picture of 64 x 80 pixels with blobs."""
    rows, columns = np.mgrid[:64, :80]
    gray = 120 + 60 * np.sin(rows / 4) * np.sin(columns / 5)
    gray += np.random.default_rng(0).normal(0, 5, gray.shape)
    return encode_png(gray.clip(0, 255).astype(np.uint8))
