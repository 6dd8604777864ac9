from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from effdet_tf.geometry import boxes


def array(value):
    return ops.convert_to_numpy(value)


def random_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 500, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0.5, 200, (count, 2))], 1).astype(np.float32)


def test_coco_boxes_are_converted_both_ways():
    # x 10, y 20, 30 wide, 40 high: rows 20..60, columns 10..40.
    assert boxes.xywh_to_yxyx([[10, 20, 30, 40]]).tolist() == [[20, 10, 60, 40]]
    assert boxes.yxyx_to_xywh([[20, 10, 60, 40]]).tolist() == [[10, 20, 30, 40]]


@pytest.mark.parametrize("convert", [boxes.xywh_to_yxyx, boxes.yxyx_to_xywh])
def test_no_boxes_stay_no_boxes(convert):
    result = convert([])
    assert result.shape == (0, 4)
    assert result.dtype == np.float32


def test_center_form():
    y, x, h, w = boxes.to_center(np.array([[2.0, 10.0, 6.0, 30.0]], np.float32))
    assert [float(v[0]) for v in (y, x, h, w)] == [4, 20, 4, 20]


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0, 1.0),
        # 50 px in common of 150; the hull is the union.
        ([0, 0, 10, 10], [0, 5, 10, 15], 1 / 3, 1 / 3),
        # 25 of 175; the hull of 15 x 15 = 225 holds 50 that neither box covers.
        ([0, 0, 10, 10], [5, 5, 15, 15], 25 / 175, 25 / 175 - 50 / 225),
        # Apart by 10 columns: the hull is 10 x 30, a third of it is a gap.
        ([0, 0, 10, 10], [0, 20, 10, 30], 0.0, -1 / 3),
        # One inside the other: 16 of 100.
        ([0, 0, 10, 10], [3, 3, 7, 7], 0.16, 0.16),
        # Touching edges share nothing.
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0, 0.0),
    ],
)
def test_overlap_by_hand(a, b, iou, giou):
    a, b = np.array([a], np.float32), np.array([b], np.float32)
    for first, second in ((a, b), (b, a)):
        assert array(boxes.iou(first, second)) == pytest.approx([iou], abs=1e-6)
        assert array(boxes.giou(first, second)) == pytest.approx([giou], abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0),
        # Apart by 20 columns, of one shape: no overlap, 20^2 of the hull's diagonal 10^2 + 30^2.
        ([0, 0, 10, 10], [0, 20, 10, 30], -400 / 1000),
        # One centre, 4 x 16 in 16 x 4: IoU 16 / 112; the angles are atan(4) and atan(1/4).
        ([6, 0, 10, 16], [0, 6, 16, 10], None),
    ],
)
def test_complete_overlap_by_hand(a, b, expected):
    if expected is None:
        overlap, shape = 16 / 112, 4 / np.pi**2 * (np.arctan(4) - np.arctan(0.25)) ** 2
        expected = overlap - shape * shape / (1 - overlap + shape)
    a, b = np.array([a], np.float32), np.array([b], np.float32)
    for first, second in ((a, b), (b, a)):
        assert array(boxes.ciou(first, second)) == pytest.approx([expected], abs=1e-5)


def test_sides_by_hand():
    anchor = np.array([[10, 10, 20, 20]], np.float32)  # centre 15, 15, half a side is 5
    box = np.array([[5, 12.5, 20, 35]], np.float32)  # 10 up, 2.5 left, 5 down, 20 right
    code = array(boxes.encode(box, anchor, "sides"))
    assert code[0] == pytest.approx(np.log([2, 0.5, 1, 4]), abs=1e-6)
    assert array(boxes.decode(code, anchor, "sides"))[0] == pytest.approx(box[0], abs=1e-5)
    # A side on the wrong side of the centre cannot be told: what comes back has no extent there.
    beyond = array(boxes.encode(np.array([[16, 12.5, 20, 35]], np.float32), anchor, "sides"))
    assert np.isfinite(beyond).all()
    assert array(boxes.decode(beyond, anchor, "sides"))[0] == pytest.approx([15, 12.5, 20, 35], abs=1e-4)


def test_empty_and_inverted_boxes_overlap_nothing():
    empty = np.array([[5, 5, 5, 5], [9, 9, 4, 4], [0, 0, 0, 0]], np.float32)
    whole = np.array([[0, 0, 10, 10]], np.float32)
    assert array(boxes.area(empty)).tolist() == [0, 0, 0]
    assert array(boxes.iou(empty, whole)).tolist() == [0, 0, 0]
    assert array(boxes.iou(empty, empty)).tolist() == [0, 0, 0]
    assert np.isfinite(array(boxes.giou(empty, whole))).all()
    assert np.isfinite(array(boxes.giou(empty, empty))).all()


def test_encoding_by_hand():
    anchor = np.array([[0, 0, 10, 20]], np.float32)  # centre (5, 10), 10 x 20
    box = np.array([[5, 5, 25, 15]], np.float32)  # centre (15, 10), 20 x 10
    # One anchor height down, no move sideways, twice as high, half as wide.
    assert array(boxes.encode(box, anchor))[0] == pytest.approx([1, 0, np.log(2), -np.log(2)], abs=1e-6)


def test_decode_undoes_encode():
    cells, anchors = random_boxes(500), random_boxes(500, seed=1)
    code = boxes.encode(cells, anchors)
    assert np.abs(array(code)).max() > 1  # the pairs are far apart
    inside = array(code)[:, 2:].max(1) < 4  # larger ratios are cut on purpose
    decoded = array(boxes.decode(code, anchors))
    assert inside.sum() > 400
    np.testing.assert_allclose(decoded[inside], cells[inside], atol=2e-3)


@pytest.mark.parametrize("code", ["center", "sides"])
def test_an_encoding_of_zeros_is_the_anchor_itself(code):
    anchors = random_boxes(50)
    decoded = array(boxes.decode(np.zeros((50, 4), np.float32), anchors, code))
    np.testing.assert_allclose(decoded, anchors, atol=1e-4)


def test_a_wild_encoding_gives_a_large_box_not_infinity():
    decoded = array(
        boxes.decode(np.array([[0, 0, 900, 900]], np.float32), np.array([[0, 0, 2, 2]], np.float32))
    )
    assert decoded[0, 2] - decoded[0, 0] == pytest.approx(2 * np.exp(4), rel=1e-5)


def test_coding_a_padding_box_is_finite():
    code = boxes.encode(np.zeros((1, 4), np.float32), np.array([[0, 0, 10, 10]], np.float32))
    assert np.isfinite(array(code)).all()


def test_grow_moves_every_side_by_a_share_of_its_own_length():
    grown = boxes.grow(np.array([[10, 100, 20, 140]], np.float32), 0.1)
    assert array(grown)[0] == pytest.approx([9, 96, 21, 144], abs=1e-4)
