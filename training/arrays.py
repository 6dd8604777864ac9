"""Batches for training from a packed data set, by threads or processes in numpy; seeded and resumable."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from effdet_tf.config import AugmentConfig, DataConfig
from effdet_tf.data.packed import PackedSet
from training.crop_processes import ALIGNED, Batch, CropProcesses
from training.numpy_crops import augment
from training.order import IGNORED_REGIONS, PADDING_CLASS, PER_CELL, epoch_plan, steps_per_epoch

PLACES = 64  # for cells in a batch come in this many; each shape is compiled once
_SLACK = 1.5  # cells of one image are not spread evenly


def training_batches(
    data: PackedSet,
    data_config: DataConfig,
    augment_config: AugmentConfig,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    done: int = 0,
    threads: int | None = None,
    processes: int = 0,
) -> Iterator[Batch]:
    """Yield batches without end, epoch after epoch, in the order of `training.pipeline`.

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
        processes: that make them in place of the threads, which share one lock; see `CropProcesses`. Ask
            `can_fork` before.

    Yields:
        What `pipeline.training_dataset` gives, but for M: `first_places` doubled until the fullest crop
        finds room, at most max_instances.

    Raises:
        UserError: for fewer crops than one batch, or when a process was killed.
    """
    places = first_places(data, data_config, augment_config)
    data = data.even() if data_config.normalization == "content" else data

    def make(numbers: np.ndarray, seeds: np.ndarray) -> Batch:
        crops = [
            augment(data.fetch(int(number)), crop_seed, augment_config, data_config)
            for number, crop_seed in zip(numbers, seeds, strict=True)
        ]
        return stack(crops, data_config.max_instances, places)

    workers = processes or threads or os.cpu_count() or 1
    submit: Callable[[np.ndarray, np.ndarray], Callable[[], Batch]]
    if processes:
        pool = CropProcesses(make, processes, max_bytes(data, data_config, batch_size))
        submit, close = pool.submit, pool.close
    else:
        submit, close = _thread_pool(make, workers)
    try:
        waiting: deque[Callable[[], Batch]] = deque()
        for numbers, seeds in _plans(data, data_config, batch_size, seed, epoch, done):
            waiting.append(submit(numbers, seeds))
            if len(waiting) > workers + 1:
                yield waiting.popleft()()
    finally:
        close()


def _plans(
    data: PackedSet, config: DataConfig, batch_size: int, seed: int, epoch: int, done: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image numbers and crop seeds of each batch, epoch after epoch."""
    steps = steps_per_epoch(data, config, batch_size)
    while True:
        numbers, seeds = epoch_plan(data, config, seed, epoch)
        for step in range(done, steps):
            part = slice(step * batch_size, (step + 1) * batch_size)
            yield numbers[part], seeds[part]
        epoch, done = epoch + 1, 0


def _thread_pool(
    make: Callable[[np.ndarray, np.ndarray], Batch], threads: int
) -> tuple[Callable[[np.ndarray, np.ndarray], Callable[[], Batch]], Callable[[], None]]:
    """What begins a batch and gives what waits for it, and what ends the threads."""
    executor = ThreadPoolExecutor(threads, "crops")

    def submit(numbers: np.ndarray, seeds: np.ndarray) -> Callable[[], Batch]:
        return executor.submit(make, numbers, seeds).result

    return submit, lambda: executor.shutdown(wait=False, cancel_futures=True)


def first_places(data: PackedSet, data_config: DataConfig, augment_config: AugmentConfig) -> int:
    """Places for cells, a multiple of `PLACES` up to max_instances, that suffice for nearly all batches.

    They follow from the smallest scale, at which a crop sees most cells; so most batches have one shape.
    """
    sizes = data.arrays["size"][:, :2].astype(float)
    scale = augment_config.scale_range[0] * data_config.zoom
    seen = np.minimum(np.array(data_config.crop_size) / scale, sizes).prod(1) / sizes.prod(1)
    if data_config.resize == "fit" or augment_config.short_sides:
        seen = np.ones_like(seen)
    largest = float((data.cells * np.minimum(_SLACK * seen, 1)).max(initial=0.0))
    return min(max(math.ceil(largest / PLACES), 1) * PLACES, data_config.max_instances)


def max_bytes(data: PackedSet, data_config: DataConfig, batch_size: int) -> int:
    """Bytes of a batch in which a crop has `max_instances` cells."""
    image = 4 * math.prod(data_config.crop_size) * data_config.channels
    cells = data_config.max_instances * (4 * 4 + 4 + 4 + data.mask_size**2)  # box, class, score, bitmap
    rest = IGNORED_REGIONS * 4 * 4 + 2 * 4 + 8 + 8  # ignored, scale, image_id, dropped
    return batch_size * (image + cells + rest) + 9 * ALIGNED  # 9 arrays


def stack(crops: list[dict[str, Any]], max_instances: int, places: int = PLACES) -> Batch:
    """Join crops to a batch: pad their cells, or keep as many of the largest.

    Args:
        crops: of `augment`.
        max_instances: largest number of cells in a crop.
        places: for cells, doubled until the fullest crop finds room.

    Returns:
        `image [B, H, W, C]`, `boxes [B, M, 4]`, `classes [B, M]` (-1 = padding), `masks [B, M, m, m]`,
        `scores [B, M]`, `ignored [B, R, 4]`, `scale [B, 2]`, `image_id [B]` and int32 `dropped [B]`, the
        cells that had no place.
    """
    counts = [len(crop["classes"]) for crop in crops]
    while places < max(counts):
        places *= 2
    places = min(places, max_instances)
    batch = {name: np.stack([crop[name] for crop in crops]) for name in ("image", "scale", "image_id")}
    for name in PER_CELL:
        one, padding = crops[0][name], PADDING_CLASS if name == "classes" else 0
        batch[name] = np.full((len(crops), places, *one.shape[1:]), padding, one.dtype)
    batch["ignored"] = np.zeros((len(crops), IGNORED_REGIONS, 4), np.float32)
    for place, crop in enumerate(crops):
        chosen: slice | np.ndarray = slice(None)
        if counts[place] > max_instances:
            area = (crop["boxes"][:, 2:] - crop["boxes"][:, :2]).prod(-1)
            chosen = np.sort(np.argsort(-area, kind="stable")[:max_instances])
        for name in PER_CELL:
            kept = crop[name][chosen]
            batch[name][place, : len(kept)] = kept
        regions = crop["ignored"]
        largest = np.argsort(-(regions[:, 2:] - regions[:, :2]).prod(-1), kind="stable")[:IGNORED_REGIONS]
        batch["ignored"][place, : len(largest)] = regions[largest]
    batch["dropped"] = np.maximum(np.array(counts, np.int32) - np.int32(max_instances), 0)
    return batch
