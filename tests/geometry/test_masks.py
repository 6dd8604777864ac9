"""Masks: every code goes there and back, pasting undoes the bitmap, and overlaps follow the scoring rule."""

from __future__ import annotations

import timeit

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from effdet_tf.geometry import masks
from effdet_tf.geometry.polygons import patch_to_pieces, patch_to_polygons, polygons_to_rle, rings_to_patch
from effdet_tf.geometry.rle import (
    MAX_PIXELS,
    Patch,
    decode_kaggle_rle,
    decode_rle,
    encode_kaggle_rle,
    encode_rle,
    patch_to_rle,
    rle_to_patch,
)


def _blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random speckled mask: single pixels, diagonals, holes and frame contacts all occur."""
    return rng.random((height, width)) < rng.uniform(0.05, 0.95)


def _ellipse(size: int, height: int, width: int) -> Patch:
    y, x = np.mgrid[:height, :width]
    return Patch(
        7, 9, ((y - height / 2 + 0.5) / height * 2) ** 2 + ((x - width / 2 + 0.5) / width * 2) ** 2 <= 1
    )


def _full(patch: Patch, height: int, width: int) -> np.ndarray:
    frame = np.zeros((height, width), dtype=bool)
    frame[patch.y : patch.y + patch.mask.shape[0], patch.x : patch.x + patch.mask.shape[1]] = patch.mask
    return frame


CASES = {
    "one pixel at the origin": (0, 0, 1, 1),
    "one pixel in the last corner": (30, 40, 31, 41),
    "left column": (0, 0, 31, 1),
    "last column": (0, 40, 31, 41),
    "top row": (0, 0, 1, 41),
    "bottom row": (30, 0, 31, 41),
    "whole frame": (0, 0, 31, 41),
    "inside": (3, 4, 9, 20),
}


@pytest.mark.parametrize("box", CASES.values(), ids=CASES)
def test_rectangles_survive_every_encoding(box: tuple[int, int, int, int]) -> None:
    mask = np.zeros((31, 41), dtype=bool)
    y0, x0, y1, x1 = box
    mask[y0:y1, x0:x1] = True
    code = encode_rle(mask)
    patch = rle_to_patch(code)
    assert patch is not None
    assert (patch.y, patch.x, *patch.mask.shape) == (y0, x0, y1 - y0, x1 - x0)
    np.testing.assert_array_equal(masks.patch_box(patch), np.float32([y0, x0, y1, x1]))
    assert patch_to_rle(patch, 31, 41) == code
    assert polygons_to_rle(patch_to_polygons(patch), 31, 41) == code
    assert patch_to_polygons(patch) == [[x0, y0, x1, y0, x1, y1, x0, y1]]
    np.testing.assert_array_equal(decode_kaggle_rle(encode_kaggle_rle(mask), 31, 41), mask)
    pasted = masks.paste_bitmap(masks.patch_to_bitmap(patch, 28), masks.patch_box(patch), 31, 41)
    assert pasted is not None
    np.testing.assert_array_equal(_full(pasted, 31, 41), mask)


def test_random_masks_survive_every_encoding_and_agree_with_pycocotools() -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        height, width = rng.integers(1, 40, 2)
        mask = _blob(rng, height, width)
        code = encode_rle(mask)
        np.testing.assert_array_equal(decode_rle(code), mask)
        assert coco_mask.area({**code, "counts": code["counts"].encode()}) == mask.sum()
        np.testing.assert_array_equal(decode_rle({**code, "counts": code["counts"].encode()}), mask)
        np.testing.assert_array_equal(decode_kaggle_rle(encode_kaggle_rle(mask), height, width), mask)
        patch = rle_to_patch(code)
        if patch is None:
            assert not mask.any()
            continue
        assert patch.mask.any(axis=0)[[0, -1]].all() and patch.mask.any(axis=1)[[0, -1]].all()
        np.testing.assert_array_equal(_full(patch, height, width), mask)
        assert patch_to_rle(patch, int(height), int(width)) == code
        filled, _ = masks.fill_holes(patch)
        outline = polygons_to_rle(patch_to_polygons(patch), int(height), int(width))
        decoded = decode_rle(outline)
        assert (decoded & ~_full(filled, height, width)).sum() == 0
        assert (mask & ~decoded).sum() == 0


def test_uncompressed_counts_and_a_run_across_columns() -> None:
    rle = {"size": [3, 4], "counts": [2, 5, 5]}
    expected = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]], dtype=bool)
    np.testing.assert_array_equal(decode_rle(rle), expected)
    patch = rle_to_patch(rle)
    assert patch is not None and (patch.y, patch.x) == (0, 0)
    np.testing.assert_array_equal(patch.mask, expected[:, :3])


def test_long_runs_and_large_canvases_are_decoded_exactly() -> None:
    mask = np.zeros((3000, 2500), dtype=bool)
    mask[1000:2900, 17:2400] = True
    mask[5, 2499] = True
    code = encode_rle(mask)
    patch = rle_to_patch(code)
    assert patch is not None
    np.testing.assert_array_equal(_full(patch, 3000, 2500), mask)
    assert patch_to_rle(patch, 3000, 2500) == code


def test_empty_masks() -> None:
    empty = np.zeros((5, 6), dtype=bool)
    assert rle_to_patch(encode_rle(empty)) is None
    assert encode_kaggle_rle(empty) == ""
    assert not decode_kaggle_rle("", 5, 6).any()
    assert masks.mask_to_patch(empty) is None
    for function in (masks.patch_box, masks.largest_component, lambda p: masks.patch_to_bitmap(p, 8)):
        with pytest.raises(ValueError, match="empty"):
            function(Patch(0, 0, empty))


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [3, 4], "counts": [2, 5]},
        {"size": [3, 4], "counts": [2, -5, 15]},
        {"size": [3, 4], "counts": "~~~"},
        {"size": [3, 4], "counts": "P"},
        {"size": [3, 4]},
        {"counts": [12]},
        {"size": [0, 4], "counts": []},
        {"size": [3, 4], "counts": [None]},
        {"size": [float("inf"), 4], "counts": [12]},
        {"size": [2**31, 2**31], "counts": [2**62]},  # a decompression bomb
    ],
)
def test_a_broken_coco_encoding_is_refused(rle: dict) -> None:
    with pytest.raises(ValueError):
        decode_rle(rle)
    with pytest.raises(ValueError):
        rle_to_patch(rle)


@pytest.mark.parametrize(
    "text", ["1", "0 3", "1 0", "1 x", "20 2", "19 3", "1 3 2 4", "9 2 1 2", "1 99999999999999999999"]
)
def test_a_broken_kaggle_encoding_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="run-length encoding"):
        decode_kaggle_rle(text, 4, 5)


def test_kaggle_encoding_is_row_major_and_starts_at_one() -> None:
    mask = decode_kaggle_rle("1 2 7 6 20 1", 4, 5)
    expected = np.zeros(20, dtype=bool)
    expected[[0, 1, 6, 7, 8, 9, 10, 11, 19]] = True
    np.testing.assert_array_equal(mask, expected.reshape(4, 5))
    assert encode_kaggle_rle(mask) == "1 2 7 6 20 1"


def test_polygons_are_clipped_and_merged() -> None:
    code = polygons_to_rle([[-5, -5, 3, -5, 3, 2, -5, 2], [8, 8, 20, 8, 20, 20, 8, 20]], 10, 12)
    expected = np.zeros((10, 12), dtype=bool)
    expected[:2, :3] = expected[8:, 8:] = True
    np.testing.assert_array_equal(decode_rle(code), expected)
    assert rle_to_patch(polygons_to_rle([[50, 50, 60, 50, 60, 60]], 10, 12)) is None


@pytest.mark.parametrize(
    "polygons",
    [
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[0, 0, float("nan"), 1, 2, 2]],
        [[0, 0, 1e9, 1, 2, 2]],
        [[1, 2, 3, 4, 5, 6, 7]],
    ],
)
def test_a_degenerate_polygon_is_refused(polygons: list) -> None:
    with pytest.raises(ValueError, match="polygon"):
        polygons_to_rle(polygons, 10, 10)


def test_pin_holes_are_filled_but_bays_are_not() -> None:
    mask = np.ones((6, 6), dtype=bool)
    mask[2, 2] = mask[3, 3] = False  # two holes that touch by a corner
    mask[0, 5] = False  # open to the outside
    filled, count = masks.fill_holes(Patch(3, 4, mask))
    assert count == 2 and filled.mask.sum() == 35 and (filled.y, filled.x) == (3, 4)


def test_the_largest_piece_is_kept_and_cropped() -> None:
    mask = np.zeros((8, 9), dtype=bool)
    mask[0, 0] = True
    mask[4:7, 5:9] = True
    mask[3, 4] = True  # diagonal contact counts as connected
    piece, dropped = masks.largest_component(Patch(10, 20, mask))
    assert dropped == 1 and (piece.y, piece.x) == (13, 24) and piece.mask.sum() == 13
    assert masks.largest_component(piece)[1] == 0


@pytest.mark.parametrize(
    ("height", "width", "least"),
    [(5, 5, 0.99), (13, 60, 0.97), (40, 28, 0.95), (150, 90, 0.97), (9, 200, 0.93)],
)
def test_pasting_a_bitmap_gives_the_cell_back(height: int, width: int, least: float) -> None:
    patch = _ellipse(28, height, width)
    pasted = masks.paste_bitmap(masks.patch_to_bitmap(patch, 28), masks.patch_box(patch), 300, 300)
    assert pasted is not None
    a, b = _full(patch, 300, 300), _full(pasted, 300, 300)
    assert (a & b).sum() / (a | b).sum() >= least


def test_bitmap_values_are_coverage() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[:, :5] = True
    mask[0, 7] = True
    bitmap = masks.patch_to_bitmap(Patch(0, 0, mask), 4)
    assert bitmap.dtype == np.uint8
    np.testing.assert_array_equal(bitmap[1:], np.tile(np.uint8([255, 255, 128, 0]), (3, 1)))
    assert bitmap[0, 3] == 64


def test_pasting_is_bilinear_at_pixel_centres() -> None:
    bitmap = np.uint8([[0, 255], [0, 255]])
    # Bitmap centres lie at x = 2 and 6; pixel centre 4.5 reads (4.5 - 2) / 4 = .625, pixel 3.5 reads .375.
    pasted = masks.paste_bitmap(bitmap, (0, 0, 8, 8), 10, 10)
    assert pasted is not None and (pasted.y, pasted.x, *pasted.mask.shape) == (0, 4, 8, 4)
    lower = masks.paste_bitmap(bitmap, (0, 0, 8, 8), 10, 10, threshold=0.37)
    assert lower is not None and lower.x == 3
    assert masks.paste_bitmap(bitmap, (0, 0, 8, 8), 10, 10, threshold=1.0) is None


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 0, 5),
        (5, 5, 2, 2),
        (20, 20, 30, 30),
        (-9, -9, -1, -1),
        (float("nan"), 0, 5, 5),
        (3.6, 3.6, 4.4, 4.4),
    ],
)
def test_a_box_without_a_pixel_centre_pastes_nothing(box: tuple[float, ...]) -> None:
    assert masks.paste_bitmap(np.full((4, 4), 255, np.uint8), box, 10, 10) is None


def test_pasting_is_clipped_to_the_canvas() -> None:
    pasted = masks.paste_bitmap(np.full((28, 28), 255, np.uint8), (-10.0, 5.0, 3.2, 99.0), 20, 30)
    assert pasted is not None
    assert (pasted.y, pasted.x, *pasted.mask.shape) == (0, 5, 3, 25) and pasted.mask.all()


def test_pasting_a_cell_is_fast() -> None:
    bitmap = masks.patch_to_bitmap(_ellipse(28, 40, 40), 28)
    seconds = (
        min(timeit.repeat(lambda: masks.paste_bitmap(bitmap, (7, 9, 47, 49), 520, 704), number=200, repeat=5))
        / 200
    )
    assert seconds < 400e-6  # 100 us on an idle machine; room for a busy one


def test_overlaps_go_to_the_higher_score_and_the_hidden_are_dropped() -> None:
    whole = Patch(0, 0, np.ones((4, 4), dtype=bool))
    half = Patch(0, 2, np.ones((4, 4), dtype=bool))  # keeps 2 of 4 columns: exactly half
    hidden = Patch(0, 1, np.ones((4, 4), dtype=bool))  # every column but none free at its turn
    labels = np.zeros((4, 7), np.int32)
    assert masks.resolve_overlaps([whole, None, half, hidden], labels) == [0, 2]
    np.testing.assert_array_equal(labels[0], [1, 1, 1, 1, 2, 2, 0])
    assert masks.resolve_overlaps([whole, half], np.zeros((4, 7), np.int32), min_visible=0.51) == [0]
    assert masks.resolve_overlaps([], np.zeros((4, 7), np.int32)) == []


def test_overlaps_follow_the_rule_of_the_whole_canvas_on_random_cells() -> None:
    rng = np.random.default_rng(3)
    patches, scores = [], rng.random(60).round(1)  # ties occur
    for _ in range(60):
        h, w = rng.integers(3, 12, 2)
        patch = masks.mask_to_patch(
            _blob(rng, h, w), int(rng.integers(0, 40 - h)), int(rng.integers(0, 50 - w))
        )
        patches.append(patch or Patch(0, 0, np.ones((1, 1), dtype=bool)))
    used, expected, names = np.zeros((40, 50), bool), np.zeros((40, 50), np.int32), []
    for index in sorted(range(60), key=lambda i: -scores[i]):
        mask = _full(patches[index], 40, 50)
        area = mask.sum()
        mask &= ~used
        if mask.sum() < max(1, 0.5 * area):
            continue
        used |= mask
        names.append(index)
        expected[mask] = len(names)
    order = np.argsort(-scores, kind="stable")
    labels = np.zeros((40, 50), np.int32)
    kept = masks.resolve_overlaps([patches[k] for k in order], labels)
    assert order[kept].tolist() == names
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32])
def test_label_images_are_cut_into_tight_patches(dtype: type) -> None:
    labels = np.zeros((20, 30), dtype=dtype)
    labels[19, 29] = 7
    labels[2:5, 3:9] = 200
    labels[3, 4] = 7  # inside the box of 200
    found = masks.labels_to_patches(labels)
    assert [label for label, _ in found] == [7, 200]
    for label, patch in found:
        np.testing.assert_array_equal(_full(patch, 20, 30), labels == label)
    assert masks.labels_to_patches(np.zeros((3, 3), dtype)) == []


def test_a_negative_label_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        masks.labels_to_patches(np.array([[0, -1], [2, 2]]))


def test_three_thousand_labels_are_fast() -> None:
    labels = np.kron(np.arange(1, 3001).reshape(50, 60), np.ones((18, 18), dtype=np.int32))
    found: list = []
    seconds = timeit.timeit(lambda: found.extend(masks.labels_to_patches(labels)), number=1)
    assert len(found) == 3000 and all(patch.mask.sum() == 324 for _, patch in found)
    assert seconds < 2


@pytest.mark.parametrize("seed", range(6))
def test_pieces_give_the_same_pixels_back_holes_and_all(seed):
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.normal(size=(40, 50)).astype(np.float32), (0, 0), (0.6, 1)[seed % 2]) > 0
    patch = masks.mask_to_patch(mask, 7, 9)
    pieces = patch_to_pieces(patch)
    assert len(pieces) == cv2.connectedComponents(patch.mask.astype(np.uint8), connectivity=4)[0] - 1
    assert any(len(rings) > 1 for rings in pieces)  # there are holes
    again = rings_to_patch([ring for rings in pieces for ring in rings], 60, 80)
    assert (again.y, again.x) == (patch.y, patch.x)
    np.testing.assert_array_equal(again.mask, patch.mask)
    for rings in pieces:
        areas = [np.sum(r[:, 0] * np.roll(r[:, 1], -1) - r[:, 1] * np.roll(r[:, 0], -1)) / 2 for r in rings]
        assert areas[0] > 0 and all(area < 0 for area in areas[1:])


def test_rings_outside_the_canvas_are_nothing():
    assert rings_to_patch([np.array([[90.0, 5], [95, 5], [95, 9]])], 60, 80) is None


@pytest.mark.parametrize("height", [17_000, 2**14])
def test_one_limit_for_pixels_that_are_written_and_read(height):
    width = 17_000 if height == 17_000 else MAX_PIXELS // height
    patch = Patch(height - 2, width - 3, np.ones((2, 3), bool))
    read = rle_to_patch(patch_to_rle(patch, height, width))
    assert (read.y, read.x) == (patch.y, patch.x)
    np.testing.assert_array_equal(read.mask, patch.mask)
    with pytest.raises(ValueError, match="is not an image"):
        rle_to_patch({"size": [height, MAX_PIXELS // height + 1], "counts": [height]})
    with pytest.raises(ValueError, match="is not an image"):
        patch_to_rle(patch, height, MAX_PIXELS // height + 1)
