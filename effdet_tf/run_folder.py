"""The files of a run folder, by name."""

from __future__ import annotations

from pathlib import Path

from effdet_tf.errors import UserError

CONFIG_FILE = "config.yaml"
BEST_FILE = "best.npz"
LAST_FILE = "last.npz"
PARTIAL_FILE = "partial.npz"  # a backbone's weights alone, imported: to start from, not to predict with


def config_file(folder: Path) -> Path:
    """The configuration of a run folder.

    Raises:
        UserError: when this is no run folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such run folder; train one with `python -m training.main --out {folder}`"
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
