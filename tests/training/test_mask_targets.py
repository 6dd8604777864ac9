from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from training.assignment import Assignment, State
from training.mask_targets import mask_targets, sample_instances


def array(value):
    return ops.convert_to_numpy(value)


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
    samples = [array(sample_instances(assignment, 50, 8, step)[0])[0] for step in (5, 5, 6)]
    assert samples[0].tolist() == samples[1].tolist()
    assert set(samples[0]) != set(samples[2])


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
