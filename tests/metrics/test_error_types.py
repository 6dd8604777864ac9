"""Right, missed, false, merged and split cells, on squares that can be told by eye."""

from __future__ import annotations

import numpy as np
import pytest

from effdet_tf.geometry.rle import Patch, patch_to_rle
from effdet_tf.metrics.cell_metrics import CellEvaluator, match_cells
from effdet_tf.metrics.error_types import error_types
from effdet_tf.metrics.instances import image_instances
from effdet_tf.metrics.matching import match_boxes

SIDE = 100


def cell(y, x, height, width, **fields):
    rle = patch_to_rle(Patch(y, x, np.ones((height, width), bool)), SIDE, SIDE)
    return {"category_id": 1, "bbox": [x, y, width, height], "segmentation": rle, **fields}


TRUE = [
    cell(0, 0, 10, 10),
    cell(20, 0, 10, 10),
    cell(40, 0, 10, 10),
    cell(40, 11, 10, 10),
    cell(60, 0, 10, 20),
]
FOUND = [
    cell(0, 0, 10, 10, score=0.9),  # right
    cell(80, 80, 8, 8, score=0.8),  # false
    cell(38, 0, 14, 21, score=0.7),  # over two cells: neither IoU reaches .5
    cell(60, 0, 10, 8, score=0.6),  # two parts of one cell
    cell(60, 12, 10, 8, score=0.5),
]
OF_TRUE = ["right", "missed", "missed", "missed", "missed"]
OF_FOUND = ["right", "false", "merged", "split", "split"]


def types_of(true, found, masks):
    image = image_instances({"id": 1, "height": SIDE, "width": SIDE}, true, found)
    match = match_cells(image) if masks else match_boxes(image.ground_truth, image.predictions, overlaps=True)
    return error_types(match)


@pytest.mark.parametrize("masks", [True, False])
def test_every_cell_has_its_error_type(masks):
    assert types_of(TRUE, FOUND, masks) == (OF_TRUE, OF_FOUND)


def test_the_totals_are_those_of_the_cells_at_each_score():
    image = {"id": 1, "height": SIDE, "width": SIDE}
    for score, kinds in ((0.05, OF_FOUND), (0.55, OF_FOUND[:3] + ["false"]), (0.75, OF_FOUND[:2])):
        evaluator = CellEvaluator(score)
        evaluator.add(image_instances(image, TRUE, FOUND))
        metrics = evaluator.report()["all"]
        totals = {kind: kinds.count(kind) for kind in ("merged", "split", "false")}
        assert {kind: metrics[kind] for kind in totals} == totals
        assert metrics["missed"] == OF_TRUE.count("missed") == len(TRUE) - kinds.count("right")


@pytest.mark.parametrize("masks", [True, False])
def test_a_part_beside_the_right_cell_is_split(masks):
    found = [cell(60, 0, 10, 13, score=0.6), cell(60, 14, 10, 5, score=0.5)]
    assert types_of(TRUE[-1:], found, masks) == (["right"], ["right", "split"])


@pytest.mark.parametrize("masks", [True, False])
def test_merged_takes_more_than_one_cell_and_more_than_half_of_each(masks):
    one = [cell(0, 0, 10, 10)]
    over_one = [cell(0, 0, 10, 30, score=0.9)]  # covers one cell, IoU a third
    assert types_of(one, over_one, masks) == (["missed"], ["false"])
    two = [cell(0, 0, 10, 10), cell(0, 12, 10, 10)]
    half_of_the_second = [cell(0, 0, 30, 17, score=0.9)]  # 5 of its 10 columns: not more than half
    assert types_of(two, half_of_the_second, masks) == (["missed"] * 2, ["false"])
    most_of_the_second = [cell(0, 0, 30, 18, score=0.9)]
    assert types_of(two, most_of_the_second, masks) == (["missed"] * 2, ["merged"])


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize(("true", "found"), [([], []), (TRUE[:1], []), ([], FOUND[:1])])
def test_nothing_true_or_nothing_found(masks, true, found):
    assert types_of(true, found, masks) == (["missed"] * len(true), ["false"] * len(found))


@pytest.mark.parametrize("masks", [True, False])
def test_crowd_regions_and_what_lies_on_them_are_left_out(masks):
    true = [cell(60, 60, 30, 30, iscrowd=1), *TRUE[:1]]
    of_true, of_found = types_of(true, FOUND[:2], masks)
    assert (of_true, of_found) == (["right"], ["right"])
