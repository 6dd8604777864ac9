"""Which crop comes when: the order of an epoch and the seeds of its crops, for every input pipeline."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from effdet_tf.config import DataConfig
from effdet_tf.errors import UserError

PADDING_CLASS = -1
IGNORED_REGIONS = 128  # places for them in a batch; a crop has a few dozen at most


class Images(Protocol):
    """Training data, as far as a plan needs to know them."""

    images: int  # their number
    cells: np.ndarray  # int64 `[images]`, cells of each


def steps_per_epoch(store: Images, data_config: DataConfig, batch_size: int) -> int:
    """Return the batches in one epoch.

    Raises:
        UserError: when there are fewer crops than one batch.
    """
    crops = store.images * data_config.crops_per_image
    if crops < batch_size:
        raise UserError(
            f"{store.images} images x {data_config.crops_per_image} crops give less than one batch of "
            f"{batch_size}; lower the batch or set data.crops_per_image={-(-batch_size // store.images)}"
        )
    return crops // batch_size


def epoch_plan(
    store: Images, data_config: DataConfig, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image number int64 `[n]` and the augmentation seed int32 `[n, 2]` of each crop.

    With `data.balance` 0 every image gives as many crops as any other; with p it gives them in proportion to
    the p-th power of its cells, rounded up or down at random, so that n does not change.
    """
    images, per_image = store.images, data_config.crops_per_image
    generator = np.random.default_rng([seed % 2**32, epoch])
    crops = images * per_image
    seeds = generator.integers(0, 2**31 - 1, (crops, 2), dtype=np.int32)
    order = generator.permutation(crops)
    if data_config.balance == 0:
        return (order // per_image).astype(np.int64), seeds[order]
    weight = np.maximum(store.cells, 1).astype(np.float64) ** data_config.balance
    edges = np.cumsum(weight) * (crops / weight.sum())
    edges[-1] = crops  # not a rounding error less
    edges = np.floor(edges + generator.random()).astype(np.int64)
    edges[-1] = crops
    numbers = np.repeat(np.arange(images), np.diff(edges, prepend=0))
    return numbers[order].astype(np.int64), seeds[order]
