"""Write a `Source` as sharded TFRecords with a manifest, on all cores, the same bytes every time."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import multiprocessing
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from effdet_tf.data.build import BuiltImage, build_image
from effdet_tf.data.manifest import MANIFEST_NAME, Manifest
from effdet_tf.data.sources.base import ImageTask, Source
from effdet_tf.data.tally import Tally
from effdet_tf.errors import UserError
from effdet_tf.files import LOCK_FILE, atomic_write, locked, usable_cores
from effdet_tf.geometry import MASK_SIZE

_SHARD = re.compile(r"^part-\d{5}-of-\d{5}\.tfrecord$")
_SCRATCH = ".tmp-scratch-"
_LEFTOVER = re.compile(r"^\.tmp-\d+-(part-\d{5}-of-\d{5}\.tfrecord|manifest\.json)$")
_AHEAD = 4  # images per worker that may be under way: bounds the memory, whatever the size of the set


@dataclass(frozen=True)
class WriteOptions:
    """How a data set is written."""

    # processes that read images; None takes one for each core. It never changes the bytes
    workers: int | None = None
    shards: int | None = None  # number of shards; None follows `images_per_shard`
    images_per_shard: int = 64  # images in one shard
    mask_size: int = MASK_SIZE  # side of the box-aligned bitmaps, pixels
    limit: int | None = None  # only the first images by name; None takes all
    strict: bool = False  # fail when anything at all was dropped or noted
    progress: bool = False  # show a progress bar on stderr


@contextlib.contextmanager
def prepare_output(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """Make `out` and yield a scratch folder in it, which is removed in the end, and so is `out` when empty.

    Args:
        out: the output folder; it is made when missing.
        overwrite: allow a complete data set there; `write_records` will replace it.

    Raises:
        UserError: when `out` is a file, cannot be written, holds a complete data set, or another process
            writes there.
    """
    if (out / MANIFEST_NAME).exists() and not overwrite:
        raise UserError(f"{out}: already holds a converted data set; add --overwrite or name another folder")
    if out.is_file():
        raise UserError(f"{out}: is a file, a data set needs a folder; name another one")
    try:
        with locked(out, "writes a data set there"):
            try:
                for stale in out.glob(f"{_SCRATCH}*"):  # of a conversion that was killed
                    shutil.rmtree(stale)
                scratch = tempfile.TemporaryDirectory(dir=out, prefix=_SCRATCH)
            except OSError as error:
                reason = error.strerror or str(error)
                raise UserError(f"{out}: cannot be written to ({reason}); name another folder") from error
            with scratch as folder:
                yield Path(folder)
    finally:
        if out.is_dir() and {path.name for path in out.iterdir()} <= {LOCK_FILE}:
            shutil.rmtree(out)


def write_records(source: Source, out: Path, options: WriteOptions) -> Manifest:
    """Convert all images of a source; the manifest, which is returned, is written last.

    Image i by name goes to shard i mod S: every shard mixes the cell types. A data set that lies in `out`,
    whole or interrupted, is replaced in the end; other files there are not touched.

    Args:
        source: the opened source.
        out: a folder made ready by `prepare_output`.
        options: how.

    Raises:
        UserError: when no image could be converted, a worker died, the disk is full, or with `strict` when
            anything was dropped or noted; no manifest is left then.
    """
    tasks = source.tasks[: options.limit]
    if not tasks:
        raise UserError(_nothing(source.faults.lines()))
    tally = Tally()
    tally.faults.merge(source.faults)
    count = min(options.shards or -(-len(tasks) // options.images_per_shard), len(tasks))
    groups = [tasks[number::count] for number in range(count)]
    bar = tqdm(total=len(tasks), unit="image", desc="convert", disable=not options.progress)
    shards = []
    try:
        # Written aside and moved in the end: a conversion that fails leaves the old set as it was.
        with tempfile.TemporaryDirectory(dir=out, prefix=_SCRATCH) as folder:
            stage = Path(folder)
            with bar, _built(itertools.chain(*groups), options) as built:
                for number, group in enumerate(groups):
                    path = stage / f"part-{number:05d}-of-{count:05d}.tfrecord"
                    ready = itertools.islice(built, len(group))
                    shards += _write_shard(path, ready, source.name, tally, bar)
            if not tally.images:
                raise UserError(_nothing(tally.faults.lines()))
            manifest = tally.manifest(source, shards, options.mask_size)
            if options.strict and tally.faults:
                found = "; ".join(" ".join(line.split()) for line in tally.faults.lines())
                raise UserError(f"{out}: not written, since --strict allows no fault: {found}")
            _clear(out)
            for shard in shards:
                (stage / shard["file"]).rename(out / shard["file"])
            manifest.save(out)
    except OSError as error:
        raise UserError(f"{out}: writing failed ({error.strerror or error}); free some space") from error
    return manifest


def _clear(out: Path) -> None:
    (out / MANIFEST_NAME).unlink(missing_ok=True)  # first: without it the rest counts as incomplete
    for path in sorted(out.iterdir()):
        if _SHARD.match(path.name) or _LEFTOVER.match(path.name):
            path.unlink()


def _nothing(lines: list[str]) -> str:
    reasons = "; ".join(" ".join(line.split()) for line in lines)
    return f"no image could be converted{': ' + reasons if reasons else ', since the annotations name none'}"


def _write_shard(
    path: Path, built: Iterator[BuiltImage], source: str, tally: Tally, bar: tqdm
) -> list[dict[str, Any]]:
    """Write one shard and describe it; an empty list when none of its images could be used."""
    import tensorflow as tf  # here: reading and checking the source must not wait for it

    from effdet_tf.data.record import ImageRecord, serialize

    images = cells = 0
    try:
        with atomic_write(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
            for image in built:
                tally.faults.merge(image.faults)
                bar.update(1)
                if image.fields is not None:
                    tally.add(image.fields)
                    writer.write(serialize(ImageRecord(source=source, **image.fields)))
                    images += 1
                    cells += len(image.fields["rles"])
    except tf.errors.OpError as error:
        raise OSError(error.message.splitlines()[0]) from error
    if not images:
        path.unlink()
        return []
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [{"file": path.name, "images": images, "cells": cells, "sha256": digest}]


@contextlib.contextmanager
def _built(tasks: Iterator[ImageTask], options: WriteOptions) -> Iterator[Iterator[BuiltImage]]:
    """The results in order, made by a pool of spawned processes, or right here for a single worker."""
    workers = options.workers or usable_cores()
    if workers == 1:
        yield (build_image(task, options.mask_size) for task in tasks)
        return
    # Spawned, not forked: this process holds TensorFlow and its threads.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        first = itertools.islice(tasks, workers * _AHEAD)
        with _interrupts_blocked():  # in the workers as well, until they ignore them
            pending = collections.deque(pool.submit(build_image, task, options.mask_size) for task in first)
        yield _in_order(pool, pending, tasks, options.mask_size)
    except BrokenProcessPool as error:
        reason = "a worker process died, most likely for want of memory; use fewer --workers"
        raise UserError(reason) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: concurrent.futures.ProcessPoolExecutor,
    pending: collections.deque[concurrent.futures.Future[BuiltImage]],
    tasks: Iterator[ImageTask],
    mask_size: int,
) -> Iterator[BuiltImage]:
    while pending:
        result = pending.popleft().result()
        for task in itertools.islice(tasks, 1):
            pending.append(pool.submit(build_image, task, mask_size))
        yield result


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Hold back Ctrl-C, also in processes that are started meanwhile; does nothing on Windows."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    import cv2

    cv2.setNumThreads(1)  # the pool itself uses all cores
