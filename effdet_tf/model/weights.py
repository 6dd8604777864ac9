"""Weights on disk: one compressed-free `.npz` of arrays by variable path, readable by any backend.

numpy's format holds plain arrays only (`allow_pickle=False`), so a file from a stranger cannot
run code.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write
from effdet_tf.files.untrusted import read_npz
from effdet_tf.model.network import Network

_STATISTICS = ("moving_mean", "moving_variance")  # of batch normalisation
# What numpy and zipfile raise for damaged files: RuntimeError for one whose flags say it is encrypted or
# packed in an unknown way, TypeError where a bare array lies in place of an archive.
_UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, AttributeError, RuntimeError, TypeError),
    *(zipfile.BadZipFile, zlib.error, MemoryError, tokenize.TokenError),
)


def named_variables(network: Network) -> dict[str, Any]:
    """The network's float variables by path; random-generator states are left out."""
    named = {v.path: v for v in network.variables if "float" in str(v.dtype)}
    assert len(named) == sum("float" in str(v.dtype) for v in network.variables), "two variables share a path"
    return named


def to_arrays(network: Network) -> dict[str, np.ndarray]:
    """Copy the weights to numpy, float32, by path."""
    return {path: np.array(ops.convert_to_numpy(v)) for path, v in named_variables(network).items()}


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as `.npz`, atomically."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(
    path: str | os.PathLike[str], kind: str = "weights file", network: Network | None = None
) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote; `kind` says what it should be, for messages.

    Arrays that do not fit into a `network` are not read: they are zeros of their shape that take no memory.

    Raises:
        UserError: when the file is missing, truncated or not of this kind.
    """
    try:
        shapes = None if network is None else {p: v.shape for p, v in named_variables(network).items()}
        return read_npz(path, shapes)
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind}") from None
    except _UNREADABLE as error:
        raise UserError(f"{path}: not a readable {kind} ({' '.join(str(error).split())})") from None


def assign_arrays(network: Network, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Put arrays into the network's variables; every one must fit.

    Raises:
        UserError: naming the first missing, foreign or wrongly shaped arrays.
    """
    named = named_variables(network)
    faults = [f"{p} is missing" for p in named if p not in arrays]
    faults += [f"{p} is not in this network" for p in arrays if p not in named]
    pairs = [(p, arrays[p].shape, tuple(v.shape)) for p, v in named.items() if p in arrays]
    faults += [f"{p} has shape {found}, not {wanted}" for p, found, wanted in pairs if found != wanted]
    if faults:
        raise UserError(
            f"{source}: weights do not fit the network: {'; '.join(faults[:3])} ({len(faults)} in all); "
            "keep config.yaml and weights of one run together"
        )
    for path, variable in named.items():
        variable.assign(arrays[path].astype("float32"))


def learned_parameters(arrays: Mapping[str, np.ndarray]) -> int:
    """How many numbers of a network's weights are learned: the statistics of batch normalisation are not."""
    return sum(array.size for name, array in arrays.items() if not name.endswith(_STATISTICS))
