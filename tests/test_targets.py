from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from effdet_tf.anchors import grid
from effdet_tf.config import AnchorConfig, AssignConfig
from effdet_tf.presets import preset
from effdet_tf.targets import Assignment, State, assign, mask_targets, sample_instances

CLOSE = 1e-5  # IoU differences that float32 and the matcher's integer keys cannot tell apart


def array(value):
    return ops.convert_to_numpy(value)


def overlap_matrix(cells, anchors):
    """IoU `[A, M]` in double precision."""
    cells, anchors = cells.astype(np.float64)[None], anchors.astype(np.float64)[:, None]
    sides = np.minimum(cells[..., 2:], anchors[..., 2:]) - np.maximum(cells[..., :2], anchors[..., :2])
    inner = np.clip(sides, 0, None).prod(-1)
    total = (cells[..., 2:] - cells[..., :2]).prod(-1) + (anchors[..., 2:] - anchors[..., :2]).prod(-1)
    return inner / (total - inner)


def check_against_full_matrix(cells, size, config, rules, low, high):
    """Compare every anchor of one image with the full matrix; return how many positives there were."""
    anchors = np.concatenate([array(level) for level in grid(*size, config, low, high)])
    found = assign(cells[None], np.ones((1, len(cells)), bool), size, config, rules, low, high)
    state, matched = array(found.state)[0], array(found.matched)[0]
    assert state.shape == matched.shape == (len(anchors),)
    iou = overlap_matrix(cells, anchors)
    top = iou.max(1)
    best = iou.max(0)  # of every cell
    # Ren et al.: the anchor, or the anchors, of highest IoU. Where two lie within CLOSE, either may win.
    sure = (iou >= best - 1e-12) & (best > 0) & rules.force_match
    forced = (iou >= best - CLOSE) & (best > 0) & rules.force_match
    may_be_forced = forced.any(1)
    expected = np.where(top >= rules.positive_iou, 1, np.where(top >= rules.negative_iou, -1, 0))
    near = np.minimum(np.abs(top - rules.positive_iou), np.abs(top - rules.negative_iou)) < CLOSE
    settled = ~may_be_forced & ~near
    assert settled.mean() > 0.5
    np.testing.assert_array_equal(state[settled], expected[settled])
    # Forced: positive, unless only a tie says so; every cell's forced anchors are settled up to ties.
    assert (expected[(state == State.POSITIVE) & ~may_be_forced & ~near] == 1).all()
    alone = sure.any(1) & (forced.sum(0) == 1)[forced.argmax(1)] & (forced.sum(1) == 1)
    assert (state[alone] == State.POSITIVE).all()
    assert (matched[alone] == forced[alone].argmax(1)).all()
    # The matched cell: the one of highest IoU, or the one that the anchor was forced for.
    taken = np.flatnonzero(state != State.NEGATIVE)
    own = iou[taken, matched[taken]]
    assert ((own >= top[taken] - CLOSE) | forced[taken, matched[taken]]).all()
    assert (matched[state == State.NEGATIVE] == 0).all()
    # No cell goes without, unless each of its best anchors was forced for another cell too, or was
    # best only up to rounding.
    for cell in np.flatnonzero(best > 0) if rules.force_match else ():
        mine = np.flatnonzero(forced[:, cell])
        assert (state[mine] == State.POSITIVE).any()
        assert (matched[mine] == cell).any() or (forced[mine].sum(1) > 1).all() or len(mine) > 1
    return int((state == State.POSITIVE).sum())


def random_cells(count, size, low, high, seed):
    rng = np.random.default_rng(seed)
    side = np.exp(rng.uniform(np.log(low), np.log(high), (count, 1)))
    ratio = np.exp(rng.normal(0, 0.4, (count, 1)))
    sides = np.concatenate([side / ratio, side * ratio], axis=1)
    center = rng.uniform(0, size, (count, 2))
    frame = np.array([*size, *size])
    cells = np.clip(np.concatenate([center - sides / 2, center + sides / 2], axis=1), 0, frame)
    return cells[((cells[:, 2:] - cells[:, :2]) >= 2).all(1)].astype(np.float32)


@pytest.mark.parametrize(
    ("height", "width", "count", "low", "high"),
    [
        (128, 128, 60, 6, 60),
        (96, 160, 120, 8, 30),
        (101, 77, 50, 5, 80),  # off every stride
        (37, 53, 20, 5, 60),
        (128, 128, 1, 10, 20),
        (128, 128, 30, 100, 400),  # larger than the anchors: forced ones only
        (128, 128, 80, 2, 5),  # smaller than the anchors
    ],
)
@pytest.mark.parametrize("name", ["cells-lite0", "cells-d0", "d0"])
def test_assignment_equals_the_full_matrix(name, height, width, count, low, high):
    config = preset(name)
    positives = 0
    for seed in range(2):
        cells = random_cells(count, (height, width), low, high, seed)
        positives += check_against_full_matrix(
            cells,
            (height, width),
            config.anchors,
            config.assign,
            config.model.min_level,
            config.model.max_level,
        )
    assert positives > 0


def test_without_forcing_only_the_overlap_counts():
    config = preset("d0")
    cells = random_cells(80, (128, 128), 10, 60, 3)
    rules = AssignConfig(positive_iou=0.5, negative_iou=0.4, force_match=False)
    assert check_against_full_matrix(cells, (128, 128), config.anchors, rules, 3, 7) > 0
    tiny = np.array([[60, 60, 64, 64]], np.float32)
    found = assign(tiny[None], np.ones((1, 1), bool), (128, 128), config.anchors, rules, 3, 7)
    assert (array(found.state) == State.NEGATIVE).all()


ONE = AnchorConfig(sizes=((16.0,),), ratios=(1.0,))  # at stride 8: centres 4, 12, 20, 28


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        # The anchor at (12, 12) is rows and columns 4..20.
        ([4, 4, 20, 20], {5: State.POSITIVE}),  # IoU 1; its neighbours reach 128 / 384 = 1/3
        ([4, 4, 20, 12], {4: State.POSITIVE, 5: State.POSITIVE}),  # IoU exactly 1/2 with two of them
        # 12 columns of 16 in common with (12, 12): .75; 8 of 20 with (12, 4): .4.
        ([4, 4, 20, 16], {5: State.POSITIVE, 4: State.IGNORE}),
    ],
)
def test_states_by_hand(cell, expected):
    rules = AssignConfig(positive_iou=0.5, negative_iou=0.4)
    cells = np.array([[cell]], np.float32)
    found = assign(cells, np.ones((1, 1), bool), (32, 32), ONE, rules, 3, 3)
    states = np.zeros(16, int)
    for index, state in expected.items():
        states[index] = state
    assert array(found.state)[0].tolist() == states.tolist()


@pytest.mark.parametrize("count", [2, 300, 2000])  # the last needs 11 bits for the cell's index
def test_an_overlap_of_exactly_the_threshold_is_positive(count):
    cells = np.zeros((1, count, 4), np.float32)
    cells[0, 0] = [4, 4, 20, 12]  # half of anchors 4 and 5
    cells[0, -1] = [4, 4, 20, 20]  # all of anchor 5
    rules = AssignConfig(positive_iou=0.5, negative_iou=0.5, force_match=False)
    found = assign(cells, cells[..., 2] > 0, (32, 32), ONE, rules, 3, 3)
    assert array(found.state)[0, 4:6].tolist() == [State.POSITIVE] * 2
    assert array(found.matched)[0, 4:6].tolist() == [0, count - 1]


def test_a_forced_anchor_beats_a_larger_overlap_of_another_cell():
    # The large cell overlaps anchor 5 by 13 columns of 19 and anchor 6 by 11 of 21, more than half.
    # The small one lies within anchor 6, 36 px of 256: its best, so it gets it all the same.
    cells = np.array([[[4, 7, 20, 23], [9, 19, 15, 25]]], np.float32)
    for force, owner in ((True, 1), (False, 0)):
        rules = AssignConfig(force_match=force)
        found = assign(cells, np.ones((1, 2), bool), (32, 32), ONE, rules, 3, 3)
        assert array(found.state)[0, 5:7].tolist() == [State.POSITIVE] * 2
        assert array(found.matched)[0, 5:7].tolist() == [0, owner]
    # Two cells with the same best anchor: the larger overlap has it.
    cells = np.array([[[4, 4, 20, 17], [4, 4, 20, 20]]], np.float32)
    found = assign(cells, np.ones((1, 2), bool), (32, 32), ONE, AssignConfig(), 3, 3)
    assert array(found.matched)[0, 5] == 1


def test_images_of_a_batch_do_not_meet():
    config = preset("cells-lite0")
    first, second = (random_cells(40, (64, 64), 8, 40, seed)[:20] for seed in (0, 1))
    rest = (config.anchors, config.assign, 2, 5)
    valid = np.ones((1, 20), bool)
    both = assign(np.stack([first, second]), np.ones((2, 20), bool), (64, 64), *rest)
    for k, cells in enumerate((first, second)):
        alone = assign(cells[None], valid, (64, 64), *rest)
        np.testing.assert_array_equal(array(both.state)[k], array(alone.state)[0])
        np.testing.assert_array_equal(array(both.matched)[k], array(alone.matched)[0])


def test_padding_changes_nothing():
    config = preset("cells-lite0")
    cells = random_cells(30, (64, 64), 8, 40, 0)
    rest = ((64, 64), config.anchors, config.assign, 2, 5)
    plain = assign(cells[None], np.ones((1, len(cells)), bool), *rest)
    # Padding at the front, in places where a cell would match.
    padded = np.concatenate([cells[:7] + 1, cells])[None]
    valid = np.arange(padded.shape[1])[None] >= 7
    found = assign(padded, valid, *rest)
    np.testing.assert_array_equal(array(found.state), array(plain.state))
    taken = array(plain.state) != State.NEGATIVE
    np.testing.assert_array_equal(array(found.matched)[taken], array(plain.matched)[taken] + 7)


@pytest.mark.parametrize("count", [1, 50])
def test_padding_alone_gives_no_target(count):
    config = preset("cells-lite0")
    cells = np.zeros((2, count, 4), np.float32)
    found = assign(cells, np.zeros((2, count), bool), (64, 64), config.anchors, config.assign, 2, 5)
    assert (array(found.state) == State.NEGATIVE).all()
    assert (array(found.matched) == 0).all()
    _, weight = sample_instances(found, count, 8, 3)
    assert (array(weight) == 0).all()


def test_two_thousand_cells_need_no_full_matrix():
    config = preset("cells-lite0")
    cells = random_cells(2100, (512, 512), 10, 30, 0)[:2000]
    assert len(cells) == 2000

    @tf.function
    def run(cells):
        found = assign(
            cells, tf.ones(tf.shape(cells)[:2], bool), (512, 512), config.anchors, config.assign, 2, 5
        )
        return found.state, found.matched

    graph = run.get_concrete_function(tf.TensorSpec((1, 2000, 4))).graph
    largest = max(
        int(np.prod(output.shape))
        for op in graph.get_operations()
        for output in op.outputs
        if output.shape.rank
    )
    full = 2000 * (128**2 + 64**2 + 32**2 + 16**2) * 6
    assert largest < full / 30
    state, matched = run(cells[None])
    assert int((state[0] == State.POSITIVE).numpy().sum()) > 1500
    assert len(np.unique(matched[0].numpy()[state[0] == State.POSITIVE])) > 1500


def test_more_cells_than_usual_keep_their_numbers_when_the_shape_is_open():
    count = 5000
    cells = np.zeros((1, count, 4), np.float32)
    cells[0, -1] = [4, 4, 20, 20]

    @tf.function(input_signature=[tf.TensorSpec((None, None, 4))])
    def run(cells):
        valid = cells[..., 2] > 0
        return assign(cells, valid, (32, 32), ONE, AssignConfig(), 3, 3, max_cells=count)

    found = run(cells)
    assert array(found.state)[0, 5] == State.POSITIVE
    assert array(found.matched)[0, 5] == count - 1


def assignment_of(anchors_per_cell):
    """Made-up assignment of one image: cell k has so many positive anchors, then some negatives."""
    matched = np.repeat(np.arange(len(anchors_per_cell)), anchors_per_cell)
    state = np.concatenate([np.ones(len(matched)), np.zeros(40), -np.ones(9)])
    matched = np.concatenate([matched, np.zeros(49)])
    return Assignment(
        ops.convert_to_tensor(state[None].astype("int32")),
        ops.convert_to_tensor(matched[None].astype("int32")),
    )


def test_samples_are_one_anchor_a_cell_and_never_padding():
    assignment = assignment_of([3, 1, 5, 2, 0, 0])
    state, matched = array(assignment.state)[0], array(assignment.matched)[0]
    for step in range(20):
        index, weight = (array(v)[0] for v in sample_instances(assignment, 6, 8, step))
        assert weight.tolist() == [1] * 4 + [0] * 4  # four cells have anchors
        drawn = index[weight > 0]
        assert (state[drawn] == State.POSITIVE).all()
        assert sorted(matched[drawn]) == [0, 1, 2, 3]
        assert (index >= 0).all() and (index < len(state)).all()


def test_the_same_step_draws_the_same_and_another_step_others():
    assignment = assignment_of([2] * 50)
    draws = [array(sample_instances(assignment, 50, 8, step)[0])[0] for step in (5, 5, 6)]
    assert draws[0].tolist() == draws[1].tolist()
    assert set(draws[0]) != set(draws[2])


def test_every_cell_is_drawn_as_often_however_many_anchors_it_has():
    # Ten cells with 20 anchors each among 40 with one.
    assignment = assignment_of([20] * 10 + [1] * 40)
    matched = array(assignment.matched)[0]
    draw = tf.function(lambda step: sample_instances(assignment, 50, 10, step))
    count = np.zeros(50)
    anchors = set()
    for step in range(300):
        index, weight = (array(v)[0] for v in draw(tf.constant(step)))
        assert weight.sum() == 10
        count[matched[index]] += 1
        anchors.update(index[matched[index] == 0])
    # 10 of 50 each time: 60 expected, standard deviation 7.
    assert count[:10].mean() == pytest.approx(60, abs=10)
    assert count[10:].mean() == pytest.approx(60, abs=5)
    assert count.min() > 25
    assert len(anchors) > 10  # of the 20 of cell 0: any of them may stand for it


def test_images_of_a_batch_are_sampled_apart():
    state = ops.convert_to_tensor(np.array([[1, 1, 0, 0], [0, 0, 0, 1]], "int32"))
    matched = ops.convert_to_tensor(np.array([[0, 1, 0, 0], [0, 0, 0, 1]], "int32"))
    index, weight = (array(v) for v in sample_instances(Assignment(state, matched), 2, 3, 0))
    assert sorted(index[0][weight[0] > 0]) == [0, 1]
    assert index[1][weight[1] > 0].tolist() == [3]


def test_a_crop_that_is_the_box_gives_the_bitmap_back():
    bitmap = np.random.default_rng(0).integers(0, 256, (1, 2, 28, 28)).astype(np.uint8)
    boxes = np.array([[[3.5, 7, 31, 20], [100, 50, 108, 90]]], np.float32)
    found = array(mask_targets(bitmap, boxes, boxes, 28))
    np.testing.assert_allclose(found, bitmap / 255, atol=2e-4)


def test_a_half_plane_under_a_grown_crop_by_hand():
    # The box is rows 10..20 and columns 0..10; its upper half is cell. 4 x 4 stored values.
    bitmap = np.zeros((1, 1, 4, 4), np.uint8)
    bitmap[..., :2, :] = 255
    boxes = np.array([[[10, 0, 20, 10]]], np.float32)
    crops = np.array([[[5, -5, 25, 15]]], np.float32)  # twice the box: sample rows 7.5, 12.5, 17.5, 22.5
    found = array(mask_targets(bitmap, boxes, crops, 4))[0, 0]
    # Row 12.5 lies a quarter down the box: stored position 0.25 * 4 - 0.5 = 0.5, between two rows of 1.
    # Row 17.5 lies at 2.5, between two rows of 0.
    assert found.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    # Row 15 lies at 1.5, between a row of 1 and a row of 0.
    middle = array(mask_targets(bitmap, boxes, np.array([[[14.5, 2, 15.5, 8]]], np.float32), 1))[0, 0]
    assert middle.tolist() == [[0.5]]


def test_axes_are_not_mixed_up():
    bitmap = np.zeros((1, 1, 4, 4), np.uint8)
    bitmap[..., 0] = 255  # the left column
    boxes = np.array([[[0, 0, 40, 8]]], np.float32)
    found = array(mask_targets(bitmap, boxes, boxes, 4))[0, 0]
    assert found.tolist() == [[1, 0, 0, 0]] * 4


def test_the_target_of_a_padding_box_is_finite():
    bitmap = np.zeros((1, 1, 4, 4), np.uint8)
    zero = np.zeros((1, 1, 4), np.float32)
    assert np.isfinite(array(mask_targets(bitmap, zero, zero, 4))).all()
