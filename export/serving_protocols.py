"""TensorFlow Serving's two protocols, REST and gRPC, in front of a `Servable`."""

from __future__ import annotations

import json
import re
import sys
import threading
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
        ]
        pool = ThreadPoolExecutor(8)
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
        self.places = threading.BoundedSemaphore(_OPEN_REQUESTS)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a client may stay silent in the middle of a request

    def do_GET(self) -> None:
        """Status and metadata."""
        self._answer(self._about)

    def do_POST(self) -> None:
        """Predict."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            return self._send(411, {"error": "Content-Length is needed"})
        if int(length) > self.server.max_request:
            self._drain(int(length))
            message = f"Request of {length} bytes is larger than {self.server.max_request}"
            return self._send(413, {"error": message})
        with self.server.places:
            body = self.rfile.read(int(length))
            self._answer(lambda action: self._predict(action, body))

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
            inputs = {name: self._array(name, proto) for name, proto in request.inputs.items()}
            signature = request.model_spec.signature_name
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
            return tf.make_ndarray(proto)
        except (ValueError, TypeError) as error:
            raise RequestError("INVALID_ARGUMENT", f"input {name} is no tensor: {error}") from None
