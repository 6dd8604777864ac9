"""Weights by formula, for checkpoints of the original EfficientDet: numpy alone.

The script that runs the original code fills its variables by their own names; a test that knows the names
makes the same checkpoint again.
"""

from __future__ import annotations

import zlib

import numpy as np

SLOTS = ("/.OPTIMIZER_SLOT/", "/ExponentialMovingAverage", "/Momentum")
ENDINGS = (":0", "/.ATTRIBUTES/VARIABLE_VALUE")


def fill(name: str, shape: tuple[int, ...], summed: bool) -> np.ndarray:
    """Value of one variable, float32, the same wherever it is computed.

    Args:
        name: in the checkpoint, by any of the original's schemes.
        shape: in the checkpoint.
        summed: whether the network's fusion is a plain sum, which grows from node to node.
    """
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    random = np.random.RandomState(zlib.crc32(name.encode()))
    variable = name
    for slot in SLOTS:
        variable = variable.split(slot)[0]
    low, high = _bounds(variable, shape, summed)
    return random.uniform(low, high, shape).astype(np.float32)


def _bounds(name: str, shape: tuple[int, ...], summed: bool) -> tuple[float, float]:
    """Far from the values that training starts with, and such that outputs are of the order of 1."""
    kind = name.rsplit("/", 1)[-1]
    if kind in ("gamma", "moving_variance"):
        return 0.6, 1.4
    if kind.startswith("WSM"):
        return (-0.5, 1.0) if kind == "WSM_2" else (0.3, 1.5)  # a negative one counts as 0
    if not kind.endswith("kernel"):
        return -0.3, 0.3
    fan_in = int(np.prod(shape[:2] if kind == "depthwise_kernel" else shape[:3]))
    limit = (3 * _gain(name, kind, shape, summed) / fan_in) ** 0.5
    return -limit, limit


def _gain(name: str, kind: str, shape: tuple[int, ...], summed: bool) -> float:
    """Variance that a kernel gives to what it makes of inputs of variance 1.

    Less, and the image does not reach the outputs; more, and rounding errors do.
    """
    if name.startswith(("fpn_cells", "resample", "class_net", "box_net")):
        if kind == "pointwise_kernel":
            return (0.2 if summed else 1.3) if name.startswith("fpn_cells") else 1.2
        return 1.0
    ends_residual = kind == "kernel" and shape[2] in (shape[3], 6 * shape[3])
    return 0.2 if ends_residual else 2.5
