"""The label image that a SavedModel makes is numpy's, at the very limits too."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.model.detections import Detections
from effdet_tf.prediction.results import Result
from export.label_map import label_map

HEIGHT, WIDTH = 12, 20


def both(boxes, scores, minimum, value=255):
    """Label image and number of cells of squares, from the graph and from numpy, which must agree."""
    boxes, scores = np.float32(boxes), np.float32(scores)
    masks = np.full((len(boxes), 4, 4), value, np.uint8)
    found = Detections(boxes, scores, np.zeros(len(boxes), np.int32), masks, boxes, len(boxes))
    labels, number = tf.function(label_map)(
        Detections(*map(tf.constant, found)), tf.constant(HEIGHT), tf.constant(WIDTH), minimum
    )
    result = Result(*found[:5], height=HEIGHT, width=WIDTH, class_names=("cell",))
    expected, kept = result.filter(minimum).label_image()
    np.testing.assert_array_equal(labels, expected)
    assert int(number) == len(kept)
    return expected, len(kept)


def test_a_score_equal_to_the_minimum_is_reported():
    boxes = [[0, 0, 4, 4], [6, 6, 10, 10]]
    for score, cells in ((0.3, 2), (float(np.nextafter(np.float32(0.3), np.float32(0))), 1)):
        assert both(boxes, [0.9, score], 0.3)[1] == cells


def test_a_cell_that_keeps_exactly_half_stays():
    first = [0, 0, 4, 4]
    labels, number = both([first, [0, 2, 4, 6]], [0.9, 0.8], 0.1)
    assert number == 2 and labels[0, :7].tolist() == [1, 1, 1, 1, 2, 2, 0]
    labels, number = both([first, [0, 0, 4, 7]], [0.9, 0.8], 0.1)  # keeps 3 columns of 7
    assert number == 1 and labels.max() == 1


@pytest.mark.parametrize(("value", "cells"), [(127, 0), (128, 1)])
def test_a_pixel_belongs_to_a_cell_above_one_half(value, cells):
    assert both([[2, 2, 8, 8]], [0.9], 0.1, value)[1] == cells
