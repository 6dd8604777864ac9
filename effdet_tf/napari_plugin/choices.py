"""The networks that the user may choose, looked at without opening them."""

from __future__ import annotations

from pathlib import Path

from effdet_tf.config import load_config
from effdet_tf.errors import UserError
from effdet_tf.prediction.load import saved_model_version
from effdet_tf.runs import (
    CONFIG_FILE,
    DEFAULT_MODEL,
    PARTIAL_FILE,
    config_file,
    find_run,
    model_names,
    weights_file,
)


def names() -> list[str]:
    """The networks of the package, the default first."""
    return sorted(model_names(), key=lambda name: (name != DEFAULT_MODEL, name))


def own_score(source: str) -> float | None:
    """The score that a run reports cells from.

    Args:
        source: as `effdet_tf.load` takes it.

    Returns:
        The score; None for an export, which tells it when it is open.

    Raises:
        UserError: when the source is neither a run nor an export.
    """
    path = find_run(source)
    if path.suffix == ".tflite" or saved_model_version(path) is not None:
        return None
    if path.is_dir() and not (path / CONFIG_FILE).exists() and not (path / PARTIAL_FILE).exists():
        raise UserError(
            f"{path}: is neither a run nor a SavedModel; choose the folder of one, or a .tflite file"
        )
    config = load_config(config_file(path))
    weights_file(path)
    return config.postprocess.report_score


def changed(source: str) -> int:
    """When a file, or the newest file directly in a folder, was written, ns since 1970; 0 when missing."""
    path: Path = find_run(source)
    files = [path, *path.iterdir()] if path.is_dir() else [path]
    return max(file.stat().st_mtime_ns for file in files) if path.exists() else 0
