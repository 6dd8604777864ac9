"""EfficientDet with instance masks for label-free microscopy.

`Predictor`, and `load` for all but a TFLite file, bring TensorFlow with them, so they are imported on
first use: `effdet_tf --help` and the pure modules stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effdet_tf._version import __version__

if TYPE_CHECKING:
    from effdet_tf.config import Config
    from effdet_tf.prediction.load import load
    from effdet_tf.prediction.predictor import Predictor

__all__ = ["Config", "Predictor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "Config":
        from effdet_tf.config import Config

        return Config
    if name == "Predictor":
        from effdet_tf.prediction.predictor import Predictor

        return Predictor
    if name == "load":
        from effdet_tf.prediction.load import load

        return load
    raise AttributeError(f"module 'effdet_tf' has no attribute {name!r}")
