"""The fixed pixel statistics of `data.normalization=fixed`, alike in training and prediction."""

from __future__ import annotations

import numpy as np

from effdet_tf.config import DataConfig
from effdet_tf.errors import UserError

# `data.mean` and `data.std` are of 8-bit pixels; 257 x 255 = 65,535.
SIXTEEN_BIT_UNIT = np.float32(1 / 257)


def fixed_statistics(config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation that pixels are normalised by.

    Args:
        config: `mean`, `std` and `channels`.

    Returns:
        float32 mean and std, `[1]` or `[channels]`, in units of 8-bit pixels.

    Raises:
        UserError: for another number of values than channels, or a std that is not above 0.
    """
    found = {}
    for name, value in (("mean", config.mean), ("std", config.std)):
        values = np.atleast_1d(np.asarray(value, np.float32))
        if len(values) not in (1, config.channels):
            raise UserError(
                f"data.{name} has {len(values)} values, data.channels is {config.channels}: give one value, "
                "or one for each channel, or set data.normalization=image"
            )
        found[name] = values
    if not (found["std"] > 0).all():
        raise UserError(f"data.std {config.std}: every value must be above 0")
    return found["mean"], found["std"]
