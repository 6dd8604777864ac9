"""The synthetic data set: layout, annotations, likeness to phase contrast, determinism."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from effdet_tf.commands import synthetic as command
from effdet_tf.commands.parser import Parser
from effdet_tf.data.synthetic.dataset import ANNOTATIONS, IMAGES, generate, image_name
from effdet_tf.data.synthetic.phase_contrast import render_image
from effdet_tf.data.synthetic.shapes import CELL_TYPES, lay_out, place
from effdet_tf.errors import UserError
from effdet_tf.geometry.polygons import polygons_to_rle
from effdet_tf.geometry.rle import decode_rle


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _masks(cells, height: int, width: int) -> list[np.ndarray]:
    return [decode_rle(polygons_to_rle([cell.polygon.ravel().tolist()], height, width)) for cell in cells]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthetic")
    generate(out, train=5, val=2, size=(96, 128), cells_per_image=(4, 12), seed=3)
    return out


def test_layout_is_livecells(small_set):
    for split, count in (("train", 5), ("val", 2)):
        document = json.loads((small_set / ANNOTATIONS / f"livecell_coco_{split}.json").read_text())
        assert document["categories"] == [{"supercategory": "cell", "id": 1, "name": "cell"}]
        assert len(document["images"]) == count
        names = {image["id"]: image for image in document["images"]}
        for image in document["images"]:
            cell_type, phase, well, location, time, crop = image["file_name"].removesuffix(".tif").split("_")
            assert phase == "Phase" and cell_type in CELL_TYPES and location.isdigit() and crop.isdigit()
            assert well[0] in "ABCDEFGH" and time.endswith("00m")
            pixels = tifffile.imread(small_set / IMAGES / cell_type / image["file_name"])
            assert pixels.dtype == np.uint8 and pixels.shape == (96, 128) == (image["height"], image["width"])
        per_image = {image_id: 0 for image_id in names}
        for annotation in document["annotations"]:
            per_image[annotation["image_id"]] += 1
            points = np.array(annotation["segmentation"][0]).reshape(-1, 2)
            assert points.min() >= 0 and (points.max(0) <= (128, 96)).all()
            x, y, width, height = annotation["bbox"]
            assert np.allclose([x, y, x + width, y + height], [*points.min(0), *points.max(0)])
            assert annotation["area"] == pytest.approx(cv2.contourArea(points.astype(np.float32)))
        assert all(1 <= cells <= 12 for cells in per_image.values())
        ids = [annotation["id"] for annotation in document["annotations"]]
        assert len(set(ids)) == len(ids)


def test_same_seed_same_bytes_and_other_seed_other_bytes(small_set, tmp_path):
    generate(tmp_path / "a", train=5, val=2, size=(96, 128), cells_per_image=(4, 12), seed=3)
    generate(tmp_path / "b", train=5, val=2, size=(96, 128), cells_per_image=(4, 12), seed=4)
    assert _digests(tmp_path / "a") == _digests(small_set)
    assert set(_digests(tmp_path / "b").values()).isdisjoint(_digests(small_set).values())


def test_names_are_unique_and_splits_share_no_well():
    train = [image_name("train", index) for index in range(2000)]
    val = [image_name("val", index) for index in range(2000)]
    assert len(set(train + val)) == 4000
    assert {name.split("_")[2] for name in train}.isdisjoint(name.split("_")[2] for name in val)


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_picture_has_the_marks_of_phase_contrast(cell_type):
    """Gray background at 128, and a halo round each cell, brighter than the rim inside and than the field."""
    image, cells = render_image(1, 260, 352, 25, cell_type)
    masks = _masks(cells, 260, 352)
    union = np.any(masks, axis=0).astype(np.uint8)
    pixels = image.astype(float)
    assert 122 < pixels.mean() < 134
    assert 4 < pixels.std() < 25
    near = cv2.dilate(union, np.ones((5, 5), np.uint8)) > 0
    far = cv2.dilate(union, np.ones((25, 25), np.uint8)) == 0
    field = np.median(pixels[far])
    inside = union > 0
    deviation = np.abs(pixels - field)
    assert deviation[inside].mean() > 3 * deviation[far].mean()
    if cell_type != "Round":  # a refractile ball carries its bright ring inside the outline
        halo = near & ~inside
        rim = inside & (cv2.erode(union, np.ones((3, 3), np.uint8)) == 0)
        assert pixels[halo].mean() > field + 2
        assert pixels[rim].mean() < pixels[halo].mean() - 5
    else:
        assert np.percentile(pixels[inside], 95) > field + 30
        assert np.percentile(pixels[inside], 5) < field - 20


def test_types_differ_in_shape():
    """Spindles are long, balls are round, and colonies fill their area without gaps."""

    def roundness(cell_type: str) -> float:
        _, cells = render_image(2, 520, 704, 60, cell_type)
        values = []
        for cell in cells:
            _, (short, long), _ = cv2.minAreaRect(cell.polygon)
            values.append(min(short, long) / max(short, long))
        return float(np.median(values))

    assert roundness("Round") > 0.8
    assert roundness("Spindle") < 0.55


def test_some_cells_overlap_and_some_touch_the_border():
    _, cells = render_image(4, 260, 352, 80, "Spindle")
    masks = np.array(_masks(cells, 260, 352))
    assert (masks.sum(0) > 1).any()
    assert masks[:, 0].any() or masks[:, -1].any() or masks[:, :, 0].any() or masks[:, :, -1].any()
    assert all(mask.sum() >= 8 for mask in masks)


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_outline_and_mask_agree(cell_type):
    """Thin tips must not vanish from the mask: the box of the outline is the box of the mask within 2 px."""
    _, cells = render_image(5, 260, 352, 60, cell_type)
    for cell, mask in zip(cells, _masks(cells, 260, 352), strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(tight) - [*cell.polygon.min(0), *cell.polygon.max(0)]).max() <= 2


@pytest.mark.parametrize("cell_type", CELL_TYPES)
@pytest.mark.parametrize("n_cells", [0, 1, 700])
def test_counts_from_none_to_hundreds(cell_type, n_cells):
    image, cells = render_image(0, 260, 352, n_cells, cell_type)
    assert image.shape == (260, 352) and image.std() > 0.5
    assert 0.85 * n_cells <= len(cells) <= n_cells


def test_placed_cells_keep_their_distance():
    centres = place(np.random.default_rng(0), 520, 704, 200, 20.0, 0.1)
    assert (centres >= 0).all() and (centres < (704, 520)).all()
    apart = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1)) + 1e9 * np.eye(200)
    assert apart.min() > 0.8 * 20
    assert np.median(apart.min(1)) < 1.3 * 20  # they do clump


def test_unknown_type_is_refused():
    with pytest.raises(ValueError, match="Round, Spindle"):
        lay_out(np.random.default_rng(0), 64, 64, 3, "round")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0, "val": 0}, "at least one image"),
        ({"train": -1, "val": 5}, "at least one image"),
        ({"cells_per_image": (9, 3)}, "9 to 3 cells"),
        ({"cells_per_image": (0, 10**6)}, "5000"),
        ({"size": (16, 704)}, "16x704"),
        ({"seed": -1}, "negative"),
    ],
)
def test_nonsense_is_refused(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_unwritable_folder_is_a_user_error(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        generate(tmp_path / "out", train=1, val=0, size=(64, 64), cells_per_image=(1, 2))


def test_command(tmp_path, capsys):
    parser = Parser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(
        ["synthetic", str(tmp_path), "--train", "2", "--val", "1", "--size", "64", "80", "--cells", "2", "5"]
    )
    assert args.run(args) == 0
    assert "train 2 images" in capsys.readouterr().out
    assert len(list((tmp_path / IMAGES).rglob("*.tif"))) == 3
