"""A server that lies costs the image that it lies about: one line, and the next image."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.images.read import encode_png
from effdet_tf.outputs.batch import predict_files
from effdet_tf.outputs.jobs import find_images
from effdet_tf.prediction.metadata import describe
from export.remote import RemotePredictor, RestConnection

CONFIG = Config()
SIDE = CONFIG.model.mask.size
PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60)).astype(np.uint8)


def honest() -> dict[str, Any]:
    boxes = np.array([[2, 3, 12, 15], [20, 30, 31, 44]], np.float32)
    return {
        "ok": np.bool_(True),
        "error": "",
        "count": np.int32(2),
        "boxes": boxes,
        "scores": np.array([0.9, 0.7], np.float32),
        "classes": np.zeros(2, np.int32),
        "masks": np.full((2, SIDE, SIDE), 255, np.uint8),
        "mask_boxes": boxes + np.float32([-1, -1, 1, 1]),
    }


def lie(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (honest() | changes).items() if value is not None}


BOXES = honest()["boxes"]
LIES = {
    **{
        f"{name} is missing": lie(**{name: None}) for name in ("boxes", "scores", "classes", "masks", "count")
    },
    "mask_boxes is missing": lie(mask_boxes=None),
    "count is huge": lie(count=np.int64(2**40)),
    "count is negative": lie(count=np.int32(-1)),
    "count is a fraction": lie(count=np.float32(1.5)),
    "count is NaN": lie(count=np.float32(np.nan)),
    "count is a list": lie(count=np.array([2, 2])),
    "count is a text": lie(count="two"),
    "count is more than the rows": lie(count=np.int32(3)),
    "a class too high": lie(classes=np.array([0, 1])),
    "a class below zero": lie(classes=np.array([0, -1])),
    "a class between": lie(classes=np.array([0, 0.5])),
    "scores that rise": lie(scores=np.float32([0.3, 0.7])),
    "a score above 1": lie(scores=np.float32([7, 0.7])),
    "a score of NaN": lie(scores=np.float32([np.nan, 0.7])),
    "one score": lie(scores=np.float32([0.9])),
    "scores in a table": lie(scores=np.float32([[0.9, 0.7]])),
    "scores are texts": lie(scores=np.array(["a", "b"])),
    "boxes of three numbers": lie(boxes=BOXES[:, :3]),
    "boxes in a row": lie(boxes=BOXES.ravel()),
    "a box without end": lie(boxes=np.float32([[0, 0, np.inf, 5], [0, 0, 5, 5]])),
    "a box far away": lie(boxes=np.float32([[0, 0, 1e9, 5], [0, 0, 5, 5]])),
    "a box inside out": lie(boxes=BOXES[:, [2, 3, 0, 1]]),
    "boxes are objects": lie(boxes=np.array([{}, {}])),
    "masks of another side": lie(masks=np.zeros((2, SIDE + 1, SIDE + 1), np.uint8)),
    "masks of floats": lie(masks=np.zeros((2, SIDE, SIDE), np.float32)),
    "flat masks": lie(masks=np.zeros(2 * SIDE * SIDE, np.uint8)),
    "a box of a mask that is NaN": lie(mask_boxes=np.full((2, 4), np.nan, np.float32)),
    "refused without a reason": lie(ok=np.bool_(False), error=None),
    "refused with a page": lie(ok=np.bool_(False), error="no\n" * 9999),
    "nothing": {},
}


class Liar:
    """Lies about the first image, then tells the truth."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answers = [answer]

    def ask(self, signature: str, inputs: Any) -> dict[str, Any]:
        if signature == "info":
            return {"metadata": json.dumps(describe(CONFIG, "float32"))}
        return self.answers.pop() if self.answers else honest()


@pytest.mark.parametrize("name", LIES)
def test_a_lie_costs_one_image(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    for image in ("a.png", "b.png"):
        (tmp_path / "in" / image).write_bytes(encode_png(PIXELS))
    report = predict_files(
        RemotePredictor(Liar(LIES[name])), find_images([tmp_path / "in"]), tmp_path / "out"
    )
    assert (report.done, report.cells) == (1, 2)
    ((path, reason, *_),) = report.failed
    assert Path(path).name == "a.png" and "\n" not in reason and len(reason) < 400
    assert "none of this network" in reason or "refused the image" in reason
    assert not (tmp_path / "out" / "errors.log").exists()  # it is no fault of the program


def test_the_truth_is_taken(tmp_path: Path) -> None:
    result = RemotePredictor(Liar(honest())).predict(PIXELS)
    assert len(result) == 2 and result.boxes.tolist() == BOXES.tolist()
    empty = lie(
        count=np.int32(0), **{k: np.array([]) for k in ("boxes", "scores", "classes", "masks", "mask_boxes")}
    )
    assert len(RemotePredictor(Liar(empty)).predict(PIXELS)) == 0


class Answers(http.server.BaseHTTPRequestHandler):
    body, kind = b"", "plain"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(302 if self.kind == "elsewhere" else 200)
        if self.kind == "elsewhere":
            self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()
        if self.kind == "endless":
            for _ in range(200):
                self.wfile.write(b" " * 2**20)
        elif self.kind == "slow":
            for _ in range(50):
                self.wfile.write(b" ")
                self.wfile.flush()
                if STOP.wait(0.2):
                    return
        else:
            self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


STOP = threading.Event()


@pytest.fixture
def answering() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        yield f"http://127.0.0.1:{server.server_address[1]}"
    STOP.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        ("endless", b"", "its answer is too large"),
        ("slow", b"", "no answer within 2 s"),
        ("elsewhere", b"{}", "refused the request"),
        ("plain", b"[" * 100_000, "without JSON"),
        ("plain", b'{"outputs": {"boxes": 3}}', "another form"),
        ("plain", b'{"outputs": {"count": [1e400]}}', "another form"),
        ("plain", b'{"outputs": {"classes": [[99999999999999]]}}', "another form"),
        ("plain", b'{"outputs": {"boxes": [[[1, 2], [3]]]}}', "another form"),
        ("plain", b'{"outputs": []}', "another form"),
    ],
)
def test_answers_that_are_none(
    answering: str, monkeypatch: pytest.MonkeyPatch, kind: str, body: bytes, told: str
) -> None:
    monkeypatch.setattr(Answers, "kind", kind)
    monkeypatch.setattr(Answers, "body", body)
    STOP.clear()
    connection = RestConnection(answering, "cells", None, timeout=2, max_message=8)
    with pytest.raises(UserError, match=told) as error:
        connection.ask("serving_default", {"image_bytes": b"x"})
    assert "\n" not in str(error.value)
