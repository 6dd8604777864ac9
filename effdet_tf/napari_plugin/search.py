"""Searches pages and measures their cells, as generators that can be left whenever they yield."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from effdet_tf.napari_plugin.marks import Marks, join, mark_page
from effdet_tf.napari_plugin.pages import LayerPages
from effdet_tf.prediction.network_process import NetworkProcess
from effdet_tf.prediction.results import Result

_POLL_SECONDS = 0.05


@dataclass(frozen=True, eq=False)
class Search:
    """All that a network found in some pages of a layer, down to its lowest score."""

    pages: LayerPages
    first: int  # number of the first page searched
    results: list[Result]  # one per page searched
    own_score: float  # that the network reports cells from

    @property
    def truncated(self) -> bool:
        """Whether a page had as many cells as the network may report, so that weaker ones are missing."""
        return any(result.truncated for result in self.results)


def search(
    network: NetworkProcess, source: str, pages: LayerPages, chosen: range
) -> Generator[int | None, None, Search]:
    """Find the cells of some pages.

    Args:
        network: opens and runs it.
        source: the network, as `effdet_tf.load` takes it.
        pages: of the layer.
        chosen: numbers of consecutive pages.

    Yields:
        Many times a second: how many pages are done; None while the network is opened.

    Returns:
        What was found.

    Raises:
        UserError: when the network cannot be opened, or a page cannot be searched.
    """

    def wait(done: int | None) -> Generator[int | None, None, Any]:
        while True:
            yield done
            answer = network.answer(_POLL_SECONDS)
            if answer is not None:
                return answer

    network.open(source)
    score = yield from wait(None)
    results: list[Result] = []
    for number in chosen:
        network.predict(pages.read(number))
        results.append((yield from wait(len(results))))
    return Search(pages, chosen.start, results, score)


def mark(found: Search, score: float) -> Generator[int, None, Marks]:
    """Number, paint and measure the cells that reach a score.

    Args:
        found: by a search.
        score: cells with this score or more are taken.

    Yields:
        How many pages are done.

    Returns:
        What the viewer shows.
    """
    parts = []
    for number, result in enumerate(found.results, start=found.first):
        parts.append(mark_page(result.filter(score), found.pages.read(number)))
        yield len(parts)
    return join(parts, found.first, found.pages.lead)
