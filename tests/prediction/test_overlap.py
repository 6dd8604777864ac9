"""Work before and after the network, in threads of its own: in order, bounded, ended by errors."""

from __future__ import annotations

import threading
import time

import pytest

from effdet_tf.prediction.overlap import Stopped, ahead, behind


def test_the_next_item_is_made_while_one_is_worked_on():
    made = []

    def items():
        for k in range(4):
            made.append(k)
            yield k

    seen = []
    for item in ahead(items()):
        seen.append(item)
        until = time.monotonic() + 5
        while len(made) < min(item + 2, 4) and time.monotonic() < until:
            time.sleep(0.001)
        assert made == list(range(min(item + 2, 4)))  # one ahead, and no more
    assert seen == [0, 1, 2, 3]


def test_nothing_is_made_beside_an_item_that_is_alone():
    made = []
    items = (made.append(k) or k for k in range(3))
    for item in ahead(items, lambda item: item == 1):
        if item == 1:
            time.sleep(0.05)
            assert made == [0, 1]
    assert made == [0, 1, 2]


def test_a_failure_to_make_an_item_comes_at_its_place():
    def items():
        yield 1
        raise ValueError("the second")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="the second"):
        next(found)


def test_items_are_taken_in_order_by_another_thread():
    taken, threads = [], set()

    def take(items):
        for item in items:
            threads.add(threading.get_ident())
            taken.append(item)

    with behind(take) as hand:
        for k in range(50):
            hand(k)
        hand(50, alone=True)
        time.sleep(0.01)
        assert taken == list(range(51))
    assert threads and threading.get_ident() not in threads


def test_what_ends_the_taker_ends_the_maker():
    def take(items):
        for item in items:
            if item == 3:
                raise OSError("the disk is full")

    handed = []
    with pytest.raises(OSError, match="the disk is full"):
        with behind(take) as hand:
            for k in range(1000):
                hand(k)
                handed.append(k)
    assert len(handed) < 10
    with pytest.raises(OSError, match="full"):  # with the last item
        with behind(take) as hand:
            hand(3)


def test_what_ends_the_maker_is_told_to_the_taker():
    told = []

    def take(items):
        try:
            list(items)
        except Stopped as error:
            told.append(error)
            raise

    with pytest.raises(KeyboardInterrupt):
        with behind(take) as hand:
            hand(1)
            raise KeyboardInterrupt
    assert len(told) == 1
