"""TensorFlow Serving's messages, which come in a package of their own."""

from __future__ import annotations

import importlib
from types import ModuleType

from effdet_tf.errors import needs


def serving_api(module: str) -> ModuleType:
    """Import a module of `tensorflow_serving.apis`, such as `predict_pb2`.

    Raises:
        UserError: when tensorflow-serving-api or gRPC is not installed.
    """
    with needs("serving", "TensorFlow Serving's protocol"):
        return importlib.import_module(f"tensorflow_serving.apis.{module}")
