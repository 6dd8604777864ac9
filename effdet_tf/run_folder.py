"""The files of a run folder, by name, and the trained networks that come with the package."""

from __future__ import annotations

import os
from pathlib import Path

from effdet_tf.errors import UserError

CONFIG_FILE = "config.yaml"
BEST_FILE = "best.npz"
LAST_FILE = "last.npz"
LOG_FILE = "log.csv"  # one row for each epoch
FIGURES_FILE = "metrics.json"  # of the weights in BEST_FILE, on the validation images
ABOUT_FILE = "about.json"  # when, how and on what it was trained
REPORT_FILE = "report.html"
PARTIAL_FILE = "partial.npz"  # a backbone's weights alone, imported: to start from, not to predict with

MODELS = Path(__file__).resolve().parent / "models"  # a run folder each
DEFAULT_MODEL = "cells"


def model_names() -> list[str]:
    """Names of the trained networks that come with the package."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG_FILE}"))


def find_run(source: str | os.PathLike[str]) -> Path:
    """A path as it is, or the folder of a trained network that comes with the package.

    What exists under that path comes first: a name of the package's never hides a user's folder.
    """
    path = Path(source)
    if not path.exists() and str(source) in model_names():
        return MODELS / str(source)
    return path


def config_file(folder: Path) -> Path:
    """The configuration of a run folder.

    Raises:
        UserError: when this is no run folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such run folder; train one with `python -m training.main --out {folder}`, or take "
            f"one that comes with the package: {', '.join(model_names())}"
        )
    if (folder / PARTIAL_FILE).exists():
        raise UserError(
            f"{folder}: holds the weights of a part of a network; train the rest with "
            f"`python -m training.main --init {folder}`"
        )
    return folder / CONFIG_FILE


def weights_file(folder: Path) -> Path:
    """The weights to use of a run folder: the best by validation AP, else the last.

    Raises:
        UserError: when there are none yet.
    """
    for name in (BEST_FILE, LAST_FILE):
        if (folder / name).exists():
            return folder / name
    raise UserError(
        f"{folder}: holds no weights yet ({BEST_FILE} or {LAST_FILE}); let its training save once"
    )
