from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import Patch, patch_to_rle
from effdet_tf.metrics import protocols as coco
from effdet_tf.metrics.protocols import evaluate_coco

HEIGHT, WIDTH = 240, 320


def cell(y, x, h, w, height=HEIGHT, width=WIDTH, **fields):
    y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + h, height), min(x + w, width)
    rle = patch_to_rle(Patch(y0, x0, np.ones((y1 - y0, x1 - x0), bool)), height, width)
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": rle, **fields}


def truth(images, annotations, categories=((1, "cell"),)):
    return {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH, "cell_type": kind} for i, kind in images],
        "annotations": [{"id": n + 1, "iscrowd": 0} | cell for n, cell in enumerate(annotations)],
        "categories": [{"id": i, "name": name} for i, name in categories],
    }


def random_case(seed=0, cells=40):
    """Five images, two types, two classes, the last without cells; crowds, near, double and false finds."""
    random = np.random.default_rng(seed)
    annotations, predictions = [], []
    for image in range(1, 5):
        for _ in range(cells):
            y, x, h, w = random.integers([0, 0, 6, 6], [HEIGHT - 50, WIDTH - 50, 48, 48])
            kind = int(random.choice([3, 9]))
            crowd = int(random.random() < 0.05)
            annotations.append(cell(y, x, h, w, image_id=image, category_id=kind, iscrowd=crowd))
            for _ in range(random.integers(0, 3)):
                dy, dx, dh, dw = random.integers(-3, 4, 4)
                found = int(random.choice([3, 9], p=(0.8, 0.2) if kind == 3 else (0.2, 0.8)))
                score = float(random.random())
                predictions.append(
                    cell(y + dy, x + dx, h + dh, w + dw, image_id=image, category_id=found, score=score)
                )
    predictions.append(cell(5, 5, 20, 20, image_id=5, category_id=3, score=0.5))
    images = [(1, "A172"), (2, "BV2"), (3, "A172"), (4, "BV2"), (5, "BV2")]
    return truth(images, annotations, ((3, "thin"), (9, "round"))), predictions


def indexed(index, ground_truth, predictions, kind):
    """AnnotatedImage and detections in the classes of a COCO package."""
    true = index()
    true.dataset = copy.deepcopy(ground_truth)
    for annotation in true.dataset["annotations"]:
        annotation["area"] = float(mask.area(annotation["segmentation"]))
    true.createIndex()
    found = [{k: v for k, v in p.items() if kind == "bbox" or k != "bbox"} for p in predictions]
    return true, true.loadRes(found)


def reference(ground_truth, predictions, kind, images, livecell):
    """pycocotools called directly, the way its own documentation shows."""
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(*indexed(COCO, ground_truth, predictions, kind), kind)
        run.params.imgIds = images
        if livecell:
            run.params.useCats = 0
            run.params.maxDets = [100, 500, 2000]
            run.params.areaRng = [[0, 1e10], [0, 18**2], [18**2, 31**2], [31**2, 1e10]]
        run.evaluate()
        run.accumulate()
        if not livecell:
            run.summarize()
            return dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), run.stats, strict=False)) | {
                "AR": run.stats[8]
            }
    p, r = run.eval["precision"], run.eval["recall"]

    def mean(values):
        return values[values > -1].mean() if (values > -1).any() else -1

    return {
        "AP": mean(p[..., 0, 0, 2]),
        "AP50": mean(p[0, :, 0, 0, 2]),
        "AP75": mean(p[5, :, 0, 0, 2]),
        "APs": mean(p[..., 0, 1, 2]),
        "APm": mean(p[..., 0, 2, 2]),
        "APl": mean(p[..., 0, 3, 2]),
        "AP50_80": mean(p[:7, :, 0, 0, 2]),
        "AR": mean(r[:, 0, 0, 2]),
    }


@pytest.mark.parametrize("protocol", ["livecell", "coco"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_pycocotools_called_directly(protocol, seed):
    ground_truth, predictions = random_case(seed)
    report = evaluate_coco(ground_truth, predictions, protocol=protocol)
    for images, group in (([1, 2, 3, 4, 5], report["all"]), ([2, 4, 5], report["by"]["BV2"])):
        for kind in ("bbox", "segm"):
            expected = reference(ground_truth, predictions, kind, images, protocol == "livecell")
            assert 0.05 < group[kind]["AP"] < 0.95
            for name, value in expected.items():
                got = group[kind][name]
                assert (-1 if got is None else got) == pytest.approx(value, abs=1e-9), (kind, name)


def crowded_case(masks):
    """Two images, three classes: 130 cells of one in image 1, sizes up to 140 px, crowd regions."""
    random = np.random.default_rng(5)
    annotations, predictions = [], []

    def add(image, kind, y, x, h, w, **fields):
        given = cell(y, x, h, w, image_id=image, category_id=kind, **fields)
        if not masks:  # boxes of detection sets are not whole pixels
            given.pop("segmentation")
            given["bbox"] = [round(v + float(random.uniform(0, 0.4)), 2) for v in given["bbox"]]
        (predictions if "score" in fields else annotations).append(given)

    for image, kind, count, low, high in (
        (1, 4, 130, 6, 30),
        (1, 2, 8, 20, 130),
        (2, 4, 20, 6, 60),
        (2, 9, 8, 110, 140),
    ):
        for number in range(count):
            y, x = random.integers([0, 0], [HEIGHT - low, WIDTH - low])
            h, w = random.integers(low, high, 2)
            add(image, kind, y, x, h, w, iscrowd=int(number % 25 == 7))
            for _ in range(1 + number % 2):
                dy, dx, dh, dw = random.integers(-2, 3, 4)
                found = kind if random.random() < 0.9 else 2
                add(image, found, y + dy, x + dx, h + dh, w + dw, score=float(random.random()))
    images = [(1, ""), (2, "")]
    return truth(images, annotations, ((2, "big"), (4, "small"), (9, "rare"))), predictions


STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR", "ARs", "ARm", "ARl")


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes alone"])
def test_the_twelve_figures_are_those_that_pycocotools_prints(masks):
    ground_truth, predictions = crowded_case(masks)
    assert sum(p["image_id"] == 1 and p["category_id"] == 4 for p in predictions) > 150
    kinds = ("bbox", "segm") if masks else ("bbox",)
    report = evaluate_coco(ground_truth, predictions, kinds, protocol="coco")
    assert report["all"]["dropped"] > 50
    for kind in kinds:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = copy.deepcopy(ground_truth)
            for annotation in coco.dataset["annotations"]:
                box = annotation["bbox"]
                annotation["area"] = (
                    float(mask.area(annotation["segmentation"])) if masks else box[2] * box[3]
                )
            coco.createIndex()
            found = [{k: v for k, v in p.items() if kind == "bbox" or k != "bbox"} for p in predictions]
            found = [{k: v for k, v in p.items() if kind == "segm" or k != "segmentation"} for p in found]
            run = COCOeval(coco, coco.loadRes(found), kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
        figures = report["all"][kind]
        assert [figures[name] for name in STATS] == pytest.approx(run.stats.tolist(), abs=1e-9)
        assert len(set(run.stats.tolist())) == 12 and min(run.stats) > 0.005  # each is another number
        classes = [figures["classes"][name]["AP"] for name in ("big", "small", "rare")]
        assert np.mean(classes) == pytest.approx(figures["AP"]) and len(set(classes)) == 3


def test_masks_of_cells_annotated_by_boxes_cannot_be_scored():
    ground_truth, predictions = crowded_case(masks=False)
    with pytest.raises(UserError, match="boxes only"):
        evaluate_coco(ground_truth, predictions)


@pytest.mark.parametrize("package", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("limits", [(100, 500, 2000), (3, 10, 25)])
def test_every_value_of_precision_and_recall_is_that_of_the_packages(package, kind, limits, monkeypatch):
    ground_truth, predictions = random_case(seed=2, cells=70)
    for found in predictions:  # equal scores, in one image and in several: their order decides
        found["score"] = round(found["score"], 1)
    curves = []
    spy = coco.precision_and_recall
    monkeypatch.setattr(coco, "precision_and_recall", lambda *a: curves.append(spy(*a)) or curves[-1])
    rules = dataclasses.replace(coco.PROTOCOLS["coco"], max_detections=limits)
    monkeypatch.setitem(coco.PROTOCOLS, "coco", rules)
    # Images in another order than that of their ids: it is the ids that decide among equal scores.
    shuffled = ground_truth | {"images": ground_truth["images"][::-1]}
    evaluate_coco(shuffled, predictions, [kind], "coco", by=None)
    if package == "pycocotools":
        index, evaluation = COCO, COCOeval
    else:
        faster = pytest.importorskip(package)
        index, evaluation = faster.COCO, faster.COCOeval_faster
    with contextlib.redirect_stdout(io.StringIO()):
        run = evaluation(*indexed(index, ground_truth, predictions, kind), kind)
        run.params.areaRng, run.params.maxDets = rules.area_ranges, list(limits)
        run.evaluate()
        run.accumulate()
    precision, recall = (np.array([c[k] for c in curves]).reshape(2, 4, 10, -1) for k in (0, 1))
    assert 0.1 < precision[precision > -1].mean() < 0.9
    np.testing.assert_allclose(
        precision,
        np.moveaxis(np.asarray(run.eval["precision"])[..., -1], (0, 1, 2, 3), (2, 3, 0, 1)),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        recall, np.moveaxis(np.asarray(run.eval["recall"]), (0, 1, 2, 3), (2, 0, 1, 3)), atol=1e-12
    )


def grid_of_cells(count, image=1):
    """Disjoint 5x6 cells."""
    places = [(y, x) for y in range(0, HEIGHT - 5, 6) for x in range(0, WIDTH - 6, 7)][:count]
    assert len(places) == count
    return [cell(y, x, 5, 6, image_id=image, category_id=1) for y, x in places]


def scored(cells, step=1e-4):
    return [
        {k: v for k, v in c.items() if k != "iscrowd"} | {"score": 1 - step * n} for n, c in enumerate(cells)
    ]


def test_perfect_predictions_have_ap_1():
    cells = grid_of_cells(1500)
    report = evaluate_coco(truth([(1, "BV2")], cells), scored(cells))
    for kind in ("bbox", "segm"):
        figures = report["all"][kind]
        assert [figures[n] for n in ("AP", "AP50", "AP75", "APs", "AP50_80", "AR")] == pytest.approx(
            [1.0] * 6
        )
        assert figures["APm"] is None and figures["APl"] is None  # 30 px^2 is small, there is no larger cell
        assert figures["AFNR"] == pytest.approx(0.0)
        assert figures["AR100"] == pytest.approx(100 / 1500)  # a cap of 100 would hide the rest
    assert report["all"]["dropped"] == 0
    assert report["by"]["BV2"]["segm"] == report["all"]["segm"]


@pytest.mark.parametrize("protocol", ["livecell", "coco"])
def test_no_prediction_scores_0(protocol):
    report = evaluate_coco(truth([(1, "BV2")], grid_of_cells(7)), [], protocol=protocol)
    for kind in ("bbox", "segm"):
        assert report["all"][kind]["AP"] == 0.0
        assert report["all"][kind]["AR"] == 0.0
        assert report["all"][kind]["AFNR"] == 1.0
    json.dumps(report, allow_nan=False)


def test_an_image_without_cells_breaks_nothing():
    cells = grid_of_cells(10)
    images = [(1, "BV2"), (2, "empty")]
    report = evaluate_coco(truth(images, cells), scored(cells))
    assert report["all"]["segm"]["AP"] == pytest.approx(1.0)
    assert report["by"]["empty"]["segm"]["AP"] is None
    assert report["by"]["empty"]["cells"] == 0
    # A detection on the empty image, of the highest score, is a false one: precision 10/11 everywhere.
    false = cell(0, 0, 5, 6, image_id=2, category_id=1, score=1.5)
    report = evaluate_coco(truth(images, cells), [*scored(cells), false])
    assert report["all"]["segm"]["AP"] == pytest.approx(10 / 11)
    json.dumps(report, allow_nan=False)


def test_crowd_regions_are_neither_found_nor_missed():
    cells = grid_of_cells(20)
    region = cell(120, 0, 100, 300, image_id=1, category_id=1, iscrowd=1)
    on_region = [cell(130 + 10 * n, 20, 8, 8, image_id=1, category_id=1, score=2.0) for n in range(5)]
    without_region = evaluate_coco(truth([(1, "")], cells), scored(cells) + on_region)
    with_region = evaluate_coco(truth([(1, "")], [*cells, region]), scored(cells) + on_region)
    assert without_region["all"]["segm"]["AP"] == pytest.approx(20 / 25)
    assert with_region["all"]["segm"]["AP"] == pytest.approx(1.0)
    assert with_region["all"]["cells"] == 20


def test_predictions_beyond_2000_are_counted_and_the_lowest_scores_go():
    cells = grid_of_cells(3)
    doubles = [cell(200, 300, 5, 5, image_id=1, category_id=1, score=0.5) for _ in range(1999)]
    found = scored(cells, step=0.4)  # scores 1, .6 and .2: the third comes after the 1,999
    report = evaluate_coco(truth([(1, "BV2")], cells), [*doubles, *found])
    assert report["all"]["predictions"] == 2002
    assert report["all"]["dropped"] == 2
    assert report["by"]["BV2"]["dropped"] == 2
    assert report["all"]["segm"]["AR"] == pytest.approx(2 / 3)


def test_images_are_split_by_cell_type():
    cells = grid_of_cells(10) + grid_of_cells(10, image=2)
    report = evaluate_coco(truth([(1, "A172"), (2, "BV2")], cells), scored(cells[:15]))
    assert report["by"]["A172"]["segm"]["AR"] == pytest.approx(1.0)
    assert report["by"]["BV2"]["segm"]["AR"] == pytest.approx(0.5)
    assert report["by"]["BV2"]["cells"] == 10
    assert evaluate_coco(truth([(1, ""), (2, "")], cells), [])["by"] == {}
    assert list(evaluate_coco(truth([(1, ""), (2, "BV2")], cells), [])["by"]) == ["BV2", "unknown"]


def test_the_area_is_the_masks_and_the_limits_are_18_and_31_squared():
    sizes = {"APs": 17, "APm": 20, "APl": 32}
    cells = [
        cell(10, 10 + 60 * n, side, side, image_id=1, category_id=1, area=1)
        for n, side in enumerate(sizes.values())
    ]
    for index, name in enumerate(sizes):
        figures = evaluate_coco(truth([(1, "")], cells), scored(cells[index : index + 1]))["all"]["segm"]
        assert {n: figures[n] for n in sizes} == pytest.approx({n: float(n == name) for n in sizes})


def test_polygons_and_uncompressed_rle_are_read():
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    counts = np.zeros((HEIGHT, WIDTH), bool)
    counts[10:30, 10:30] = True
    runs = np.diff(np.flatnonzero(np.diff(counts.T.ravel().astype(int), prepend=0, append=0)), prepend=0)
    listed = [*runs.tolist(), counts.size - int(runs.sum())]
    for segmentation in (square, {"size": [HEIGHT, WIDTH], "counts": listed}):
        annotation = {"image_id": 1, "category_id": 1, "segmentation": segmentation, "bbox": [10, 10, 20, 20]}
        found = cell(10, 10, 20, 20, image_id=1, category_id=1, score=0.9)
        assert evaluate_coco(truth([(1, "")], [annotation]), [found])["all"]["segm"]["AP"] == pytest.approx(
            1.0
        )


def test_classes_count_in_the_coco_protocol_only():
    cells = grid_of_cells(10)
    wrong = [{**c, "category_id": 2} for c in scored(cells)]
    ground_truth = truth([(1, "")], cells, ((1, "round"), (2, "thin")))
    assert evaluate_coco(ground_truth, wrong)["all"]["segm"]["AP"] == pytest.approx(1.0)
    figures = evaluate_coco(ground_truth, wrong, protocol="coco")["all"]["segm"]
    assert figures["AP"] == 0.0
    assert figures["classes"] == {"round": {"AP": 0.0, "AP50": 0.0}, "thin": {"AP": None, "AP50": None}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 77}, "image_id 77"),
        ({"score": float("nan")}, "not a finite number"),
        ({"segmentation": None}, "has no mask"),
        ({"segmentation": {"size": [5, 5], "counts": "0i0"}}, "its mask is 5x5"),
    ],
)
def test_predictions_that_do_not_fit_are_named(change, words):
    cells = grid_of_cells(2)
    good, bad = scored(cells)
    with pytest.raises(UserError, match="prediction 1") as caught:
        evaluate_coco(truth([(1, "")], cells), [good, bad | change])
    assert words in str(caught.value)


def test_an_unknown_class_is_named_when_classes_count():
    cells = grid_of_cells(1)
    found = scored(cells)[0] | {"category_id": 5}
    with pytest.raises(UserError, match="category_id 5"):
        evaluate_coco(truth([(1, "")], cells), [found], protocol="coco")
