"""The optimizer that the configuration asks for, and its learning rate over a training."""

from __future__ import annotations

import math
from typing import Any

import keras

from effdet_tf.config import Config

SPARED = ("bias", "gamma", "beta", "base", "weight_")  # in the names of variables that do not decay


def make_optimizer(config: Config) -> keras.optimizers.Optimizer:
    """AdamW, or SGD with momentum .9; weight decay spares biases and batch norm."""
    rates = {"learning_rate": config.train.learning_rate, "weight_decay": config.train.weight_decay}
    if config.train.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(**rates)
    else:
        optimizer = keras.optimizers.SGD(momentum=0.9, **rates)
    optimizer.exclude_from_weight_decay(var_names=list(SPARED))
    return optimizer


def is_spared(variable: Any) -> bool:
    """Whether weight decay spares a variable."""
    return any(word in variable.name for word in SPARED)


def learning_rate(progress: float, peak: float, warmup: float, floor: float = 0.01) -> float:
    """The rate for the next step: linear warm-up, then a cosine (Loshchilov and Hutter, SGDR, 2017).

    Args:
        progress: share of the training that is done, 0..1; steps or time, as the run is limited.
        peak: highest rate.
        warmup: share of the training that the rise takes.
        floor: last rate as a share of the peak.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return peak * max(progress / warmup, 0.01)
    done = (progress - warmup) / max(1.0 - warmup, 1e-9)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
