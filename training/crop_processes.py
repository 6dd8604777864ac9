"""Processes that make batches beside the one that trains: Python's threads share one lock, these do not."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from effdet_tf.errors import UserError

Batch = dict[str, np.ndarray]
Make = Callable[[Any, Any], Batch]
ALIGNED = 64  # bytes: where arrays begin in a slot


class Place(NamedTuple):
    """Where in a slot an array lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes


class CropProcesses:
    """Forked processes, which see what `make` holds without a copy, and shared memory for what they make."""

    def __init__(self, make: Make, count: int, room: int) -> None:
        """Fork the processes.

        Args:
            make: gives a batch for the arguments of `submit`.
            count: processes.
            room: bytes that any batch takes at most, each array rounded up to `ALIGNED`. Memory that no batch
                needs is never touched.
        """
        self.count = count
        # One more than are at work and handed over: a slot is free again once its batch was copied.
        self._slots = [np.frombuffer(mmap.mmap(-1, room), np.uint8) for _ in range(count + 2)]
        self._free = deque(range(len(self._slots)))
        self._pool = ProcessPoolExecutor(
            count, multiprocessing.get_context("fork"), _begin, (make, self._slots)
        )
        with warnings.catch_warnings():
            # Python and JAX warn of forks beside threads. These run numpy alone, and touch no device.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            self._pool.submit(os.getpid).result()  # all are forked with the first task

    def submit(self, numbers: np.ndarray, seeds: np.ndarray) -> Callable[[], Batch]:
        """Let a process make a batch, of which at most `count + 2` may be under way; gives what waits for it.

        That raises a UserError when a process was killed.
        """
        slot = self._free.popleft()
        future = self._pool.submit(_work, slot, numbers, seeds)

        def result() -> Batch:
            try:
                places = future.result()
            except BrokenProcessPool:
                raise UserError(
                    f"one of the {self.count} processes that make crops was killed, most likely for want of "
                    "memory; the same command with fewer --workers goes on"
                ) from None
            batch = {place.name: _view(self._slots[slot], place).copy() for place in places}
            self._free.append(slot)
            return batch

        return result

    def close(self) -> None:
        """End the processes, without waiting for what they are at."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def can_fork() -> bool:
    """Whether processes can be forked off here: elsewhere than on Linux, libraries do not bear it."""
    return os.name == "posix" and os.uname().sysname == "Linux"


_make: Make | None = None  # of a forked process
_slots: list[np.ndarray] = []


def _begin(make: Make, slots: list[np.ndarray]) -> None:
    """Make this process ready: it ends with its parent, and leaves Ctrl-C to that."""
    global _make, _slots
    _make, _slots = make, slots
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns also when it was killed
    os._exit(1)


def _work(slot: int, numbers: np.ndarray, seeds: np.ndarray) -> list[Place]:
    """Make a batch, lay it into a slot; returns where its arrays are."""
    assert _make is not None  # of _begin
    places, offset = [], 0
    for name, array in _make(numbers, seeds).items():
        places.append(Place(name, array.dtype.str, array.shape, offset))
        _view(_slots[slot], places[-1])[...] = array
        offset += -(-array.nbytes // ALIGNED) * ALIGNED
    return places


def _view(slot: np.ndarray, place: Place) -> np.ndarray:
    dtype = np.dtype(place.dtype)
    size = int(np.prod(place.shape)) * dtype.itemsize
    return slot[place.offset : place.offset + size].view(dtype).reshape(place.shape)
