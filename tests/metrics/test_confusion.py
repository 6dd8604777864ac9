"""Figures of single images, confusion of classes and sizes: they add up to the figures of all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from effdet_tf.geometry.rle import Patch, patch_to_rle
from effdet_tf.metrics.scores import summarise

SIDE = 120


def cell(image, kind, y, x, side, **fields):
    rle = patch_to_rle(Patch(y, x, np.ones((side, side), bool)), SIDE, SIDE)
    return {"image_id": image, "category_id": kind, "bbox": [x, y, side, side], "segmentation": rle, **fields}


TRUTH = {
    "images": [
        {"id": 1, "height": SIDE, "width": SIDE, "file_name": "a.png", "cell_type": "BV2"},
        {"id": 2, "height": SIDE, "width": SIDE, "file_name": "b.png", "cell_type": "A172"},
        {"id": 3, "height": SIDE, "width": SIDE, "file_name": "c.png", "cell_type": "A172"},
    ],
    "categories": [{"id": 4, "name": "round"}, {"id": 2, "name": "thin"}],
    "annotations": [
        cell(1, 4, 0, 0, 8),
        cell(1, 4, 20, 0, 8),
        cell(1, 2, 40, 0, 40),
        cell(2, 2, 0, 0, 8),
        cell(2, 2, 60, 60, 50, iscrowd=1),
    ],
}
FOUND = [
    cell(1, 4, 0, 0, 8, score=0.9),
    cell(1, 2, 20, 0, 8, score=0.8),  # a round cell, called thin
    cell(1, 2, 40, 0, 40, score=0.7),
    cell(1, 4, 100, 100, 8, score=0.6),  # nothing there
    cell(2, 4, 70, 70, 8, score=0.9),  # on a region that is not judged
    cell(2, 2, 0, 0, 8, score=0.3),  # below the score
]


def boxes(entries):
    return [{key: value for key, value in entry.items() if key != "segmentation"} for entry in entries]


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("coco", [True, False])
def test_confusion_by_hand(masks, coco):
    report = summarise(TRUTH, FOUND if masks else boxes(FOUND), 0.5, coco=coco)
    assert report["confusion"] == {
        "classes": ["round", "thin"],
        "counts": [[1, 1], [0, 1]],
        "missed": [0, 1],
        "false": [1, 0],
    }
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("masks", [True, False])
def test_images_and_sizes_add_up(masks):
    report = summarise(TRUTH, FOUND if masks else boxes(FOUND), 0.5)
    judged = report["cells" if masks else "boxes"]["all"]
    first, second, third = report["images"]
    assert (first["file_name"], first["cell_type"], first["true"], first["found"]) == ("a.png", "BV2", 3, 4)
    assert first["f1"] == pytest.approx(6 / 7)
    assert (second["true"], second["found"], second["f1"]) == (1, 0, 0.0)
    assert (third["true"], third["found"], third["f1"]) == (0, 0, None)
    assert sum(image["true"] for image in report["images"]) == judged["true_cells"] == 4
    assert sum(image["found"] for image in report["images"]) == judged["found_cells"] == 4
    assert ("sartorius" in first) == masks
    if masks:
        mean = np.mean([image["sartorius"] for image in report["images"]])
        assert mean == pytest.approx(judged["sartorius"])
    sizes = report["sizes"]
    assert sum(sizes["true"]) == sum(sizes["found"]) == 4
    place = np.searchsorted(sizes["edges"], 8, side="right")  # 8 x 8 px and more
    assert sizes["true"][place] == 3 and sizes["found"][place] == 3


def test_one_class_and_strange_classes_have_no_confusion():
    one = TRUTH | {
        "categories": [{"id": 4, "name": "round"}],
        "annotations": [cell | {"category_id": 4} for cell in TRUTH["annotations"]],
    }
    assert summarise(one, FOUND, 0.5)["confusion"] is None
    strange = [*FOUND, cell(1, 77, 60, 90, 8, score=0.9)]
    assert summarise(TRUTH, strange, 0.5)["confusion"] is None
    assert summarise(TRUTH, strange, 0.95)["confusion"] is not None  # it is below the score


def test_the_curves_have_the_area_that_is_the_average_precision():
    for protocol in ("livecell", "coco"):
        report = summarise(TRUTH, FOUND, 0.5, coco=True)[protocol]
        for kind in ("bbox", "segm"):
            curve, figures = report["curves"][kind], report["all"][kind]
            assert {name: len(line) for name, line in curve["precision"].items()} == {
                "50": 101,
                "75": 101,
                "mean": 101,
            }
            assert 0 < figures["AP50"] < 1
            for name, figure in (("50", "AP50"), ("75", "AP75"), ("mean", "AP")):
                assert np.mean(curve["precision"][name]) == pytest.approx(figures[figure], abs=1e-4)
            assert np.mean(curve["AP"]) == pytest.approx(figures["AP"], abs=1e-4)
            assert curve["AP"][0] == pytest.approx(figures["AP50"], abs=1e-4)


def test_without_cells_or_detections_there_is_nothing_to_draw():
    empty = TRUTH | {"annotations": []}
    report = summarise(empty, [])
    assert report["livecell"]["curves"] == {"bbox": None, "segm": None}
    assert report["confusion"]["counts"] == [[0, 0], [0, 0]]
    assert sum(report["sizes"]["found"]) == 0
    json.dumps(report, allow_nan=False)
