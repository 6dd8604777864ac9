"""Tone, blur, noise, compression, light and contrast of crops: what each change does to the values."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.config import AugmentConfig, DataConfig
from tests.training.test_arrays import example
from training import augment as tf_augment
from training import looks, numpy_crops

ALL = {"gamma": (0.6, 1.6), "blur": 1.5, "noise": 0.3, "jpeg": 30.0, "vignette": 1.0, "invert": 0.5}


def scene(height: int = 61, width: int = 83) -> np.ndarray:
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.standard_normal((height, width), np.float32), (0, 0), 2)
    return ((image - image.mean()) / image.std())[..., None]


def test_the_preset_changes_no_look():
    assert not looks.changes_looks(AugmentConfig())
    for name, value in ALL.items():
        assert looks.changes_looks(AugmentConfig(**{name: value})), name


def test_the_seed_decides_all_and_half_of_the_crops_get_a_change():
    image, config = scene(), AugmentConfig(**ALL)
    first = looks.restyle(image, np.int32([3, 4]), config)
    np.testing.assert_array_equal(first, looks.restyle(image, np.int32([3, 4]), config))
    assert first.dtype == np.float32 and first.shape == image.shape
    only = AugmentConfig(noise=0.3)
    changed = [np.any(looks.restyle(image, np.int32([k, 0]), only) != image) for k in range(200)]
    assert 70 < sum(changed) < 130
    turned = [
        np.array_equal(looks.restyle(image, np.int32([k, 0]), AugmentConfig(invert=0.2)), -image)
        for k in range(400)
    ]
    assert 50 < sum(turned) < 115


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_tone_curve_keeps_the_mean_gray_and_the_order(gamma):
    values = np.linspace(-4, 4, 201, dtype=np.float32)[:, None, None]
    bent = looks.bend(values, gamma)[:, 0, 0]
    assert (np.diff(bent) > 0).all() and bent[100] == pytest.approx(0, abs=1e-6)
    assert (bent[101] - bent[99]) / 0.08 == pytest.approx(1, abs=0.01)  # the slope
    assert (bent[-1] > -bent[0]) == (gamma > 1)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.3])
def test_blur_is_gaussian(sigma):
    image = scene()
    expected = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(looks.blur(image, sigma)[..., 0], expected, atol=0.01)
    assert looks.blur(image, 0.0) is image


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_compression_is_that_of_jpeg(quality):
    image = np.clip(scene(64, 96), -3.5, 3.5)
    levels = np.rint(image[..., 0] * 32 + 128).astype(np.uint8)
    _, file = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    expected = cv2.imdecode(file, cv2.IMREAD_GRAYSCALE).astype(np.float32)
    found = looks.compress((levels.astype(np.float32) - 128)[..., None] / 32, quality)[..., 0] * 32 + 128
    # The codec rounds its levels to whole ones, and a wave that lies between two quanta its own way.
    off = np.abs(found - expected)
    assert off.mean() < 0.6 and np.percentile(off, 99) < 3
    assert np.abs(expected - levels).mean() > 2 * off.mean() or quality == 90


def test_light_falls_by_no_more_than_was_asked():
    image = np.zeros((50, 70, 1), np.float32)
    found = [looks.restyle(image, np.int32([k, 1]), AugmentConfig(vignette=0.8)) for k in range(60)]
    spans = [float(np.ptp(one)) for one in found]
    assert 0.3 < max(spans) <= 0.8 + 1e-6 and min(spans) == 0
    assert max(abs(float(one.mean())) for one in found) < 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_tensorflow_and_numpy_change_a_crop_alike(channels):
    config = AugmentConfig(scale_range=(1, 1), flip=False, rot90=False, brightness=0, contrast=(1, 1), **ALL)
    data, seed = DataConfig(crop_size=(90, 120), channels=channels), np.int32([7, 9])
    source = example()
    size = np.array(source["image"].shape[:2])
    plain = numpy_crops.draw(seed, size, data.crop_size, config, False)
    window = np.concatenate(numpy_crops.crop_window(size, plain, np.array(data.crop_size), False))
    ours = numpy_crops.crop_image(
        source, window[:2], window[2:], np.float32([1, 1]), plain, data, numpy_crops.looks(seed, config)
    )
    theirs = tf_augment.crop_image(
        {name: tf.constant(value) for name, value in source.items()},
        tf.constant(window, tf.int32),
        tf.ones(2),
        plain,
        data,
        tf_augment.looks(tf.constant(seed), config),
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert np.abs(ours - numpy_crops.crop_image(source, window[:2], window[2:], 1, plain, data)).max() > 0.05
