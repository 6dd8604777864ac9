"""Requests that declare much, come slowly or not at all: refused, and the next one is answered."""

from __future__ import annotations

import json
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests

pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed")
from export import serving_protocols
from export.servable import Servable
from export.serving_api import serving_api

_MIB = 2**20


@pytest.fixture(scope="module")
def server(exported: Any) -> Iterator[serving_protocols.Server]:
    """In this process, with a deadline that a test can wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving_protocols, "_DEADLINE", 2)
        patch.setattr(serving_protocols, "_CONNECTIONS", 12)
        patch.setenv("no_proxy", "127.0.0.1")
        found = serving_protocols.Server(
            Servable(exported.folder, "cells", 1, 100_000), "127.0.0.1", 0, 0, 2 * _MIB
        )
        yield found
        found.stop()


def post(server: serving_protocols.Server, body: Any) -> requests.Response:
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/cells:predict"
    return requests.post(url, data=body if isinstance(body, bytes) else json.dumps(body), timeout=20)


def works(server: serving_protocols.Server) -> None:
    pixels = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).round(2).tolist()
    answer = post(server, {"signature_name": "tensor", "inputs": pixels})
    assert answer.status_code == 200, answer.text


def call(server: serving_protocols.Server, request: Any) -> str:
    """What the server says to a message that it refuses."""
    predict = serving_api("prediction_service_pb2_grpc")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        with pytest.raises(grpc.RpcError) as told:
            predict.PredictionServiceStub(channel).Predict(request, timeout=20)
    assert told.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return str(told.value.details())


def message(signature: str) -> Any:
    request = serving_api("predict_pb2").PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "cells", signature
    return request


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    "shape", [(1, 4096, 4096, 1), (1, 2**31, 2**31, 1), (4096, 4096, 1, 1), (1, -5, 9, 1)]
)
def test_a_few_bytes_that_declare_a_large_tensor(server: serving_protocols.Server, shape: tuple) -> None:
    request = message("tensor")
    tensor = request.inputs["images"]
    tensor.dtype = 1
    tensor.float_val.append(0.5)
    for side in shape:
        tensor.tensor_shape.dim.add().size = side
    before = peak()
    assert re.search(r"input images of shape .* pixels, more than 100000", call(server, request))
    assert peak() - before < 64 * _MIB
    works(server)


def test_texts_without_number(server: serving_protocols.Server) -> None:
    request = message("serving_default")
    tensor = request.inputs["image_bytes"]
    tensor.dtype = 7
    tensor.tensor_shape.dim.add().size = 900_000
    tensor.string_val.extend([b""] * 900_000)
    assert "900000 texts, more than 256" in call(server, request)
    tensor.tensor_shape.dim[0].size = 1
    assert "more values than its shape" in call(server, request)
    answer = post(server, {"instances": [{"b64": ""}] * 50_000})
    assert answer.status_code == 400 and "50000 texts, more than 256" in answer.text
    works(server)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"[" * 100_000, "nested too deeply"),
        ({"signature_name": "tensor", "inputs": [[[[0.5]] * 400] * 400]}, "160000 pixels, more than 100000"),
        ({"signature_name": "tensor", "inputs": [[[[0.5], []]]]}, "no float tensor|is no float32 tensor"),
        ({"signature_name": ["x"], "inputs": 1}, "signature_name"),
        (b'{"inputs": NaN}', "texts|text|tensor"),
    ],
)
def test_json_that_is_too_much_or_wrong(server: serving_protocols.Server, body: Any, told: str) -> None:
    answer = post(server, body)
    assert answer.status_code == 400 and re.search(told, answer.text), answer.text
    works(server)


def half(server: serving_protocols.Server, text: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.rest_port), timeout=20)
    connection.sendall(text)
    return connection


HEAD = b"POST /v1/models/cells:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize("begun", [b"", b"POST /v1/mod", HEAD, HEAD + b'{"inputs"'])
def test_requests_that_never_come_hold_nothing(server: serving_protocols.Server, begun: bytes) -> None:
    waiting = [half(server, begun) for _ in range(8)]
    works(server)  # while they wait
    drip = threading.Event()

    def dripping() -> None:
        while not drip.wait(0.3):
            try:
                waiting[0].sendall(b"x")
            except OSError:
                return

    thread = threading.Thread(target=dripping, daemon=True)
    thread.start()
    started = time.monotonic()
    for connection in waiting:
        while connection.recv(4096):
            pass
    assert time.monotonic() - started < 8
    drip.set()
    thread.join()
    for connection in waiting:
        connection.close()
    works(server)


def test_doubled_lengths_are_refused(server: serving_protocols.Server) -> None:
    with half(
        server, HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") + b"x" * 1000
    ) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 411")


def test_more_connections_than_there_are_places_are_closed(server: serving_protocols.Server) -> None:
    waiting = [half(server, b"") for _ in range(30)]
    time.sleep(0.5)
    closed = 0
    for connection in waiting:
        connection.setblocking(False)
        try:
            closed += connection.recv(1) == b""
        except BlockingIOError:
            pass
        except ConnectionError:
            closed += 1
        connection.close()
    assert closed >= 18
    time.sleep(0.3)
    works(server)


def test_idle_calls_end(server: serving_protocols.Server, tmp_path: Path) -> None:
    """As many HTTP/2 calls as there are places, whose message never comes."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    waiting = []
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", server.grpc_port), timeout=20)
        connection.sendall(preface)
        waiting.append(connection)
    started = time.monotonic()
    for connection in waiting:
        while connection.recv(4096):
            pass
        connection.close()
    assert time.monotonic() - started < 15
    request = message("tensor")
    assert "Missing but required: ['images']" in call(server, request)
