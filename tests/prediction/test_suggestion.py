"""What to annotate next: parts that cover an image, doubts, and the order in which parts are chosen."""

from __future__ import annotations

import numpy as np
import pytest

from effdet_tf.prediction.results import Result
from effdet_tf.prediction.suggestion import Part, choose, doubts, inside, parts_of, places, shown


@pytest.mark.parametrize(
    ("size", "side", "spans"),
    [
        (100, 512, [(0, 100)]),
        (640, 512, [(0, 640)]),  # a quarter larger: whole
        (700, 512, [(0, 512), (188, 700)]),
        (1024, 512, [(0, 512), (256, 768), (512, 1024)]),
    ],
)
def test_parts_cover_an_image_from_edge_to_edge(size, side, spans):
    assert places(size, 64, side) == [(low, 0, high, 64) for low, high in spans]
    assert places(64, size, side) == [(0, low, 64, high) for low, high in spans]


def test_doubt_is_whole_at_one_half_and_none_of_what_is_sure():
    assert doubts(np.array([0.0, 0.1, 0.5, 1.0])) == pytest.approx([0, 0.36, 1, 0])


def test_a_part_has_the_doubts_of_the_cells_whose_middle_it_holds():
    boxes = np.array([[0, 0, 20, 20], [90, 290, 110, 310], [0, 380, 20, 400]], np.float32)
    scores = np.array([0.9, 0.5, 0.1], np.float32)
    result = Result(boxes, scores, np.zeros(3, np.int32), None, None, 128, 400, ("cell",))
    image = np.random.default_rng(0).integers(0, 255, (128, 400, 1)).astype(np.uint8)
    first, middle, last = parts_of(image, result, 200)
    assert [part.place for part in (first, middle, last)] == [
        (0, 0, 128, 200),
        (0, 100, 128, 300),
        (0, 200, 128, 400),
    ]
    assert first.doubt == pytest.approx(0.36, abs=1e-6)
    assert middle.doubt == 0  # 300 is outside
    assert last.doubt == pytest.approx(1 + 0.36, abs=1e-6)
    assert first.look.shape == (15,) and not np.allclose(first.look, last.look)
    assert inside(result, last.place).tolist() == [1, 2]


def parts(looks: list[float], needs: list[float]) -> list[Part]:
    return [
        Part((0, 0, 64, 64), np.full(15, look), need, 1.0) for look, need in zip(looks, needs, strict=True)
    ]


def test_every_kind_of_image_is_chosen_before_one_comes_twice():
    """Nine of one kind, six of another, three of a third."""
    looks = (
        [0 + k / 100 for k in range(9)] + [5 + k / 100 for k in range(6)] + [11 + k / 100 for k in range(3)]
    )
    chosen = choose(parts(looks, [1.0] * 18), range(18), 3)
    assert sorted((0 if k < 9 else 1 if k < 15 else 2) for k in chosen) == [0, 1, 2]
    assert chosen[0] < 15  # the rarest does not come first
    # What stands for the others of its kind, not its outlier.
    assert chosen == choose(parts(looks, [1.0] * 18), range(18), 5)[:3]


def test_of_parts_that_look_alike_the_one_in_doubt_comes_first():
    looks, needs = [0.0, 0.01, 0.02, 0.03], [1.0, 1.0, 30.0, 1.0]
    assert choose(parts(looks, needs), range(4), 1) == [2]


def test_what_is_annotated_is_not_chosen_and_covers_its_kind():
    looks = [0, 0.01, 0.02, 5, 5.01]
    done = [False, True, False, False, False]
    first, *_ = choose(parts(looks, [1.0] * 5), range(5), 4, done)
    assert first in (3, 4)
    assert sorted(choose(parts(looks, [1.0] * 5), range(5), 9, done)) == [0, 2, 3, 4]
    assert choose(parts([0, 1], [1.0] * 2), range(2), 3, [True, True]) == []
    assert choose([], [], 3) == []


def test_one_of_two_overlapping_parts_of_an_image_is_enough():
    made = [
        Part(place, np.arange(15.0) + k, 1.0, 1.0) for k, place in enumerate([(0, 0, 9, 8), (0, 4, 9, 12)])
    ]
    assert len(choose(made, [7, 7], 2)) == 1
    assert len(choose(made, [7, 8], 2)) == 2  # of two images
    assert shown((0, 0, 10, 10), (0, 6, 10, 16)) and not shown((0, 0, 10, 10), (0, 7, 10, 17))
    small, large = (10, 10, 20, 20), (0, 0, 100, 100)
    assert shown(small, large) and not shown(large, small) and not shown(small, (20, 20, 30, 30))


def test_many_parts_are_compared_by_those_with_the_most_doubts(monkeypatch):
    monkeypatch.setattr("effdet_tf.prediction.suggestion._MOST", 3)
    looks, needs = [float(k) for k in range(6)], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert sorted(choose(parts(looks, needs), range(6), 6)) == [3, 4, 5]
    done = [True, False, False, False, False, False]  # what is annotated counts whatever its doubts
    assert sorted(choose(parts(looks, needs), range(6), 6, done)) == [4, 5]
    assert choose(parts(looks, needs), range(6), 6, [True] * 5 + [False]) == [5]  # and leaves room for others


def test_a_part_without_anything_is_worth_nothing():
    image = np.full((128, 400, 1), 90, np.uint8)
    image[:, :150] = np.random.default_rng(0).integers(0, 255, (128, 150, 1))
    nothing = np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32)
    found = parts_of(image, Result(*nothing, None, None, 128, 400, ("cell",)), 200)
    assert found[0].texture > 1 > found[1].texture > 0.1 and found[2].texture == 0
    assert choose(found, [0, 0, 0], 1) == [0]
