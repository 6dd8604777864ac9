"""Files for people: each is read back by another library and compared with what was found."""

from __future__ import annotations

import dataclasses
import io
import json

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from pycocotools import mask as coco_mask
from skimage.measure import regionprops

from effdet_tf import outputs
from effdet_tf.geometry.rle import decode_kaggle_rle
from effdet_tf.images.read import read_image
from effdet_tf.outputs.coco import coco_file
from effdet_tf.outputs.overlay import overlay_file
from effdet_tf.prediction.results import Result


def _result(boxes, scores, classes=None, masks: bool = True, height: int = 60, width: int = 80) -> Result:
    """Round cells that fill their boxes."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    rows, columns = np.ogrid[:28, :28]
    disc = (((rows - 13.5) ** 2 + (columns - 13.5) ** 2) < 14**2).astype(np.uint8) * 255
    return Result(
        boxes=boxes,
        scores=np.asarray(scores, np.float32),
        classes=np.zeros(count, np.int32) if classes is None else np.asarray(classes, np.int32),
        masks=np.repeat(disc[None], count, 0) if masks else None,
        mask_boxes=boxes if masks else None,
        height=height,
        width=width,
        class_names=("round", "long"),
    )


def _row(image, cells, um_per_px=None) -> dict:
    info = outputs.ImageInfo("a.tif", (1, 2), cells.result.class_names, um_per_px=um_per_px)
    page = outputs.Page(0, image, cells, outputs.cell_table(cells, image, um_per_px))
    values = outputs.summary_row("plate/x_B7_2_00d04h00m", page, info)
    return dict(zip(outputs.summary_columns(cells.result.class_names), values, strict=True))


def _write(writer, path, page, category_ids=(1, 2)) -> None:
    """Write a page by the writer of one format; `path` is without suffix."""
    with writer(str(path), outputs.ImageInfo("a.tif", category_ids, page.cells.result.class_names)) as add:
        add(page)


@pytest.fixture
def result() -> Result:
    """Five cells: two overlap, one hides under the first, one leaves the frame, one is long."""
    boxes = [[5, 5, 25, 25], [10, 20, 30, 40], [6, 6, 22, 22], [50, 60, 70, 90], [40, 10, 48, 50]]
    return _result(boxes, [0.95, 0.9, 0.8, 0.7, 0.6], [0, 1, 0, 0, 1])


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65535, (60, 80, 1)).astype(np.uint16)


def test_numbers_go_by_score_and_skip_hidden_cells(result):
    cells = outputs.number_cells(result)
    assert cells.result.scores == pytest.approx([0.95, 0.9, 0.7, 0.6])
    assert sorted(np.unique(cells.labels)) == [0, 1, 2, 3, 4]
    assert cells.labels[44, 30] == 4 and cells.labels[15, 35] == 2


def test_table_equals_scikit_image(result, image):
    cells = outputs.number_cells(result)
    table = outputs.cell_table(cells, image)
    assert tuple(table.columns) == outputs.CELL_COLUMNS
    assert table["cell"].tolist() == [1, 2, 3, 4]
    assert table["class"].tolist() == ["round", "long", "round", "long"]
    assert table.loc[1, ["y0", "x0", "y1", "x1"]].tolist() == [10, 20, 30, 40]
    for region, row in zip(regionprops(cells.labels, image[..., 0]), table.itertuples(), strict=True):
        assert row.area == region.area
        assert (row.centroid_y, row.centroid_x) == pytest.approx(region.centroid, abs=0.006)
        assert row.perimeter == pytest.approx(region.perimeter, abs=0.006)
        assert row.eccentricity == pytest.approx(region.eccentricity, abs=1e-4)
        assert row.intensity_mean == pytest.approx(region.intensity_mean, abs=1e-3)


def test_table_file_reads_back(result, image, tmp_path):
    table = outputs.cell_table(outputs.number_cells(result), image)
    outputs.write_table(tmp_path / "deep" / "a.csv", table)
    back = pd.read_csv(tmp_path / "deep" / "a.csv")
    pd.testing.assert_frame_equal(back, table, check_dtype=False)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.csv"]


def test_labels_are_uint16_and_uint32_when_needed(tmp_path):
    labels = np.zeros((300, 300), np.int32)
    labels[0, 1] = 65535
    outputs.write_labels(tmp_path / "a.tif", labels)
    back = tifffile.imread(tmp_path / "a.tif")
    assert back.dtype == np.uint16 and np.array_equal(back, labels)
    assert (tmp_path / "a.tif").stat().st_size < 2000
    labels[0, 2] = 65536
    outputs.write_labels(tmp_path / "b.tif", labels)
    back = tifffile.imread(tmp_path / "b.tif")
    assert back.dtype == np.uint32 and back[0, 2] == 65536


def test_coco_file_keeps_overlaps_numbers_and_category_ids(result, image, tmp_path):
    page = outputs.make_page(result, image)
    cells = page.cells
    _write(coco_file, tmp_path / "a", page, (7, 3))
    document = json.loads((tmp_path / "a.coco.json").read_text())
    assert document["images"] == [{"id": 1, "file_name": "a.tif", "width": 80, "height": 60}]
    assert [category["id"] for category in document["categories"]] == [7, 3]
    assert [entry["id"] for entry in document["annotations"]] == [1, 2, 3, 4]
    assert [entry["category_id"] for entry in document["annotations"]] == [7, 3, 7, 3]
    second = document["annotations"][1]
    assert second["area"] == coco_mask.area(second["segmentation"])
    assert second["area"] > (cells.labels == 2).sum()  # its overlap with the first is in it
    assert second["bbox"] == [20, 10, 20, 20] and second["score"] == pytest.approx(0.9)


def test_overlay_outlines_each_cell_in_its_own_colour(result, image, tmp_path):
    page = outputs.make_page(result, image)
    cells = page.cells
    drawn = outputs.draw_overlay(image, cells)
    assert drawn.dtype == np.uint8 and drawn.shape == (240, 320, 3)
    colourful = np.ptp(drawn.astype(int), axis=2) > 60
    near = cv2.dilate((cells.labels > 0).astype(np.uint8), np.ones((3, 3))).repeat(4, 0).repeat(4, 1) > 0
    assert colourful.any() and not (colourful & ~near).any()
    inside = cv2.erode((cells.labels > 0).astype(np.uint8), np.ones((7, 7))).repeat(4, 0).repeat(4, 1) > 0
    inside &= (cells.labels == 1).repeat(4, 0).repeat(4, 1)
    assert not (colourful & inside)[:60].any()
    colours = {outputs.cell_colour(number) for number in range(1, 41)}
    assert len(colours) > 35
    _write(overlay_file, tmp_path / "a", page)
    assert np.array_equal(read_image(tmp_path / "a.overlay.png"), drawn)  # red stays red


def test_overlay_of_flat_and_of_large_images():
    cells = outputs.number_cells(_result([], []))
    assert (outputs.draw_overlay(np.full((60, 80), 9, np.uint8), cells) == 128).all()
    assert outputs.draw_overlay(np.zeros((1500, 2000, 3), np.uint8), cells).shape == (1500, 2000, 3)


def test_submission_rows_decode_to_the_label_image(result):
    cells = outputs.number_cells(result)
    rows = outputs.submission_rows("abc", cells.labels)
    assert [name for name, _ in rows] == ["abc"] * 4
    masks = [decode_kaggle_rle(code, 60, 80) for _, code in rows]
    assert np.sum(masks, axis=0).max() == 1
    for number, mask in enumerate(masks, start=1):
        assert np.array_equal(mask, cells.labels == number)


@pytest.mark.parametrize(
    ("labels", "codes"),
    [
        ([[0, 0], [0, 0]], [""]),  # an image without cells keeps its row
        ([[1, 1], [1, 1]], ["1 4"]),
        ([[2, 0], [1, 2]], ["3 1", "1 1 4 1"]),
        ([[0, 1], [1, 0]], ["2 2"]),  # runs go on in the next row
    ],
)
def test_submission_by_hand(labels, codes):
    assert [code for _, code in outputs.submission_rows("x", np.array(labels))] == codes


def test_no_cell_gives_whole_files(image, tmp_path):
    cells = outputs.number_cells(_result([], []))
    table = outputs.cell_table(cells, image)
    outputs.write_table(tmp_path / "a.csv", table)
    assert (tmp_path / "a.csv").read_text() == ",".join(outputs.CELL_COLUMNS) + "\n"
    _write(coco_file, tmp_path / "a", outputs.Page(0, image, cells, table))
    assert json.loads((tmp_path / "a.coco.json").read_text())["annotations"] == []
    row = _row(image, cells)
    assert [row[name] for name in ("height", "width", "cells", "cells_round")] == [60, 80, 0, 0]
    assert (row["mean_score"], row["mean_area"], row["covered"], row["error"]) == ("", "", 0.0, "")


def test_boxes_only(image, tmp_path):
    cells = outputs.number_cells(_result([[5, 5, 25, 25]], [0.9], masks=False))
    table = outputs.cell_table(cells, image)
    assert cells.labels is None and table["area"].isna().all() and table["y1"].tolist() == [25]
    _write(coco_file, tmp_path / "a", outputs.Page(0, image, cells, table))
    entry = json.loads((tmp_path / "a.coco.json").read_text())["annotations"][0]
    assert entry["area"] == 400 and "segmentation" not in entry
    drawn = np.ptp(outputs.draw_overlay(image, cells).astype(int), axis=2) > 60
    assert drawn.sum() > 200
    row = _row(image, cells, um_per_px=2)
    assert [row[name] for name in ("mean_score", "mean_area", "mean_area_um2", "covered")] == [
        0.9,
        "",
        "",
        "",
    ]
    # The class is written inside the box, where there are several.
    one = outputs.NumberedCells(dataclasses.replace(cells.result, class_names=("only",)), None)
    outlined = np.ptp(outputs.draw_overlay(image, one).astype(int), axis=2) > 60
    assert (outlined & ~drawn).sum() == 0 and (drawn & ~outlined).sum() > 20


def test_summary_counts_classes(result, image):
    cells = outputs.number_cells(result)
    row = _row(image, cells, um_per_px=0.5)
    assert (row["well"], row["site"], row["minutes"], row["page"]) == ("B7", 2, 240, "")
    assert row["mean_area_um2"] == pytest.approx(row["mean_area"] / 4, abs=0.01)
    assert (row["cells"], row["cells_round"], row["cells_long"]) == (4, 2, 2)
    assert row["mean_score"] == pytest.approx((0.95 + 0.9 + 0.7 + 0.6) / 4, abs=1e-4)
    assert row["mean_area"] == pytest.approx((cells.labels > 0).sum() / 4, abs=0.01)
    assert row["covered"] == pytest.approx((cells.labels > 0).mean(), abs=1e-4)


def test_appended_rows_are_on_disk_before_the_file_is_closed(tmp_path):
    path = tmp_path / "summary.csv"
    with pytest.raises(RuntimeError), outputs.open_csv(path, ["a", "b"]) as append:
        assert path.read_text() == "a,b\n"
        append([[1, "x,y"]])
        append([[2, 'say "z"'], [3, ""]])
        assert len(path.read_text().splitlines()) == 4
        raise RuntimeError("the run dies")
    back = pd.read_csv(path)
    assert back["a"].tolist() == [1, 2, 3] and back["b"][0] == "x,y"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.csv"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    outputs.write_labels(tmp_path / "a.tif", np.ones((4, 4), np.int32))

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(tifffile.TiffWriter, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        outputs.write_labels(tmp_path / "a.tif", np.zeros((4, 4), np.int32))
    assert tifffile.imread(io.BytesIO((tmp_path / "a.tif").read_bytes())).sum() == 16
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
