"""Everything that a resumed training needs, in one file that appears whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.model.weights import read_arrays, save_arrays

STATE_FILE = "state.npz"


def save_state(folder: Path, groups: dict[str, list[Any]], progress: dict[str, Any]) -> None:
    """Write variables and counters.

    Args:
        folder: the run folder.
        groups: name -> variables, for example network, average, optimizer; order is what counts.
        progress: epoch, step, elapsed time and history; anything JSON can hold.
    """
    arrays = {
        f"{group}/{k}": np.asarray(v) for group, variables in groups.items() for k, v in enumerate(variables)
    }
    arrays["progress"] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    save_arrays(folder / STATE_FILE, arrays)


def load_state(folder: Path, groups: dict[str, list[Any]]) -> dict[str, Any] | None:
    """Put saved values back into variables.

    Args:
        folder: the run folder.
        groups: as for `save_state`.

    Returns:
        The progress, or None when the folder has no saved state.

    Raises:
        UserError: when the file is unreadable or belongs to another network.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    arrays = read_arrays(path)
    pairs = [(f"{group}/{k}", v) for group, variables in groups.items() for k, v in enumerate(variables)]
    fits = set(arrays) == {name for name, _ in pairs} | {"progress"}
    if not fits or any(arrays[name].shape != tuple(v.shape) for name, v in pairs):
        raise UserError(f"{path}: belongs to another network; train into another --out, or remove the file")
    for name, variable in pairs:
        variable.assign(arrays[name])
    return json.loads(arrays["progress"].tobytes())
