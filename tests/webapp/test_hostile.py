"""Clients that hold on, flood or guess; images that kill or never end: the web app goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from effdet_tf.errors import UserError
from effdet_tf.prediction.network_process import ApartPredictor
from effdet_tf.webapp import app as pages
from effdet_tf.webapp import launch
from effdet_tf.webapp.app import make_app
from effdet_tf.webapp.session import Limits, Session

RUN = Path(__file__).resolve().parents[1] / "before" / "run"


@pytest.fixture
def served(networks: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a web app that has little patience and few places."""
    monkeypatch.setattr(launch, "_CONNECTIONS", 20)
    for name, seconds in (("_LOOK", 0.1), ("_ASKING", 2), ("_ANSWERING", 4)):
        monkeypatch.setattr(launch, name, seconds)
    monkeypatch.setattr(pages, "_SILENT", 1)
    session = Session(networks, Limits(uploads=4, unfinished_bytes=2**20))
    listening = launch.bind("127.0.0.1", 0)
    import uvicorn

    config = uvicorn.Config(
        make_app(session), log_level="error", http=launch.PatientProtocol, limit_concurrency=20, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    listening.close()


def ask(port: int, path: str = "/api/state", body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def hold(port: int, text: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(text)
    return connection


def begun(port: int, size: int, name: str = "a.png") -> bytes:
    return (
        f"POST /api/images?name={name} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {size}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize("text", [b"", b"GET /api/st", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
def test_requests_that_never_come_are_ended(served: int, text: bytes) -> None:
    waiting = [hold(served, text) for _ in range(12)]
    assert ask(served)[0] == 200
    started = time.monotonic()
    for connection in waiting:
        while connection.recv(4096):
            pass
        connection.close()
    assert time.monotonic() - started < 8
    assert ask(served)[0] == 200


def test_more_connections_than_places_are_closed(served: int) -> None:
    waiting = [hold(served, b"GET") for _ in range(60)]
    time.sleep(3)
    assert ask(served)[0] == 200
    for connection in waiting:
        connection.close()


def test_uploads_that_stay_silent_hold_no_place(served: int) -> None:
    waiting = [hold(served, begun(served, 1000) + b"x") for _ in range(4)]
    time.sleep(0.3)
    code, answer = ask(served, "/api/images?name=b.png", b"x")
    assert code == 429 and "4 uploads are under way already" in answer["error"]
    for connection in waiting:
        assert b"408" in connection.recv(4096)
        connection.close()
    assert ask(served, "/api/images?name=b.png", b"x")[0] == 201


def test_uploads_under_way_are_counted_together(served: int) -> None:
    waiting = [hold(served, begun(served, 2**22) + b"x" * 500_000) for _ in range(2)]
    time.sleep(0.4)
    code, answer = ask(served, "/api/images?name=b.png", b"x" * 100_000)
    assert code == 429 and "too large together" in answer["error"]
    for connection in waiting:
        connection.close()
    time.sleep(0.4)
    assert ask(served, "/api/images?name=b.png", b"x" * 100_000)[0] == 201


# The secret, and where requests come from


def test_only_the_link_with_its_secret_leads_in(networks: Any) -> None:
    session = Session(networks)
    with TestClient(make_app(session, token="s3cret"), base_url="http://127.0.0.1:8765") as client:
        for path in ("/", "/api/state", "/s3cre/", "/s3crett/", "//s3cret/", "/S3CRET/", "/app.js", "/%73/"):
            answer = client.get(path)
            assert answer.status_code == 403 and "s3cret" not in answer.text, path
        page = client.get("/s3cret/")
        assert page.status_code == 200 and 'src="app.js"' in page.text
        assert client.get("/s3cret/app.js").status_code == 200
        assert client.get("/s3cret/api/state").json()["images"] == []
        assert client.get("/s3cret/s3cret/").status_code == 404
        assert client.post("/api/images?name=a.png", content=b"x").status_code == 403
        assert client.post("/s3cret/api/images?name=a.png", content=b"x").status_code == 201


def test_the_link_is_printed_with_a_secret_of_its_own(networks: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(launch.uvicorn.Server, "run", lambda *_, **__: None)
    session = Session(networks)
    with launch.bind("127.0.0.1", 0) as listening:
        launch.serve(session, listening, "127.0.0.1", False, "abc")
        session.close()
        assert f":{listening.getsockname()[1]}/abc/ (Ctrl-C ends)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([("origin", "http://127.0.0.1:8765")], 201),
        ([("origin", "https://127.0.0.1:8765")], 403),  # another scheme is another site
        ([("origin", "null")], 403),
        ([("origin", "http://127.0.0.1:8765"), ("origin", "http://evil.example")], 403),
        ([("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], 403),
        ([("content-type", "image/png"), ("content-type", "text/plain")], 403),
    ],
)
def test_origins_with_their_scheme_and_doubled_headers(networks: Any, headers: list, code: int) -> None:
    session = Session(networks)
    with TestClient(make_app(session), base_url="http://127.0.0.1:8765") as client:
        answer = client.request("POST", "/api/images?name=a.png", content=b"x", headers=headers)
    assert answer.status_code == code, answer.text


# The network's process


def test_a_crash_is_one_failed_image_and_so_is_one_that_takes_too_long(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    network = ApartPredictor(RUN, 60)
    try:
        first = network.predict(pixels)
        child = network._process._process.pid

        def kill() -> None:
            time.sleep(0.05)
            os.kill(child, signal.SIGKILL)

        threading.Thread(target=kill).start()
        with pytest.raises(UserError, match="process of the network ended"):
            for _ in range(1000):
                network.predict(pixels)
        again = network.predict(pixels)
        assert len(again) == len(first) and network._process._process.pid != child
        network._seconds = 1e-4
        with pytest.raises(UserError, match=r"took longer than 0\.0001 s and was given up"):
            network.predict(np.tile(pixels, (8, 8)))
        network._seconds = 60
        assert len(network.predict(pixels)) == len(first)
        (tmp_path / "x.tif").write_bytes(b"II*\0")
        with pytest.raises(UserError, match=r"x\.tif"):
            network.read(tmp_path / "x.tif", 10**6)
    finally:
        network.close()


def test_a_session_goes_on_after_a_crash(
    networks: Any, images: Path, wait: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks.predictor("cells")
    predict, asked = network.predict, []

    def once(image: np.ndarray, um_per_px: float | None = None) -> Any:
        asked.append(image)
        if len(asked) == 1:
            raise UserError("the process of the network ended (code -11)")
        return predict(image, um_per_px)

    monkeypatch.setattr(network, "predict", once)
    session = Session(networks)
    with TestClient(make_app(session), base_url="http://127.0.0.1:8765") as client:
        for name in ("a.png", "b.png"):
            client.post(f"/api/images?name={name}", content=(images / "gray.png").read_bytes())
        wait(lambda: all(one["state"] in ("done", "failed") for one in session.state()["images"]))
    states = [(one["state"], one["error"]) for one in session.state()["images"]]
    assert states == [("failed", "the process of the network ended (code -11)"), ("done", "")]
