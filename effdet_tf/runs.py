"""The files of a run folder, by name, and the trained networks that come with the package."""

from __future__ import annotations

import os
from pathlib import Path

from effdet_tf.errors import UserError, did_you_mean, near_files

CONFIG_FILE = "config.yaml"
BEST_FILE = "best.npz"
LAST_FILE = "last.npz"
LOG_FILE = "log.csv"  # one row for each epoch
FIGURES_FILE = "metrics.json"  # of the weights in BEST_FILE, on the validation images
ABOUT_FILE = "about.json"  # when, how and on what it was trained
REPORT_FILE = "report.html"
CARD_FILE = "MODEL_CARD.md"  # of a network that is given away
PARTIAL_FILE = "partial.npz"  # a backbone's weights alone, imported: to start from, not to predict with

MODELS = Path(__file__).resolve().parent / "models"  # a run folder each
DEFAULT_MODEL = "cells"


def model_names() -> list[str]:
    """Names of the trained networks that come with the package, the default first."""
    names = (path.parent.name for path in MODELS.glob(f"*/{CONFIG_FILE}"))
    return sorted(names, key=lambda name: (name != DEFAULT_MODEL, name))


def find_run(source: str | os.PathLike[str]) -> Path:
    """A path as it is, or the folder of a trained network that comes with the package.

    A user's network of that name comes first, and so does anything else that is no folder; a folder of
    images, which may well be called `cells`, hides nothing.
    """
    path = Path(source)
    if str(source) in model_names() and not (path.is_file() or _may_be_network(path)):
        return MODELS / str(source)
    return path


def _may_be_network(folder: Path) -> bool:
    """Whether a folder holds what a network may be read from: a run, a checkpoint, a SavedModel."""
    names = (CONFIG_FILE, "*.npz", "*.index", "saved_model.pb", "*/saved_model.pb")
    return any(True for name in names for _ in folder.glob(name))


def config_file(folder: Path) -> Path:
    """The configuration of a run folder.

    Raises:
        UserError: when this is no run folder.
    """
    packaged = ", ".join(model_names())
    if folder.is_file():
        raise UserError(
            f"{folder}: is a file, a run is a folder; weights of other programs become one by "
            "`python -m effdet_tf weights import`"
        )
    if not folder.is_dir():
        near = near_files(folder) or did_you_mean(str(folder), model_names())
        raise UserError(
            f"{folder}: no such run folder{near or '; train one with `python -m training.main`'} (with the "
            f"package come {packaged})"
        )
    if (folder / PARTIAL_FILE).exists():
        raise UserError(
            f"{folder}: holds the weights of a part of a network; train the rest with "
            f"`python -m training.main --init {folder}`"
        )
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder}: is no run folder, it holds no {CONFIG_FILE}; name one that `python -m training.main` "
            f"wrote, or a network of the package: {packaged}"
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
