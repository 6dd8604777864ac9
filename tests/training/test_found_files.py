"""Predictions of other tools: each format gives the very cells, under the images that they are named as."""

from __future__ import annotations

import csv
import json
import pickle

import cv2
import numpy as np
import pytest
import tifffile

from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import Patch, decode_rle, encode_kaggle_rle, patch_to_rle
from effdet_tf.metrics.scores import format_table, summarise
from tests.records import record_of
from training import evaluate
from training.evaluate_job import evaluate_file
from training.found_files import FoundFiles
from training.prediction_files import PredictionFile

HEIGHT, WIDTH = 48, 64
# name -> y, x of cells of 10 x 14 px; the page of a stack, a folder, an image without cells
IMAGES = {"a.tif": [(2, 3), (2, 17), (30, 40)], "deep/b.png": [(5, 5)], "s.tif#0002": [(20, 20)], "e.tif": []}
CATEGORIES = [{"id": 7, "name": "live"}, {"id": 3, "name": "dead"}]


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_records):
    records = []
    for number, (name, corners) in enumerate(IMAGES.items(), start=11):
        patches = [Patch(y, x, np.ones((10, 14), bool)) for y, x in corners]
        image = np.full((HEIGHT, WIDTH), 100, np.uint8)
        classes = np.zeros(len(corners), np.int32)
        records.append(record_of(image, patches, number, classes=classes, file_name=name))
    return write_records(tmp_path_factory.mktemp("found") / "set", records, CATEGORIES)


def labels_of(name):
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number, (y, x) in enumerate(IMAGES[name], start=1):
        labels[y : y + 10, x : x + 14] = 40 * number
    return labels


def square(y, x):
    return [[x, y], [x + 14, y], [x + 14, y + 10], [x, y + 10], [x, y]]


def feature(y, x, score=None, label="live", plane=None):
    geometry = {"type": "Polygon", "coordinates": [square(y, x)]} | ({"plane": plane} if plane else {})
    measured = [] if score is None else [{"name": "Detection probability", "value": score}]
    kind = {"objectType": "detection", "classification": {"name": label}, "measurements": measured}
    return {"type": "Feature", "geometry": geometry, "properties": kind}


IMAGE = {"id": 1, "file_name": "a.tif", "height": HEIGHT, "width": WIDTH}


def boxes(count):
    size = {"area": 140, "iscrowd": 0}
    return [
        {"id": k + 1, "image_id": 1, "category_id": 7, "bbox": [x, y, 14, 10], **size, "segmentation": rle}
        for k, (y, x) in enumerate(IMAGES["a.tif"][:count])
        for rle in [patch_to_rle(Patch(y, x, np.ones((10, 14), bool)), HEIGHT, WIDTH)]
    ]


def write_label_maps(folder, ending):
    (folder / "deep").mkdir()
    for name in ("a.tif", "deep/b.png", "e.tif"):
        place = folder / name
        cv2.imwrite(str(place.with_name(place.stem + ending)), labels_of(name))
    stack = np.stack([np.zeros((HEIGHT, WIDTH), np.uint16), labels_of("s.tif#0002")])
    tifffile.imwrite(folder / f"s{ending.replace('.png', '.tif')}", stack, metadata={"axes": "TYX"})


def write_instanseg(folder):
    write_geojson(folder)
    for path in sorted(folder.glob("*.geojson")):
        path.rename(folder / f"{path.stem}_instanseg_prediction.geojson")


def write_cellpose(folder):
    for name in ("a.tif", "deep/b.png", "e.tif"):
        stem = name.rsplit("/", 1)[-1].split(".")[0]  # all in one folder
        about = {"flows": [np.zeros((2, 2))], "filename": name, "est_diam": np.float64(3)}
        np.save(folder / f"{stem}_seg.npy", {"masks": labels_of(name), "outlines": None, **about})
    np.save(folder / "s_seg.npy", {"masks": np.stack([0 * labels_of("e.tif"), labels_of("s.tif#0002")])})


def write_geojson(folder):
    for name, corners in IMAGES.items():
        plane = {"c": -1, "z": 0, "t": 1} if "#" in name else None
        stem = name.rsplit("/", 1)[-1].split(".")[0]
        features = [feature(*corner, score=0.9, plane=plane) for corner in corners]
        features += [feature(0, 0, plane={"c": -1, "z": 0, "t": 0})] if plane else []
        document = {"type": "FeatureCollection", "features": features}
        (folder / f"{stem}.geojson").write_text(json.dumps(document))


def write_yolo(folder):
    (folder / "classes.txt").write_text("dead\nlive\n")
    for name, corners in IMAGES.items():
        stem = name.rsplit("/", 1)[-1].replace(".tif#", "_").split(".")[0]
        lines = []
        for y, x in corners:
            ring = np.array(square(y, x)[:-1]) / (WIDTH, HEIGHT)
            lines.append(f"1 {' '.join(map(str, ring.ravel()))} 0.75\n")
        if corners:
            (folder / f"{stem}.txt").write_text("".join(lines))


WRITERS = {
    "labels": lambda folder: write_label_maps(folder, ".labels.tif"),
    "cellpose masks": lambda folder: write_label_maps(folder, "_cp_masks.png"),
    "named as images": lambda folder: write_label_maps(folder, ".tif"),
    "seg.npy": write_cellpose,
    "geojson": write_geojson,
    "InstanSeg geojson": write_instanseg,
    "InstanSeg label maps": lambda folder: write_label_maps(folder, "_instanseg_prediction.tiff"),
    "yolo": write_yolo,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_very_cells(data, tmp_path, capsys, kind):
    WRITERS[kind](tmp_path)
    report = evaluate_file(tmp_path, data, coco=True)
    assert report["livecell"]["all"]["predictions"] == 5
    for protocol in ("livecell", "coco"):
        assert report[protocol]["all"]["segm"]["AP"] == pytest.approx(1.0)
    assert report["cells"]["all"]["sartorius"] == pytest.approx(1.0)
    said = capsys.readouterr().err
    scored = "geojson" in kind or kind == "yolo"
    assert "5 cells" in said and ("none with a score" in said) != scored
    assert (report["calibration"]["all"]["error"] is None) != scored
    assert ("1 images have no file" in said) == (kind == "yolo")


def test_masks_are_kept_as_they_are_and_scores_too(data, tmp_path):
    write_geojson(tmp_path)
    found = FoundFiles(tmp_path, CATEGORIES)
    image = {"id": 5, "file_name": "a.tif", "height": HEIGHT, "width": WIDTH}
    entries, numbers = found.take(image)
    assert numbers == [0, 1, 2] and [entry["score"] for entry in entries] == [0.9] * 3
    assert {entry["category_id"] for entry in entries} == {7} and entries[0]["image_id"] == 5
    wanted = patch_to_rle(Patch(30, 40, np.ones((10, 14), bool)), HEIGHT, WIDTH)
    np.testing.assert_array_equal(decode_rle(entries[2]["segmentation"]), decode_rle(wanted))


def test_a_label_in_two_pieces_stays_one_cell(tmp_path):
    labels = np.zeros((20, 20), np.uint8)
    labels[2:5, 2:5] = labels[10:13, 10:13] = 9
    cv2.imwrite(str(tmp_path / "x_masks.png"), labels)
    (entry,), _ = FoundFiles(tmp_path, CATEGORIES).take(
        {"id": 1, "file_name": "x.jpg", "height": 20, "width": 20}
    )
    np.testing.assert_array_equal(decode_rle(entry["segmentation"]), labels > 0)


def test_a_submission(data, tmp_path, capsys):
    path = tmp_path / "submission.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "predicted"])
        for name in ("a.tif", "deep/b.png", "e.tif"):
            labels = labels_of(name)
            codes = [encode_kaggle_rle(labels == label) for label in np.unique(labels[labels > 0])]
            for code in codes or [""]:
                rows.writerow([name.split(".")[0], code])
    report = evaluate_file(path, data)
    assert (
        report["cells"]["all"]["recall"] == pytest.approx(4 / 5) and report["cells"]["all"]["precision"] == 1
    )
    assert "1 images have no file" in capsys.readouterr().err


def test_classes_that_the_data_lack_are_left_out_and_told(data, tmp_path, capsys):
    features = [feature(2, 3), feature(30, 40, label="debris")]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    report = evaluate_file(tmp_path, data)
    assert report["livecell"]["all"]["predictions"] == 1
    assert "left out: debris (1)" in capsys.readouterr().err


def test_a_name_with_a_number_sign_is_no_page(tmp_path):
    cv2.imwrite(str(tmp_path / "plate#1 b_masks.png"), labels_of("a.tif"))
    image = {"id": 1, "file_name": "plate#1 b.tif", "height": HEIGHT, "width": WIDTH}
    assert len(FoundFiles(tmp_path, CATEGORIES).take(image)[0]) == 3


def test_of_two_files_for_one_image_the_second_is_told(data, tmp_path, capsys):
    for ending in ("png", "tif"):
        cv2.imwrite(str(tmp_path / f"a_masks.{ending}"), labels_of("a.tif"))
    evaluate_file(tmp_path, data)
    assert "two files of one name: the first is used: a_masks.tif" in capsys.readouterr().err


def test_yolos_numbers_without_names_are_no_class_of_several(data, tmp_path, capsys):
    write_yolo(tmp_path)
    (tmp_path / "classes.txt").unlink()
    assert evaluate_file(tmp_path, data)["livecell"]["all"]["predictions"] == 0
    assert "left out: 1, which no classes.txt names (5)" in capsys.readouterr().err
    image = {"id": 1, "file_name": "a.tif", "height": HEIGHT, "width": WIDTH}
    assert len(FoundFiles(tmp_path, CATEGORIES[:1]).take(image)[0]) == 3  # one class: no doubt


def test_a_coco_file_that_names_other_images_is_refused(data, tmp_path):
    cell = patch_to_rle(Patch(2, 3, np.ones((10, 14), bool)), HEIGHT, WIDTH)
    found = [{"image_id": 11, "category_id": 7, "score": 0.5, "segmentation": cell}]
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"images": [{"id": 11, "file_name": "q.tif"}], "annotations": found}))
    with pytest.raises(UserError, match="prediction 0: its image, q.tif, is named as none of the 4"):
        evaluate_file(path, data)


def test_coco_files_name_their_images(data, tmp_path):
    """Ids of another tool's numbering would lay cells onto other images."""
    names = list(IMAGES)
    rle = [
        [patch_to_rle(Patch(y, x, np.ones((10, 14), bool)), HEIGHT, WIDTH) for y, x in IMAGES[n]]
        for n in names
    ]
    images = [{"id": 14 - k, "file_name": name} for k, name in enumerate(names)]  # 14, 13, 12, 11
    images[2] = {"id": 12, "file_name": "s.tif", "page": 2}
    cells = [
        {"image_id": 14 - k, "category_id": 7, "score": 0.5, "segmentation": one}
        for k, own in enumerate(rle)
        for one in own
    ]
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"images": images, "annotations": cells}))
    assert evaluate_file(path, data)["cells"]["all"]["f1"] == pytest.approx(1.0)


def test_what_lies_in_another_folder_goes_to_one_image_alone(tmp_path):
    """Only p1/a was looked at: its cells must not be taken for those of p2/a, which comes first."""
    size = {"height": HEIGHT, "width": WIDTH}
    cells = [{"image_id": 4, "category_id": 7, "score": 0.5, "bbox": [1, 1, 2, 2]}]
    coco = tmp_path / "found.json"
    coco.write_text(json.dumps({"images": [{"id": 4, "file_name": "p1/a.tif"}], "annotations": cells}))
    (tmp_path / "maps" / "p1").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "maps" / "p1" / "a_masks.png"), labels_of("a.tif"))
    for found in (PredictionFile(coco), FoundFiles(tmp_path / "maps", CATEGORIES)):
        assert found.take({"id": 1, "file_name": "p2/a.tif", **size})[0]  # no other is called so
        with pytest.raises(UserError, match=r"p1/a.tif: what was found there went to p2/a.tif; name both"):
            found.take({"id": 2, "file_name": "p1/a.tif", **size})
    (tmp_path / "flat").mkdir()
    cv2.imwrite(str(tmp_path / "flat" / "a_masks.png"), labels_of("a.tif"))
    coco.write_text(json.dumps({"images": [{"id": 4, "file_name": "a.tif"}], "annotations": cells}))
    for found in (PredictionFile(coco), FoundFiles(tmp_path / "flat", CATEGORIES)):
        assert found.take({"id": 1, "file_name": "p1/a.tif", **size})[0]
        with pytest.raises(UserError, match=r"p2/a.tif: what was found there went to p1/a.tif"):
            found.take({"id": 2, "file_name": "p2/a.tif", **size})  # of which of the two it is, nobody knows
    two = [{"id": 4, "file_name": "p1/a.tif"}, {"id": 5, "file_name": "p3/a.tif"}]
    coco.write_text(json.dumps({"images": two, "annotations": cells}))
    assert not PredictionFile(coco).take({"id": 1, "file_name": "p2/a.tif", **size})[0]


def test_scores_that_are_no_probabilities_are_ranked_and_not_calibrated(tmp_path):
    """Logits, of which some are below 0, as raw outputs of a tool."""
    cells = [{**cell, "score": score} for cell, score in zip(boxes(3), (4.5, -0.5, 0.25), strict=True)]
    truth = {"images": [IMAGE], "annotations": boxes(3), "categories": CATEGORIES}
    for masks in (True, False):
        found = [{k: v for k, v in cell.items() if masks or k != "segmentation"} for cell in cells]
        report = summarise(truth, found)
        assert report["livecell"]["all"]["bbox"]["AP"] == pytest.approx(1.0)
        assert report["calibration"]["all"]["error"] is None
        assert "error of the scores" not in format_table(report)


def npy(folder, **content):
    np.save(folder / "a_seg.npy", content)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda f: None, "holds no predictions; they are label maps"),
        (
            lambda f: cv2.imwrite(str(f / "q_masks.png"), labels_of("a.tif")),
            "none is named as an image of the data",
        ),
        (
            lambda f: cv2.imwrite(str(f / "a_masks.png"), np.ones((5, 6), np.uint8)),
            "is 5x6, the image a is 48x64",
        ),
        (
            lambda f: cv2.imwrite(str(f / "a.png"), np.arange(48 * 64).reshape(48, 64) % 251),
            "lie in several pieces: it is an image and no label map",
        ),
        (lambda f: npy(f, masks=Evil()), "its pickle asks for builtins.print"),
        (lambda f: npy(f, masks=np.zeros((4, 4))), "its masks are no label map"),
        (lambda f: npy(f, other=3), "is no _seg.npy of Cellpose ('masks')"),
        (lambda f: (f / "a_seg.npy").write_bytes(b"\x93NUMPY\x01\x00"), "is no _seg.npy of Cellpose"),
        (lambda f: (f / "a_seg.npy").write_bytes(pickle.dumps(3)), "is no _seg.npy of Cellpose"),
        (lambda f: (f / "a.geojson").write_text("{"), "is no GeoJSON"),
    ],
)
def test_what_cannot_be_scored_is_one_line(data, tmp_path, capsys, write, words):
    write(tmp_path)
    assert evaluate.main(["--predictions", str(tmp_path), "--data", str(data)]) == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0] and "run" not in printed.out


@pytest.mark.parametrize(
    ("text", "words"),
    [("a,b\n1,2\n", "is no submission"), ("id,predicted\na,1 x\n", "image a: run-length encoding")],
)
def test_a_bad_submission_is_the_users_error(data, tmp_path, text, words):
    path = tmp_path / "submission.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        evaluate_file(path, data)


def test_files_without_an_image_are_told(data, tmp_path, capsys):
    write_cellpose(tmp_path)
    np.save(tmp_path / "other_seg.npy", {"masks": labels_of("a.tif")})
    evaluate_file(tmp_path, data)
    assert "1 files are named as no image and were left out: other" in capsys.readouterr().err
    evaluate_file(tmp_path, data, limit=1)
    assert "left out" not in capsys.readouterr().err


def test_several_are_compared_with_the_first(data, tmp_path, capsys):
    write_cellpose(tmp_path)
    worse = tmp_path / "worse.json"
    cell = patch_to_rle(Patch(2, 3, np.ones((10, 14), bool)), HEIGHT, WIDTH)
    worse.write_text(json.dumps([{"image_id": 11, "category_id": 7, "score": 0.9, "segmentation": cell}]))
    out = tmp_path / "judged.json"
    words = ["--predictions", str(tmp_path), str(worse), "--data", str(data), "--out", str(out)]
    assert evaluate.main(words) == 0
    report = json.loads(out.read_text())
    (pair,) = report["compared"]
    assert (pair["first"], pair["second"]) == (str(tmp_path), str(worse))
    assert pair["metrics"]["recall"]["first"] == 1.0 and pair["metrics"]["recall"]["second"] == 0.2
    assert pair["metrics"]["AP"]["difference"] < -0.5 and pair["metrics"]["f1"]["high"] <= 0
    printed = capsys.readouterr().out
    assert f"{worse} against {tmp_path}, 4 images" in printed and "matching acc. .75" in printed
    page = out.with_suffix(".html").read_text()
    assert "<h2>Compared</h2>" in page and "95 % interval" in page
    assert evaluate.main([*words[:2], "--data", str(data), "--out", str(tmp_path / "one.json")]) == 0
    assert "<h2>Compared</h2>" not in (tmp_path / "one.html").read_text()
