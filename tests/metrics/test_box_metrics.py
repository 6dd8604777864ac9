"""F1 and counts of boxes, on cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from effdet_tf.errors import UserError
from effdet_tf.metrics.box_metrics import match_boxes_by_class, score_boxes
from effdet_tf.metrics.instances import iterate_instances


def truth(*cells, images=(1, 2)):
    """Cells as (image, category, x, y, w, h[, iscrowd])."""
    return {
        "images": [
            {"id": i, "height": 100, "width": 100, "cell_type": "AB"[n % 2]} for n, i in enumerate(images)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box[:4], "iscrowd": int(box[4:] == [1])}
            for n, (i, c, *box) in enumerate(cells, 1)
        ],
    }


def found(*boxes):
    """Boxes as (score, image, category, x, y, w, h)."""
    return [{"score": s, "image_id": i, "category_id": c, "bbox": box} for s, i, c, *box in boxes]


CELLS = truth((1, 3, 0, 0, 10, 10), (1, 7, 50, 50, 10, 10), (2, 3, 0, 0, 10, 10))
BOXES = found(
    (0.9, 1, 3, 0, 0, 10, 10),
    (0.8, 1, 3, 1, 0, 10, 10),  # the same cell again: false
    (0.6, 1, 3, 50, 50, 10, 10),  # a cell of the other class
    (0.3, 2, 3, 0, 0, 10, 20),  # IoU .5 exactly
    (0.2, 2, 3, 60, 60, 10, 10),  # nothing there
)


def test_figures_at_a_score_by_hand():
    result = score_boxes(CELLS, BOXES, score_threshold=0.25)
    assert (result["score_threshold"], result["chosen"]) == (0.25, "given")
    figures = result["all"]
    assert (figures["true_cells"], figures["found_cells"]) == (3, 4)
    assert (figures["precision"], figures["recall"]) == (3 / 4, 3 / 3)
    assert figures["f1"] == pytest.approx(6 / 7)
    assert figures["count_mean_error"] == 0.5  # 3 instead of 2, 1 instead of 1
    assert result["by"]["A"]["recall"] == 1.0 and result["by"]["B"]["found_cells"] == 1
    with_classes = score_boxes(CELLS, BOXES, score_threshold=0.25, per_class=True)["all"]
    assert (with_classes["precision"], with_classes["recall"]) == (2 / 4, 2 / 3)


def test_a_box_exactly_on_the_score_counts():
    figures = score_boxes(CELLS, BOXES, score_threshold=0.3)["all"]
    assert (figures["found_cells"], figures["recall"]) == (4, 1.0)
    above = score_boxes(CELLS, BOXES, score_threshold=np.nextafter(0.3, 1))["all"]
    assert (above["found_cells"], above["recall"]) == (3, 2 / 3)


def test_the_best_score_is_searched_for():
    result = score_boxes(CELLS, BOXES)
    # From .2 down one more is false; above .3 the cell of image 2 is lost.
    assert result["best_score_threshold"] == result["score_threshold"] == 0.225
    assert result["best_f1"] == pytest.approx(6 / 7) and result["chosen"] == "best here"


def test_crowd_regions_are_not_evaluated():
    crowd = truth((1, 3, 0, 0, 50, 50, 1), (1, 3, 60, 60, 10, 10))
    boxes = found((0.9, 1, 3, 5, 5, 10, 10), (0.8, 1, 3, 10, 10, 9, 9), (0.7, 1, 3, 60, 60, 10, 10))
    figures = score_boxes(crowd, boxes, 0.5)["all"]
    assert (figures["true_cells"], figures["found_cells"], figures["f1"]) == (1, 1, 1.0)
    other = score_boxes(crowd, [{**b, "category_id": 7} for b in boxes], 0.5, per_class=True)["all"]
    assert (other["found_cells"], other["f1"]) == (3, 0.0)  # a crowd of another class excuses nothing


def test_nothing_found_and_nothing_there():
    assert score_boxes(CELLS, [])["best_f1"] == 0.0
    assert score_boxes(CELLS, [])["all"]["precision"] is None
    empty = score_boxes(truth(), found((0.9, 1, 3, 0, 0, 5, 5)))
    assert empty["all"]["recall"] is None and empty["best_f1"] == 0.0
    with pytest.raises(UserError, match="image_id 9"):
        score_boxes(CELLS, found((0.9, 9, 3, 0, 0, 5, 5)))


def test_matches_are_those_of_cocos_own_evaluator(capsys):
    random = np.random.default_rng(0)
    cells = [
        (int(i), int(c), *map(float, box), *([1] if crowd else []))
        for i, c, box, crowd in zip(
            random.choice([1, 2], 60),
            random.choice([3, 7], 60),
            np.concatenate([random.integers(0, 80, (60, 2)), random.integers(8, 20, (60, 2))], 1),
            random.random(60) < 0.1,
            strict=True,
        )
    ]
    boxes = [
        (float(random.random()), i, c, *(np.array(box[:4]) + random.integers(-2, 3, 4)).tolist())
        for i, c, *box in cells
        for _ in range(int(random.integers(0, 3)))
    ]
    ground_truth, predictions = truth(*cells), found(*boxes)
    classes = [category["id"] for category in ground_truth["categories"]]
    ours = {
        image.image["id"]: [
            np.concatenate([getattr(match, name) for match in match_boxes_by_class(image, classes)])
            for name in ("scores", "matched_gt")
        ]
        for image in iterate_instances(ground_truth, predictions)
    }
    coco = COCO()
    coco.dataset = {
        **ground_truth,
        "annotations": [
            {**a, "bbox": list(a["bbox"]), "area": a["bbox"][2] * a["bbox"][3]}
            for a in ground_truth["annotations"]
        ],
    }
    coco.createIndex()
    run = COCOeval(coco, coco.loadRes(predictions), "bbox")
    run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
    run.evaluate()
    for image in (1, 2):
        parts = [e for e in run.evalImgs if e is not None and e["image_id"] == image]
        ignored = np.concatenate([e["dtIgnore"][0] for e in parts]).astype(bool)
        hits = np.concatenate([e["dtMatches"][0] > 0 for e in parts])[~ignored]
        scores = np.concatenate([e["dtScores"] for e in parts])[~ignored]
        assert ignored.any() and hits.any() and not hits.all()
        our_scores, matched_gt = ours[image]
        assert sorted(scores[hits]) == pytest.approx(sorted(our_scores[matched_gt >= 0]))
        assert sorted(scores) == pytest.approx(sorted(our_scores))
