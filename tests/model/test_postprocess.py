from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from effdet_tf.geometry.boxes import encode
from effdet_tf.model.anchors import grid
from effdet_tf.model.detections import Detections
from effdet_tf.model.mask_head import MaskHead
from effdet_tf.model.postprocess import (
    MASK_CHUNK,
    Candidates,
    detect,
    mask_quality,
    ranked,
    select,
    suppress,
    vote,
)

SIZE = (64, 64)
NONE = -9.0  # a logit that no threshold lets through


def array(value):
    return ops.convert_to_numpy(value)


def logit(probability):
    return math.log(probability / (1 - probability))


@pytest.fixture
def config(tiny_config):
    return tiny_config.override(["postprocess.score_threshold=0.1", "postprocess.nms_iou=0.5"])


@pytest.fixture
def anchors(config):
    return array(ops.concatenate(grid(*SIZE, config.anchors, 2, 3), axis=0))


def outputs(anchors, scores, boxes=None, classes=1):
    """Dense outputs of one image: anchor -> score (of the first class), and the box it stands for."""
    logits = np.full((1, len(anchors), classes), NONE, np.float32)
    deltas = np.zeros((1, len(anchors), 4), np.float32)
    for anchor, score in scores.items():
        logits[0, anchor] = [logit(s) for s in np.atleast_1d(score)]
    for anchor, box in (boxes or {}).items():
        deltas[0, anchor] = array(encode(np.float32([box]), anchors[anchor][None]))[0]
    return {"class_logits": tf.constant(logits), "box_deltas": tf.constant(deltas)}


def found(config, out, frame=SIZE, head=None):
    result = detect(config, head, out, SIZE, frame)
    count = int(result.count)
    return [None if part is None else array(part)[:count] for part in result[:5]]


def inner(anchors):
    """Anchors wholly inside the frame, far from each other."""
    inside = np.flatnonzero((anchors >= 0).all(1) & (anchors <= 64).all(1))
    chosen = []
    for k in inside[::7]:
        apart = all(
            (anchors[k, :2] > anchors[j, 2:]).any() or (anchors[k, 2:] < anchors[j, :2]).any() for j in chosen
        )
        if apart:
            chosen.append(int(k))
    return chosen


def test_outputs_without_deltas_are_the_anchors(config, anchors):
    chosen = inner(anchors)
    assert len(chosen) >= 5
    scores = {k: 0.9 - 0.1 * i for i, k in enumerate(chosen[:5])}
    boxes, got, classes, masks, mask_boxes = found(config, outputs(anchors, scores))
    np.testing.assert_allclose(boxes, anchors[chosen[:5]], atol=1e-4)
    assert got == pytest.approx(list(scores.values()), abs=1e-5)  # best first
    assert (classes == 0).all() and classes.dtype == np.int32
    assert masks is None and mask_boxes is None


def test_deltas_move_the_box(config, anchors):
    k = inner(anchors)[0]
    boxes = found(config, outputs(anchors, {k: 0.8}, {k: [10, 12, 30, 40]}))[0]
    np.testing.assert_allclose(boxes, [[10, 12, 30, 40]], atol=1e-3)


def test_candidates_are_the_best_anchors_clipped_to_the_image(config, anchors):
    config = config.override(["postprocess.top_k=3"])
    out = outputs(anchors, {5: 0.3, 800: 0.9, 50: 0.6, 51: 0.2}, {800: [-5, 40, 20, 90]})
    best = select(config, out["class_logits"][0], out["box_deltas"][0], SIZE, (60, 50))
    assert array(best.anchors).tolist() == [800, 50, 5]
    assert array(best.scores) == pytest.approx([0.9, 0.6, 0.3], abs=1e-5)
    np.testing.assert_allclose(array(best.boxes)[0], [0, 40, 20, 50], atol=1e-3)


def test_boxes_are_clipped_to_the_height_and_the_width(config, anchors):
    out = outputs(anchors, {5: 0.9}, {5: [30, 30, 90, 90]})
    best = select(config, out["class_logits"][0], out["box_deltas"][0], SIZE, (60, 50))
    np.testing.assert_allclose(array(best.boxes)[0], [30, 30, 60, 50], atol=1e-3)


def test_where_classes_compete_an_anchor_stands_for_its_best_one(config, anchors):
    config = dataclasses.replace(config, class_names=("a", "b"), category_ids=(1, 2))
    out = outputs(anchors, {300: [0.9, 0.8], 310: [0.2, 0.7]}, classes=2)
    for agnostic, expected in (("true", [(300, 0), (310, 1)]), ("false", [(300, 0), (300, 1)])):
        each = config.override(["postprocess.top_k=2", f"postprocess.class_agnostic={agnostic}"])
        best = select(each, out["class_logits"][0], out["box_deltas"][0], SIZE, SIZE)
        assert list(zip(array(best.anchors).tolist(), array(best.classes).tolist(), strict=True)) == expected


def test_duplicates_are_removed_the_best_stays(config, anchors):
    box = [10, 10, 30, 30]
    near = [10, 10, 30, 28]  # IoU .9
    half = [10, 20, 30, 40]  # IoU 1/3
    out = outputs(anchors, {300: 0.6, 310: 0.9, 320: 0.5}, {300: near, 310: box, 320: half})
    boxes, scores = found(config, out)[:2]
    np.testing.assert_allclose(boxes, [box, half], atol=1e-3)
    assert scores == pytest.approx([0.9, 0.5], abs=1e-5)
    loose = config.override(["postprocess.nms_iou=0.95"])
    assert len(found(loose, out)[0]) == 3
    strict = config.override(["postprocess.nms_iou=0.3"])
    assert len(found(strict, out)[0]) == 1


def test_classes_compete_only_where_asked(config, anchors):
    config = dataclasses.replace(config, class_names=("a", "b"), category_ids=(1, 2))
    box = [10, 10, 30, 30]
    out = outputs(anchors, {300: [0.6, 0.3], 310: [0.2, 0.8]}, {300: box, 310: box}, classes=2)
    agnostic = found(config, out)
    assert agnostic[1] == pytest.approx([0.8], abs=1e-5)
    assert agnostic[2].tolist() == [1]
    apart = found(config.override(["postprocess.class_agnostic=false"]), out)
    # The best of each class; the weaker double of either is gone.
    assert apart[1] == pytest.approx([0.8, 0.6], abs=1e-5)
    assert apart[2].tolist() == [1, 0]
    np.testing.assert_allclose(apart[0], [box, box], atol=1e-3)  # moved apart for NMS only


def test_soft_suppression_lowers_scores_by_hand(config):
    config = config.override(["postprocess.nms=soft", "postprocess.score_threshold=0.3"])
    boxes = tf.constant([[0.0, 0, 10, 10], [0, 5, 10, 15], [0, 0, 10, 11], [30, 30, 40, 40]])
    scores = tf.constant([0.9, 0.8, 0.7, 0.6])
    candidates = Candidates(boxes, scores, tf.zeros(4, tf.int32), tf.range(4))
    chosen, found, count = suppress(config, candidates)
    # IoU with the first: 1/3 and 10/11; of the third with the second: 60 / 200.
    second = 0.8 * np.exp(-((1 / 3) ** 2))
    third = 0.7 * np.exp(-((10 / 11) ** 2)) * np.exp(-((6 / 15) ** 2))
    assert third < 0.3
    assert int(count) == 3
    assert chosen.numpy()[:3].tolist() == [0, 1, 3]
    np.testing.assert_allclose(found.numpy()[:3], [0.9, second, 0.6], rtol=1e-5)
    hard, kept, count = suppress(config.override(["postprocess.nms=hard"]), candidates)
    assert hard.numpy()[: int(count)].tolist() == [0, 1, 3]
    np.testing.assert_array_equal(kept.numpy()[:3], [np.float32(v) for v in (0.9, 0.8, 0.6)])


def test_votes_move_a_box_by_hand(config, anchors):
    config = config.override(["postprocess.vote_iou=0.6", "postprocess.score_threshold=0.2"])
    box, near, half = [10, 10, 30, 30], [10, 10, 30, 26], [10, 20, 30, 40]  # IoU .8 and 1/3
    weak = [10, 10, 30, 28]  # IoU .9, but below the score threshold
    boxes = {300: near, 310: box, 320: half, 330: weak}
    out = outputs(anchors, {300: 0.6, 310: 0.9, 320: 0.5, 330: 0.1}, boxes)
    moved = [10, 10, 30, (0.9 * 30 + 0.6 * 26) / 1.5]
    got, scores = found(config, out)[:2]
    np.testing.assert_allclose(got, [moved, half], atol=1e-3)
    assert scores == pytest.approx([0.9, 0.5], abs=1e-5)
    still = found(config.override(["postprocess.vote_iou=0.85"]), out)[0]
    np.testing.assert_allclose(still, [box, half], atol=1e-3)


def test_candidates_outside_the_image_take_no_vote_from_others(config):
    config = config.override(["postprocess.vote_iou=0.6", "postprocess.score_threshold=0.2"])
    boxes = tf.constant([[0.0, 0, 20, 20], [20, 20, 20, 20], [20, 20, 20, 20], [0, 0, 20, 16]])
    candidates = Candidates(boxes, tf.constant([0.9, -1, -1, 0.6]), tf.zeros(4, tf.int32), tf.range(4))
    kept = tf.repeat(boxes[:1], MASK_CHUNK, 0)
    moved = array(vote(config, candidates, kept, tf.zeros(MASK_CHUNK, tf.int32)))[0]
    assert moved == pytest.approx([0, 0, 20, 18.4])


def test_classes_that_compete_apart_vote_apart(config):
    config = config.override(["postprocess.vote_iou=0.6", "postprocess.class_agnostic=false"])
    box = tf.constant([[0.0, 0, 20, 20], [0, 0, 20, 16]])
    candidates = Candidates(box, tf.constant([0.9, 0.6]), tf.constant([0, 1]), tf.range(2))
    kept, kinds = tf.repeat(box[:1], MASK_CHUNK, 0), tf.zeros(MASK_CHUNK, tf.int32)
    np.testing.assert_array_equal(array(vote(config, candidates, kept, kinds))[0], [0, 0, 20, 20])
    together = config.override(["postprocess.class_agnostic=true"])
    assert array(vote(together, candidates, kept, kinds))[0] == pytest.approx([0, 0, 20, 18.4])
    for own in (0, 1):  # votes of its own class alone, whichever that is
        pair = candidates._replace(classes=tf.constant([own, own]))
        assert array(vote(config, pair, kept, kinds + own))[0] == pytest.approx([0, 0, 20, 18.4])


@pytest.mark.parametrize(("limit", "sides"), [(0.5, (15, 25)), (0.65, (4, 150)), (0.05, (4, 150))])
def test_votes_come_from_as_many_candidates_as_there_are(config, limit, sides):
    """Of all that are near, as if all were compared: no band of rows leaves one out."""
    config = config.override([f"postprocess.vote_iou={limit}"])
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 200, (3000, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(*sides, (3000, 2))], 1).astype(np.float32)
    scores = np.sort(rng.uniform(0.1, 1, 3000))[::-1].astype(np.float32)
    candidates = Candidates(tf.constant(boxes), tf.constant(scores), tf.zeros(3000, tf.int32), tf.range(3000))
    kept = boxes[: 2 * MASK_CHUNK]
    got = array(vote(config, candidates, tf.constant(kept), tf.zeros(len(kept), tf.int32)))
    low = np.maximum(kept[:, None, :2], boxes[None, :, :2])
    high = np.minimum(kept[:, None, 2:], boxes[None, :, 2:])
    inner = np.prod(np.maximum(high - low, 0), -1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], -1)
    weight = np.where(inner / (area[: len(kept), None] + area - inner) >= limit, scores, 0)
    np.testing.assert_allclose(got, weight @ boxes / weight.sum(1, keepdims=True), rtol=1e-4)


def test_no_more_than_max_instances(config):
    rng = np.random.default_rng(0)
    corner = np.arange(300, dtype=np.float32)[:, None] * 20
    boxes = np.concatenate([corner, corner, corner + 10, corner + 10], 1)
    scores = rng.uniform(0.2, 1, 300).astype(np.float32)
    candidates = Candidates(
        *(tf.constant(v) for v in (boxes, scores, np.zeros(300, np.int32), np.arange(300)))
    )
    chosen, _, count = suppress(config, candidates)  # max_instances 200
    assert int(count) == 200 == chosen.shape[0]
    np.testing.assert_array_equal(array(chosen), np.argsort(-scores)[:200])


def test_more_candidates_than_max_instances_are_cut_there(config, anchors):
    config = config.override(["data.max_instances=3"])
    chosen = inner(anchors)[:5]
    scores = {k: 0.5 + 0.1 * i for i, k in enumerate(chosen)}
    boxes, got = found(config, outputs(anchors, scores))[:2]
    assert got == pytest.approx([0.9, 0.8, 0.7], abs=1e-5)
    np.testing.assert_allclose(boxes, anchors[chosen[:1:-1]], atol=1e-4)


def test_nothing_found_is_no_crash(config, anchors):
    assert [len(part) for part in found(config, outputs(anchors, {}))[:3]] == [0, 0, 0]


def test_a_box_outside_the_image_takes_no_place(config, anchors):
    # Padding below and right of the image: what lies there is no cell and must not crowd one out.
    config = config.override(["data.max_instances=1"])
    out = outputs(anchors, {300: 0.9, 310: 0.5}, {300: [50, 50, 60, 60], 310: [10, 10, 20, 20]})
    boxes, scores = found(config, out, frame=(40, 40))[:2]
    np.testing.assert_allclose(boxes, [[10, 10, 20, 20]], atol=1e-3)
    assert scores == pytest.approx([0.5], abs=1e-5)


def test_mask_quality_by_hand():
    masks = np.zeros((4, 4, 4), np.float32)
    masks[0, :2] = 0.9
    masks[0, 2] = 0.4  # not inside
    masks[1, 0, 0], masks[1, 0, 1] = 0.6, 1.0
    masks[2, 0, 0], masks[2, 0, 1] = 0.55, 1.0  # the first counts half
    expected = [0.9, 0.8, (0.55 / 2 + 1) / 1.5, 0]
    assert array(mask_quality(masks, 0.6)) == pytest.approx(expected, abs=1e-6)
    expected[2] = (0.55 + 1) / 2
    assert array(mask_quality(masks)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("others", [0, 1, 100])
def test_a_pixel_on_the_edge_of_a_mask_moves_its_quality_by_nothing(others):
    masks = np.zeros((2, 28, 28), np.float32)
    masks.reshape(2, -1)[:, :others] = 0.9
    masks[:, -1, -1] = 0.5 - 1e-6, 0.5 + 1e-6
    below, above = array(mask_quality(masks, 0.6))
    assert abs(above - below) < 1e-4


@pytest.fixture
def head(config):
    head = MaskHead(config.model.mask)
    head.build((None, None, None, 8), (None, None, 8), (None, None, 4))
    return head


def with_features(out, anchors, seed=0):
    rng = np.random.default_rng(seed)
    return {
        **out,
        "mask_feature": tf.constant(rng.normal(size=(1, 32, 32, 8)), tf.float32),
        "codes": tf.constant(rng.normal(size=(1, len(anchors) // 6, 8)), tf.float32),
    }


def test_masks_belong_to_the_box_and_the_location_that_were_chosen(config, anchors, head):
    chosen = inner(anchors)[:4]
    out = with_features(outputs(anchors, {k: 0.9 - 0.1 * i for i, k in enumerate(chosen)}), anchors)
    boxes, _, _, masks, mask_boxes = found(config, out, head=head)
    np.testing.assert_allclose(mask_boxes, array(head.crop_boxes(boxes)), atol=1e-4)
    codes = array(out["codes"])[:, [k // 6 for k in chosen]]
    expected = 1 / (1 + np.exp(-array(head(out["mask_feature"], codes, mask_boxes[None]))[0]))
    np.testing.assert_allclose(masks, expected, atol=1e-5)
    assert masks.std() > 0.01


def test_the_score_is_weighed_by_the_masks_quality(config, anchors, head):
    chosen = inner(anchors)[:3]
    out = with_features(outputs(anchors, {k: 0.8 for k in chosen}), anchors)
    _, scores, _, masks, _ = found(config, out, head=head)
    quality = array(mask_quality(masks, config.postprocess.mask_sure))
    np.testing.assert_allclose(scores, 0.8 * quality, rtol=1e-4)
    plain = found(config.override(["postprocess.mask_scoring=false"]), out, head=head)
    assert plain[1] == pytest.approx([0.8] * 3, abs=1e-5)


@pytest.mark.parametrize("number", [0, 1, MASK_CHUNK, MASK_CHUNK + 1])
def test_masks_come_in_chunks_whatever_their_number(config, anchors, head, number):
    # One thin box each, side by side in rows: none overlaps another.
    places = {k: [(k // 16) * 6, (k % 16) * 4, (k // 16) * 6 + 5, (k % 16) * 4 + 3.5] for k in range(number)}
    out = with_features(outputs(anchors, {k: 0.7 for k in places}, places), anchors)
    result = detect(config, head, out, SIZE, SIZE)
    assert int(result.count) == number
    padded = max(1, -(-number // MASK_CHUNK)) * MASK_CHUNK
    assert result.masks.shape == (padded, 28, 28)
    assert result.boxes.shape == (padded, 4)
    assert np.isfinite(array(result.masks)).all()


def test_masks_are_rounded_to_8_bit_not_cut():
    shares = np.float32([0.999, 0.5, 0.001, 0.0])
    two = np.zeros((2, 4), np.float32)
    scores, masks = np.float32([0.3, 0.6]), np.stack([1 - shares, shares])[:, None]
    cells = Detections(two, scores, np.zeros(2, np.int32), masks, two, 2)
    best, other = array(ranked(cells).masks)
    assert best[0].tolist() == [255, 128, 0, 0]
    assert other[0].tolist() == [0, 128, 255, 255]


def test_eager_and_graph_agree(config, anchors, head):
    chosen = inner(anchors)[:4]
    out = with_features(outputs(anchors, {k: 0.9 for k in chosen}), anchors)
    eager = detect(config, head, out, SIZE, SIZE)
    graph = tf.function(lambda o, size: detect(config, head, o, (size[0], size[1]), (size[0], size[1])))(
        out, tf.constant(SIZE)
    )
    for a, b in zip(eager, graph, strict=True):
        np.testing.assert_allclose(array(a), array(b), atol=1e-5)


def test_a_score_that_is_asked_leaves_the_other_cells_as_they_are(config, anchors):
    config = config.override(["postprocess.vote_iou=0.6", "postprocess.score_threshold=0.2"])
    boxes = {300: [10, 10, 30, 26], 310: [10, 10, 30, 30], 320: [10, 20, 30, 40]}
    out = outputs(anchors, {300: 0.3, 310: 0.9, 320: 0.5}, boxes)
    whole, size = found(config, out), (64, 64)
    asked = detect(config, None, out, size, size, 0.6)
    fixed = detect(config.override(["postprocess.min_score=0.6"]), None, out, size, size)
    for few in (asked, fixed):
        assert int(few.count) == 1
        np.testing.assert_array_equal(array(few.boxes)[0], whole[0][0])  # moved by a vote of score .3
    assert int(detect(config, None, out, size, size, 0.1).count) == len(whole[0]) == 2
