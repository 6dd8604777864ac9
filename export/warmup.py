"""Requests that TensorFlow Serving answers for itself before it takes a model into service.

The first request of each signature is slow: TensorFlow optimises the graph and chooses kernels then.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from effdet_tf.files import atomic_write
from effdet_tf.images.read import encode_png
from export.serving_api import serving_api

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
SIGNATURES = ("serving_default", "label_map")


def write_warmup(folder: Path, size: tuple[int, int]) -> None:
    """Write warm-up requests beside a SavedModel: an 8-bit image, and a smaller one of 16 bits.

    Only signatures that the model has are asked: a failing warm-up would keep it out of service.

    Args:
        folder: the SavedModel, one version; it holds `saved_model.pb` already.
        size: height, width in pixels of the images that are expected.

    Raises:
        UserError: when tensorflow-serving-api is not installed.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    messages = serving_api("prediction_log_pb2")
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    present = saved.meta_graphs[0].signature_def
    height, width = size
    images = [
        _image(height, width, np.uint8),
        _image(max(height * 3 // 4, 1), max(width * 3 // 4, 1), np.uint16),
    ]
    with atomic_write(folder / WARMUP_FILE) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
        for signature in (name for name in SIGNATURES if name in present):
            for image in images:
                log = messages.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name = "cells"  # TensorFlow Serving asks the model beside the file
                request.model_spec.signature_name = signature
                request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([image], shape=[1]))
                writer.write(log.SerializeToString())


def _image(height: int, width: int, dtype: type[np.uint8] | type[np.uint16]) -> bytes:
    """A gray PNG of a blurred pattern with noise, the same every time."""
    rows, columns = np.mgrid[:height, :width]
    gray = 128 + 40 * np.sin(rows / 7) * np.sin(columns / 9)
    gray += np.random.default_rng(0).normal(0, 4, gray.shape)
    scale = np.iinfo(dtype).max / 255
    return encode_png((gray.clip(0, 255) * scale).astype(dtype))
