"""What a training starts from: its own saved state, or the weights that `--init` names.

The state is everything that a resumed training needs, in one file that appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write
from effdet_tf.model.network import Network
from effdet_tf.model.weights import read_arrays
from effdet_tf.pretrained.fit import start_from, summary, write_rows
from effdet_tf.pretrained.open import open_source

STATE_FILE = "state.npz"
DAMAGED_FILE = "state.damaged.npz"
PREVIOUS_FILE = "state.previous.npz"  # the one before, for when the last is damaged
TABLE_FILE = "init.csv"  # which weight was loaded, and which was not, with the reason


def has_state(folder: Path) -> bool:
    """Whether a run folder holds something to go on from."""
    return (folder / STATE_FILE).exists() or (folder / PREVIOUS_FILE).exists()


def save_state(folder: Path, groups: dict[str, list[Any]], progress: dict[str, Any]) -> None:
    """Write groups of variables, in their order, and counters as JSON; the state before stays beside them."""
    arrays = {
        f"{group}/{k}": np.asarray(v) for group, variables in groups.items() for k, v in enumerate(variables)
    }
    arrays["progress"] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    path = folder / STATE_FILE
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())  # a power failure must not leave the new name with nothing behind it
        if path.exists():
            os.replace(path, folder / PREVIOUS_FILE)


def load_state(folder: Path, groups: dict[str, list[Any]], mend: bool = True) -> dict[str, Any] | None:
    """Put saved values back into variables; those of the state before, where the last is damaged.

    Gives the counters, or None when there is no saved state. With `mend` a damaged state is set aside.

    Raises:
        UserError: when every file there is damaged, or belongs to another network.
    """
    faults: list[UserError] = []
    for path in (folder / STATE_FILE, folder / PREVIOUS_FILE):
        if not path.exists():
            continue
        try:
            arrays = read_arrays(path, "checkpoint")
            progress = json.loads(arrays.pop("progress").tobytes())
        except UserError as error:
            faults.append(error)
            continue
        except (KeyError, ValueError):
            faults.append(UserError(f"{path}: not a checkpoint of a training"))
            continue
        _put_back(path, arrays, groups)
        if faults and mend:  # so that the next save does not put the damaged one in the place of the good one
            os.replace(folder / STATE_FILE, folder / DAMAGED_FILE)
        for fault in faults:
            print(f"warning: {fault}; going on from the checkpoint before it, {path.name}", file=sys.stderr)
        return progress
    if faults:
        raise faults[0]
    return None


def _put_back(path: Path, arrays: dict[str, np.ndarray], groups: dict[str, list[Any]]) -> None:
    """Assign arrays to variables, all or none."""
    pairs = [(f"{group}/{k}", v) for group, variables in groups.items() for k, v in enumerate(variables)]
    fits = set(arrays) == {name for name, _ in pairs}
    if not fits or any(arrays[name].shape != tuple(v.shape) for name, v in pairs):
        raise UserError(f"{path}: belongs to another network; train into another --out, or remove the file")
    for name, variable in pairs:
        variable.assign(arrays[name])


def start_weights(network: Network, config: Config, folder: Path, strict: bool = False) -> bool:
    """Load what `train.init` names, print what was loaded, and write the whole table into the run folder.

    With `strict` a source is refused that does not fill the parts of the network that it covers. Returns
    whether the source is a whole network of this kind.

    Raises:
        UserError: when the source cannot be read, or does not fit.
    """
    source = open_source(config.train.init, config.model.backbone)
    rows = start_from(network, source, strict)
    print(f"start: {source.origin}")
    for note in source.notes:
        print(f"note: {note}")
    print(summary(rows))
    write_rows(folder / TABLE_FILE, rows)
    print(f"every weight: {folder / TABLE_FILE}")
    return all(row.outcome == "loaded" for row in rows)
