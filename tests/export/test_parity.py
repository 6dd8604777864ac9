from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import Patch
from effdet_tf.prediction.results import Result
from effdet_tf.presets import preset
from export import trial_images as image_sources
from export.agreement import Agreement, mask_iou, match
from export.parity import FAILED, NOT_EVALUATED, PASSED, TOLERANCES, Artifact, check, circumstances, compare
from export.parity_table import format_parity
from tests.records import record_of

CONFIG = preset("cells-lite0").override(
    ["postprocess.score_threshold=0.1", "postprocess.report_score=0.5", "postprocess.mask_scoring=false"]
)


def result(cells, masks=True, truncated=False, names=("cell", "other")):
    """Cells as (y, x, score[, class]): boxes of 20 x 20, full bitmaps."""
    rows = [(*cell, 0) if len(cell) == 3 else cell for cell in cells]
    boxes = np.array([(y, x, y + 20, x + 20) for y, x, *_ in rows], np.float32).reshape(-1, 4)
    return Result(
        boxes=boxes,
        scores=np.array([row[2] for row in rows], np.float32),
        classes=np.array([row[3] for row in rows], np.int32),
        masks=np.full((len(rows), 4, 4), 255, np.uint8) if masks else None,
        mask_boxes=boxes if masks else None,
        height=200,
        width=200,
        class_names=names,
        truncated=truncated,
    )


def agreement(*pairs, config=CONFIG):
    found = Agreement(config)
    for reference, candidate in pairs:
        found.add(reference, candidate)
    return found.metrics()


def test_equal_results_agree_wholly():
    cells = result([(0, 0, 0.9), (50, 50, 0.6), (90, 10, 0.3)])
    figures = agreement((cells, cells))
    assert figures["matched_share"] == 1 and figures["matched"] == 3
    assert figures["largest_score_difference"] == 0
    assert figures["mean_mask_iou"] == figures["least_mask_iou"] == 1
    assert figures["reported"] == figures["reference_reported"] == 2


def test_cells_that_either_lacks_count_against_it():
    one, two = result([(0, 0, 0.9), (50, 50, 0.6)]), result([(0, 0, 0.9)])
    for pair in ((one, two), (two, one)):
        assert agreement(pair)["matched_share"] == pytest.approx(2 / 3)
    figures = agreement((one, two), (two, two))
    assert figures["matched_share"] == pytest.approx(4 / 5)
    assert (figures["images"], figures["reference_cells"], figures["cells"]) == (2, 3, 2)


def test_a_match_needs_iou_and_class():
    near, far = 20 * 0.05 / 1.95, 20 * 0.11 / 1.89  # a shift d gives the IoU (20 - d) / (20 + d)
    assert len(match(result([(0, 0, 0.9)]), result([(0, near, 0.9)]))[0]) == 1
    assert len(match(result([(0, 0, 0.9)]), result([(0, far, 0.9)]))[0]) == 0
    assert len(match(result([(0, 0, 0.9, 0)]), result([(0, 0, 0.9, 1)]))[0]) == 0


def test_each_cell_is_matched_once_best_score_first():
    a, b = match(result([(0, 0, 0.9), (0, 0.2, 0.8)]), result([(0, 0.1, 0.9)]))
    assert (a.tolist(), b.tolist()) == ([0], [0])
    a, b = match(result([(0, 0, 0.9), (0, 0.2, 0.8)]), result([(0, 0.2, 0.9), (0, 0, 0.8)]))
    assert (a.tolist(), b.tolist()) == ([0, 1], [1, 0])


def test_nothing_found_is_no_share():
    none = result([])
    figures = agreement((none, none))
    assert figures["matched_share"] is None and figures["largest_score_difference"] is None
    assert agreement((none, result([(0, 0, 0.9)])))["matched_share"] == 0


def test_a_cell_near_the_threshold_is_not_missed_and_one_above_is():
    whole = [(0, 0, 0.9)]
    assert agreement((result([*whole, (50, 50, 0.1008)]), result(whole)))["matched_share"] == 1
    assert agreement((result([*whole, (50, 50, 0.102)]), result(whole)))["matched_share"] == 2 / 3


def test_the_threshold_is_of_the_score_without_the_masks_quality():
    config = CONFIG.override(["postprocess.mask_scoring=true"])
    dim = result([(0, 0, 0.9), (50, 50, 0.0805)])
    dim.masks[1] = 204  # probability .8 everywhere: a class score of .1006
    assert agreement((dim, result([(0, 0, 0.9)])), config=config)["matched_share"] == 1
    dim.masks[1] = 190
    assert agreement((dim, result([(0, 0, 0.9)])), config=config)["matched_share"] == 2 / 3


def test_a_network_that_found_too_many_has_a_higher_threshold():
    cells = [(0, 0, 0.9), (50, 50, 0.4)]
    for truncated, share in ((True, 2 * 2 / 4), (False, 2 * 1 / 4)):
        one = result([*cells[:1], (100, 0, 0.4005)], truncated=truncated)
        other = result([*cells[:1], (0, 100, 0.4002)])
        assert agreement((one, other))["matched_share"] == (1 if truncated else pytest.approx(share))


def test_differences_of_scores_masks_and_counts():
    one = result([(0, 0, 0.9), (50, 50, 0.51)])
    two = result([(0, 0, 0.9), (50, 50, 0.49)])
    two.masks[1, :, :2] = 127
    figures = agreement((one, two), (two, one))
    assert figures["largest_score_difference"] == pytest.approx(0.02, abs=1e-6)
    assert figures["least_mask_iou"] == 0.5 and figures["mean_mask_iou"] == 0.75
    # Taken image by image: a cell more here and a cell less there are two.
    assert (figures["reference_reported"], figures["reported"], figures["count_difference"]) == (3, 3, 2)


def test_scores_are_compared_as_the_networks_give_them():
    """Calibration stretches what lies on its steep parts: .01 here, .002 before it."""
    config = CONFIG.replace(postprocess__calibration=((0.0, 0.0), (0.5, 0.1), (0.6, 0.6), (1.0, 1.0)))
    one, two = result([(0, 0, 0.5), (50, 50, 0.4)]), result([(0, 0, 0.49), (50, 50, 0.39)])
    assert agreement((one, two), config=config)["largest_score_difference"] == pytest.approx(0.002, abs=1e-4)


def test_mask_iou_of_empty_masks():
    empty, full = np.zeros((1, 2, 2), np.uint8), np.full((1, 2, 2), 128, np.uint8)
    assert mask_iou(empty, empty) == 1 and mask_iou(empty, full) == 0 and mask_iou(full, full) == 1


def test_two_thousand_cells_are_matched_at_once():
    rng = np.random.default_rng(0)
    spots = rng.uniform(0, 150, (2000, 2))
    cells = [(y, x, s) for (y, x), s in zip(spots, np.linspace(0.9, 0.2, 2000), strict=True)]
    figures = agreement((result(cells), result(cells)))
    assert figures["matched_share"] == 1


def test_boxes_alone_have_no_mask_figures():
    boxes = result([(0, 0, 0.9)], masks=False)
    assert agreement((boxes, boxes))["mean_mask_iou"] is None


@pytest.mark.parametrize(
    ("name", "share", "score", "verdict", "words"),
    [
        ("saved_model", 0.999, 0.001, PASSED, ""),
        ("saved_model", 0.9989, 0.001, FAILED, "99.89 % of the cells matched, 99.9 % are asked"),
        ("float32", 1.0, 0.0011, FAILED, "scores differ by up to 0.0011, 0.001 is allowed"),
        ("float16", 0.99, 0.5, PASSED, ""),
        ("float16", 0.98, 0.5, FAILED, "98.00 % of the cells matched"),
        ("float32", None, None, NOT_EVALUATED, "no cells found"),
        ("int8", 0.1, 0.9, NOT_EVALUATED, "give --data"),
    ],
)
def test_tolerances(name, share, score, verdict, words):
    figures = {"matched_share": share, "largest_score_difference": score, "AP": None}
    found, why = check(figures, None, TOLERANCES[name])
    assert found == verdict and words in why and bool(why) == bool(words)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "words"),
    [
        ({"segm": 0.30, "bbox": 0.5}, {"segm": 0.29, "bbox": 0.1}, PASSED, ""),
        (
            {"segm": 0.30, "bbox": 0.5},
            {"segm": 0.289, "bbox": 0.5},
            FAILED,
            "lost 1.1 points of mask AP, 1 are",
        ),
        ({"bbox": 0.5}, {"bbox": 0.4}, FAILED, "lost 10.0 points of box AP"),
        ({"bbox": 0.5}, {"bbox": 0.6}, PASSED, ""),
        ({"bbox": None}, {"bbox": None}, NOT_EVALUATED, "no annotated"),
    ],
)
def test_int8_may_lose_one_point(before, after, verdict, words):
    before, after = ({kind: {"AP": ap} for kind, ap in aps.items()} for aps in (before, after))
    found, why = check({"AP": after}, before, TOLERANCES["int8"])
    assert found == verdict and words in why


def make_record(image_id, corners):
    # The image tells the stand-in for a network where the cells are.
    image = np.full((64, 96), 100, np.uint8)
    for y, x in corners:
        image[y, x] = 255
    patches = [Patch(y, x, np.ones((12, 16), bool)) for y, x in corners]
    return record_of(image, patches, image_id, cell_type="BV2")


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_records):
    cells = {31: [(4, 4), (4, 30), (30, 50)], 32: [(10, 10), (40, 60)], 33: []}
    records = [make_record(image_id, corners) for image_id, corners in cells.items()]
    return write_records(tmp_path_factory.mktemp("data") / "set", records, [{"id": 9, "name": "cell"}])


class Finder:
    """Finds the cells whose corner is lit; `blind` to the last ones of every image."""

    per_class = False
    class_names = ("cell",)
    category_ids = (1,)
    config = CONFIG

    def __init__(self, blind=0):
        self.blind = blind
        self.seen = 0

    def predict(self, image):
        self.seen += 1
        corners = np.argwhere(image.reshape(image.shape[:2]) == 255)
        corners = corners[: max(len(corners) - self.blind, 0)]
        boxes = np.concatenate([corners, corners + (12, 16)], axis=1).astype(np.float32).reshape(-1, 4)
        return Result(
            boxes=boxes,
            scores=np.linspace(0.9, 0.8, len(corners)).astype(np.float32),
            classes=np.zeros(len(corners), np.int32),
            masks=np.full((len(corners), 28, 28), 255, np.uint8),
            mask_boxes=boxes,
            height=image.shape[0],
            width=image.shape[1],
            class_names=self.class_names,
        )


def artifacts(keras, framed, blind=1):
    return [
        Artifact("saved_model", "saved_model/1", 2_000_000, Finder(), keras),
        Artifact("int8", "tflite/int8.tflite", 1_000_000, Finder(blind), framed),
    ]


def test_annotated_images_are_predicted_once_and_give_ap(data):
    keras, framed = Finder(), Finder()
    made = artifacts(keras, framed)
    report = compare(keras, made, image_sources.labelled(data), progress=False)
    assert [p.seen for p in (keras, framed, made[0].predictor, made[1].predictor)] == [3] * 4
    assert report["protocol"] == "livecell"
    assert report["keras"]["AP"]["segm"]["AP"] == pytest.approx(1)
    served, small = report["artifacts"]["saved_model"], report["artifacts"]["int8"]
    assert served["verdict"] == PASSED and served["AP"]["bbox"]["AP50"] == pytest.approx(1)
    assert served["matched_share"] == 1 and served["compared_with"] == "keras"
    assert small["verdict"] == FAILED and small["AP"]["segm"]["AP"] == pytest.approx(0.6, abs=0.01)
    assert small["matched_share"] == pytest.approx(2 * 3 / 8)
    assert report["passed"] is False
    json.dumps(report, allow_nan=False)


def test_a_larger_drop_can_be_allowed(data):
    keras = Finder()
    for drop, verdict in ((30, FAILED), (50, PASSED)):
        report = compare(keras, artifacts(keras, keras), image_sources.labelled(data), drop, progress=False)
        assert report["artifacts"]["int8"]["verdict"] == verdict
        assert report["artifacts"]["int8"]["tolerance"]["ap_drop"] == drop
        assert report["artifacts"]["saved_model"]["tolerance"]["ap_drop"] is None


def test_without_ground_truth_int8_is_not_evaluated_and_the_others_are():
    keras = Finder()
    report = compare(keras, artifacts(keras, keras, 0), image_sources.synthetic((64, 96)), progress=False)
    assert report["passed"] and report["protocol"] is None and report["keras"]["AP"] is None
    assert report["artifacts"]["int8"]["verdict"] == NOT_EVALUATED
    assert report["images"] == {
        "number": 4,
        "what": "synthetic images; use --data for AP",
        "annotated": False,
    }


def test_the_table_tells_everything(data, tmp_path):
    keras = Finder()
    report = compare(keras, artifacts(keras, keras), image_sources.labelled(data, 2), progress=False)
    table = format_parity(circumstances(tmp_path, (64, 96), calibration="7 images of here") | report)
    for words in (
        "2 images: annotated images of",
        " SavedModel |",
        "tflite/int8.tflite",
        "mask AP, %",
        "box AP50, %",
        "TFLite int8: FAILED: lost ",
        "7 images of here",
        "LIVECell protocol",
        "tensorflow 2.",
        "64x96",
    ):
        assert words in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert rows[1].replace("-", "").replace("|", "").replace(":", "") == ""
    assert "| size, MB" in table and " 2.0 |" in table


def test_images_of_files_and_their_most_frequent_size(tmp_path):
    for name, shape in (("a", (40, 50)), ("b", (30, 20)), ("c", (30, 20)), ("d", (60, 60))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros(shape, np.uint8))
    images = image_sources.given([tmp_path])
    assert len(images) == 4 and images.most_frequent_size() == (30, 20)
    assert [image.shape for image in images.pixels()] == [(40, 50, 1), (30, 20, 1), (30, 20, 1), (60, 60, 1)]
    assert len(image_sources.given([tmp_path], 2)) == 2
    (tmp_path / "e.png").write_text("no image")
    with pytest.raises(UserError, match="e.png"):
        image_sources.given([tmp_path])


def test_calibration_images_are_spread_over_the_source(data, tmp_path):
    for number in range(60):
        cv2.imwrite(str(tmp_path / f"{number:02d}.png"), np.full((4, 4), number, np.uint8))
    pixels, where = image_sources.calibration([tmp_path], None)
    values = [int(image[0, 0, 0]) for image in pixels]
    assert len(values) == image_sources.CALIBRATION_IMAGES == 24
    assert values == sorted(set(values)) and values[0] == 0 and values[-1] == 59
    assert where == f"24 images of {tmp_path}"
    assert len(image_sources.calibration([data], None)[0]) == 3
    pixels, where = image_sources.calibration([], image_sources.labelled(data))
    assert len(pixels) == 3 and where == f"3 images of annotated images of {data}"
    with pytest.raises(UserError, match="--calibration"):
        image_sources.calibration([], None)


def test_no_image_is_told(data):
    with pytest.raises(UserError, match="nowhere: does not exist"):
        image_sources.labelled(data / "nowhere")
