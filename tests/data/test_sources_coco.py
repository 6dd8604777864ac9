"""COCO and LIVECell JSON: every legal form gives the same cells, and each fault is dropped or noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from effdet_tf.data.build import BuiltImage, build_image
from effdet_tf.data.faults import Faults
from effdet_tf.data.sources import livecell
from effdet_tf.data.sources.base import Source
from effdet_tf.data.sources.coco import find_annotations, open_coco
from effdet_tf.data.sources.livecell import cell_type_of, open_livecell
from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import decode_rle, encode_rle

H, W = 40, 50
SQUARE = [[10.0, 20.0, 14.0, 20.0, 14.0, 26.0, 10.0, 26.0]]  # x 10-14, y 20-26
BOX = [10.0, 20.0, 4.0, 6.0]


def image(identity: Any = 1, name: str = "a.tif", **more: Any) -> dict[str, Any]:
    return {"id": identity, "file_name": name, "height": H, "width": W, **more}


def cell(identity: Any = 1, image_id: Any = 1, segmentation: Any = SQUARE, **more: Any) -> dict[str, Any]:
    return {
        "id": identity, "image_id": image_id, "category_id": 7, "segmentation": segmentation,
        "bbox": BOX, "iscrowd": 0, **more,
    }  # fmt: skip


def write(root: Path, images: Any, annotations: Any, categories: Any = None, order: str = "ica") -> Path:
    """Write the JSON, its keys in the given order, and a flat tif for each image."""
    entries = images.values() if isinstance(images, dict) else images
    for entry in entries:
        path = root / "images" / str(entry.get("file_name", "none.tif"))
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, np.arange(H * W, dtype=np.uint16).reshape(H, W).astype(np.uint8))
    categories = [{"id": 7, "name": "cell"}] if categories is None else categories
    keys = {"i": ("images", images), "c": ("categories", categories), "a": ("annotations", annotations)}
    path = root / "annotations.json"
    path.write_text(json.dumps({"info": {"annotations": [1]}} | dict(keys[letter] for letter in order)))
    return path


def opened(root: Path, *args: Any, **options: Any) -> Source:
    return open_coco(write(root, *args, **options), root / "images", root)


def built(source: Source) -> list[BuiltImage]:
    return [build_image(task, 28) for task in source.tasks]


def faults_of(source: Source) -> Faults:
    faults = source.faults
    for result in built(source):
        faults.merge(result.faults)
    return faults


def reasons(source: Source) -> dict[str, int]:
    faults = faults_of(source)
    return {
        reason: entry["count"] for found in (faults.dropped, faults.notes) for reason, entry in found.items()
    }


def square_mask() -> np.ndarray:
    mask = np.zeros((H, W), dtype=bool)
    mask[20:26, 10:14] = True
    return mask


@pytest.mark.parametrize(
    "segmentation",
    [SQUARE, SQUARE[0], encode_rle(square_mask()), "uncompressed", [[*SQUARE[0]], [*SQUARE[0]]]],
    ids=["polygons", "flat polygon", "compressed", "uncompressed", "two polygons"],
)
@pytest.mark.parametrize("order", ["ica", "aci"])
@pytest.mark.parametrize("keyed", [False, True])
def test_every_form_gives_the_same_cell(tmp_path: Path, segmentation: Any, order: str, keyed: bool) -> None:
    if segmentation == "uncompressed":
        flat = np.concatenate([[0], square_mask().T.ravel(), [0]]).astype(int)
        edges = np.flatnonzero(np.diff(flat))
        counts = np.diff([0, *edges, H * W]).tolist()
        segmentation = {"size": [H, W], "counts": counts}
    annotation = cell(2**40, 2**41, segmentation)
    annotations = {str(2**40): annotation} if keyed else [annotation]
    source = opened(tmp_path, [image(2**41)], annotations, order=order)
    assert reasons(source) == {}
    fields = built(source)[0].fields
    assert fields is not None
    assert fields["image_id"] == 2**41 and fields["file_name"] == "a.tif"
    np.testing.assert_array_equal(fields["boxes"], [[20, 10, 26, 14]])
    np.testing.assert_array_equal(fields["annotated_boxes"], [[20, 10, 26, 14]])
    np.testing.assert_array_equal(fields["classes"], [0])
    assert (fields["masks"] == 255).all() and fields["masks"].shape == (1, 28, 28)
    truth = decode_rle({"size": [H, W], "counts": fields["rles"][0]})
    np.testing.assert_array_equal(truth, square_mask())


def test_sparse_categories_keep_their_ids(tmp_path: Path) -> None:
    categories = [{"id": 90, "name": "debris"}, {"id": 7, "name": "cell"}, {"id": 12}]
    annotations = [cell(1), cell(2, category_id=90), cell(3, category_id=12, iscrowd=1)]
    source = opened(tmp_path, [image()], annotations, categories)
    assert source.categories == [
        {"id": 7, "name": "cell"},
        {"id": 12, "name": "12"},
        {"id": 90, "name": "debris"},
    ]
    fields = built(source)[0].fields
    assert fields is not None
    assert fields["classes"].tolist() == [0, 2, 1] and fields["iscrowd"].tolist() == [0, 0, 1]


def test_ids_that_are_no_numbers_are_numbered_by_name(tmp_path: Path) -> None:
    images = [image("z", "b.tif"), image("y", "a.tif"), image("x", "sub/a.tif")]
    source = opened(tmp_path, images, [cell(1, "z"), cell(2, "x")])
    assert [(task.image_id, task.file_name) for task in source.tasks] == [
        (1, "a.tif"),
        (2, "b.tif"),
        (3, "sub/a.tif"),
    ]
    assert [task.annotated for task in source.tasks] == [0, 1, 1]
    assert "image ids are no whole numbers: numbered from 1 by name" in source.faults.notes


BAD = "degenerate or unreadable segmentation"
NO_PIXEL = "cell without a pixel inside the image"
OUT = [[40, 5, 60, 5, 60, 9, 40, 9]]
DOT = [[5, 5, 6, 5, 6, 6, 5, 6]]
FAULTS = {
    "two points": ([[1, 2, 3, 4]], {}, BAD, False),
    "odd numbers": ([[1, 2, 3, 4, 5, 6, 7]], {}, BAD, False),
    "words": ([["a", 2, 3, 4, 5, 6]], {}, BAD, False),
    "absurdly far": ([[0, 0, 1e8, 0, 1e8, 9]], {}, BAD, False),
    "broken RLE": ({"size": [H, W], "counts": [5]}, {}, BAD, False),
    "neither": (None, {"bbox": None}, BAD, False),
    "other RLE size": ({"size": [W, H], "counts": [W * H]}, {}, "RLE of another size than its image", False),
    "empty RLE": ({"size": [H, W], "counts": [W * H]}, {}, NO_PIXEL, False),
    "line": ([[5, 5, 9, 5, 5, 5]], {}, NO_PIXEL, False),
    "outside": ([[60, 5, 70, 5, 70, 9]], {}, "polygon outside the image", False),
    "reaching out": (OUT, {"bbox": [40, 5, 10, 4]}, "polygon reaches outside the image: clipped", True),
    "one bad part": ([*SQUARE, [1, 2]], {}, "degenerate part of a cell left out", True),
    "no segmentation": (None, {}, "no segmentation: the box is used as mask", True),
    "no box": (SQUARE, {"bbox": [1, 2, -3]}, "no valid annotated box: the mask's box is used", True),
    "box off": (SQUARE, {"bbox": [7.5, 20, 6.5, 6]}, "annotated box more than 2 px off its mask", True),
    "near-empty": (DOT, {"bbox": [5, 5, 1, 1]}, "cell of fewer than 4 pixels", True),
    "unknown category": (SQUARE, {"category_id": 8}, "annotation of an unknown category", False),
}  # fmt: skip


@pytest.mark.parametrize(("segmentation", "more", "reason", "kept"), FAULTS.values(), ids=FAULTS)
def test_each_fault_of_a_cell_has_its_reason(
    tmp_path: Path, segmentation: Any, more: dict, reason: str, kept: bool
) -> None:
    good = cell(1, segmentation=[[30, 30, 35, 30, 35, 35, 30, 35]], bbox=[30, 30, 5, 5])
    source = opened(tmp_path, [image()], [good, cell(99, segmentation=segmentation, **more)])
    assert reasons(source) == {reason: 1}
    entry = (source.faults.notes if kept else source.faults.dropped)[reason]
    assert entry["examples"] == ["a.tif (annotation 99)"]
    fields = built(source)[0].fields
    assert fields is not None and len(fields["rles"]) == (2 if kept else 1)


def test_a_box_without_segmentation_is_a_full_mask(tmp_path: Path) -> None:
    other = cell(2, segmentation=[[1, 1, 5, 1, 5, 5, 1, 5]], bbox=[1, 1, 4, 4])  # the set has masks
    source = opened(tmp_path, [image()], [cell(segmentation=[], bbox=[9.6, 20.2, 4, 6]), other])
    fields = built(source)[0].fields
    assert fields is not None and (fields["masks"] == 255).all()
    np.testing.assert_array_equal(fields["boxes"][0], [20, 10, 26, 14])
    np.testing.assert_allclose(fields["annotated_boxes"][0], [20.2, 9.6, 26.2, 13.6], rtol=1e-6)


def test_duplicates_are_told_apart(tmp_path: Path) -> None:
    other = [[1, 1, 5, 1, 5, 5, 1, 5]]
    annotations = [cell(1), cell(2), cell(2, segmentation=other, bbox=[1, 1, 4, 4]), cell(3, 999)]
    source = opened(tmp_path, [image(), image(1, "b.tif")], annotations)
    assert reasons(source) == {
        "exact double of a cell": 1,
        "annotation id occurs twice: both cells are kept": 1,
        "image id occurs twice: the first entry is used": 1,
        "annotation of an unknown image": 1,
    }
    fields = built(source)[0].fields
    assert fields is not None and len(fields["rles"]) == 2


def test_faults_of_images(tmp_path: Path) -> None:
    images = [image(n, f"{n}.tif") for n in range(5)] + [{"id": 9}]
    path = write(tmp_path, images, [cell(n, n) for n in range(5)])
    (tmp_path / "images" / "0.tif").unlink()
    (tmp_path / "images" / "1.tif").write_bytes(b"")
    tifffile.imwrite(tmp_path / "images" / "2.tif", np.zeros((H, W + 1), np.uint8))
    source = open_coco(path, tmp_path / "images", tmp_path)
    assert reasons(source) == {
        "image file missing": 1,
        "image unreadable": 1,
        "image of another size than annotated": 1,
        "image entry without id or file_name": 1,
        "cells of a dropped image": 3,
    }
    assert [result.fields is not None for result in built(source)] == [False, False, True, True]


def test_an_image_without_cells_and_one_with_three_thousand(tmp_path: Path) -> None:
    many = [
        cell(n, 2, [[x, y, x + 0.8, y, x + 0.8, y + 0.8, x, y + 0.8]], bbox=[x, y, 1, 1])
        for n, (y, x) in enumerate((y, x) for y in range(60) for x in range(50))
    ]
    path = write(tmp_path, [image(1, "a.tif"), {"id": 2, "file_name": "b.tif"}], many)
    tifffile.imwrite(tmp_path / "images" / "b.tif", np.zeros((60, 50), np.uint8))
    source = open_coco(path, tmp_path / "images", tmp_path)
    empty, full = built(source)
    assert empty.fields is not None and empty.fields["masks"].shape == (0, 28, 28)
    assert empty.fields["boxes"].shape == (0, 4)
    assert full.fields is not None and full.fields["boxes"].shape == (3000, 4)
    found = reasons(source)
    assert found["image without any cell"] == 1 and found["image with more than 2000 cells"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON"),
        ("no json", "JSON"),
        ("[1, 2]", "JSON"),
        ('{"images": [], "annotations": [{"id": 1}', "complete JSON"),
        ('{"images": [], "annotations": [1, 2', "complete JSON"),
        ('{"annotations": []}', 'no "images"'),
        ('{"images": []}', 'no "annotations"'),
        ('{"images": 3, "annotations": []}', "no list"),
        ('{"images": [], "annotations": []}', "categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": "a"}]}', "whole number"),
    ],
)
def test_a_wrong_file_gives_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        open_coco(tmp_path / "x.json", tmp_path, tmp_path)
    assert "\n" not in str(caught.value) and "x.json" in str(caught.value)


def test_missing_places_give_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, [image()], [])
    with pytest.raises(UserError, match=r"none\.json"):
        open_coco(tmp_path / "none.json", tmp_path, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_coco(path, tmp_path / "none", tmp_path)
    assert find_annotations(tmp_path) == path
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(UserError, match="2 JSON files"):
        find_annotations(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A172_Phase_A7_1_00d00h00m_1.tif", "A172"),
        ("SKBR3_phase_E3_1_02d20h00m_2.tif", "SkBr3"),
        ("train/skov3_Phase_H4_1_01d12h00m_1.tif", "SKOV3"),
        ("SHSY5Y_Phase_D10_1_02d08h00m_4.tif", "SHSY5Y"),
        ("huh7/anything.tif", "Huh7"),
        ("Spindle_Phase_B1.tif", "Spindle"),
        ("SKOV3.tif", ""),
        ("A172Phase_x.tif", ""),
    ],
)
def test_cell_types_come_from_the_file_name(name: str, expected: str) -> None:
    assert cell_type_of(name) == expected


NAMES = ["SKBR3_Phase_A.tif", "A172_Phase_B.tif", "Other_Phase_C.tif"]


@pytest.mark.parametrize("nested", [False, True])
def test_livecell_classes(tmp_path: Path, nested: bool) -> None:
    path = write(tmp_path, [image(n, name) for n, name in enumerate(NAMES)], [cell(n, n) for n in range(3)])
    if nested:
        for name in NAMES:
            folder = tmp_path / "images" / "livecell_train_val_images" / name.split("_")[0]
            folder.mkdir(parents=True)
            (tmp_path / "images" / name).rename(folder / name)
    one = open_livecell(tmp_path, tmp_path, annotations=path)
    assert one.categories == [{"id": 7, "name": "cell"}]
    assert [task.cell_type for task in one.tasks] == ["A172", "Other", "SkBr3"]
    assert reasons(one) == {}
    by_type = open_livecell(tmp_path, tmp_path, annotations=path, classes="type")
    assert [c["name"] for c in by_type.categories] == list(livecell.CELL_TYPES)
    assert [c["id"] for c in by_type.categories] == list(range(1, 9))
    classes = [result.fields["classes"].tolist() for result in built(by_type) if result.fields]
    assert classes == [[0], [6]]
    assert by_type.faults.dropped["image without a known cell type in its name"]["examples"] == [NAMES[2]]


def test_other_types_become_classes_when_none_is_livecells(tmp_path: Path) -> None:
    path = write(tmp_path, [image(1, "Round_Phase_1.tif"), image(2, "Flat_Phase_1.tif")], [])
    source = open_livecell(tmp_path, tmp_path, annotations=path, classes="type")
    assert [c["name"] for c in source.categories] == ["Flat", "Round"]


PLACES = {
    "LIVECell/livecell_coco_train.json": ("train", None),
    "LIVECell/livecell_coco_test.json": ("test", None),
    "LIVECell_single_cells/skbr3/val.json": ("val", "SkBr3"),
    "LIVECell_single_cells/a172/livecell_a172_train.json": ("train", "A172"),
    "LIVECell_dataset_size_split/2_train5percent.json": ("train5percent", None),
}


@pytest.mark.parametrize(("place", "choice"), PLACES.items())
def test_published_places_are_found(tmp_path: Path, place: str, choice: tuple[str, str | None]) -> None:
    with pytest.raises(UserError, match=place.rsplit("/", 1)[-1]):
        livecell.find_annotations(tmp_path, *choice)
    path = tmp_path / "annotations" / place
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert livecell.find_annotations(tmp_path, *choice) == path
    flat = tmp_path / "flat" / path.name
    flat.parent.mkdir()
    flat.write_text("{}")
    assert livecell.find_annotations(tmp_path / "flat", *choice) == flat


@pytest.mark.real_data
def test_the_annotated_livecell_images(real_data: Path, tmp_path: Path) -> None:
    source = open_livecell(real_data / "livecell", tmp_path, "val")
    assert len(source.tasks) == 5
    assert sum(task.annotated for task in source.tasks) == 1243
    assert {task.cell_type for task in source.tasks} == {"BT474", "Huh7", "MCF7"}
    result = build_image(source.tasks[0], 28)
    assert result.fields is not None and result.fields["bit_depth"] == 8 and result.fields["channels"] == 1
    assert np.abs(result.fields["annotated_boxes"] - result.fields["boxes"]).max() < 5
