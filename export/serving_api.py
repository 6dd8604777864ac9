"""TensorFlow Serving's messages, which come in a package of their own."""

from __future__ import annotations

import importlib
from types import ModuleType

from effdet_tf.errors import UserError


def serving_api(module: str) -> ModuleType:
    """Import a module of `tensorflow_serving.apis`, such as `predict_pb2`.

    Raises:
        UserError: when tensorflow-serving-api or gRPC is not installed.
    """
    try:
        return importlib.import_module(f"tensorflow_serving.apis.{module}")
    except ImportError as error:
        raise UserError(
            f"TensorFlow Serving's messages are missing (no module {error.name}): "
            "pip install tensorflow-serving-api"
        ) from None
