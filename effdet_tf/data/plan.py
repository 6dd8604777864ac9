"""Which crop comes when: the order of an epoch and the seeds of its crops, for every input pipeline."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from effdet_tf.config import DataConfig
from effdet_tf.errors import UserError

PADDING_CLASS = -1


class Images(Protocol):
    """Training data, as far as a plan needs to know them; `images` is their number."""

    images: int


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


def epoch_plan(images: int, crops_per_image: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image number int64 `[n]` and the augmentation seed int32 `[n, 2]` of each crop."""
    generator = np.random.default_rng([seed % 2**32, epoch])
    crops = images * crops_per_image
    seeds = generator.integers(0, 2**31 - 1, (crops, 2), dtype=np.int32)
    order = generator.permutation(crops)
    return (order // crops_per_image).astype(np.int64), seeds[order]
