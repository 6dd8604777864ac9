"""Batches for training from a packed data set: threads that work in numpy, seeded and resumable."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from effdet_tf.config import AugmentConfig, DataConfig
from effdet_tf.data.packed import PackedSet
from effdet_tf.data.plan import IGNORED_REGIONS, PADDING_CLASS, epoch_plan, steps_per_epoch
from training.numpy_crops import augment

LEAST_CELLS = 64  # places for cells in a batch, doubled as often as needed: each shape is compiled once


def training_batches(
    data: PackedSet,
    data_config: DataConfig,
    augment_config: AugmentConfig,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    done: int = 0,
    threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches without end, epoch after epoch, in the order of `effdet_tf.data.pipeline`.

    Order and content depend on nothing but the arguments before `threads`; epoch e after n batches is what
    a longer run gives there.

    Args:
        data: the images.
        data_config: crop size, channels, normalization, resize, max_instances, crops_per_image.
        augment_config: what may change and how far.
        batch_size: crops in a batch.
        seed: of order and augmentation.
        epoch: number of the first epoch.
        done: batches of it to leave out.
        threads: batches made at once; None for one on each core.

    Yields:
        What `pipeline.training_dataset` gives, but for M: `LEAST_CELLS` doubled until the fullest crop
        finds room, at most max_instances.

    Raises:
        UserError: for fewer crops than one batch.
    """
    steps = steps_per_epoch(data, data_config, batch_size)

    def plans() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        number, first = epoch, done
        while True:
            numbers, seeds = epoch_plan(data, data_config, seed, number)
            for step in range(first, steps):
                part = slice(step * batch_size, (step + 1) * batch_size)
                yield numbers[part], seeds[part]
            number, first = number + 1, 0

    def make(numbers: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        crops = [
            augment(data.fetch(int(number)), crop_seed, augment_config, data_config)
            for number, crop_seed in zip(numbers, seeds, strict=True)
        ]
        return stack(crops, data_config.max_instances)

    workers = threads or os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers, "crops")
    try:
        waiting: deque[Future[dict[str, np.ndarray]]] = deque()
        for numbers, seeds in plans():
            waiting.append(pool.submit(make, numbers, seeds))
            if len(waiting) > workers + 1:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def stack(crops: list[dict[str, Any]], max_instances: int) -> dict[str, np.ndarray]:
    """Join crops to a batch: pad their cells, or keep as many of the largest.

    Args:
        crops: of `augment`.
        max_instances: largest number of cells in a crop.

    Returns:
        `image [B, H, W, C]`, `boxes [B, M, 4]`, `classes [B, M]` (-1 = padding), `masks [B, M, m, m]`,
        `ignored [B, R, 4]`, `scale [B, 2]`, `image_id [B]` and int32 `dropped [B]`, the cells that had no
        place.
    """
    counts = [len(crop["classes"]) for crop in crops]
    places = LEAST_CELLS
    while places < max(counts):
        places *= 2
    places = min(places, max_instances)
    batch = {name: np.stack([crop[name] for crop in crops]) for name in ("image", "scale", "image_id")}
    for name, padding in (("boxes", 0), ("classes", PADDING_CLASS), ("masks", 0)):
        one = crops[0][name]
        batch[name] = np.full((len(crops), places, *one.shape[1:]), padding, one.dtype)
    batch["ignored"] = np.zeros((len(crops), IGNORED_REGIONS, 4), np.float32)
    for place, crop in enumerate(crops):
        chosen = slice(None)
        if counts[place] > max_instances:
            area = (crop["boxes"][:, 2:] - crop["boxes"][:, :2]).prod(-1)
            chosen = np.sort(np.argsort(-area, kind="stable")[:max_instances])
        for name in ("boxes", "classes", "masks"):
            kept = crop[name][chosen]
            batch[name][place, : len(kept)] = kept
        regions = crop["ignored"]
        largest = np.argsort(-(regions[:, 2:] - regions[:, :2]).prod(-1), kind="stable")[:IGNORED_REGIONS]
        batch["ignored"][place, : len(largest)] = regions[largest]
    batch["dropped"] = np.maximum(np.int32(counts) - np.int32(max_instances), 0)
    return batch
