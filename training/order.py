"""Which crop comes when: the order of an epoch and the seeds of its crops, for every input pipeline."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from effdet_tf.config import DataConfig
from effdet_tf.errors import UserError

PADDING_CLASS = -1
PER_CELL = ("boxes", "classes", "masks", "scores")  # arrays of a crop with one entry a cell
IGNORED_REGIONS = 128  # places for them in a batch; a crop has a few dozen at most


class Images(Protocol):
    """Training data, as far as a plan needs to know them."""

    @property
    def images(self) -> int:
        """Their number."""

    @property
    def cells(self) -> np.ndarray:
        """Cells of each, int64 `[images]`."""

    @property
    def sources(self) -> np.ndarray:
        """Name of the source of each, text `[images]`."""


def steps_per_epoch(store: Images, data_config: DataConfig, batch_size: int) -> int:
    """Return the batches in one epoch.

    Raises:
        UserError: when there are fewer crops than one batch, and as of `crop_shares`: before any is made.
    """
    if data_config.source_share:
        crop_shares(store, data_config)
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

    Without `data.source_share` and `data.balance` every image gives as many crops as any other. Else each
    gives its share, rounded up or down at random, so that n does not change; see `crop_shares`.

    Raises:
        UserError: as of `crop_shares`.
    """
    images, per_image = store.images, data_config.crops_per_image
    generator = np.random.default_rng([seed % 2**32, epoch])
    crops = images * per_image
    seeds = generator.integers(0, 2**31 - 1, (crops, 2), dtype=np.int32)
    order = generator.permutation(crops)
    if not data_config.balance and not data_config.source_share:
        return (order // per_image).astype(np.int64), seeds[order]
    edges = np.cumsum(crop_shares(store, data_config)) * crops
    edges[-1] = crops  # not a rounding error less
    edges = np.floor(edges + generator.random()).astype(np.int64)
    edges[-1] = crops
    numbers = np.repeat(np.arange(images), np.diff(edges, prepend=0))
    return numbers[order].astype(np.int64), seeds[order]


def crop_shares(store: Images, data_config: DataConfig) -> np.ndarray:
    """Return the share of all crops that each image gives, float64 `[images]`, summing to 1.

    A source that `data.source_share` names gives that share; the others share the rest in proportion to their
    images. Within a source the images give crops in proportion to the `data.balance`-th power of their cells.
    When every source is named, the shares are taken in proportion.

    Raises:
        UserError: for a name that no image has, shares of more than 1 together, or none left for anyone.
    """
    named, sources = data_config.source_share, store.sources
    weight = np.maximum(store.cells, 1).astype(np.float64) ** data_config.balance
    if not named:
        return weight / weight.sum()
    if unknown := sorted(set(named) - set(sources)):
        known = ", ".join(sorted(set(map(str, sources))))
        raise UserError(f"data.source_share names {', '.join(unknown)}; the sources of the data are {known}")
    total = sum(named.values())
    others = ~np.isin(sources, list(named))
    if total > 1 + 1e-6 or not total and not others.any():
        raise UserError(f"data.source_share gives {total:g} in all; give 1 at most, and more than 0")
    shares = np.zeros(store.images)
    for name in set(map(str, sources)):
        own = sources == name
        rest = max(1 - total, 0.0) * own.sum() / max(others.sum(), 1)
        shares[own] = weight[own] / weight[own].sum() * named.get(name, rest)
    return shares / shares.sum()
