from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed")

import grpc

from effdet_tf import cli
from effdet_tf.errors import UserError
from effdet_tf.images.normalize import brightness
from effdet_tf.prediction.metadata import describe
from export import client, serving_api
from export.remote import RemotePredictor, connect

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory, picture_png):
    """One picture as PNG of 8 and 16 bit, JPEG, and tif of 16 bit."""
    folder = tmp_path_factory.mktemp("images")
    gray = cv2.imdecode(np.frombuffer(picture_png, np.uint8), cv2.IMREAD_UNCHANGED)
    (folder / "gray.png").write_bytes(picture_png)
    cv2.imwrite(str(folder / "deep.png"), gray.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "colour.jpg"), cv2.applyColorMap(gray, cv2.COLORMAP_JET))
    tifffile.imwrite(folder / "twelve.tif", gray.astype(np.uint16) * 16)
    return folder


@pytest.fixture(params=["http", "grpc"])
def url(request, served):
    return getattr(served, request.param)


def test_the_same_files_as_predict(exported, images, url, tmp_path, capsys):
    options = ["--sartorius", str(tmp_path / "served.csv"), "--out", str(tmp_path / "served")]
    assert client.main(["--url", url, str(images), *options]) == 0
    assert "4 images" in capsys.readouterr().out
    options = ["--sartorius", str(tmp_path / "own.csv"), "--out", str(tmp_path / "own")]
    assert cli.main(["predict", "--run", str(exported.folder), str(images), *options]) == 0
    names = sorted(path.name for path in (tmp_path / "own").iterdir())
    assert len(names) == 4 * 4 + 2  # the summary, and the record of what was written
    assert names == sorted(path.name for path in (tmp_path / "served").iterdir())
    for name in names:
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "served" / name).read_bytes(), name
    assert (tmp_path / "own.csv").read_bytes() == (tmp_path / "served.csv").read_bytes()
    assert (pd.read_csv(tmp_path / "own" / "summary.csv")["cells"] > 0).all()


def test_both_protocols_give_the_same_arrays(served, images, exported):
    results = [RemotePredictor(connect(address, "cells")).predict(images / "gray.png") for address in served]
    assert len(results[0]) == 60 and results[0].truncated
    for name in ("boxes", "scores", "classes", "masks", "mask_boxes"):
        first, second = (getattr(result, name) for result in results)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    assert results[0].masks.dtype == np.uint8 and results[0].classes.dtype == np.int32
    np.testing.assert_allclose(
        results[0].scores, exported.predictor.predict(images / "gray.png").scores, atol=1e-5
    )


def test_parts_of_a_large_image_have_the_cells_of_the_run(url, exported):
    remote = RemotePredictor(connect(url, "cells"))
    image = np.random.default_rng(3).integers(0, 255, (90, 70), np.uint8)
    image[:40] //= 4
    whole, part = brightness(image), image[:40]
    found, own = remote._detect(part, whole), exported.predictor._detect(part, whole)
    np.testing.assert_allclose(found.scores, own.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, own.boxes, atol=2e-3)


def test_floats_are_sent_stretched_over_16_bits(served, images, exported):
    deep = cv2.imread(str(images / "deep.png"), cv2.IMREAD_UNCHANGED)
    remote = RemotePredictor(connect(served.grpc, "cells"))
    found, own = remote.predict(deep.astype(np.float32) / 7 - 3), exported.predictor.predict(deep)
    np.testing.assert_allclose(found.scores, own.scores, atol=1e-3)
    with pytest.raises(UserError, match="not finite"):
        remote.predict(np.full((8, 8), np.nan, np.float32))
    with pytest.raises(UserError, match="cannot be sent"):
        remote.predict(np.zeros((8, 8), np.int64))


def test_bad_images_fail_alone(url, images, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes((images / "gray.png").read_bytes()[:200])
    cv2.imwrite(str(tmp_path / "huge.png"), np.zeros((400, 251), np.uint8))
    files = [str(tmp_path / "broken.png"), str(tmp_path / "huge.png"), str(images / "gray.png")]
    assert client.main(["--url", url, *files, "--out", str(tmp_path / "out"), "--formats", "labels"]) == 3
    error = capsys.readouterr().err
    assert "2 images failed" in error
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("image")
    assert "400x251 is more than 100000 pixels" in summary.loc["huge", "error"]
    assert "broken.png" in summary.loc["broken", "error"]
    assert summary.loc["gray", "cells"] > 0
    assert not list((tmp_path / "out").glob("*.overlay.png"))


def failing(capsys, *arguments):
    assert client.main([*map(str, arguments)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_faults_are_told_in_a_line(url, images, tmp_path, capsys):
    rest = [images / "gray.png", "--out", tmp_path / "out"]
    assert "serves no model cats" in failing(capsys, "--url", url, "--model", "cats", *rest)
    assert "model cells, version 7" in failing(capsys, "--url", url, "--version", 7, *rest)
    assert client.main(["--url", url, "--version", "4", *map(str, rest)]) == 0
    capsys.readouterr()
    assert "give --overwrite" in failing(capsys, "--url", url, *rest)
    assert "none.png" in failing(capsys, "--url", url, tmp_path / "none.png", "--out", tmp_path / "out")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_server_and_a_silent_one(scheme, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    rest = [images / "gray.png", "--out", tmp_path / "out"]
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        address = f"{scheme}://127.0.0.1:{closed.getsockname()[1]}"
        assert f"{address}: no server answers" in failing(capsys, "--url", address, *rest)
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        late = failing(capsys, "--url", address, "--timeout", 0.5, *rest)
        assert f"{address}: no answer within 0.5 s; raise --timeout" in late
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["localhost:8501", "ftp://host", "grpc://host:8500/v1", "http://", ""])
def test_other_addresses_are_refused(address, images, tmp_path, capsys):
    line = failing(capsys, "--url", address, images / "gray.png", "--out", tmp_path / "out")
    assert "give http://host:8501 or grpc://host:8500" in line


def test_too_big_messages_name_the_option(served):
    noise = np.random.default_rng(0).integers(0, 255, (1100, 1100), np.uint8)
    small = RemotePredictor(connect(served.grpc, "cells", max_message=1))
    with pytest.raises(UserError, match="--max-message, now 1 MiB"):
        small.predict(noise)
    deep = np.repeat(noise, 3, axis=0).astype(np.uint16) * 97  # more than the server takes
    with pytest.raises(UserError, match="takes no request of .* MiB"):
        RemotePredictor(connect(served.http, "cells")).predict(deep)
    with pytest.raises(UserError, match="or the server's own limit"):
        RemotePredictor(connect(served.grpc, "cells")).predict(deep)


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", "no server answers"),
        ("UNAVAILABLE", "The batch scheduling queue is full", "refused the request (UNAVAILABLE: The batch"),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 8)", "raise --max-message"),
        ("RESOURCE_EXHAUSTED", "Concurrent RPC limit exceeded!", "refused the request (RESOURCE_EXHAUSTED"),
        ("INTERNAL", "", "INTERNAL: no reason given"),
    ],
)
def test_statuses_of_grpc_are_explained(code, reason, words):
    error = types.SimpleNamespace(code=lambda: grpc.StatusCode[code], details=lambda: reason)
    assert words in connect("grpc://127.0.0.1:1", "cells")._explain(error, "serving_default")


class Canned(http.server.BaseHTTPRequestHandler):
    answer = (200, b"")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.answer[0])
        self.send_header("Content-Length", str(len(self.answer[1])))
        self.end_headers()
        self.wfile.write(self.answer[1])

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("code", "body", "words"),
    [
        (200, b"<html>hello</html>", "is this TensorFlow Serving?"),
        (200, b"[]", "is this TensorFlow Serving?"),
        (200, b"{}", "none of export.main's"),
        (200, b'{"outputs": 5}', "another form"),
        (200, b'{"outputs": {"other": [1], "count": [2]}}', "no description by effdet_tf"),
        (200, b'{"outputs": ["text"]}', "no description by effdet_tf"),
        (400, b'{"error": "signature info\\nnot found"}', "none of export.main's (signature info)"),
        (502, b"", "HTTP 502"),
    ],
)
def test_other_servers_are_told(code, body, words, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Canned, "answer", (code, body))
    with http.server.HTTPServer(("127.0.0.1", 0), Canned) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            with pytest.raises(UserError) as error:
                RemotePredictor(connect(f"http://127.0.0.1:{other.server_port}", "cells"))
        finally:
            other.shutdown()
            thread.join()
    assert words in str(error.value)


def test_a_network_without_masks(tiny_config):
    config = tiny_config.override(["model.mask.enabled=false"])

    class Fake:
        def ask(self, signature, inputs):
            if signature == "info":
                return {"metadata": json.dumps(describe(config, "float32"))}
            return {
                "ok": np.True_,
                "count": np.int32(0),
                "boxes": np.zeros(0, np.float32),
                "scores": np.zeros(0, np.float32),
                "classes": np.zeros(0, np.int32),
            }

    found = RemotePredictor(Fake()).predict(np.zeros((5, 6), np.uint8))
    assert found.masks is None and found.boxes.shape == (0, 4) and (found.height, found.width) == (5, 6)


def test_rest_needs_no_tensorflow(served, images, tmp_path):
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'keras', 'grpc', 'tensorflow_serving'): sys.modules[name] = None\n"
        "from export.client import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["--url", served.http, str(images / "gray.png"), "--out", str(tmp_path / "out")]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    assert "1 images" in run.stdout


def test_grpc_without_its_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.predict_pb2", None)
    with pytest.raises(UserError, match=r'pip install "effdet_tf\[serving\]"'):
        connect("grpc://127.0.0.1:1", "cells")
    assert serving_api.serving_api("prediction_log_pb2")
