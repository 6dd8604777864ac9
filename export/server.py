"""Serve an exported network on this machine: `python -m export.server DIR/saved_model`."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import threading
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effdet_tf.commands.parser import Parser, exit_code, positive
from effdet_tf.errors import UserError
from export.serving_api import serving_api

if TYPE_CHECKING:
    from export.servable import Servable

_DESCRIPTION = """\
A small server that speaks TensorFlow Serving's two protocols, REST and gRPC, to try an exported
network out and to test clients. It is NOT for production: no batching, no new versions while it
runs, no encryption. Use the tensorflow/serving container there (see DIR/SERVING.md).
Stop it with Ctrl-C or SIGTERM."""

_MIB = 2**20
_OPEN_REQUESTS = 16  # whose bodies are in memory at a time
_SOCKET_TIMEOUT = 60  # seconds that a client may stay silent in the middle of a request
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
        """Take the ports and start to answer.

        Args:
            servable: the model.
            host: name or address to listen on.
            rest_port: 0 takes a free one.
            grpc_port: likewise.
            max_request: largest request in bytes.

        Raises:
            UserError: when a port is taken or the host is not this machine's.
        """
        import grpc

        service = serving_api("prediction_service_pb2_grpc")
        try:
            self._http = _HttpServer((host, rest_port), _handler(servable, max_request))
        except (OSError, OverflowError) as error:
            raise UserError(f"{host}:{rest_port}: cannot be listened on ({error}); choose another") from None
        options = [
            ("grpc.max_receive_message_length", max_request),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a second server must not share the port in silence
        ]
        self._grpc = grpc.server(
            ThreadPoolExecutor(8), options=options, maximum_concurrent_rpcs=_OPEN_REQUESTS
        )
        service.add_PredictionServiceServicer_to_server(_servicer(servable), self._grpc)
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

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""
        import sys

        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def _handler(servable: Servable, max_request: int) -> type[BaseHTTPRequestHandler]:
    from export.servable import RequestError, to_json

    places = threading.BoundedSemaphore(_OPEN_REQUESTS)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _SOCKET_TIMEOUT

        def do_GET(self) -> None:
            """Status and metadata."""
            self._answer(lambda name, version, action: self._about(name, version, action))

        def do_POST(self) -> None:
            """Predict."""
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal():
                self.close_connection = True
                return self._send(411, {"error": "Content-Length is needed"})
            if int(length) > max_request:
                self._drain(int(length))
                message = f"Request of {length} bytes is larger than {max_request}"
                return self._send(413, {"error": message})
            with places:
                body = self.rfile.read(int(length))
                self._answer(lambda name, version, action: self._predict(name, version, action, body))

        def _about(self, name: str, version: int | None, action: str | None) -> dict[str, Any]:
            servable.check(name, version)
            if action == "/metadata":
                return _metadata_json(servable)
            if action is not None:
                raise RequestError("INVALID_ARGUMENT", f"Malformed request: GET {self.path}")
            state = {"error_code": "OK", "error_message": ""}
            status = {"version": str(servable.version), "state": "AVAILABLE", "status": state}
            return {"model_version_status": [status]}

        def _predict(self, name: str, version: int | None, action: str | None, body: bytes) -> dict[str, Any]:
            if action != ":predict":
                raise RequestError("INVALID_ARGUMENT", f"Malformed request: POST {self.path}")
            servable.check(name, version)
            try:
                question = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise RequestError("INVALID_ARGUMENT", f"JSON Parse error: {error}") from None
            signature, inputs, rows = servable.from_json(question)
            return to_json(servable.run(signature, inputs), rows)

        def _answer(self, answer: Any) -> None:
            try:
                match = _PATH.fullmatch(self.path)
                if match is None:
                    message = f"Malformed request: {self.command} {self.path}"
                    raise RequestError("INVALID_ARGUMENT", message)
                name, version, action = match.groups()
                content = answer(
                    urllib.parse.unquote(name), None if version is None else int(version), action
                )
            except RequestError as error:
                self._send(_HTTP_CODES[error.code], {"error": str(error)})
            else:
                self._send(200, content)

        def _drain(self, length: int) -> None:
            """Read on, or the client would see a broken connection in place of the reason."""
            left = min(length, 4 * max_request)
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

    return Handler


def _metadata(servable: Servable) -> Any:
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


def _metadata_json(servable: Servable) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    content = MessageToDict(_metadata(servable), preserving_proto_field_name=True)
    content["metadata"]["signature_def"].pop("@type")
    return content


def _servicer(servable: Servable) -> Any:
    import grpc
    import tensorflow as tf

    from export.servable import RequestError

    service = serving_api("prediction_service_pb2_grpc")
    response = serving_api("predict_pb2").PredictResponse

    class Servicer(service.PredictionServiceServicer):
        def Predict(self, request: Any, context: Any) -> Any:
            """Run a signature."""
            try:
                self._check(request)
                inputs = {name: self._array(name, proto) for name, proto in request.inputs.items()}
                signature = request.model_spec.signature_name
                outputs = servable.run(signature, inputs, request.output_filter)
            except RequestError as error:
                context.abort(grpc.StatusCode[error.code], str(error))
            answer = response()
            answer.model_spec.name = servable.name
            answer.model_spec.version.value = servable.version
            answer.model_spec.signature_name = signature
            for name, array in outputs.items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(array))
            return answer

        def GetModelMetadata(self, request: Any, context: Any) -> Any:
            """Give the signatures."""
            try:
                self._check(request)
                if list(request.metadata_field) != ["signature_def"]:
                    raise RequestError("INVALID_ARGUMENT", "metadata_field must be signature_def")
            except RequestError as error:
                context.abort(grpc.StatusCode[error.code], str(error))
            return _metadata(servable)

        def _check(self, request: Any) -> None:
            spec = request.model_spec
            servable.check(spec.name, spec.version.value if spec.HasField("version") else None)

        def _array(self, name: str, proto: Any) -> Any:
            try:
                return tf.make_ndarray(proto)
            except (ValueError, TypeError) as error:
                raise RequestError("INVALID_ARGUMENT", f"input {name} is no tensor: {error}") from None

    return Servicer()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop; returns 0 then, 1 when it cannot start."""
    options = build_parser().parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from export.servable import Servable

    servable = Servable(options.folder, options.name, options.concurrency)
    server = Server(servable, options.host, options.rest_port, options.grpc_port, options.max_request * _MIB)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    rest, grpc = f"http://{options.host}:{server.rest_port}", f"grpc://{options.host}:{server.grpc_port}"
    print(f"serving {servable.name}, version {servable.version}: {rest} {grpc}", flush=True)
    stop.wait()
    server.stop()


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m export.server",
        description=_DESCRIPTION,
        examples=[
            ("the newest version of an export, on the usual ports", "exports/mine/saved_model"),
            (
                "on other ports, for other machines",
                "exports/mine/saved_model --host 0.0.0.0 --rest-port 9001 --grpc-port 9000",
            ),
        ],
    )
    parser.add_argument(
        "folder", type=Path, metavar="SAVED_MODEL", help="folder of versions; the highest is served"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    for protocol, port in (("rest", 8501), ("grpc", 8500)):
        parser.add_argument(
            f"--{protocol}-port",
            type=int,
            default=port,
            metavar="PORT",
            help=f"0 takes a free one (default: {port})",
        )
    parser.add_argument("--name", default="cells", help="of the model (default: cells)")
    parser.add_argument(
        "--concurrency",
        type=positive(int),
        default=1,
        metavar="N",
        help="requests that are computed at a time; others wait (default: 1)",
    )
    parser.add_argument(
        "--max-request",
        type=positive(int),
        default=64,
        metavar="MIB",
        help="largest request, MiB (default: 64)",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
