"""Annotations as other tools write them: read with the value that they have there, or refused by name."""

from __future__ import annotations

import base64
import codecs
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from roifile import ImagejRoi

from effdet_tf.cli import main
from effdet_tf.data.build import build_image
from effdet_tf.data.faults import Faults
from effdet_tf.data.record import iterate_records
from effdet_tf.data.sources.base import ImageFinder, Source
from effdet_tf.data.sources.coco import open_coco
from effdet_tf.data.sources.labelmaps import open_labelmaps
from effdet_tf.data.sources.outlines import open_outlines
from effdet_tf.errors import UserError

H, W = 40, 60
GRAY = (np.add.outer(np.arange(H) * 5, np.arange(W) * 3) % 251).astype(np.uint8)
SQUARE = [10, 10, 20, 10, 20, 18, 10, 18]  # x 10-20, y 10-18


def put(path: Path, data: bytes | str | np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, np.ndarray):
        tifffile.imwrite(path, data)
    else:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def cells(source: Source) -> dict[str, list[tuple[int, list[float]]]]:
    """Class id and box of the cells of each image; images that are left out are missing."""
    found = {}
    for task in source.tasks:
        built = build_image(task, 28)
        source.faults.merge(built.faults)
        if built.fields is not None:
            pairs = zip(built.fields["classes"].tolist(), built.fields["boxes"].tolist(), strict=True)
            found[task.file_name] = list(pairs)
    return found


# COCO


def coco(root: Path, images: list[dict], annotations: list[dict], encoding: str = "utf-8") -> Source:
    for entry in images:
        put(root / "images" / entry["file_name"].replace("\\", "/"), GRAY)
    document = {"images": images, "annotations": annotations, "categories": [{"id": "7", "name": "cell"}]}
    put(root / "a.json", json.dumps(document, ensure_ascii=False).encode(encoding))
    return open_coco(root / "a.json", root / "images", root)


def entry(identity: Any, name: str = "a.tif") -> dict[str, Any]:
    return {"id": identity, "file_name": name, "height": H, "width": W}


def annotation(image_id: Any, category: Any = 7, **more: Any) -> dict[str, Any]:
    bbox = [10, 10, 10, 8]
    return {
        "id": 1,
        "image_id": image_id,
        "category_id": category,
        "segmentation": [SQUARE],
        "bbox": bbox,
    } | more


@pytest.mark.parametrize("identity", [1, 1.0, "1", " 1 ", "1.0"])
@pytest.mark.parametrize("other", [1, 1.0, "1"])
def test_ids_are_equal_by_value(tmp_path: Path, identity: Any, other: Any) -> None:
    source = coco(tmp_path, [entry(identity)], [annotation(other, "7"), annotation(other, 7.0, id="2")])
    assert source.tasks[0].image_id == 1 and source.tasks[0].annotated == 2
    assert not source.faults


def test_an_id_that_is_a_name_stays_one(tmp_path: Path) -> None:
    images = [entry("01", "a.tif"), entry("1", "b.tif"), entry("x-1", "c.tif")]
    source = coco(tmp_path, images, [annotation("01"), annotation("x-1"), annotation("1")])
    assert [(task.file_name, task.annotated) for task in source.tasks] == [
        ("a.tif", 1),
        ("b.tif", 1),
        ("c.tif", 1),
    ]
    assert "image ids are no whole numbers: numbered from 1 by name" in source.faults.notes


def test_ids_of_no_kind_are_left_out(tmp_path: Path) -> None:
    images = [entry([1]), entry(None, "b.tif"), entry(1.5, "c.tif"), entry(2, "d.tif")]
    source = coco(tmp_path, images, [annotation([1]), annotation(None), annotation({}), annotation(2)])
    assert [task.file_name for task in source.tasks] == ["d.tif"]
    assert source.faults.lost == {"annotation of an unknown image": 3}


@pytest.mark.parametrize(
    ("given", "crowd"), [(0, 0), ("0", 0), (False, 0), ("false", 0), (None, 0), (1, 1), ("1", 1), ("True", 1)]
)
def test_crowds_are_told_by_value(tmp_path: Path, given: Any, crowd: int) -> None:
    source = coco(tmp_path, [entry(1)], [annotation(1, iscrowd=given)])
    (built,) = [build_image(task, 28) for task in source.tasks]
    assert built.fields is not None and built.fields["iscrowd"].tolist() == [crowd] and not source.faults


def test_a_crowd_that_is_neither_is_noted(tmp_path: Path) -> None:
    source = coco(tmp_path, [entry(1)], [annotation(1, iscrowd="perhaps")])
    assert cells(source)["a.tif"] == [(0, [10, 10, 18, 20])]
    assert list(source.faults.notes) == ["iscrowd is neither 0 nor 1: taken as 0"]


def test_entries_of_one_file_are_one_image(tmp_path: Path) -> None:
    """LIVECell's published training file has 65 such images."""
    other = annotation(9, segmentation=[[30, 10, 40, 10, 40, 18, 30, 18]], bbox=[30, 10, 10, 8])
    source = coco(tmp_path, [entry(4), entry(9)], [annotation(4), other, annotation(9)])
    assert [task.image_id for task in source.tasks] == [4]
    assert cells(source) == {"a.tif": [(0, [10, 10, 18, 20]), (0, [10, 30, 18, 40])]}
    assert source.faults.notes["several entries of one image: their cells are put together"]["count"] == 1
    assert source.faults.dropped["exact double of a cell"]["count"] == 1 and not source.faults.lost


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("C:\\data\\train\\A.TIF", "train/a.tif"),
        ("/home/me/set/train/a.tif", "train/a.tif"),
        ("./val/a.tif", "val/a.tif"),
        ("a.tif", "a.tif"),
        ("caf\u0065\u0301.tif", "caf\u00e9.tif"),
        ("elsewhere/b.tif", "val/b.tif"),
    ],
)
def test_the_longest_common_end_of_a_name_counts(tmp_path: Path, name: str, file: str) -> None:
    for place in ("train/a.tif", "val/a.tif", "a.tif", "val/b.tif", "caf\u00e9.tif", "._a.tif"):
        put(tmp_path / place, b"")
    faults = Faults()
    assert ImageFinder(tmp_path).find(name, faults) == tmp_path / file and not faults


def test_names_that_fit_several_files_and_files_that_fit_several_names_are_left_out(tmp_path: Path) -> None:
    for place in ("train/a.tif", "val/a.tif", "one/b.tif"):
        put(tmp_path / "images" / place, GRAY)
    images = [entry(1, "test/a.tif"), entry(2, "x/b.tif"), entry(3, "y/b.tif"), entry(4, "train/a.tif")]
    document = {
        "images": images,
        "annotations": [annotation(k) for k in (1, 2, 3, 4)],
        "categories": [{"id": 7}],
    }
    put(tmp_path / "a.json", json.dumps(document))
    source = open_coco(tmp_path / "a.json", tmp_path / "images", tmp_path)
    assert list(cells(source)) == ["train/a.tif"]
    assert source.faults.dropped["image file in several folders"]["examples"] == [
        "test/a.tif: train/a.tif and val/a.tif"
    ]
    assert source.faults.dropped["image file that fits another entry as well"]["count"] == 2
    assert source.faults.lost == {"cells of a dropped image": 3}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_byte_order_mark_is_no_fault_of_a_file(tmp_path: Path, encoding: str) -> None:
    if encoding == "utf-16-le":  # without a mark it is no text that could be told
        with pytest.raises(UserError, match="JSON"):
            coco(tmp_path, [entry(1)], [annotation(1)], encoding)
        return
    source = coco(tmp_path, [entry(1, "\u00e9.tif")], [annotation(1)], encoding)
    assert cells(source) == {"\u00e9.tif": [(0, [10, 10, 18, 20])]}


def test_coordinates_that_are_no_pixels_are_told(tmp_path: Path) -> None:
    shares = [annotation(1, segmentation=[[0.1, 0.1, 0.3, 0.1, 0.3, 0.3]], bbox=[0.1, 0.1, 0.2, 0.2])] * 3
    with pytest.raises(UserError, match="between 0 and 1, shares of the image"):
        coco(tmp_path, [entry(1)], shares)
    corners = [annotation(1, segmentation=[], bbox=[30 + k, 20, 50 + k, 38]) for k in range(8)]
    with pytest.raises(UserError, match="8 of 8 boxes leave their images .* none does as x1, y1, x2, y2"):
        coco(tmp_path, [entry(1)], corners)
    assert coco(tmp_path, [entry(1)], [annotation(1, segmentation=[], bbox=[30, 20, 30, 20])] * 8).tasks


def test_blanks_that_label_studio_writes_as_signs(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a b.tif", GRAY)
    document = {
        "images": [{"id": 1, "file_name": "images/a%20b.tif"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "segmentation": [SQUARE]}],
        "categories": [{"id": 0, "name": "cell"}],
    }
    put(tmp_path / "c.json", json.dumps(document))
    assert cells(open_coco(tmp_path / "c.json", tmp_path / "images", tmp_path)) == {
        "images/a%20b.tif": [(0, [10, 10, 18, 20])]
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"images": [], "annotations": [{"bbox": [NaN, 1]}]}', "is no JSON .*neither NaN nor Infinity"),
        ('{"images": [],}', r"is no JSON \(.*object key.*\)$"),
        ('{"images": []}\n{"images": []}', r"is no JSON \(.*trailing garbage"),
        ('{"images": [', "is no complete JSON file .*; copy it again$"),
    ],
)
def test_bytes_are_missing_only_where_a_file_ends_too_early(tmp_path: Path, text: str, told: str) -> None:
    put(tmp_path / "images" / "a.tif", GRAY)
    put(tmp_path / "c.json", text)
    with pytest.raises(UserError, match=told):
        open_coco(tmp_path / "c.json", tmp_path / "images", tmp_path)


def test_what_a_brush_of_cvat_painted_is_a_crowd_and_said(tmp_path: Path) -> None:
    counts = [10 * H + 10, *([8, H - 8] * 9), 8, H * W - 19 * H - 18]
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 1}
    annotation |= {"segmentation": {"size": [H, W], "counts": counts}, "bbox": [10, 10, 10, 8]}
    source = coco(tmp_path, [{"id": 1, "file_name": "a.tif"}], [annotation])
    (task,) = source.tasks
    built = build_image(task, 28)
    assert built.fields is not None, built.faults.lines()
    assert built.fields["boxes"].tolist() == [[10, 10, 18, 20]] and built.fields["iscrowd"].tolist() == [1]
    assert "CVAT marks what its brush painted so" in " ".join(built.faults.lines())


# YOLO


def yolo(root: Path, lines: str | bytes, **files: str) -> Source:
    put(root / "images" / "a.tif", GRAY)
    put(root / "labels" / "a.txt", lines)
    for name, text in files.items():
        put(root / name.replace("_", "."), text)
    return open_outlines("yolo", root)


SHARE = "0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5"  # x 15-30, y 10-20
BOX = [10, 15, 20, 30]


@pytest.mark.parametrize(
    "line",
    [
        f"0 {SHARE}",
        f"0.0 {SHARE}",
        f"0 {SHARE} 0.87",
        "0 0.375 0.375 0.25 0.25",
        "0 0.375 0.375 0.25 0.25 0.91",
        "0 0.375 0.375 0.25 0.25 0.91 12",  # and the number of a track
        f"# by hand\n0 {SHARE}",
        "0 15 10 30 10 30 20 15 20",
        "0 22.5 15 15 10",
        codecs.BOM_UTF8 + f"0 {SHARE}\r\n".encode(),
        f"0 {SHARE}".encode("utf-16"),
    ],
)
def test_every_line_of_yolo_is_the_same_cell(tmp_path: Path, line: str | bytes) -> None:
    source = yolo(tmp_path, line)
    assert cells(source) == {"a.tif": [(0, BOX)]} and not source.faults.dropped
    pixels = line in ("0 15 10 30 10 30 20 15 20", "0 22.5 15 15 10")
    assert bool(source.faults.notes) == pixels


@pytest.mark.parametrize(
    ("names", "classes", "first"),
    [
        ("names: {1: dead, 0: live}", ["live", "dead"], 1),
        ("names: [live, dead]", ["live", "dead"], 1),
        ("names: {1: live, 2: dead}", ["live", "dead"], 0),
        ("\ufeffnames: {3: dead, 1: live}", ["live", "dead"], 0),
    ],
)
def test_names_go_by_their_numbers(tmp_path: Path, names: str, classes: list[str], first: int) -> None:
    source = yolo(
        tmp_path,
        f"1 {SHARE}\n0 0.7 0.7 0.1 0.1" if "[" in names or "0:" in names else f"1 {SHARE}",
        data_yaml=names,
    )
    assert [category["name"] for category in source.categories] == classes
    assert cells(source)["a.tif"][0] == (first, BOX)


@pytest.mark.parametrize(
    "place", ["train/data.yaml", "data.yaml", "train/labels/classes.txt", "train/obj.names"]
)
def test_names_lie_where_the_tools_put_them(tmp_path: Path, place: str) -> None:
    put(tmp_path / place, "names: [live, dead]" if place.endswith("yaml") else "\ufefflive\r\ndead\r\n")
    source = yolo(tmp_path / "train", f"1 {SHARE}")
    assert [category["name"] for category in source.categories] == ["live", "dead"]


def test_keypoints_are_refused_by_name(tmp_path: Path) -> None:
    line = "0 0.375 0.375 0.25 0.25 0.3 0.3 2 0.4 0.4 2"
    with pytest.raises(UserError, match=r"data\.yaml: kpt_shape says that the labels hold keypoints"):
        yolo(tmp_path, line, data_yaml="names: [cell]\nkpt_shape: [2, 3]\n")


def test_classes_shifted_by_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use the classes 1 to 2, the names those from 0 to 1"):
        yolo(tmp_path, f"1 {SHARE}\n2 {SHARE}", data_yaml="names: [live, dead]")


def test_an_image_all_of_whose_lines_failed_is_not_one_without_cells(tmp_path: Path) -> None:
    put(tmp_path / "images" / "b.tif", GRAY)
    put(tmp_path / "images" / "c.tif", GRAY)
    put(tmp_path / "labels" / "b.txt", "live 0.1 0.2\nx")
    put(tmp_path / "labels" / "c.txt", "")
    source = yolo(tmp_path, f"0 {SHARE}")
    assert cells(source) == {"a.tif": [(0, BOX)], "c.tif": []}
    assert source.faults.dropped["image all of whose annotations failed"]["examples"] == ["b.tif"]
    assert source.faults.lost == {"degenerate or unreadable outline": 2}


# GeoJSON, ImageJ, LabelMe


def feature(x: int, **properties: Any) -> dict[str, Any]:
    ring = [[x, 10], [x + 6, 10], [x + 6, 16], [x, 16], [x, 10]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
    }


def test_qupath_classes_and_regions(tmp_path: Path) -> None:
    whole = [[[0, 0], [W, 0], [W, H], [0, H], [0, 0]]]
    features = [
        feature(2, classification={"name": "Tumor"}),
        feature(12, classification={"names": ["Tumor", "Positive"]}),
        feature(22, classification={"name": "Region*"}),
        feature(32, isLocked=True),
        feature(42, isLocked=True, classification={"name": "Tumor"}),
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": whole}, "properties": {}},
    ]
    put(tmp_path / "a.tif", GRAY)
    put(tmp_path / "a.geojson", codecs.BOM_UTF8 + json.dumps({"features": features}).encode())
    source = open_outlines("geojson", tmp_path)
    names = [category["name"] for category in source.categories]
    assert [(names[kind], box[1]) for kind, box in cells(source)["a.tif"]] == [
        ("Tumor", 2),
        ("Tumor: Positive", 12),
        ("Tumor", 42),
    ]
    assert {reason: noted["count"] for reason, noted in source.faults.notes.items()} == {
        "locked or ignored region: no cell, left out": 2,
        "outline of the whole image: a region and no cell, left out": 1,
    }


def roi_zip(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def test_an_annotation_around_detections_is_a_region(tmp_path: Path) -> None:
    def feature(x: int, y: int, side: int, **properties: Any) -> dict:
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        return {"type": "Feature", "geometry": geometry, "properties": properties}

    features = [
        feature(2, 2, 30, objectType="annotation"),  # holds two cells
        feature(5, 5, 6, objectType="detection"),
        feature(20, 5, 6, objectType="detection"),
        feature(40, 20, 10, objectType="annotation"),  # drawn by hand, with one speck in it
        feature(44, 24, 2, objectType="detection"),
        feature(34, 2, 5, objectType="tmaCore"),
        feature(2, 2, 31, objectType="annotation", classification={"name": "Syncytium"}),
    ]
    put(tmp_path / "a.tif", GRAY)
    put(tmp_path / "a.geojson", json.dumps({"type": "FeatureCollection", "features": features}))
    source = open_outlines("geojson", tmp_path)
    assert [box for _, box in cells(source)["a.tif"]] == [
        *([5, 5, 11, 11], [5, 20, 11, 26], [20, 40, 30, 50], [24, 44, 26, 46]),
        [2, 2, 33, 33],
    ]
    assert "annotation around other outlines" in " ".join(source.faults.lines())


@pytest.mark.parametrize("number", ["Infinity", "1e999", "NaN", "-1e30"])
def test_numbers_without_end_and_outlines_without_points_cost_their_outline(
    tmp_path: Path, number: str
) -> None:
    square = [[10, 10], [20, 10], [20, 18], [10, 18], [10, 10]]
    parts = [
        *("[]", "[[]]", "[[[1, 1]]]"),
        f"[[[{number}, 0], [1, {number}], [2, 2]]]",
        json.dumps([square]),
    ]
    features = [
        '{"type": "Feature", "properties": {"objectType": "annotation"}, '
        f'"geometry": {{"type": "Polygon", "coordinates": {part}, "plane": {{"t": {plane}}}}}}}'
        for part in parts
        for plane in ("0", number)
    ]
    put(tmp_path / "a.tif", GRAY)
    put(tmp_path / "a.geojson", f'{{"type": "FeatureCollection", "features": [{", ".join(features)}]}}')
    found = cells(open_outlines("geojson", tmp_path))
    assert found == {"a.tif": [(0, [10, 10, 18, 20])]}
    (tmp_path / "a.geojson").unlink()
    put(tmp_path / "a.json", f'{{"shapes": [], "imageHeight": {number}, "imageWidth": 3}}')
    source = open_outlines("labelme", tmp_path)
    cells(source)
    assert number == "-1e30" or "is no LabelMe file" in " ".join(source.faults.lines())


def test_outlines_beside_the_images_of_a_set_and_fijis_own_name(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.tif", GRAY)
    with zipfile.ZipFile(tmp_path / "images" / "a_RoiSet.zip", "w") as archive:
        archive.writestr("x.roi", ImagejRoi.frompoints(np.reshape(SQUARE, (-1, 2))).tobytes())
    assert cells(open_outlines("imagej", tmp_path)) == {"a.tif": [(0, [10, 10, 18, 20])]}


def test_what_macos_adds_to_a_zip_is_no_region_and_one_bad_file_costs_its_own_image(tmp_path: Path) -> None:
    roi = ImagejRoi.frompoints([[10, 10], [20, 10], [20, 18], [10, 18]]).tobytes()
    mac = {
        "__MACOSX/": b"",
        "__MACOSX/._1.roi": b"\0\x05\x16\x07",
        "._2.roi": b"\0",
        "rois/": b"",
        "rois/1.roi": roi,
    }
    files = {"a": roi_zip(**mac), "b": roi_zip(**{"1.roi": roi, "2.roi": b"no region"}), "c": b"no zip"}
    for name, data in files.items():
        put(tmp_path / f"{name}.tif", GRAY)
        put(tmp_path / f"{name}.zip", data)
        put(tmp_path / f"__MACOSX/._{name}.zip", b"\0")
    source = open_outlines("imagej", tmp_path)
    assert cells(source) == {"a.tif": [(0, [10, 10, 18, 20])], "b.tif": [(0, [10, 10, 18, 20])]}
    assert source.faults.lost == {"unreadable region": 1, "annotation of the image unusable": 1}


def test_labelme(tmp_path: Path) -> None:
    mask = io.BytesIO()
    Image.fromarray(np.array([[0, 255, 255], [255, 255, 255]], np.uint8)).save(mask, "PNG")
    shapes = [
        {"label": "live", "points": [[10, 10], [20, 10], [20, 18], [10, 18]], "shape_type": "polygon"},
        {"label": "dead", "points": [[40, 8], [30, 2]], "shape_type": "rectangle"},
        {"label": "live", "points": [[10, 30], [10, 33]], "shape_type": "circle"},
        {"label": "live", "points": [[30, 20], [32, 21]], "shape_type": "mask",
         "mask": base64.b64encode(mask.getvalue()).decode()},
        {"label": "live", "points": [[40, 20], [50, 20], [50, 25], [40, 25]], "group_id": 3},
        {"label": "live", "points": [[40, 25], [50, 25], [50, 30], [40, 30]], "group_id": 3},
        {"label": "live", "points": [[1, 1]], "shape_type": "point"},
    ]  # fmt: skip
    put(tmp_path / "a.tif", GRAY)
    put(tmp_path / "a.json", json.dumps({"shapes": shapes, "imagePath": "a.tif"}))
    source = open_outlines("labelme", tmp_path)
    assert [category["name"] for category in source.categories] == ["dead", "live"]
    found = cells(source)["a.tif"]
    assert found[:2] == [(1, [10, 10, 18, 20]), (0, [2, 30, 8, 40])]
    assert np.abs(np.array(found[2][1]) - [27, 7, 33, 13]).max() <= 1
    assert found[3:] == [(1, [20, 30, 22, 33]), (1, [20, 40, 30, 50])]
    assert source.faults.dropped["shape that is no area"]["count"] == 1


# Label maps


def test_labelme_of_another_size_is_not_stretched_over_the_image(tmp_path: Path) -> None:
    square = {"label": "cell", "points": [[10, 10], [20, 10], [20, 18], [10, 18]]}
    for name, kind, size in (("a", "polygon", (2 * H, 2 * W)), ("b", "oriented_rectangle", (H, W))):
        put(tmp_path / f"{name}.tif", GRAY)
        sides = dict(zip(("imageHeight", "imageWidth"), size, strict=True))
        put(tmp_path / f"{name}.json", json.dumps({"shapes": [{**square, "shape_type": kind}], **sides}))
    source = open_outlines("labelme", tmp_path)
    assert cells(source) == {"b.tif": [(0, [10, 10, 18, 20])]}
    assert "was drawn on an image of 80x120 px, this one is 40x60" in " ".join(source.faults.lines())


def test_labels_that_began_again_at_0_are_refused(tmp_path: Path) -> None:
    tall = np.zeros((200, 200), np.uint16)
    for number in range(300):  # 300 cells of 4 x 4 px
        y, x = divmod(number, 20)
        tall[y * 8 : y * 8 + 4, x * 8 : x * 8 + 4] = number + 1
    put(tmp_path / "x.tif", np.zeros_like(tall))
    put(tmp_path / "x_masks.tif", tall)
    assert len(cells(open_labelmaps(tmp_path))["x.tif"]) == 300
    put(tmp_path / "x_masks.tif", tall.astype(np.uint8))
    source = open_labelmaps(tmp_path)
    assert cells(source) == {}
    assert (
        "44 of them in several pieces"
        in source.faults.dropped["annotation of the image unusable"]["examples"][0]
    )


def test_a_background_that_is_not_0_is_no_cell(tmp_path: Path) -> None:
    labels = np.ones((H, W), np.uint8)
    labels[5:10, 5:10], labels[20:30, 20:30] = 2, 3
    put(tmp_path / "x.tif", GRAY)
    put(tmp_path / "x_masks.tif", labels)
    source = open_labelmaps(tmp_path)
    assert cells(source) == {"x.tif": [(0, [5, 5, 10, 10]), (0, [20, 20, 30, 30])]}
    (note,) = source.faults.notes
    assert "label 1, on all four sides" in note


@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_of_all_cells_is_no_label_map(tmp_path: Path, value: int) -> None:
    labels = np.zeros((H, W), np.uint8)
    labels[5:15, 5:15] = labels[20:29, 30:41] = value
    put(tmp_path / "images" / "a.tif", GRAY)
    put(tmp_path / "masks" / "a.tif", labels)
    source = open_labelmaps(tmp_path)
    assert cells(source) == {}
    assert "one label in several pieces, as a mask of all cells has" in " ".join(source.faults.lines())
    labels[20:29, 30:41] = 0
    labels[25, 30] = value  # a speck beside one cell
    put(tmp_path / "masks" / "a.tif", labels)
    assert cells(open_labelmaps(tmp_path)) == {"a.tif": [(0, [5, 5, 15, 15])]}


def test_cellpose_pickles_are_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path / "x.tif", GRAY)
    put(tmp_path / "x_seg.npy", b"\x93NUMPY")
    with pytest.raises(UserError, match=r"x_seg\.npy: .*pickle.*save the masks as PNG or tif"):
        open_labelmaps(tmp_path)


# What is lost


@pytest.mark.parametrize(
    ("bad", "options", "code", "first"),
    [
        (0, (), 0, "out: 1 images, 10 cells"),
        (1, (), 0, "out: 1 images, 10 cells"),
        (
            2,
            (),
            0,
            "out: 17% of the annotations were lost (2 of 12); most often: degenerate",
        ),
        (11, (), 1, "out: 52% of the annotations were lost (11 of 21); most often: "),
        (11, ("--allow-loss",), 0, "out: 52% of the annotations were lost (11 of 21); most often: "),
    ],
)
def test_loss_is_told_first_and_above_half_it_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, bad: int, options: tuple, code: int, first: str
) -> None:
    monkeypatch.chdir(tmp_path)
    good = [f"0 {0.05 + k * 0.09} 0.5 0.05 0.2" for k in range(10)]
    yolo(tmp_path / "in", "\n".join([*good, *["0 nothing"] * bad]))
    assert main(["convert", "yolo", "in", "out", "--workers", "1", "--quiet", *options]) == code
    assert capsys.readouterr().out.splitlines()[0].startswith(first)
    assert len(next(iterate_records("out")).rles) == 10


def test_outlines_beside_their_images_are_found_whatever_the_case_of_the_ending(tmp_path: Path) -> None:
    square = [[[10, 10], [20, 10], [20, 18], [10, 18], [10, 10]]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": square}}
    put(tmp_path / "images" / "a.tif", GRAY)
    put(tmp_path / "images" / "a.GEOJSON", json.dumps({"type": "FeatureCollection", "features": [feature]}))
    assert cells(open_outlines("geojson", tmp_path)) == {"a.tif": [(0, [10, 10, 18, 20])]}
