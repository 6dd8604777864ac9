"""Augmented boxes and bitmaps against the same transform of full-frame masks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.config import AugmentConfig, DataConfig
from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import mask_to_patch, paste_bitmap, patch_box, patch_to_bitmap
from effdet_tf.images.normalize import fixed_statistics
from training import augment as augment_lib
from training.crop_params import CropParams

HEIGHT, WIDTH = 180, 260


def ellipses(cells: int, seed: int = 0) -> list[np.ndarray]:
    """Full-frame masks of turned ellipses, 8 to 70 px across, some cut by the frame."""
    rng = np.random.default_rng(seed)
    masks = []
    while len(masks) < cells:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        axes = rng.uniform(8, 35, 2) * rng.choice([0.5, 1.0])
        centre = (rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT))
        cv2.ellipse(mask, (centre, tuple(2 * axes), rng.uniform(0, 180)), 1, -1)
        if mask.sum() > 50:
            masks.append(mask.astype(bool))
    return masks


def example_of(masks: list[np.ndarray], dtype=np.uint8, channels: int = 1, seed: int = 1) -> dict:
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.float32), (0, 0), 2)
    image = np.repeat(image[..., None].astype(np.uint8), channels, -1)
    if dtype == np.uint16:
        image = image.astype(np.uint16) * 257
    patches = [mask_to_patch(mask) for mask in masks]
    return {
        "image": tf.constant(image.astype(dtype)),
        "boxes": tf.constant(np.reshape([patch_box(p) for p in patches], (-1, 4)), tf.float32),
        "classes": tf.range(len(masks)),
        "masks": tf.constant(np.reshape([patch_to_bitmap(p, 28) for p in patches], (-1, 28, 28)), tf.uint8),
        "iscrowd": tf.zeros(len(masks), tf.uint8),
        "scores": tf.ones(len(masks)),
        "mean": tf.constant(image.mean(), tf.float32),
        "std": tf.constant(image.std(), tf.float32),
        "bit_depth": tf.constant(16 if dtype == np.uint16 else 8),
        "image_id": tf.constant(7, tf.int64),
    }


def seed_of(number: int) -> tf.Tensor:
    return tf.constant([number, 12345], tf.int32)


def reference(frame: np.ndarray, window: np.ndarray, crop: tuple[int, int], params) -> np.ndarray:
    """Crop, scale and orient a full-frame float image with numpy and OpenCV."""
    y, x, height, width = window
    padded = np.zeros((height, width), np.float32)
    top, left = max(y, 0), max(x, 0)
    part = frame[top : y + height, left : x + width]
    padded[top - y : top - y + part.shape[0], left - x : left - x + part.shape[1]] = part
    result = cv2.resize(padded, crop[::-1], interpolation=cv2.INTER_LINEAR)
    result = result.T if params.transpose else result
    result = result[::-1] if params.flip_y else result
    return result[:, ::-1] if params.flip_x else result


def plain(**changes) -> AugmentConfig:
    return AugmentConfig(**{"brightness": 0.0, "contrast": (1.0, 1.0), "min_visible": 0.25, **changes})


CONFIGS = {
    "scales": (plain(scale_range=(0.7, 1.6)), (128, 128)),
    "sides": (plain(short_sides=(150, 180, 240)), (96, 96)),
    "oblong": (plain(scale_range=(0.8, 1.3)), (96, 160)),
    "padded": (plain(scale_range=(0.5, 0.8)), (160, 160)),
    "straight": (plain(scale_range=(1.0, 1.0), flip=False, rot90=False), (100, 100)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_boxes_and_masks_follow_the_image(name):
    config, crop = CONFIGS[name]
    data = DataConfig(crop_size=crop)
    frames = ellipses(25)
    example = example_of(frames)
    run = tf.function(lambda seed: augment_lib.augment(example, seed, config, data))
    compared = cut = 0
    for number in range(8):
        seed = seed_of(number)
        result = {key: value.numpy() for key, value in run(seed).items()}
        params = augment_lib.draw(seed, tf.constant(float(HEIGHT)), crop, config)
        window = augment_lib.crop_window(tf.constant([HEIGHT, WIDTH]), params, crop).numpy()
        expected_image = reference(
            (example["image"].numpy()[..., 0] - example["mean"].numpy()) / example["std"].numpy(),
            window,
            crop,
            params,
        )
        if window[2] <= 1.5 * crop[0] and window[3] <= 1.5 * crop[1]:
            assert np.abs(result["image"][..., 0] - expected_image).max() < 0.02
        for cell, frame in enumerate(frames):
            full = reference(frame.astype(np.float32), window, crop, params) > 0.5
            patch = mask_to_patch(full)
            found = np.flatnonzero(result["classes"] == cell)
            whole = frame.sum() * np.prod(crop) / np.prod(window[2:].astype(float))
            if patch is None or full.sum() < 0.05 * whole:
                assert len(found) == 0 or full.sum() > 0, "a cell outside the crop was kept"
                continue
            if full.sum() > 0.5 * whole:
                assert len(found) == 1, "a cell that is mostly inside was lost"
            if len(found) == 0 or min(patch.mask.shape) < 15:
                continue
            box, bitmap = result["boxes"][found[0]], result["masks"][found[0]]
            # 1 px; where a bitmap cell spans more, a cut edge is known to half a bitmap cell.
            allowed = np.maximum(1.0, 0.6 * np.tile(patch.mask.shape, 2) / 28)
            assert (np.abs(box - patch_box(patch)) <= allowed).all(), (number, cell, box, patch_box(patch))
            pasted = paste_bitmap(bitmap, box, *crop)
            ours = np.zeros(crop, bool)
            ours[pasted.y : pasted.y + pasted.mask.shape[0], pasted.x : pasted.x + pasted.mask.shape[1]] = (
                pasted.mask
            )
            iou = (ours & full).sum() / (ours | full).sum()
            assert iou > 0.9, (number, cell, iou)
            compared += 1
            cut += full.sum() < 0.95 * whole
    assert compared > 20 and cut > 5


def test_eager_equals_tf_data_map():
    config, data = AugmentConfig(), DataConfig(crop_size=(96, 96))
    example = example_of(ellipses(25))
    seeds = tf.stack([seed_of(number) for number in range(4)])
    dataset = tf.data.Dataset.from_tensor_slices(seeds)
    mapped = list(dataset.map(lambda seed: augment_lib.augment(example, seed, config, data)))
    for seed, found in zip(seeds, mapped, strict=True):
        expected = augment_lib.augment(example, seed, config, data)
        assert set(found) == set(expected)
        for key in expected:
            np.testing.assert_allclose(found[key], expected[key], atol=1e-4, err_msg=key)


def test_the_seed_decides_everything():
    config, data = AugmentConfig(), DataConfig(crop_size=(96, 96))
    example = example_of(ellipses(25))
    first, again, other = (augment_lib.augment(example, seed_of(n), config, data) for n in (3, 3, 4))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert np.abs(first["image"] - other["image"]).max() > 0.5


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "map"])
@pytest.mark.parametrize("cells", [0, 1, 2000])
def test_any_number_of_cells(cells, eager):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[80:100, 120:140] = True
    example = example_of([mask] * min(cells, 1))
    for key in ("boxes", "masks", "iscrowd", "scores"):
        example[key] = tf.repeat(example[key], cells, 0)
    example["classes"] = tf.range(cells)
    config, data = plain(scale_range=(0.5, 0.5)), DataConfig(crop_size=(140, 140))
    if eager:
        result = augment_lib.augment(example, seed_of(0), config, data)
    else:
        dataset = tf.data.Dataset.from_tensors(example)
        result = next(iter(dataset.map(lambda e: augment_lib.augment(e, seed_of(0), config, data))))
    assert result["boxes"].shape == (cells, 4) and result["masks"].shape == (cells, 28, 28)
    np.testing.assert_array_equal(result["classes"], np.arange(cells))
    np.testing.assert_allclose(result["boxes"][:, 2:] - result["boxes"][:, :2], 10.0, atol=1e-3)


def test_16_bit_and_8_bit_give_the_same_crop():
    masks = ellipses(5)
    config, data = AugmentConfig(), DataConfig(crop_size=(96, 96))
    eight, sixteen = (
        augment_lib.augment(example_of(masks, dtype), seed_of(2), config, data)
        for dtype in (np.uint8, np.uint16)
    )
    np.testing.assert_allclose(eight["image"], sixteen["image"], atol=1e-3)
    np.testing.assert_array_equal(eight["boxes"], sixteen["boxes"])


def test_channels_follow_the_configuration():
    config = plain(scale_range=(1.0, 1.0), flip=False, rot90=False)
    results = {}
    for found in (1, 3):
        for wanted in (1, 3):
            data = DataConfig(crop_size=(64, 64), channels=wanted)
            image = augment_lib.augment(example_of([], channels=found), seed_of(1), config, data)["image"]
            assert image.shape == (64, 64, wanted)
            results[found, wanted] = image.numpy().mean(-1)
    for image in results.values():
        np.testing.assert_allclose(image, results[1, 1], atol=2e-2)


def test_padding_is_the_image_mean_and_fixed_normalisation_is_fixed():
    example = example_of([])
    config = plain(scale_range=(0.25, 0.25), flip=False, rot90=False)
    params = augment_lib.draw(seed_of(5), tf.constant(float(HEIGHT)), (128, 128), config)
    window = augment_lib.crop_window(tf.constant([HEIGHT, WIDTH]), params, (128, 128)).numpy()
    for data in (
        DataConfig(crop_size=(128, 128)),
        DataConfig(crop_size=(128, 128), normalization="fixed", mean=100.0, std=20.0),
    ):
        image = augment_lib.augment(example, seed_of(5), config, data)["image"].numpy()[..., 0]
        inside = np.zeros(window[2:], bool)
        inside[-window[0] : HEIGHT - window[0], -window[1] : WIDTH - window[1]] = True
        inside = cv2.resize(inside.astype(np.float32), (128, 128), interpolation=cv2.INTER_AREA)
        outside = cv2.dilate(inside, np.ones((5, 5))) == 0  # the low-pass reaches 1 px further
        assert outside.sum() > 5000 and (image[outside] == 0).all()
        mean = 0.0 if data.normalization == "image" else (float(example["mean"]) - 100.0) / 20.0
        assert abs(image[inside == 1].mean() - mean) < 0.05


def test_brightness_and_contrast_are_linear_in_the_normalised_image():
    example = example_of([])
    data = DataConfig(crop_size=(64, 64))
    base = augment_lib.augment(example, seed_of(9), plain(), data)["image"].numpy()
    changed = augment_lib.augment(example, seed_of(9), plain(brightness=0.5, contrast=(0.5, 2.0)), data)[
        "image"
    ]
    gain, offset = np.polyfit(base.ravel(), changed.numpy().ravel(), 1)
    params = augment_lib.draw(
        seed_of(9), tf.constant(180.0), (64, 64), AugmentConfig(brightness=0.5, contrast=(0.5, 2.0))
    )
    assert gain == pytest.approx(float(params.gain), abs=1e-3) and 0.5 <= gain <= 2.0
    assert offset == pytest.approx(float(params.offset), abs=1e-3) and abs(offset) <= 0.5


def test_crowds_are_left_out_and_scale_is_crop_per_source_pixel():
    example = example_of(ellipses(6))
    example["iscrowd"] = tf.constant([0, 1, 0, 0, 1, 0], tf.uint8)
    config = plain(scale_range=(0.5, 0.5), flip=False, rot90=False)
    result = augment_lib.augment(example, seed_of(0), config, DataConfig(crop_size=(130, 130)))
    np.testing.assert_array_equal(result["classes"], [0, 2, 3, 5])
    np.testing.assert_allclose(result["scale"], [0.5, 0.5])
    source = example["boxes"].numpy()[[0, 2, 3, 5]]
    np.testing.assert_allclose(
        result["boxes"][:, 2:] - result["boxes"][:, :2], (source[:, 2:] - source[:, :2]) / 2, atol=1e-3
    )
    # They are no background either.
    moved = np.tile(result["boxes"][0, :2] - source[0, :2] / 2, 2)
    crowds = example["boxes"].numpy()[[1, 4]] / 2 + moved
    np.testing.assert_allclose(result["ignored"], crowds, atol=1e-3)


def test_what_is_left_of_a_cell_that_is_cut_too_far_is_neither_cell_nor_background():
    example = {
        "boxes": tf.constant([[0.0, 0, 20, 20], [18, 5, 38, 15], [0, 19.5, 20, 40], [40, 40, 50, 50]]),
        "classes": tf.range(4),
        "masks": tf.fill((4, 28, 28), tf.constant(255, tf.uint8)),
        "scores": tf.ones(4),
    }
    window, scale = tf.constant([0, 0, 20, 20]), tf.constant([2.0, 2.0])
    found = augment_lib.crop_cells(example, tf.fill(4, True), window, scale, (40, 40), 0.25)
    assert found["classes"].numpy().tolist() == [0]
    # A tenth of the second and a fortieth of the third are seen; the third is a pixel wide, magnified.
    np.testing.assert_allclose(found["ignored"], [[36, 10, 40, 30], [0, 39, 40, 40]], atol=1e-4)
    params = CropParams(
        *(tf.constant(v) for v in (1.0, 0.0, 0.0)), *(tf.constant(v) for v in (True, False, True)), 1.0, 0.0
    )
    turned = augment_lib.orient_boxes(found["ignored"], params, (40, 40))
    np.testing.assert_allclose(turned, [[10, 0, 30, 4], [39, 0, 40, 40]], atol=1e-4)


def test_a_cell_without_mask_in_the_rest_of_its_box_is_dropped():
    # A diagonal strip: the crop's corner holds a sixth of its box but none of the strip.
    bitmap = np.zeros((1, 28, 28), np.uint8)
    for row in range(28):
        bitmap[0, row, max(0, row - 2) : row + 3] = 255
    example = {
        "boxes": tf.constant([[0.0, 0.0, 60.0, 60.0]]),
        "classes": tf.constant([0]),
        "masks": tf.constant(bitmap),
        "scores": tf.ones(1),
    }
    keep, same = tf.constant([True]), tf.ones(2)
    corner = augment_lib.crop_cells(example, keep, tf.constant([0, 35, 25, 25]), same, (25, 25), 0.1)
    assert corner["boxes"].shape == (0, 4) and corner["masks"].shape == (0, 28, 28)
    middle = augment_lib.crop_cells(example, keep, tf.constant([10, 10, 40, 40]), same, (40, 40), 0.2)
    assert middle["boxes"].shape == (1, 4)


def test_every_turn_and_flip_occurs_and_keeps_square_masks_with_their_image():
    config = plain(scale_range=(1.0, 1.0))
    seen = set()
    for number in range(80):
        params = augment_lib.draw(seed_of(number), tf.constant(64.0), (64, 64), config)
        seen.add((bool(params.transpose), bool(params.flip_y), bool(params.flip_x)))
    assert len(seen) == 8
    only_turns = set()
    for number in range(80):
        params = augment_lib.draw(seed_of(number), tf.constant(64.0), (64, 64), plain(flip=False))
        only_turns.add((bool(params.transpose), bool(params.flip_y), bool(params.flip_x)))
    assert only_turns == {
        (False, False, False),
        (True, True, False),
        (False, True, True),
        (True, False, True),
    }


def straight(**changes) -> AugmentConfig:
    return plain(**{"scale_range": (1.0, 1.0), "flip": False, "rot90": False, **changes})


def lit_example(y: int, x: int, height: int, width: int) -> dict:
    """A dark image with one bright rectangle, which is its one cell."""
    image = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    image[y : y + height, x : x + width] = 200
    example = example_of([image[..., 0] > 0])
    return {**example, "image": tf.constant(image)}


def test_an_image_is_fitted_into_the_crop_at_its_top_left_as_in_prediction():
    data = DataConfig(crop_size=(130, 130), resize="fit", normalization="fixed", mean=10.0, std=2.0)
    example = example_of(ellipses(6))
    result = augment_lib.augment(example, seed_of(0), straight(), data)
    np.testing.assert_array_equal(result["scale"], [0.5, 0.5])  # 180 x 260 becomes 90 x 130
    np.testing.assert_allclose(result["boxes"], example["boxes"].numpy() / 2, atol=1e-4)
    np.testing.assert_array_equal(result["classes"], np.arange(6))
    image = result["image"].numpy()
    assert (image[90:] == 0).all() and (image[:90] != 0).mean() > 0.9
    pixels = (example["image"].numpy() - np.float32(10)) / 2
    expected = tf.image.resize(pixels, (90, 130), antialias=True)
    np.testing.assert_allclose(image[:90], expected, atol=1e-3)


@pytest.mark.parametrize("zoom", [0.15, 0.6, 1.0, 1.9])
def test_boxes_follow_a_fitted_image_at_every_scale(zoom):
    data = DataConfig(crop_size=(96, 128), resize="fit", normalization="fixed", mean=0.0, std=1.0)
    config = straight(scale_range=(zoom, zoom), min_visible=0.0)
    run = tf.function(lambda example, seed: augment_lib.augment(example, seed, config, data))
    seen = 0
    for number in range(10):
        y, x = np.random.default_rng(number).integers([0, 0], [HEIGHT - 60, WIDTH - 80])
        result = run(lit_example(y, x, 60, 80), seed_of(number))
        if not len(result["boxes"]):
            continue
        lit = np.argwhere(result["image"].numpy()[..., 0] > 100)
        found = [*lit.min(0), *(lit.max(0) + 1)]
        assert np.abs(result["boxes"][0] - found).max() <= 1.0
        side = (result["boxes"][0, 2:] - result["boxes"][0, :2]).numpy()
        assert (side <= np.array([60, 80]) * 0.4923 * zoom + 1).all()  # 128 / 260 at zoom 1
        seen += 1
    assert seen >= (10 if zoom <= 1 else 5)


def test_the_scale_of_a_fitted_image_is_uniform():
    fitting = tf.constant(0.5)
    config = plain(scale_range=(0.1, 2.0))
    scales = [
        float(augment_lib.draw(seed_of(n), tf.constant(1.0), (64, 64), config, fitting).scale)
        for n in range(300)
    ]
    assert 0.05 <= min(scales) < 0.08 and 0.95 < max(scales) <= 1.0
    assert np.mean(scales) == pytest.approx(0.525, abs=0.05)  # log-uniform: .32
    native = [
        float(augment_lib.draw(seed_of(n), tf.constant(1.0), (64, 64), config).scale) for n in range(300)
    ]
    assert np.median(native) == pytest.approx(0.2**0.5, abs=0.1)


@pytest.mark.parametrize("config", [plain(scale_range=(0.7, 1.4)), plain(short_sides=(48, 96))])
def test_zoom_magnifies_every_crop(config):
    for number in range(20):
        one, two = (
            float(augment_lib.draw(seed_of(number), tf.constant(64.0), (64, 64), config, zoom=zoom).scale)
            for zoom in (1.0, 1.5)
        )
        assert two == pytest.approx(1.5 * one)


def test_boxes_follow_a_zoomed_image():
    data = DataConfig(crop_size=(192, 192), zoom=1.5, normalization="fixed", mean=0.0, std=1.0)
    config = straight(scale_range=(1.0, 1.0), min_visible=1.0)
    seen = 0
    for number in range(20):
        result = augment_lib.augment(lit_example(60, 80, 20, 30), seed_of(number), config, data)
        if len(result["boxes"]):
            lit = np.argwhere(result["image"].numpy()[..., 0] > 100)
            found = [*lit.min(0), *(lit.max(0) + 1)]
            assert np.abs(result["boxes"][0] - found).max() <= 1.0
            side = (result["boxes"][0, 2:] - result["boxes"][0, :2]).numpy()
            np.testing.assert_allclose(side, [30, 45], rtol=0.01)
            seen += 1
    assert seen > 2


def test_flips_can_be_left_and_right_alone():
    config = plain(rot90=False, flip_vertical=False)
    params = [augment_lib.draw(seed_of(n), tf.constant(64.0), (64, 64), config) for n in range(40)]
    assert {(bool(d.transpose), bool(d.flip_y)) for d in params} == {(False, False)}
    assert {bool(d.flip_x) for d in params} == {False, True}
    # The other params do not depend on the switch.
    both = [augment_lib.draw(seed_of(n), tf.constant(64.0), (64, 64), plain(rot90=False)) for n in range(40)]
    assert [bool(d.flip_x) for d in params] == [bool(d.flip_x) for d in both]
    assert {bool(d.flip_y) for d in both} == {False, True}


def test_fixed_statistics_are_of_8_bit_pixels():
    data = DataConfig(crop_size=(96, 96), channels=3, normalization="fixed", mean=(10, 20, 30), std=(2, 3, 4))
    eight, sixteen = (
        augment_lib.augment(example_of([], dtype), seed_of(2), AugmentConfig(), data)["image"]
        for dtype in (np.uint8, np.uint16)
    )
    np.testing.assert_allclose(eight, sixteen, atol=1e-3)
    assert float(tf.math.reduce_std(eight)) > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (1.0, 2.0, 3.0)}, "data.mean has 3 values, data.channels is 1"),
        ({"std": (1.0, 2.0)}, "data.std has 2 values"),
        ({"std": 0.0}, "must be above 0"),
    ],
)
def test_statistics_that_do_not_fit_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        fixed_statistics(DataConfig(normalization="fixed", **changes))
