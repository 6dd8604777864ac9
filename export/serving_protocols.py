"""TensorFlow Serving's two protocols, REST and gRPC, in front of a `Servable`."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from effdet_tf.errors import UserError
from effdet_tf.files.untrusted import parse_json
from export.servable import RequestError, Servable, to_json
from export.serving_api import serving_api

_SERVICE = serving_api("prediction_service_pb2_grpc")
_MIB = 2**20
_OPEN_REQUESTS = 16  # whose bodies are in memory at a time
_WORKED_AT = 2  # JSON takes many times its bytes
_CONNECTIONS = 64
_DEADLINE = 60  # seconds in which a request must have come
_HTTP_CODES = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "NOT_FOUND": 404}
_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(:predict|/metadata)?")


class Server:
    """Both protocols on their ports, in threads.

    Attributes:
        rest_port: the port that was taken.
        grpc_port: likewise.
    """

    def __init__(
        self, servable: Servable, host: str, rest_port: int, grpc_port: int, max_request: int
    ) -> None:
        """Take the ports, of which 0 is a free one, and start; requests have up to `max_request` bytes.

        Raises:
            UserError: when a port is taken or the host is not this machine's.
        """
        try:
            self._http = _HttpServer((host, rest_port), servable, max_request)
        except (OSError, OverflowError) as error:
            raise UserError(f"{host}:{rest_port}: cannot be listened on ({error}); choose another") from None
        options = [
            ("grpc.max_receive_message_length", max_request),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a second server must not share the port in silence
            # A connection ends after some time, and with it a request that never comes.
            ("grpc.max_connection_age_ms", _DEADLINE * 1000),
            ("grpc.max_connection_age_grace_ms", _DEADLINE * 1000),
        ]
        pool = ThreadPoolExecutor(_OPEN_REQUESTS)
        self._grpc = grpc.server(pool, options=options, maximum_concurrent_rpcs=_OPEN_REQUESTS)
        _SERVICE.add_PredictionServiceServicer_to_server(_Servicer(servable), self._grpc)
        try:
            self.grpc_port = self._grpc.add_insecure_port(f"{host}:{grpc_port}")
        except RuntimeError:
            self._http.server_close()
            raise UserError(f"{host}:{grpc_port}: cannot be listened on; choose another") from None
        self.rest_port = self._http.server_address[1]
        self._grpc.start()
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests; those that run have five seconds."""
        stopped = self._grpc.stop(grace=5)
        self._http.shutdown()
        self._http.server_close()
        stopped.wait()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # an idle connection that is kept alive must not hold up the end

    def __init__(self, address: tuple[str, int], servable: Servable, max_request: int) -> None:
        super().__init__(address, _Handler)
        self.servable, self.max_request = servable, max_request
        self.places = threading.BoundedSemaphore(_WORKED_AT)
        self.connections = threading.BoundedSemaphore(_CONNECTIONS)
        self.reading: dict[_Handler, float] = {}  # since when each has waited for its client
        self.unread = Unread(_OPEN_REQUESTS * max_request)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, where there are not too many."""
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for another connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def service_actions(self) -> None:
        """Twice a second: end the connections whose clients take too long over a request."""
        for handler, since in list(self.reading.items()):
            if time.monotonic() - since > _DEADLINE:
                with contextlib.suppress(OSError):
                    handler.connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Unread:
    """Bytes of requests that are under way, together."""

    def __init__(self, most: int) -> None:
        self._most, self._taken, self._lock = most, 0, threading.Lock()

    def take(self, size: int) -> bool:
        """Whether there is room for so many more."""
        with self._lock:
            if self._taken + size > self._most:
                return False
            self._taken += size
            return True

    def give(self, size: int) -> None:
        """Make room again."""
        with self._lock:
            self._taken -= size


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a client may stay silent in the middle of a request

    def handle_one_request(self) -> None:
        """As its base; from here on its client has a deadline."""
        self.server.reading[self] = time.monotonic()
        try:
            super().handle_one_request()
        finally:
            self.server.reading.pop(self, None)

    def do_GET(self) -> None:
        """Status and metadata."""
        self.server.reading.pop(self, None)
        self._answer(self._about)

    def do_POST(self) -> None:
        """Predict."""
        lengths = self.headers.get_all("Content-Length") or [""]
        length = lengths[0]
        if len(lengths) != 1 or not length.isdecimal() or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            return self._send(411, {"error": "one Content-Length is needed"})
        if int(length) > self.server.max_request:
            self._drain(int(length))
            message = f"Request of {length} bytes is larger than {self.server.max_request}"
            return self._send(413, {"error": message})
        body = self._body(int(length))
        self.server.reading.pop(self, None)
        if body is None:
            self.close_connection = True
            return self._send(503, {"error": "too many requests are under way; try again"})
        try:
            if len(body) < int(length):  # it went away, or took too long
                self.close_connection = True
                return self._send(408, {"error": f"the request did not come within {_DEADLINE} s"})
            with self.server.places:
                self._answer(lambda action: self._predict(action, body))
        finally:
            self.server.unread.give(len(body))

    def _body(self, length: int) -> bytes | None:
        """The body, shorter where it does not come; None where too much is under way."""
        parts, taken = [], 0
        while taken < length and (part := self.rfile.read1(min(length - taken, _MIB))):
            if not self.server.unread.take(len(part)):
                self.server.unread.give(taken)
                return None
            parts.append(part)
            taken += len(part)
        return b"".join(parts)

    def _about(self, action: str | None) -> dict[str, Any]:
        servable = self.server.servable
        if action == "/metadata":
            content = MessageToDict(_metadata(servable), preserving_proto_field_name=True)
            content["metadata"]["signature_def"].pop("@type")
            return content
        if action is not None:
            raise RequestError("INVALID_ARGUMENT", f"Malformed request: GET {self.path}")
        state = {"error_code": "OK", "error_message": ""}
        status = {"version": str(servable.version), "state": "AVAILABLE", "status": state}
        return {"model_version_status": [status]}

    def _predict(self, action: str | None, body: bytes) -> dict[str, Any]:
        try:
            question = parse_json(body)
        except ValueError as error:
            raise RequestError("INVALID_ARGUMENT", f"JSON Parse error: {error}") from None
        signature, inputs, rows = self.server.servable.from_json(question)
        return to_json(self.server.servable.run(signature, inputs), rows)

    def _answer(self, answer: Callable[[str | None], dict[str, Any]]) -> None:
        """Send what `answer` gives for the action that the path asks for, or why the request is refused."""
        try:
            match = _PATH.fullmatch(self.path)
            if match is None or self.command == "POST" and match[3] != ":predict":
                raise RequestError("INVALID_ARGUMENT", f"Malformed request: {self.command} {self.path}")
            name, version, action = match.groups()
            self.server.servable.check(urllib.parse.unquote(name), None if version is None else int(version))
            content = answer(action)
        except RequestError as error:
            self._send(_HTTP_CODES[error.code], {"error": str(error)})
        else:
            self._send(200, content)

    def _drain(self, length: int) -> None:
        """Read on, or the client would see a broken connection in place of the reason."""
        left = min(length, 4 * self.server.max_request)
        self.close_connection = left < length
        while left > 0 and (part := self.rfile.read(min(left, _MIB))):
            left -= len(part)

    def _send(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the answer tells the client."""


def _metadata(servable: Servable) -> Message:
    """The answer to GetModelMetadata."""
    metadata = serving_api("get_model_metadata_pb2")
    definitions = metadata.SignatureDefMap()
    for key, definition in servable.signatures.items():
        definitions.signature_def[key].CopyFrom(definition)
    answer = metadata.GetModelMetadataResponse()
    answer.model_spec.name = servable.name
    answer.model_spec.version.value = servable.version
    answer.metadata["signature_def"].Pack(definitions)
    return answer


class _Servicer(_SERVICE.PredictionServiceServicer):  # type: ignore[name-defined]
    """The two calls that clients need."""

    def __init__(self, servable: Servable) -> None:
        self._servable = servable

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Message:
        """Run a signature."""
        try:
            self._check(request)
            signature = request.model_spec.signature_name
            shapes = {name: [side.size for side in p.tensor_shape.dim] for name, p in request.inputs.items()}
            self._servable.check_sizes(signature, shapes)  # a few bytes may declare a large tensor
            inputs = {name: self._array(name, proto) for name, proto in request.inputs.items()}
            outputs = self._servable.run(signature, inputs, request.output_filter)
        except RequestError as error:
            context.abort(grpc.StatusCode[error.code], str(error))
        answer = serving_api("predict_pb2").PredictResponse()
        answer.model_spec.name = self._servable.name
        answer.model_spec.version.value = self._servable.version
        answer.model_spec.signature_name = signature
        for name, array in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        return answer

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Message:
        """Give the signatures."""
        try:
            self._check(request)
            if list(request.metadata_field) != ["signature_def"]:
                raise RequestError("INVALID_ARGUMENT", "metadata_field must be signature_def")
        except RequestError as error:
            context.abort(grpc.StatusCode[error.code], str(error))
        return _metadata(self._servable)

    def _check(self, request: Any) -> None:
        spec = request.model_spec
        self._servable.check(spec.name, spec.version.value if spec.HasField("version") else None)

    def _array(self, name: str, proto: Any) -> np.ndarray:
        try:
            if len(proto.string_val) > max(math.prod(side.size for side in proto.tensor_shape.dim), 1):
                raise ValueError("it has more values than its shape")
            return tf.make_ndarray(proto)
        except (ValueError, TypeError) as error:
            raise RequestError("INVALID_ARGUMENT", f"input {name} is no tensor: {error}") from None
