"""Checkpoints of the original EfficientDet, written again from their listings and the formula."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import tensorflow as tf

from tests.pretrained.checkpoints.formula import fill

SUMMED = ("lite", "d6", "d7")  # detectors whose fusion is a plain sum


class Variable(NamedTuple):
    """One line of a listing."""

    name: str  # as in the file; in HDF5 `layer|name`
    dtype: str
    shape: tuple[int, ...]


def golden(case: str) -> dict[str, np.ndarray]:
    """What `benchmarks/make_checkpoint_goldens.py` recorded."""
    with np.load(Path(__file__).parent / f"{case}.npz", allow_pickle=False) as archive:
        return dict(archive)


def listing(case: str) -> list[Variable]:
    """The variables of the checkpoint that the original code wrote."""
    found = []
    for line in str(golden(case)["variables"]).split("\n"):
        name, dtype, shape = line.split("\t")
        found.append(Variable(name, dtype, tuple(map(int, shape.split(","))) if shape else ()))
    return found


def write(case: str, folder: Path) -> Path:
    """Write the checkpoint or HDF5 file of a case; return what a user would name."""
    summed, variables = case.startswith(SUMMED), listing(case)
    if not case.endswith("_h5"):
        values = [
            fill(v.name, v.shape, summed)
            if v.dtype == "float32"
            else b""
            if v.dtype == "string"
            else np.int64(300)
            for v in variables
        ]
        write_checkpoint(folder / "ckpt-300", dict(zip((v.name for v in variables), values, strict=True)))
        return folder
    layers: dict[str, dict[str, np.ndarray]] = {}
    for variable in variables:
        layer, name = variable.name.split("|")
        layers.setdefault(layer, {})[name] = fill(name, variable.shape, summed)
    write_h5(folder / f"{case}.h5", layers)
    return folder / f"{case}.h5"


def write_checkpoint(prefix: Path, values: dict[str, object]) -> None:
    """Write a checkpoint with these very names, which no class of TensorFlow would write."""
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=[tf.constant(v) for v in values.values()],
    )


def write_h5(file: Path, layers: dict[str, dict[str, np.ndarray]], parts: int = 1, inside: str = "/") -> None:
    """Write weights as Keras 2 does.

    Args:
        file: to write.
        layers: layer -> variable, with `:0` -> value.
        parts: attributes that a list of names is cut into, as Keras does with a long one.
        inside: the group; `model_weights` in the file of a whole model.
    """
    with h5py.File(file, "w") as root:
        group = root.require_group(inside)
        _write_names(group, "layer_names", list(layers), parts)
        for layer, values in layers.items():
            _write_names(group.require_group(layer), "weight_names", list(values), parts)
            for name, value in values.items():
                group[layer].create_dataset(name, data=value)


def _write_names(group: h5py.Group, attribute: str, names: list[str], parts: int) -> None:
    for number, part in enumerate(np.array_split(np.array(names, "S"), parts)):
        group.attrs[attribute if parts == 1 else f"{attribute}{number}"] = part
