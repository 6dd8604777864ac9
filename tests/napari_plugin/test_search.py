from __future__ import annotations

import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.napari_plugin.pages import LayerPages
from effdet_tf.napari_plugin.search import mark, search
from tests.napari_plugin.stubs import HEIGHT, OWN_SCORE, WIDTH, StubNetwork, found

STACK = LayerPages("a", np.full((4, HEIGHT, WIDTH), [[[1]], [[2]], [[3]], [[0]]], np.uint8), (4,))


def run(work):
    steps = []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as end:
            return steps, end.value


def test_the_chosen_pages_are_searched_one_after_the_other():
    network = StubNetwork()
    steps, result = run(search(network, "cells", STACK, range(1, 3)))
    assert steps == [None, 0, 1]
    assert network.opened == ["cells"]
    assert [int(image.max()) for image in network.images] == [2, 3]
    assert (result.first, len(result.results), result.own_score) == (1, 2, OWN_SCORE)
    assert not result.truncated


def test_a_page_that_fails_ends_the_search():
    with pytest.raises(UserError, match="black"):
        run(search(StubNetwork(), "cells", STACK, range(4)))


def test_another_score_needs_no_network():
    _, result = run(search(StubNetwork(found(truncated=True)), "cells", STACK, range(0, 2)))
    assert result.truncated
    for score, cells in ((0.0, 6), (0.5, 4), (1.0, 0)):
        steps, marks = run(mark(result, score))
        assert steps == [1, 2]
        assert len(marks.features) == cells and marks.labels.max() == cells
