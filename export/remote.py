"""The cells of a network behind TensorFlow Serving's protocols, REST or gRPC."""

from __future__ import annotations

import base64
import json
import math
import time
import urllib.parse
from typing import Any, Protocol

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.files.untrusted import parse_json
from effdet_tf.images.gray import stretch, to_gray
from effdet_tf.images.read import encode_png
from effdet_tf.prediction.exported import PART_SIGNATURE, ExportedPredictor
from export.serving_api import serving_api

_MIB = 2**20
_TYPES: dict[str, Any] = dict.fromkeys(("boxes", "scores", "mask_boxes"), np.float32)
_TYPES |= {"classes": np.int32, "count": np.int32, "masks": np.uint8, "ok": bool}
_TYPES |= {"error": object, "metadata": object}


class Connection(Protocol):
    """One model of one server."""

    def ask(self, signature: str, inputs: dict[str, bytes | np.ndarray]) -> dict[str, np.ndarray]:
        """Run a signature on a batch of one.

        Args:
            signature: its name.
            inputs: strings and arrays by name, without the axis of the batch.

        Returns:
            The outputs without the axis of the batch; texts are str.

        Raises:
            UserError: when no answer comes or the server refuses the request.
        """
        ...


class RemotePredictor(ExportedPredictor):
    """Finds cells by asking a server."""

    def __init__(self, connection: Connection) -> None:
        """Ask the server what it serves.

        Raises:
            UserError: when it does not answer, or serves a model that is none of ours.
        """
        self._connection = connection
        super().__init__(str(connection.ask("info", {"query": b""}).get("metadata", "")), "the served model")

    def _ask(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return self._connection.ask("serving_default", {"image_bytes": self._encode(image)})

    def _ask_part(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._connection.ask(PART_SIGNATURE, dict(inputs))

    def _encode(self, pixels: np.ndarray) -> bytes:
        """PNG of the very pixels that `effdet_tf predict` would see, whatever file they came from."""
        if pixels.dtype.kind == "f":
            # Fixed statistics take a gray picture of floats; those of the image do not mind the stretch.
            if self.config.data.normalization == "fixed":
                pixels = to_gray(pixels)
            pixels = np.rint(stretch(pixels, 65535.0)).astype(np.uint16)
        try:
            return encode_png(pixels)
        except ValueError as error:
            raise UserError(f"the image cannot be sent: {error}") from None


class RestConnection:
    """The HTTP interface, usually on port 8501."""

    def __init__(
        self, url: str, model: str, version: int | None, timeout: float, max_message: int = 256
    ) -> None:
        """As `connect`, to nothing yet; in the address a path in front of `/v1` may follow."""
        import requests

        self._errors = requests.exceptions
        self._session = requests.Session()
        self._where, self._model, self._timeout = url, _named(model, version), timeout
        self._max_message = max_message
        suffix = "" if version is None else f"/versions/{version}"
        self._target = f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}{suffix}:predict"

    def ask(self, signature: str, inputs: dict[str, bytes | np.ndarray]) -> dict[str, np.ndarray]:
        """See `Connection`."""
        values = {name: [_to_json(value)] for name, value in inputs.items()}
        question = json.dumps({"signature_name": signature, "inputs": values}).encode()
        headers = {"Content-Type": "application/json"}
        try:
            with self._session.post(
                self._target,
                question,
                headers=headers,
                timeout=self._timeout,
                stream=True,
                allow_redirects=False,
            ) as answer:
                body = self._body(answer)
        except self._errors.Timeout:
            raise UserError(_late(self._where, self._timeout)) from None
        except self._errors.ConnectionError:
            raise UserError(_silent(self._where)) from None
        except self._errors.RequestException as error:
            raise UserError(f"{self._where}: cannot be asked ({_first_line(error)}); check --url") from None
        try:
            content = parse_json(body)
            reason = content.get("error")
        except (ValueError, AttributeError):
            content, reason = {}, f"HTTP {answer.status_code} without JSON: is this TensorFlow Serving?"
        if answer.status_code == 413:
            raise UserError(f"{self._where}: takes no request of {len(question) / _MIB:.1f} MiB ({reason})")
        if answer.status_code == 404:
            raise UserError(_unknown(self._where, self._model, reason))
        if answer.status_code != 200 or "outputs" not in content:
            raise UserError(_refused(self._where, signature, reason))
        outputs = content["outputs"]
        if not isinstance(outputs, dict):  # a single output comes without its name
            outputs = {"metadata": outputs}
        try:
            return {key: np.array(part[0], _TYPES[key])[()] for key, part in outputs.items() if key in _TYPES}
        except (TypeError, ValueError, IndexError, KeyError, OverflowError):
            raise UserError(_refused(self._where, signature, "its answer has another form")) from None

    def _body(self, answer: Any) -> bytes:
        """What the server answers, within the time and the size that are allowed."""
        end = time.monotonic() + self._timeout
        parts, size = [], 0
        for part in answer.iter_content(_MIB):
            parts.append(part)
            size += len(part)
            if size > self._max_message * _MIB:
                advice = f"more than --max-message, {self._max_message} MiB"
                raise UserError(f"{self._where}: its answer is too large, {advice}")
            if time.monotonic() > end:
                raise UserError(_late(self._where, self._timeout))
        return b"".join(parts)


class GrpcConnection:
    """The gRPC interface, usually on port 8500."""

    def __init__(
        self, address: str, model: str, version: int | None, timeout: float, max_message: int
    ) -> None:
        """As `connect`, to nothing yet; the address is `host:port`.

        Raises:
            UserError: when tensorflow-serving-api is not installed.
        """
        self._request = serving_api("predict_pb2").PredictRequest
        service = serving_api("prediction_service_pb2_grpc")
        import grpc
        import tensorflow as tf

        self._grpc, self._tf = grpc, tf
        limits = [(f"grpc.max_{way}_message_length", max_message * _MIB) for way in ("receive", "send")]
        self._channel = grpc.insecure_channel(address, options=limits)
        self._stub = service.PredictionServiceStub(self._channel)
        self._where, self._timeout, self._max_message = f"grpc://{address}", timeout, max_message
        self._model, self._version = model, version

    def ask(self, signature: str, inputs: dict[str, bytes | np.ndarray]) -> dict[str, np.ndarray]:
        """See `Connection`."""
        question = self._request()
        question.model_spec.name = self._model
        question.model_spec.signature_name = signature
        if self._version is not None:
            question.model_spec.version.value = self._version
        for name, value in inputs.items():
            batch = [value] if isinstance(value, bytes) else value[None]
            question.inputs[name].CopyFrom(self._tf.make_tensor_proto(batch))
        try:
            answer = self._stub.Predict(question, timeout=self._timeout)
        except self._grpc.RpcError as error:
            raise UserError(self._explain(error, signature)) from None
        found: dict[str, Any] = {}
        try:
            for key, part in answer.outputs.items():
                values = math.prod(side.size for side in part.tensor_shape.dim)
                if values > self._max_message * _MIB:  # a few bytes may declare a large tensor
                    raise ValueError(f"{values} values")
                found[key] = self._tf.make_ndarray(part)[0]
                if isinstance(found[key], bytes):
                    found[key] = found[key].decode()
        except (ValueError, TypeError, IndexError):
            raise UserError(_refused(self._where, signature, "its answer has another form")) from None
        return found

    def _explain(self, error: Any, signature: str) -> str:
        code, codes, reason = error.code(), self._grpc.StatusCode, _first_line(error.details())
        if code == codes.UNAVAILABLE and "connect" in reason.lower():
            return _silent(self._where)
        if code == codes.DEADLINE_EXCEEDED:
            return _late(self._where, self._timeout)
        if code == codes.NOT_FOUND:
            return _unknown(self._where, _named(self._model, self._version), reason)
        if code == codes.RESOURCE_EXHAUSTED and "larger than max" in reason:
            advice = f"raise --max-message, now {self._max_message} MiB, or the server's own limit"
            return f"{self._where}: a message is too big ({reason}); {advice}"
        return _refused(self._where, signature, f"{code.name}: {reason}")


def connect(
    url: str, model: str, version: int | None = None, timeout: float = 60.0, max_message: int = 256
) -> Connection:
    """Choose the protocol by the address.

    Args:
        url: `http://host:8501`, `https://...` or `grpc://host:8500`.
        model: its name on the server.
        version: None for the latest.
        timeout: seconds to wait for each answer.
        max_message: largest message, MiB; of REST, the largest answer.

    Raises:
        UserError: for another kind of address, and when tensorflow-serving-api is not installed.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("http", "https") and parts.netloc:
        return RestConnection(url, model, version, timeout, max_message)
    if parts.scheme == "grpc" and parts.netloc and parts.path in ("", "/"):
        return GrpcConnection(parts.netloc, model, version, timeout, max_message)
    raise UserError(f"{url}: is no address of a server; give http://host:8501 or grpc://host:8500")


def _to_json(value: bytes | np.ndarray) -> Any:
    """An input as TensorFlow Serving's JSON has it."""
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value.tolist()


def _named(model: str, version: int | None) -> str:
    return model if version is None else f"{model}, version {version}"


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _silent(where: str) -> str:
    return f"{where}: no server answers; start it, or check the address"


def _late(where: str, timeout: float) -> str:
    return f"{where}: no answer within {timeout:g} s; raise --timeout, or ask less at a time"


def _unknown(where: str, model: str, reason: object) -> str:
    return f"{where}: serves no model {model} ({_first_line(reason)}); check --model and --version"


def _refused(where: str, signature: str, reason: object) -> str:
    if signature == "info":
        return f"{where}: the model is none of export.main's ({_first_line(reason)})"
    return f"{where}: refused the request ({_first_line(reason)})"
