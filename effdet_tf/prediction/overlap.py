"""Reading, network and writing side by side: what comes before and after the network has threads of its own.

The network stays in the thread of the caller, so that Ctrl-C ends it at once.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()
_POLL_SECONDS = 0.05


class Stopped(Exception):
    """Ends the work on items whose maker failed."""


def _never(item: object) -> bool:
    return False


def ahead(items: Iterable[T], alone: Callable[[T], bool] = _never) -> Iterator[T]:
    """The items as they are, each made in a thread while the one before it is worked on.

    Beside an item that is `alone`, a large one, no other is made.
    """
    source = iter(items)
    with ThreadPoolExecutor(1) as pool:
        item: Any = pool.submit(next, source, _END).result()
        while item is not _END:
            coming = None if alone(item) else pool.submit(next, source, _END)
            yield item
            del item
            item = (coming or pool.submit(next, source, _END)).result()


@contextlib.contextmanager
def behind(consume: Callable[[Iterator[T]], object]) -> Iterator[Callable[..., None]]:
    """Work on items in a thread, while the next ones are made.

    Args:
        consume: is called with the items, in that thread. When the block fails, its next item raises.

    Yields:
        `hand(item, alone=False)`, which hands an item over, or raises what `consume` raised; with `alone` it
        waits until the item is done with.
    """
    handed: queue.Queue[Any] = queue.Queue(1)

    def items() -> Iterator[T]:
        while (item := handed.get()) is not _END:
            if isinstance(item, Stopped):
                raise item
            yield item
            del item
            handed.task_done()

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(consume, items())

        def hand(item: Any, alone: bool = False) -> None:
            while not work.done():
                with contextlib.suppress(queue.Full):
                    handed.put(item, timeout=_POLL_SECONDS)
                    break
            while alone and handed.unfinished_tasks and not work.done():
                time.sleep(_POLL_SECONDS)
            if work.done() and item is not _END:
                work.result()

        try:
            yield hand
        except BaseException:
            if not work.done():
                hand(Stopped())
            raise
        hand(_END)
        work.result()
