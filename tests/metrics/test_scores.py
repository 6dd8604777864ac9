from __future__ import annotations

import json

import numpy as np
import pytest

from effdet_tf.geometry.rle import Patch, patch_to_rle
from effdet_tf.metrics.scores import choosing_score, format_table, headline, reporting_score, summarise

HEIGHT, WIDTH = 80, 100


def box_cell(y, x, side, **fields):
    rle = patch_to_rle(Patch(y, x, np.ones((side, side), bool)), HEIGHT, WIDTH)
    return {"bbox": [x, y, side, side], "segmentation": rle, **fields}


@pytest.fixture
def ground_truth():
    """Image 1: four cells; image 2: two cells; image 3: none."""
    places = [(1, 0, 0), (1, 0, 20), (1, 20, 0), (1, 20, 20), (2, 0, 0), (2, 40, 40)]
    return {
        "images": [
            {"id": i, "height": HEIGHT, "width": WIDTH, "cell_type": kind}
            for i, kind in ((1, "BV2"), (2, "A172"), (3, "A172"))
        ],
        "categories": [{"id": 1, "name": "round"}, {"id": 2, "name": "thin"}],
        "annotations": [
            box_cell(y, x, 10, image_id=i, category_id=1 + n % 2) for n, (i, y, x) in enumerate(places)
        ],
    }


@pytest.fixture
def half(ground_truth):
    """The four cells of image 1, exactly, and nothing on the others."""
    return [
        {**cell, "score": 0.9 - 0.1 * n}
        for n, cell in enumerate(ground_truth["annotations"])
        if cell["image_id"] == 1
    ]


def test_every_figure_is_in_the_report(ground_truth, half):
    report = summarise(ground_truth, half, score_threshold=0.5, coco=True)
    json.dumps(report, allow_nan=False)
    assert report["livecell"]["by"]["BV2"]["segm"]["AP"] == pytest.approx(1.0)
    assert report["livecell"]["by"]["A172"]["segm"]["AP"] == 0.0
    assert report["cells"]["by"]["BV2"]["f1"] == pytest.approx(1.0)
    # Images: 1 perfect (1), 2 missed (0), 3 rightly empty (1).
    assert report["cells"]["all"]["sartorius"] == pytest.approx(2 / 3)
    assert report["coco"]["all"]["bbox"]["classes"].keys() == {"round", "thin"}
    # 67 of the 101 recall points lie at or below a recall of 4/6.
    assert report["livecell"]["all"]["segm"]["AP"] == pytest.approx(67 / 101)
    assert headline(report) == {
        "box_AP": pytest.approx(67 / 101),
        "box_AP50": pytest.approx(67 / 101),
        "mask_AP": pytest.approx(67 / 101),
        "mask_AP50": pytest.approx(67 / 101),
        "sartorius": pytest.approx(2 / 3),
        "f1": pytest.approx(8 / 10),
        "count_mean_error": pytest.approx(2 / 3),
        # Of each class, two of three cells: 67 of the 101 recall points again.
        "coco_box_AP": pytest.approx(67 / 101),
        "coco_box_AP50": pytest.approx(67 / 101),
        "coco_mask_AP": pytest.approx(67 / 101),
        "coco_mask_AP50": pytest.approx(67 / 101),
    }


def test_table_shows_the_figures_in_their_rows(ground_truth, half):
    lines = format_table(summarise(ground_truth, half, score_threshold=0.5)).splitlines()
    header = next(line for line in lines if "AP50_80" in line).split()
    rows = {
        tuple(line.split()[:2]): line.split()[2:]
        for line in lines
        if line.split()[1:2] in (["box"], ["mask"])
    }
    assert rows.keys() == {(name, kind) for name in ("all", "BV2", "A172") for kind in ("box", "mask")}
    row = dict(zip(header, rows["all", "mask"], strict=True))
    assert (row["images"], row["cells"]) == ("3", "6")
    assert (row["AP"], row["APs"], row["APm"], row["AFNR"]) == ("66.3", "66.3", "-", "33.3")
    assert dict(zip(header, rows["A172", "box"], strict=True))["AP"] == "0.0"
    assert next(line for line in lines if line.startswith("F1")).split()[1:4] == ["0.800", "0.000", "1.000"]
    assert next(line for line in lines if line.startswith("count bias")).split()[2:5] == [
        "-0.7",
        "-1.0",
        "+0.0",
    ]
    assert "StarDist" in next(line for line in lines if line.startswith("matching accuracy"))


def test_a_network_without_masks_is_scored_on_boxes(ground_truth, half):
    boxes = [{k: v for k, v in found.items() if k != "segmentation"} for found in half]
    report = summarise(ground_truth, boxes)
    assert report["cells"] is None
    assert report["livecell"]["all"]["bbox"]["AP"] == pytest.approx(67 / 101)
    assert "segm" not in report["livecell"]["all"]
    assert headline(report)["mask_AP"] is headline(report)["sartorius"] is None
    # Four of six boxes are found, and nothing else.
    assert headline(report)["f1"] == pytest.approx(8 / 10)
    assert reporting_score(report) == report["boxes"]["report_score"] == 0.05
    # Of the three images one is perfect, one missed, one rightly empty.
    assert report["boxes"]["all"]["mean_f1"] == pytest.approx(2 / 3)
    assert "Only boxes are scored: the predictions have no masks." in format_table(report)


def test_a_network_without_masks_that_finds_nothing_has_no_mask_figures(ground_truth):
    report = summarise(ground_truth, [], masks=False)
    assert headline(report)["box_AP"] == 0.0
    assert headline(report)["mask_AP"] is headline(report)["sartorius"] is None
    assert reporting_score(report) is None


def test_images_without_cells_tell_no_score(ground_truth, half):
    """There, the fewer the better: the highest score would be the best."""
    empty = {**ground_truth, "annotations": []}
    assert reporting_score(summarise(ground_truth, half)) is not None
    assert reporting_score(summarise(empty, half)) is None and reporting_score(summarise(empty, [])) is None


def test_boxes_are_reported_by_the_mean_f1_of_images_too(ground_truth, half):
    """Image 2 has its two from .3 down; images 1 and 3 have a false one of .5.

    At .05 the F1 of the images are 8/9, 1 and 0, mean .63, and 12/14 with counts pooled; at .55 they are 1, 0
    and 1, mean .67, and 8/10.
    """
    false = [{"image_id": i, "category_id": 1, "bbox": [60, 60, 4, 4], "score": 0.5} for i in (1, 3)]
    late = [{**c, "score": 0.3} for c in ground_truth["annotations"] if c["image_id"] == 2]
    found = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in [*half, *late, *false]]
    report = summarise(ground_truth, found)
    boxes = report["boxes"]
    assert boxes["best_score_threshold"] == boxes["score_threshold"] == 0.05
    assert boxes["best_f1"] == pytest.approx(12 / 14)
    assert boxes["all"]["mean_f1"] == pytest.approx((8 / 9 + 1) / 3)
    assert reporting_score(report) == boxes["report_score"] == 0.525


def test_cells_annotated_by_boxes_are_scored_on_boxes(ground_truth, half):
    """Whatever the predictions hold; the figures of the boxes are those with masks."""
    boxes = {
        **ground_truth,
        "annotations": [
            {k: v for k, v in cell.items() if k != "segmentation"} for cell in ground_truth["annotations"]
        ],
    }
    for found in (half, []):
        report = summarise(boxes, found, coco=True)
        assert report["cells"] is None
        for protocol in ("livecell", "coco"):
            assert report[protocol]["all"].keys() >= {"bbox"} and "segm" not in report[protocol]["all"]
            with_masks = summarise(ground_truth, found, coco=True)[protocol]["all"]["bbox"]
            assert report[protocol]["all"]["bbox"] == with_masks
        assert "Only boxes are scored: the images are annotated by boxes alone." in format_table(report)
        json.dumps(report, allow_nan=False)


def test_the_coco_table_has_the_twelve_figures_of_pycocotools(ground_truth, half):
    lines = format_table(summarise(ground_truth, half, score_threshold=0.5, coco=True)).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("COCO protocol"))
    names = lines[start + 1].split()
    assert names[2:] == [
        *("AP", "AP50", "AP75", "APs", "APm", "APl"),
        *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
    ]
    row = dict(zip(names, lines[start + 2].split()[2:], strict=True))
    # Image 1 has two cells of each class, of three: one detection an image finds one.
    assert (row["AR1"], row["AR10"], row["AR100"], row["ARs"]) == ("33.3", "66.7", "66.7", "66.7")
    assert (row["APl"], row["ARl"]) == ("-", "-")


def test_the_better_network_is_told_by_classes_first_and_masks_before_boxes():
    figures = {"coco_mask_AP": 0.1, "coco_box_AP": 0.2, "mask_AP": 0.3, "box_AP": 0.4}
    for name, value in figures.items():
        assert choosing_score({k: v for k, v in figures.items() if v >= value}) == value, name
    assert choosing_score({"mask_AP": None, "box_AP": 0.0}) == 0.0
    assert choosing_score({"mask_AP": None, "box_AP": None}) == 0.0


def test_dropped_predictions_and_the_choice_of_score_are_told(ground_truth, half):
    many = [{**half[0], "score": 0.01} for _ in range(1999)]
    text = format_table(summarise(ground_truth, half + many))
    assert "3 predictions beyond that number were dropped" in text
    assert "an upper bound" in text
    assert "dropped" not in format_table(summarise(ground_truth, half))
    assert "an upper bound" not in format_table(summarise(ground_truth, half, score_threshold=0.5))


def test_no_prediction_at_all(ground_truth):
    report = summarise(ground_truth, [])
    assert report["livecell"]["all"]["segm"]["AP"] == 0.0
    assert report["cells"]["all"]["f1"] == 0.0
    assert "0.0" in format_table(report)
