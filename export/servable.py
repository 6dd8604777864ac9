"""A SavedModel that answers requests: which model and signature, tensors in, tensors or JSON out."""

from __future__ import annotations

import base64
import binascii
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from effdet_tf.errors import UserError
from effdet_tf.prediction.load import saved_model_version
from effdet_tf.prediction.model_check import check_saved_model

DEFAULT_SIGNATURE = "serving_default"
_IMAGES_RANK = 4
_MOST_TEXTS = 256  # encoded images of a request
_MOST_NUMBERS = 65_536  # of an input that is no image


class RequestError(Exception):
    """A request that is refused; `code` is the name of a gRPC status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Servable:
    """One version of a model.

    Attributes:
        name: that clients ask for.
        version: likewise.
        signatures: SignatureDef by name.
    """

    def __init__(self, folder: Path, name: str, concurrency: int, max_pixels: int = 2048 * 2048) -> None:
        """Load the highest version in a folder.

        Args:
            folder: of the versions.
            name: that clients ask for.
            concurrency: requests that are computed at a time; others wait.
            max_pixels: of all images of a request that come as numbers.

        Raises:
            UserError: when the folder holds no SavedModel.
        """
        found = saved_model_version(folder)
        if found is None:
            raise UserError(f"{folder}: holds no SavedModel; make one with `python -m export.main`")
        self.name = name
        self.version = int(found.name) if found.name.isdecimal() else 1
        saved = check_saved_model(found)
        try:
            self._model = tf.saved_model.load(str(found))
        except (OSError, ValueError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{found}: not a readable SavedModel ({reason}); export it again") from None
        definitions = saved.meta_graphs[0].signature_def
        self.signatures = {key: definitions[key] for key in self._model.signatures}
        self._turn = threading.BoundedSemaphore(concurrency)
        self._max_pixels = max_pixels

    def check(self, name: str, version: int | None) -> None:
        """Refuse another model or version, with a RequestError."""
        if name != self.name or version not in (None, self.version):
            asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise RequestError("NOT_FOUND", f"Servable not found for request: {asked}")

    def check_sizes(self, signature: str, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse names and sizes, before anything is made of what a request declares.

        Raises:
            RequestError: when there is no such signature, or names or sizes do not fit it.
        """
        signature = signature or DEFAULT_SIGNATURE
        if signature not in self.signatures:
            raise RequestError("FAILED_PRECONDITION", f'Serving signature key "{signature}" not found.')
        known = self.signatures[signature].inputs
        _check_names(set(shapes), set(known), set(), set())
        for name, shape in shapes.items():
            count = math.prod(shape)
            if len(shape) == _IMAGES_RANK:  # [N, H, W, C]
                count, most, what = math.prod(shape[:3]), self._max_pixels, "pixels"
            elif known[name].dtype == tf.string.as_datatype_enum:
                most, what = _MOST_TEXTS, "texts"
            else:
                most, what = _MOST_NUMBERS, "numbers"
            if count > most or min(shape, default=0) < 0 or len(shape) > _IMAGES_RANK:
                message = f"input {name} of shape {list(shape)} has {count} {what}, more than {most}"
                raise RequestError("INVALID_ARGUMENT", message)

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray], wanted: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Run a signature, when it is this request's turn.

        Args:
            signature: its name; empty for the default one.
            inputs: arrays by input name; texts are bytes in an array of objects.
            wanted: names of outputs; empty for all.

        Raises:
            RequestError: when names, types or shapes do not fit, or the graph fails.
        """
        signature = signature or DEFAULT_SIGNATURE
        if signature not in self.signatures:
            raise RequestError("FAILED_PRECONDITION", f'Serving signature key "{signature}" not found.')
        definition = self.signatures[signature]
        self.check_sizes(signature, {name: np.shape(array) for name, array in inputs.items()})
        _check_names(set(inputs), set(definition.inputs), set(wanted), set(definition.outputs))
        try:
            types = {name: tf.as_dtype(info.dtype) for name, info in definition.inputs.items()}
            tensors = {name: tf.constant(array, types[name]) for name, array in inputs.items()}
            with self._turn:
                outputs = self._model.signatures[signature](**tensors)
        except (tf.errors.OpError, ValueError, TypeError) as error:
            message = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RequestError("INVALID_ARGUMENT", message) from None
        return {name: outputs[name].numpy() for name in wanted or definition.outputs}

    def from_json(self, question: Any) -> tuple[str, dict[str, np.ndarray], bool]:
        """Read a REST request, parsed JSON.

        Returns:
            (signature, arrays by input name, whether it has one object per image: "instances").

        Raises:
            RequestError: when it is not of TensorFlow Serving's form.
        """
        if not isinstance(question, dict) or not isinstance(question.get("signature_name", ""), str):
            raise RequestError("INVALID_ARGUMENT", "JSON Value: is not an object with a signature_name")
        signature = question.get("signature_name") or DEFAULT_SIGNATURE
        if signature not in self.signatures:
            message = f'Serving signature name: "{signature}" not found in signature def'
            raise RequestError("INVALID_ARGUMENT", message)
        if ("instances" in question) == ("inputs" in question):
            raise RequestError("INVALID_ARGUMENT", "Give one of 'inputs' and 'instances'")
        known = self.signatures[signature].inputs
        rows = "instances" in question
        values = _columns(question["instances"], set(known)) if rows else question["inputs"]
        if not isinstance(values, dict) or _is_bytes(values):
            if len(known) != 1:
                raise RequestError("INVALID_ARGUMENT", "inputs must be an object: there are several inputs")
            values = {next(iter(known)): values}
        if set(values) != set(known):
            raise RequestError("INVALID_ARGUMENT", f"inputs are {sorted(known)}, not {sorted(values)}")
        return signature, {name: _array(values[name], known[name].dtype) for name in known}, rows


def to_json(outputs: Mapping[str, np.ndarray], rows: bool) -> dict[str, Any]:
    """A REST answer: one object per image, or one list per output; a single output comes without its name.

    Raises:
        RequestError: when there should be one object per image, but the outputs have no common batch.
    """
    if rows and len({array.shape[:1] for array in outputs.values()} | {()}) != 2:
        message = "the outputs have no common batch: send 'inputs' in place of 'instances'"
        raise RequestError("INVALID_ARGUMENT", message)
    lists = {name: _values(name, array) for name, array in outputs.items()}
    if not rows:
        return {"outputs": lists if len(lists) > 1 else next(iter(lists.values()))}
    if len(lists) == 1:
        return {"predictions": next(iter(lists.values()))}
    return {"predictions": [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]}


def _check_names(given: set[str], known: set[str], wanted: set[str], outputs: set[str]) -> None:
    if given != known:
        extra, missing = sorted(given - known), sorted(known - given)
        message = (
            f"input size does not match signature. Sent extra: {extra}. Missing but required: {missing}."
        )
        raise RequestError("INVALID_ARGUMENT", message)
    if not wanted <= outputs:
        message = f"output tensor alias not found in signature: {sorted(wanted - outputs)}"
        raise RequestError("INVALID_ARGUMENT", message)


def _columns(instances: Any, known: set[str]) -> Any:
    """One list per input out of one object per image."""
    if not isinstance(instances, list) or not instances:
        raise RequestError("INVALID_ARGUMENT", "'instances' must be a list with a value for each image")
    objects = [isinstance(one, dict) and not _is_bytes(one) for one in instances]
    if not any(objects):
        return instances
    if not all(objects) or any(set(one) != known for one in instances):
        message = f"each of 'instances' must be an object with {sorted(known)}"
        raise RequestError("INVALID_ARGUMENT", message)
    return {name: [one[name] for one in instances] for name in known}


def _is_bytes(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def _array(value: Any, dtype: int) -> np.ndarray:
    """A JSON value as an array; texts become objects of bytes."""
    kind = tf.as_dtype(dtype)
    try:
        if kind == tf.string:
            return np.array(_bytes(value), object)
        return np.array(value, kind.as_numpy_dtype)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RequestError("INVALID_ARGUMENT", f"JSON Value is no {kind.name} tensor: {error}") from None


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(inner) for inner in value]
    if isinstance(value, str):
        return value.encode()
    if not _is_bytes(value):
        raise ValueError("a text or {'b64': text} is needed")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except binascii.Error:
        raise ValueError("Unable to base64 decode") from None


def _values(name: str, array: np.ndarray) -> Any:
    """Nested lists for JSON; float32 with the fewest digits that give the same number again."""
    if array.dtype == object:
        texts = np.empty(array.shape, object)
        for index, value in np.ndenumerate(array):
            encoded = name.endswith("_bytes")
            text = {"b64": base64.b64encode(value).decode()} if encoded else value.decode("utf-8", "replace")
            texts[index] = text
        return texts.tolist()
    if array.dtype == np.float32:
        return array.astype("U24").astype(np.float64).tolist()
    return array.tolist()
