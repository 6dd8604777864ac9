"""Weights that others trained, under our names, and what their readers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from effdet_tf.errors import UserError

Pixels = tuple[float, ...]

UNIT_RANGE: Pixels = (127.5,)  # mean and deviation that take 0..255 to -1..1: AdvProp
# Weights of PyTorch's batch norms -> Keras's.
BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
COUNTER = "num_batches_tracked"  # of every PyTorch batch norm; only its own training reads it
DEPTHWISE = ("depthwise_kernel", "_dw_conv/kernel")  # ends of our names of depthwise kernels


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights under our names."""

    # float32, by the variable path that `effdet_tf.model.weights.named_variables` uses, in Keras's layout:
    # `[kh, kw, in, out]`, depthwise `[kh, kw, in, 1]`
    arrays: dict[str, np.ndarray]
    origin: str  # one line for people: format, names, and what was preferred (averages, for example)
    # whether the arrays are a whole detector, a backbone alone, or a run of our own
    kind: Literal["detector", "backbone", "run"]
    # subtracted from pixels 0..255 before the network, one value or one per channel; empty when unknown
    mean: Pixels = ()
    std: Pixels = ()  # what the difference is divided by, likewise
    # tensor of the source -> why no variable of ours takes it (an ImageNet classifier, an optimizer's slots)
    unused: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # further lines for people


def to_keras(tensor: np.ndarray, ours: str) -> np.ndarray:
    """Bring a tensor from PyTorch's layout to that of our variable `ours`.

    A convolution goes from `[out, in, h, w]` to `[h, w, in, out]`, a depthwise one from `[in, 1, h, w]` to
    `[h, w, in, 1]`; anything else stays.
    """
    if tensor.ndim != 4:
        return tensor
    return tensor.transpose((2, 3, 0, 1) if ours.endswith(DEPTHWISE) else (2, 3, 1, 0))


def refuse(faults: Sequence[str], what: str) -> None:
    """Raise a UserError that names the first three faults, if there are any."""
    if faults:
        raise UserError(f"{what}: {'; '.join(faults[:3])} ({len(faults)} in all)")


def list_faults(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """List missing, wrongly shaped and superfluous arrays.

    Args:
        arrays: by our names.
        shapes: wanted, by our names.
        names: our name -> the source's own, for the lines; ours where it is None.
    """
    names = names or {name: name for name in arrays}
    faults = [f"{name} is missing" for name in shapes if name not in arrays]
    faults += [
        f"{names[name]} has shape {array.shape}, not {shapes[name]}"
        for name, array in arrays.items()
        if name in shapes and array.shape != shapes[name]
    ]
    return faults + [f"{names[name]} has no place in it" for name in arrays if name not in shapes]
