"""Seeded, resumable batches of fixed shape for training, through tf.data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from effdet_tf.config import AugmentConfig, DataConfig
from effdet_tf.data.store import RecordStore
from training.augment import augment
from training.order import IGNORED_REGIONS, PADDING_CLASS, PER_CELL, epoch_plan, steps_per_epoch

_PLAN = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None, 2), tf.int32))  # as `epoch_plan` gives it


def training_dataset(
    data: RecordStore | str | Path | Sequence[str | Path],
    data_config: DataConfig,
    augment_config: AugmentConfig,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    epochs: int | None = 1,
    parallel_calls: int = tf.data.AUTOTUNE,
    part: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Return the batches of some epochs.

    An epoch is `crops_per_image` crops of every image in an order drawn from (seed, epoch), less the
    rest that fills no batch. Order and content depend on nothing else, so `.skip(n)` continues where n
    batches ended, and epoch e alone equals epoch e of a longer run.

    Args:
        data: an open store (keeps its images in memory from one call to the next), or the folders.
        data_config: crop size, channels, normalization, max_instances, crops_per_image, cache_mb.
        augment_config: what may change and how far.
        batch_size: crops in a batch.
        seed: of order and augmentation.
        epoch: number of the first epoch.
        epochs: how many follow each other; None: without end. They are planned one by one, as they come.
        parallel_calls: crops made at once; without influence on the result.
        part: (k, n): of every batch only the k-th of n equal parts, for one of several processes.

    Returns:
        Batches of `image [B, H, W, C]` float32, `boxes [B, M, 4]` float32 yxyx in crop pixels,
        `classes [B, M]` int32 (-1 = padding), `masks [B, M, m, m]` uint8, `scores [B, M]` float32 (how sure
        each label is), `ignored [B, R, 4]` float32 (regions that are neither cell nor background; padding is
        empty), `scale [B, 2]` float32 (crop pixels per source pixel), `image_id [B]` int64, and `dropped [B]`
        int32: cells beyond M = max_instances. The largest M stay, so the lost ones cover the fewest pixels.

    Raises:
        UserError: for unusable data (see `RecordStore`) or fewer crops than one batch.
    """
    even = data_config.normalization == "content"
    store = data if isinstance(data, RecordStore) else RecordStore(data, data_config.cache_mb, even=even)
    if store.even != even:
        raise ValueError(f"data.normalization={data_config.normalization}, of a store with even={store.even}")
    steps = steps_per_epoch(store, data_config, batch_size)
    own = np.arange(steps * batch_size).reshape(steps, part[1], -1)[:, part[0]].ravel()

    def plans() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in itertools.count(epoch) if epochs is None else range(epoch, epoch + epochs):
            order, seeds = epoch_plan(store, data_config, seed, number)
            yield order[own], seeds[own]

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and looking for it takes seconds
    def crop(number: tf.Tensor, crop_seed: tf.Tensor) -> dict[str, tf.Tensor]:
        example = augment(store.fetch(number), crop_seed, augment_config, data_config)
        return fit_cells(example, data_config.max_instances)

    # The images never leave the host before they are a batch.
    with tf.device("CPU:0"):
        dataset = tf.data.Dataset.from_generator(plans, output_signature=_PLAN).unbatch()
        dataset = dataset.map(crop, parallel_calls, deterministic=True)
        return dataset.batch(batch_size // part[1], drop_remainder=True).prefetch(2)


def fit_cells(example: dict[str, tf.Tensor], max_instances: int) -> dict[str, tf.Tensor]:
    """Pad the K cells of an example to M = `max_instances`, or keep as many of the largest.

    Returns:
        The example with `boxes [M, 4]`, `classes [M]` (-1 = padding), `masks [M, m, m]`, `ignored
        [IGNORED_REGIONS, 4]` (the largest, beyond that) and the scalar int32 `dropped`, the number of cells
        that had no place.
    """
    cells = [example[name] for name in PER_CELL]
    boxes, classes, masks, scores = cells
    count = tf.shape(classes)[0]
    regions = tf.pad(example["ignored"], [[0, IGNORED_REGIONS], [0, 0]])
    chosen = tf.math.top_k(tf.reduce_prod(regions[:, 2:] - regions[:, :2], -1), IGNORED_REGIONS).indices

    def largest() -> tuple[tf.Tensor, ...]:
        area = tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], -1)
        chosen = tf.sort(tf.math.top_k(area, max_instances).indices)
        return tuple(tf.gather(part, chosen) for part in cells)

    def padded() -> tuple[tf.Tensor, ...]:
        room = [0, max_instances - count]
        return (
            tf.pad(boxes, [room, [0, 0]]),
            tf.pad(classes, [room], constant_values=PADDING_CLASS),
            tf.pad(masks, [room, [0, 0], [0, 0]]),
            tf.pad(scores, [room]),
        )

    boxes, classes, masks, scores = tf.cond(count > max_instances, largest, padded)
    return {
        **example,
        "boxes": tf.ensure_shape(boxes, [max_instances, 4]),
        "classes": tf.ensure_shape(classes, [max_instances]),
        "masks": tf.ensure_shape(masks, [max_instances, masks.shape[1], masks.shape[2]]),
        "scores": tf.ensure_shape(scores, [max_instances]),
        "ignored": tf.gather(regions, chosen),
        "dropped": tf.maximum(count - max_instances, 0),
    }
