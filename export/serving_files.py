"""What lies beside the SavedModels: settings for TensorFlow Serving, and how to ask it."""

from __future__ import annotations

import re
from pathlib import Path

from effdet_tf.config import Config
from effdet_tf.files import atomic_write
from effdet_tf.prediction.predictor import Predictor
from export.saved_model import MAX_PIXELS

BATCHING_FILE, SERVING_FILE = "batching_parameters.txt", "SERVING.md"
_TEMPLATES = Path(__file__).with_name("serving_templates")
_GRPC_LIMIT = 4 * 2**20  # bytes, what a gRPC client receives unless told otherwise


def write(folder: Path, predictor: Predictor, max_pixels: int = MAX_PIXELS) -> None:
    """Write `batching_parameters.txt` and `SERVING.md`.

    Args:
        folder: of the export, the one above `saved_model`.
        predictor: has the `config` that was exported.
        max_pixels: largest height x width that the SavedModel decodes.
    """
    batching = (_TEMPLATES / BATCHING_FILE).read_text(encoding="utf-8")
    for name, text in (
        (BATCHING_FILE, batching),
        (SERVING_FILE, serving_text(predictor.config, max_pixels)),
    ):
        with atomic_write(Path(folder) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def serving_text(config: Config, max_pixels: int) -> str:
    """Text of SERVING.md for one configuration; see `write`."""
    masked, side = config.model.mask.enabled, config.model.mask.size
    parts = {"box": 16, "score": 4, "class": 4} | ({"mask box": 16, "mask": side * side} if masked else {})
    cell = sum(parts.values())
    whole = 2000 * cell
    images = _GRPC_LIMIT // whole
    values = {
        "side": side,
        "report_score": config.postprocess.report_score,
        "channels": config.data.channels,
        "limit": config.data.max_instances,
        "score_threshold": config.postprocess.score_threshold,
        "classes": ", ".join(f"{k} {name}" for k, name in enumerate(config.class_names)),
        "max_pixels": f"{max_pixels:,}",
        "cell": f"{cell:,}",
        "cell_sum": " + ".join(f"{size} ({name})" for name, size in parts.items()),
        "thousands": f"{whole:,}",
        "mib": f"{whole / 2**20:.1f}",
        "worst": f"{2000 * (cell + (side * side if masked else 0)) / 2**20:.1f}",
        "fits": f"{images} such image{'s' if images > 1 else ''} at a time fit into that"
        if images
        else "not even one such image fits into that",
    }
    text = (_TEMPLATES / f"{SERVING_FILE}.template").read_text(encoding="utf-8")
    text = re.sub(r"<masks>(.*?)</masks>", r"\1" if masked else "", text, flags=re.DOTALL)
    return re.sub(r"<<(\w+)>>", lambda match: str(values[match[1]]), text)
