"""Polygons whose edges are long: the pixels of pycocotools, without its steps."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from effdet_tf.geometry import polygons
from effdet_tf.geometry.polygons import polygons_to_rle
from effdet_tf.geometry.rle import decode_rle, rle_to_patch


def test_long_edges_are_drawn_as_pycocotools_does_on_a_larger_canvas() -> None:
    rng = np.random.default_rng(0)
    for trial in range(2000):
        height, width = (int(side) for side in rng.integers(1, 40, 2))
        count = int(rng.integers(3, 12))
        points = (
            rng.uniform(-30, 70, (count, 2)),
            rng.integers(-10, 50, (count, 2)).astype(float),
            rng.uniform(0, 1, (count, 2)) * [width, height],
            rng.integers(-20, 200, (count, 2)) / 2,
        )[trial % 4]
        found = polygons._crossings_filled(points, height, width)
        larger = coco_mask.decode(coco_mask.frPyObjects([(points + 100).ravel().tolist()], 350, 350))[..., 0]
        same = coco_mask.decode(coco_mask.frPyObjects([points.ravel().tolist()], height, width))[..., 0]
        np.testing.assert_array_equal(found, same)
        if (points >= 0).all():  # pycocotools rounds towards 0, on the larger canvas always down
            np.testing.assert_array_equal(found, larger[100 : 100 + height, 100 : 100 + width])


@pytest.mark.parametrize("far", [1, 15])
def test_edges_of_any_length_take_little(far: int) -> None:
    x = np.where(np.arange(20_000) % 2, far * 500.0, 500 - far * 500.0)
    y = np.linspace(0, 400, 20_000)
    tracemalloc.start()
    rle = polygons_to_rle([np.stack([x, y], axis=1).ravel()], 400, 500)
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()
    assert rle["size"] == [400, 500] and decode_rle(rle).any()


def test_edges_that_are_far_too_long_in_all_and_too_many_corners_are_refused() -> None:
    x, y = np.where(np.arange(90_000) % 2, 2000.0, 0.0), np.linspace(0, 2000, 90_000)
    with pytest.raises(ValueError, match="the edges of a polygon cross 180,000,000 columns"):
        polygons_to_rle([np.stack([x, y], axis=1).ravel()], 2000, 2000)
    with pytest.raises(ValueError, match="a polygon of 100,001 corners"):
        polygons_to_rle([np.ones(200_002)], 20, 20)


def test_counts_of_bytes_that_all_go_on_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="a number is far too long"):
        rle_to_patch({"size": [500, 500], "counts": "o" * 3_000_000 + "0"})
