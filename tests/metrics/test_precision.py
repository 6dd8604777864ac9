"""Matching in rounds gives what COCO's matching gives, one prediction after the other."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from effdet_tf.geometry.rle import encode_rle
from effdet_tf.metrics.instances import IOU_THRESHOLDS, Instance
from effdet_tf.metrics.precision import assign_predictions, boxes_of

AREAS = ((0.0, 1e10), (0.0, 600.0), (600.0, 1e10))


def instances(random: np.random.Generator, count: int, crowd: float) -> list[Instance]:
    """Boxes of 20 to 30 px in an area of 60 x 900 px, so that most are near several others."""
    found = []
    for _ in range(count):
        x, y, w, h = (float(v) for v in random.uniform((0, 0, 20, 20), (40, 880, 30, 30)).round())
        mask = np.zeros((920, 80), bool)
        mask[int(y) : int(y + h), int(x) : int(x + w)] = True
        rle = encode_rle(mask)
        rle["counts"] = rle["counts"].encode()
        score = round(float(random.random()), 1)  # many are equal
        found.append(Instance(1, [x, y, w, h], w * h, rle, bool(random.random() < crowd), score))
    return found


def one_by_one(
    cells: list[Instance], found: list[Instance], kind: str, low: float, high: float, iou: float
) -> tuple[list[int], list[bool]]:
    """COCO's rule as pycocotools writes it, in plain loops."""
    order = np.argsort([-one.score for one in found], kind="stable")
    ordered = [found[k] for k in order]
    shapes = [boxes_of(part) if kind == "bbox" else [one.rle for one in part] for part in (ordered, cells)]
    overlaps = coco_mask.iou(*shapes, [int(cell.crowd) for cell in cells])
    outside = [cell.crowd or not low <= (cell.area or 0) <= high for cell in cells]
    taken, chosen, ignored = set(), [], []
    for row, entry in enumerate(ordered):
        best, least = -1, min(iou, 1 - 1e-10)
        for cell in sorted(range(len(cells)), key=lambda k: outside[k]):
            if cell in taken and not cells[cell].crowd:
                continue
            if best >= 0 and not outside[best] and outside[cell]:
                break
            if overlaps[row, cell] >= least:
                best, least = cell, overlaps[row, cell]
        taken.add(best)
        chosen.append(best)
        ignored.append(outside[best] if best >= 0 else not low <= (entry.area or 0) <= high)
    return chosen, ignored


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_rounds_choose_as_one_by_one(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    cells, found = instances(random, 120, 0.15), instances(random, 500, 0)
    order, assigned, ignored, counts = assign_predictions(cells, found, kind, AREAS)
    assert list(order) == sorted(range(500), key=lambda k: (-found[k].score, k))
    assert (assigned >= 0).sum() > 500
    for area, (low, high) in enumerate(AREAS):
        for step, iou in enumerate(IOU_THRESHOLDS):
            expected = one_by_one(cells, found, kind, low, high, iou)
            assert (assigned[area, step].tolist(), ignored[area, step].tolist()) == expected
        assert counts[area] == sum(not c.crowd and low <= (c.area or 0) <= high for c in cells)
