"""EfficientDet with instance masks for label-free microscopy.

    import effdet_tf

    cells = effdet_tf.load("cells").predict("image.tif")
    cells.save("results")

The names below are loaded on first use, since most bring TensorFlow with them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from effdet_tf._version import __version__

if TYPE_CHECKING:
    from effdet_tf.api import Cells, DetectedCell, Model, load
    from effdet_tf.commands.convert import convert
    from effdet_tf.config import Config
    from effdet_tf.errors import UserError
    from effdet_tf.prediction.predictor import Predictor
    from effdet_tf.prediction.results import Result
    from export.main import export
    from training.evaluate import evaluate
    from training.main import train

__all__ = [
    "Cells",
    "Config",
    "DetectedCell",
    "Model",
    "Predictor",
    "Result",
    "UserError",
    "__version__",
    "convert",
    "evaluate",
    "export",
    "load",
    "train",
]
_MODULES = dict.fromkeys(("Cells", "DetectedCell", "Model", "load"), "effdet_tf.api")
_MODULES |= {"Config": "effdet_tf.config", "UserError": "effdet_tf.errors"}
_MODULES |= {"Predictor": "effdet_tf.prediction.predictor", "Result": "effdet_tf.prediction.results"}
_MODULES |= {"convert": "effdet_tf.commands.convert", "train": "training.main"}
_MODULES |= {"evaluate": "training.evaluate", "export": "export.main"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'effdet_tf' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
