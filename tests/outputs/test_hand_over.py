"""What is handed over to other programs: read back by their own libraries, and by `convert`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import roifile
import tifffile
from shapely.geometry import shape
from skimage.measure import regionprops_table

from effdet_tf import outputs
from effdet_tf.cli import main
from effdet_tf.commands.predict import FORMATS
from effdet_tf.data.record import iterate_records
from effdet_tf.geometry.masks import patch_box
from effdet_tf.geometry.rle import decode_rle
from effdet_tf.images.read import Stack
from effdet_tf.outputs.batch import predict_files
from effdet_tf.outputs.jobs import find_images
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.sizing import Sizing
from tests.predictors import Finder

HEIGHT, WIDTH = 90, 120


class Drawn(Finder):
    """Finds what it is told: discs, one over the other, one cut in two and one with a hole."""

    class_names = ("round", "long")
    category_ids = (1, 2)

    def find(self, image: np.ndarray) -> Result:
        rows, columns = np.ogrid[:28, :28]
        disc = (((rows - 13.5) ** 2 + (columns - 13.5) ** 2) < 14**2).astype(np.uint8) * 255
        ring = disc.copy()
        ring[10:18, 10:18] = 0
        halves = disc.copy()
        halves[:, 12:16] = 0
        shift = int(image.reshape(-1)[0])  # of a stack: other cells on every page
        boxes = np.float32(
            [[5, 5, 35, 35], [20, 20, 50, 50], [40, 60, 80, 110], [2, 70, 32, 100], [80, 0, 90, 9]]
        )
        boxes[:, [1, 3]] += shift
        return Result(
            boxes=boxes,
            scores=np.float32([0.9, 0.8, 0.7, 0.6, 0.5]),
            classes=np.array([0, 1, 1, 0, 0], np.int32),
            masks=np.stack([disc, disc, ring, halves, disc]),
            mask_boxes=boxes,
            height=image.shape[0],
            width=image.shape[1],
            class_names=self.class_names,
        )


@pytest.fixture
def stack() -> np.ndarray:
    pages = np.random.default_rng(0).integers(20, 255, (3, HEIGHT, WIDTH)).astype(np.uint8)
    pages[:, 0, 0] = (0, 4, 9)
    return pages


@pytest.fixture
def out(tmp_path, stack) -> Path:
    """Everything that is written of one image with a calibration of .5 micrometres."""
    (tmp_path / "images").mkdir()
    tifffile.imwrite(
        tmp_path / "images" / "P_B7_1_01d02h30m.tif",
        stack[0],
        imagej=True,
        resolution=(2, 2),
        metadata={"unit": "um"},
    )
    report = predict_files(Drawn(), find_images([tmp_path / "images"]), tmp_path / "out", formats=FORMATS)
    assert report.cells == 5 and report.exit_code == 0
    return tmp_path / "out"


def _labels(out: Path, name: str = "P_B7_1_01d02h30m") -> np.ndarray:
    return tifffile.imread(out / f"{name}.labels.tif")


def _convert(*words: object) -> list:
    assert main(["convert", *map(str, words), "--quiet"]) == 0
    return list(iterate_records(words[2]))


def test_the_command_and_the_library_know_the_same_formats():
    assert FORMATS == outputs.FORMATS


def test_label_tif_keeps_the_calibration(out):
    with tifffile.TiffFile(out / "P_B7_1_01d02h30m.labels.tif") as file:
        assert file.is_imagej and file.imagej_metadata["unit"] == "micron"
        assert file.pages[0].tags["XResolution"].value[0] / file.pages[0].tags["XResolution"].value[1] == 2
    with Stack(out / "P_B7_1_01d02h30m.labels.tif") as stack:
        assert stack.um_per_px == 0.5


def test_table_has_scikit_image_s_values_in_pixels_and_micrometres(out, stack):
    table = pd.read_csv(out / "P_B7_1_01d02h30m.cells.csv")
    names = [name for name in outputs.CELL_COLUMNS[7:] if not name.startswith("centroid")]
    expected = regionprops_table(_labels(out), stack[0], properties=["centroid", *names])
    long = expected["axis_major_length"] - expected["axis_minor_length"] > 1e-6
    turn = table["orientation"] - expected["orientation"]
    np.testing.assert_allclose(np.sin(turn)[long], 0, atol=1e-4)  # a disc has no orientation
    for name in set(names) - {"orientation"}:
        np.testing.assert_allclose(table[name], expected[name], atol=6e-3, err_msg=name)
    np.testing.assert_allclose(table["centroid_x_um"], expected["centroid-1"] / 2, atol=0.006)
    np.testing.assert_allclose(table["area_um2"], expected["area"] / 4)
    np.testing.assert_allclose(table["perimeter_um"], expected["perimeter"] / 2, atol=1e-3)


def test_without_a_calibration_there_are_no_micrometres_unless_told(tmp_path, stack):
    tifffile.imwrite(tmp_path / "a.tif", stack[0], resolution=(72, 72), resolutionunit="INCH")
    predict_files(Drawn(), find_images([tmp_path / "a.tif"]), tmp_path / "none", formats=["table"])
    assert "area_um2" not in pd.read_csv(tmp_path / "none" / "a.cells.csv")
    predict_files(
        Drawn(),
        find_images([tmp_path / "a.tif"]),
        tmp_path / "told",
        formats=["table"],
        sizing=Sizing(False, None, 2.0),
    )
    told = pd.read_csv(tmp_path / "told" / "a.cells.csv")
    assert (told["area_um2"] == 4 * told["area"]).all()
    assert pd.read_csv(tmp_path / "told" / "summary.csv")["um_per_px"].tolist() == [2]


def test_imagej_regions_are_the_cells(out):
    labels = _labels(out)
    rois = roifile.roiread(out / "P_B7_1_01d02h30m.rois.zip")
    assert [roi.name for roi in rois] == ["00001", "00002", "00003", "00004", "00005"]
    assert rois[1].props.splitlines() == ["class: long", "score: 0.8000"]
    composite = [roi.multi_coordinates is not None for roi in rois]
    assert composite == [False, False, True, True, False]
    for number, roi in enumerate(rois, start=1):
        ys, xs = np.nonzero(labels == number)
        box = (ys.min(), xs.min(), ys.max() + 1, xs.max() + 1)
        assert (roi.top, roi.left, roi.bottom, roi.right) == box
        rings = roi.coordinates(multi=True) if roi.multi_coordinates is not None else [roi.coordinates()]
        area = sum(
            np.sum(r[:, 0] * np.roll(r[:, 1], -1) - r[:, 1] * np.roll(r[:, 0], -1)) / 2
            for r in map(np.array, rings)
        )
        assert area == (labels == number).sum()  # holes run the other way round


def test_geojson_is_valid_and_has_the_measurements(out):
    labels = _labels(out)
    table = pd.read_csv(out / "P_B7_1_01d02h30m.cells.csv")
    document = json.loads((out / "P_B7_1_01d02h30m.geojson").read_text())
    assert document["type"] == "FeatureCollection" and len(document["features"]) == 5
    assert len({feature["id"] for feature in document["features"]}) == 5
    for number, feature in enumerate(document["features"], start=1):
        geometry = shape(feature["geometry"])
        assert geometry.is_valid and geometry.area == (labels == number).sum()
        properties = feature["properties"]
        assert properties["objectType"] == "detection" and properties["name"] == str(number)
        assert properties["classification"]["name"] == table["class"][number - 1]
        assert properties["measurements"]["area_um2"] == table["area_um2"][number - 1]
    assert [f["geometry"]["type"] for f in document["features"]].count("MultiPolygon") == 1


def test_geojson_rings_end_where_they_begin(out):
    """In the file itself: shapely closes rings that are open."""
    for feature in json.loads((out / "P_B7_1_01d02h30m.geojson").read_text())["features"]:
        coordinates = feature["geometry"]["coordinates"]
        pieces = coordinates if feature["geometry"]["type"] == "MultiPolygon" else [coordinates]
        for ring in (ring for piece in pieces for ring in piece):
            assert len(ring) > 4 and ring[0] == ring[-1] and ring[0] not in ring[1:-1]


def test_yolo_labels_fill_the_cells(out):
    labels = _labels(out)
    assert (out / "classes.txt").read_text().split() == ["round", "long"]
    lines = (out / "P_B7_1_01d02h30m.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "1", "0", "0"]
    for number, line in enumerate(lines, start=1):
        points = np.array(line.split()[1:], float).reshape(-1, 2) * (WIDTH, HEIGHT)
        assert (points >= 0).all() and (points <= (WIDTH, HEIGHT)).all()
        canvas = np.zeros((HEIGHT * 8, WIDTH * 8), np.uint8)
        cv2.fillPoly(canvas, [np.round(points * 8).astype(np.int32)], 1)
        filled = canvas[4::8, 4::8] > 0
        solid = np.zeros(filled.shape, np.uint8)
        contours, _ = cv2.findContours(
            (labels == number).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(solid, contours, -1, 1, -1)
        assert np.array_equal(filled, solid > 0), number


@pytest.mark.parametrize("kind", ["labelmaps", "imagej", "geojson", "yolo"])
def test_convert_reads_what_was_written(out, tmp_path, kind):
    labels = _labels(out)
    folders = ["--images", tmp_path / "images", "--masks" if kind == "labelmaps" else "--outlines", out]
    (record,) = _convert(kind, tmp_path, tmp_path / "data", *folders)
    assert record.file_name == "P_B7_1_01d02h30m.tif" and len(record.rles) == 5
    for number, rle in enumerate(record.rles, start=1):
        mask = decode_rle({"size": [HEIGHT, WIDTH], "counts": rle})
        wanted = (labels == number).astype(np.uint8)
        if kind == "yolo":  # which knows no holes
            contours, _ = cv2.findContours(wanted, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(wanted, contours, -1, 1, -1)
        count, pieces = cv2.connectedComponents(wanted)
        largest = 1 + int(np.argmax([(pieces == k).sum() for k in range(1, count)]))
        assert np.array_equal(mask, pieces == largest), number
    if kind != "labelmaps":
        assert record.classes.tolist() == ([0, 1, 1, 0, 0] if kind == "yolo" else [1, 0, 0, 1, 1])  # by name


def test_coco_file_converts_too(out, tmp_path):
    (record,) = _convert(
        "coco",
        tmp_path,
        tmp_path / "data",
        "--images",
        tmp_path / "images",
        "--annotations",
        out / "P_B7_1_01d02h30m.coco.json",
    )
    whole = Drawn().predict(np.zeros((HEIGHT, WIDTH), np.uint8)).patches()
    boxes = np.array([patch_box(patch) for patch in whole])
    np.testing.assert_array_equal(record.boxes, boxes)  # overlaps kept


def test_wells_are_counted(tmp_path, stack):
    for name in ("x_A1_1_00d00h00m", "x_A1_2_00d00h00m", "x_A1_1_00d02h00m", "x_H12_1_00d00h00m"):
        (tmp_path / "images").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", stack[0])
    report = predict_files(Drawn(), find_images([tmp_path / "images"]), tmp_path / "out", formats=["table"])
    assert report.wells == 3
    wells = pd.read_csv(tmp_path / "out" / "wells.csv").set_index(["well", "minutes"])
    assert wells.loc[("A1", 0), ["images", "cells", "cells_per_image"]].tolist() == [2, 10, 5]
    assert wells.loc[("A1", 120), "hours"] == 2 and wells.loc[("H12", 0), "cells"] == 5
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert summary["well"].tolist() == ["A1", "A1", "A1", "H12"] and summary["site"].tolist() == [1, 1, 2, 1]
    predict_files(
        Drawn(), find_images([tmp_path / "images"]), tmp_path / "out", formats=["table"], overwrite=True
    )
    (tmp_path / "plain.tif").write_bytes((tmp_path / "images" / "x_A1_1_00d00h00m.tif").read_bytes())
    predict_files(
        Drawn(), find_images([tmp_path / "plain.tif"]), tmp_path / "out", formats=["table"], overwrite=True
    )
    assert not (tmp_path / "out" / "wells.csv").exists()  # none of an earlier run stays


@pytest.mark.parametrize("axes", ["TYX", "ZYX"])
def test_stack_in_stack_out(tmp_path, stack, axes):
    (tmp_path / "images").mkdir()
    tifffile.imwrite(
        tmp_path / "images" / "movie.tif",
        stack,
        imagej=True,
        resolution=(4, 4),
        metadata={"axes": axes, "unit": "um"},
    )
    report = predict_files(Drawn(), find_images([tmp_path / "images"]), tmp_path / "out", formats=FORMATS)
    assert (report.done, report.cells) == (3, 15)
    out = tmp_path / "out"
    with tifffile.TiffFile(out / "movie.labels.tif") as file:
        assert file.series[0].axes == axes and file.asarray().shape == stack.shape
        labels = file.asarray()
    assert [np.unique(page).tolist() for page in labels] == [[0, 1, 2, 3, 4, 5]] * 3
    assert (labels[1] != labels[0]).any()
    assert tifffile.imread(out / "movie.overlay.tif").shape[0] == 3
    table = pd.read_csv(out / "movie.cells.csv")
    assert table["page"].tolist() == [1] * 5 + [2] * 5 + [3] * 5 and table["area_um2"].notna().all()
    assert pd.read_csv(out / "summary.csv")["page"].tolist() == [1, 2, 3]
    coco = json.loads((out / "movie.coco.json").read_text())
    assert [(image["id"], image["page"]) for image in coco["images"]] == [(1, 1), (2, 2), (3, 3)]
    assert [entry["id"] for entry in coco["annotations"]] == list(range(1, 16))
    rois = roifile.roiread(out / "movie.rois.zip")
    axis = axes[0].lower()
    assert [getattr(roi, f"{axis}_position") for roi in rois] == [1] * 5 + [2] * 5 + [3] * 5
    planes = [
        f["geometry"]["plane"][axis] for f in json.loads((out / "movie.geojson").read_text())["features"]
    ]
    assert planes == [0] * 5 + [1] * 5 + [2] * 5
    assert sorted(path.name for path in out.glob("movie_*.txt")) == [f"movie_{k:04d}.txt" for k in (1, 2, 3)]
    for kind, option in (("labelmaps", "--masks"), ("imagej", "--outlines"), ("geojson", "--outlines")):
        folders = ["--images", tmp_path / "images", option, out]
        records = _convert(kind, tmp_path, tmp_path / kind, *folders)
        assert [record.file_name for record in records] == [f"movie.tif#{k:04d}" for k in (1, 2, 3)]
        for record, page in zip(records, labels, strict=True):
            first = decode_rle({"size": [HEIGHT, WIDTH], "counts": record.rles[0]})
            assert np.array_equal(first, page == 1)


def test_broken_page_leaves_an_empty_one(tmp_path, stack):
    class Fussy(Drawn):
        def find(self, image):
            if image.reshape(-1)[0] in (0, 9):
                raise outputs_error()
            return super().find(image)

    from effdet_tf.errors import UserError

    def outputs_error() -> UserError:
        return UserError("this page is refused")

    tifffile.imwrite(tmp_path / "movie.tif", stack, photometric="minisblack")
    report = predict_files(
        Fussy(), find_images([tmp_path / "movie.tif"]), tmp_path / "out", formats=["labels", "table"]
    )
    assert (report.done, len(report.failed), report.exit_code) == (1, 2, 3)
    labels = tifffile.imread(tmp_path / "out" / "movie.labels.tif")
    assert [int(page.max()) for page in labels] == [0, 5, 0]
    assert pd.read_csv(tmp_path / "out" / "summary.csv")["error"].notna().tolist() == [True, False, True]


def test_nothing_reaching_the_score_is_said(tmp_path, stack, monkeypatch, capsys):
    tifffile.imwrite(tmp_path / "a.tif", stack[0])
    monkeypatch.setattr("effdet_tf.prediction.load.load", lambda run: Drawn())
    words = ["predict", str(tmp_path / "a.tif"), "--out", str(tmp_path / "out"), "--score", "0.95"]
    assert main(words) == 0
    assert "the best has 0.900; lower --score" in capsys.readouterr().err


def test_unknown_format_is_named(tmp_path):
    words = ["predict", "a.tif", "--out", str(tmp_path), "--formats", "labels,svg"]
    done = subprocess.run([sys.executable, "-m", "effdet_tf", *words], capture_output=True, text=True)
    assert done.returncode == 2 and "'svg' is none of labels, table, coco" in done.stderr
