from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from effdet_tf.data.ground_truth import cell_entries, decode_pixels, image_entry, match_classes
from effdet_tf.data.record import ImageRecord
from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import decode_rle, encode_rle

CATEGORIES = [{"id": 7, "name": "round"}, {"id": 3, "name": "thin"}]


def make_record(image_id=11, image=None, cells=2):
    mask = np.zeros((20, 30), bool)
    mask[2:6, 3:9] = True
    image = np.full((20, 30), 128, np.uint8) if image is None else image
    return ImageRecord(
        image=cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1].tobytes(),
        height=20,
        width=30,
        channels=3 if image.ndim == 3 else 1,
        bit_depth=8 * image.dtype.itemsize,
        mean=128.0,
        std=1.0,
        boxes=np.tile(np.float32([2, 3, 6, 9]), (cells, 1)),
        annotated_boxes=np.tile(np.float32([1.5, 3, 6, 9.5]), (cells, 1)),
        classes=np.arange(cells, dtype=np.int32) % 2,
        masks=np.full((cells, 28, 28), 255, np.uint8),
        rles=[encode_rle(mask)["counts"].encode()] * cells,
        iscrowd=np.arange(cells, dtype=np.uint8) % 2,
        image_id=image_id,
        file_name=f"{image_id}.png",
        source="made up",
        cell_type="BV2",
    )


def test_ground_truth_has_the_annotated_box_the_full_mask_and_the_sources_category():
    ids = [category["id"] for category in CATEGORIES]
    assert image_entry(make_record(11)) == {
        "id": 11,
        "file_name": "11.png",
        "height": 20,
        "width": 30,
        "cell_type": "BV2",
    }
    first, second = cell_entries(make_record(11), ids)
    assert cell_entries(make_record(5, cells=0), ids) == []
    assert first["bbox"] == [3.0, 1.5, 6.5, 4.5]
    assert (first["category_id"], second["category_id"]) == (7, 3)
    assert (first["iscrowd"], second["iscrowd"]) == (0, 1)
    assert first["image_id"] == second["image_id"] == 11
    mask = decode_rle(first["segmentation"])
    assert mask.shape == (20, 30)
    assert mask.sum() == 24 and mask[2:6, 3:9].all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_pixels_come_back_in_their_depth(dtype):
    image = np.arange(600, dtype=dtype).reshape(20, 30) * (1 if dtype == np.uint8 else 100)
    pixels = decode_pixels(make_record(image=image))
    assert pixels.dtype == dtype
    assert np.array_equal(pixels, image[..., None])


def test_colours_come_back_as_rgb():
    image = np.zeros((20, 30, 3), np.uint8)
    image[..., 0] = 200
    image[..., 2] = 30
    assert np.array_equal(decode_pixels(make_record(image=image)), image)


def test_a_damaged_image_is_named():
    with pytest.raises(UserError, match="11.png"):
        decode_pixels(dataclasses.replace(make_record(), image=b"no png"))


def test_classes_are_matched_by_name():
    assert match_classes(("thin", "round"), CATEGORIES) == [3, 7]
    assert match_classes(("round",), CATEGORIES) == [7]
    assert match_classes(("flat", "round"), CATEGORIES) == [None, 7]
