"""Whether an image is like those of training: by pixels alone, at every bit depth and of any size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from effdet_tf.config import Config, TrustConfig
from effdet_tf.outputs.summary import trust_columns
from effdet_tf.prediction.likeness import known_looks, look, looks_at_sizes, strangeness
from effdet_tf.prediction.trust import judge


def cells(seed: int, sigma: float = 4.0) -> np.ndarray:
    """Blobs of one size on an even ground, uint8 `[256, 256]`."""
    random = np.random.default_rng(seed)
    image = np.full((256, 256), 128.0)
    spots = np.zeros_like(image)
    spots[random.integers(0, 256, 60), random.integers(0, 256, 60)] = 1
    blobs = cv2.GaussianBlur(spots, (0, 0), sigma)
    image += 60 * blobs / blobs.max() + random.normal(0, 2, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def known():
    return known_looks([np.array([one for k in range(20) for one in looks_at_sizes(cells(k))])])


def test_images_of_the_kind_are_known_and_others_not(known):
    assert len(known) == 16 and {len(row) for row in known} == {15}
    same = [strangeness(cells(seed), known) for seed in range(100, 130)]
    assert np.mean(np.array(same) > 1) < 0.1
    random = np.random.default_rng(0)
    stripes = np.tile(np.arange(256) % 16 * 16, (256, 1)).astype(np.uint8)
    for strange in (stripes, random.integers(0, 255, (256, 256)).astype(np.uint8), cells(5, 25.0)):
        assert strangeness(strange, known) > 1


def test_bit_depth_and_gain_do_not_matter(known):
    image = cells(7)
    expected = look(image)
    for other in (image.astype(np.uint16) * 257, image.astype(np.float32) * 1e-3 + 5, image[..., None]):
        np.testing.assert_allclose(look(other), expected, atol=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (40, 40, 3), (1500, 1300)])
def test_any_size_has_a_look(shape, known):
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    assert np.isfinite(look(image)).all() and np.isfinite(strangeness(image, known))


def test_an_even_image_has_a_look(known):
    assert np.isfinite(strangeness(np.full((64, 64), 7, np.uint8), known))


def test_too_few_images_say_nothing():
    assert known_looks([np.array([look(cells(k)) for k in range(5)])]) == known_looks([]) == ()
    config = Config(trust=TrustConfig((0.0, 1.0), (-0.5, 0.0, 1.0, 0.0)))
    trust = judge(config, cells(0), np.full(3, 0.9))
    assert trust.unlike is None and trust_columns(trust)["unlike"] is None and trust.f1 is not None
