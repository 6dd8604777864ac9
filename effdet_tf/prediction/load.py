"""Open a trained network, whatever it is: a run, a SavedModel or a TFLite file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from effdet_tf.config import load_config
from effdet_tf.errors import UserError
from effdet_tf.runs import CONFIG_FILE, PARTIAL_FILE, config_file, find_run, weights_file

if TYPE_CHECKING:
    import keras

    from effdet_tf.prediction.predictor import Predictor


def load(
    source: str | os.PathLike[str], backbone: keras.Model | None = None, settings: Iterable[str] = ()
) -> Predictor:
    """Open a trained network.

    Args:
        source: the name of a trained network that comes with the package, "cells"; the run folder that
            `python -m training.main --out RUN` wrote, of which the best weights by validation AP are taken,
            or the last where nothing was validated; or what `python -m export.main` made of it: a `.tflite`
            file, which needs no TensorFlow, or the folder of a SavedModel: one version, or the folder of its
            versions, of which the highest is taken.
        backbone: the Keras model that the network was built on, for a run with one of its own.
        settings: changes of a run's configuration, `section.key=value` each.

    Raises:
        UserError: when the source is missing or is none of these, or does not take what was given with it.
    """
    path = find_run(source)
    settings = list(settings)
    version = None if path.suffix == ".tflite" else saved_model_version(path)
    if path.suffix != ".tflite" and version is None:
        from effdet_tf.prediction.run import load_run

        return load_run(path, backbone, settings)
    if backbone is not None or settings:
        raise UserError(f"{path}: an exported network is as it is; give backbone and settings with a run")
    if version is None:
        from effdet_tf.prediction.tflite import TFLitePredictor

        return TFLitePredictor(path)
    from effdet_tf.prediction.saved_model import SavedModelPredictor

    return SavedModelPredictor(version)


def saved_model_version(folder: Path) -> Path | None:
    """The SavedModel that a folder is, or the highest numbered one in it; None where there is none."""
    if (folder / "saved_model.pb").is_file():
        return folder
    if not folder.is_dir():
        return None
    found = [
        int(inner.name)
        for inner in folder.iterdir()
        if inner.name.isdecimal() and (inner / "saved_model.pb").is_file()
    ]
    return folder / str(max(found)) if found else None


def report_score(source: str | os.PathLike[str]) -> float | None:
    """The score from which on a run reports cells, read from its configuration without opening the network.

    Args:
        source: as `load` takes it.

    Returns:
        The score; None for an export, which tells it when it is open.

    Raises:
        UserError: when the source is neither a run with weights nor an export.
    """
    path = find_run(source)
    if path.suffix == ".tflite" or saved_model_version(path) is not None:
        return None
    if path.is_dir() and not (path / CONFIG_FILE).exists() and not (path / PARTIAL_FILE).exists():
        raise UserError(
            f"{path}: is neither a run nor a SavedModel; choose the folder of one, or a .tflite file"
        )
    score = load_config(config_file(path)).postprocess.report_score
    weights_file(path)  # raises where there are none
    return score
