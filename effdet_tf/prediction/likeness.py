"""Whether an image looks like those that a network was trained on, by its pixels alone.

Texture at five scales, skew and peaks of three of them, bright and dark parts, evenness, direction: fifteen
numbers, of which each source of training images is a Gaussian of its own with a common covariance
(`benchmarks/trust.md` has what that finds). Pixels alone, so that runs and exports say the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from effdet_tf.images.gray import to_gray
from effdet_tf.images.normalize import even_image

Known = tuple[tuple[float, ...], ...]

_SIDE = 1100  # px of the middle that is looked at
_SCALES = 5
_FEATURES = _SCALES + 10
_BEYOND = 8.0  # deviations: what is further off is a speck
_SHRUNK = 0.05  # share of a common variance in the covariance
_WITHIN = 0.99  # of the training images, each source counting the same
_FEWEST = 80  # looks, four of an image, below which nothing can be said


def look(image: np.ndarray) -> np.ndarray:
    """The numbers, float64 `[15]`, of an image `[H, W]` or `[H, W, C]` as `check_image` gives it."""
    top, left = (max(0, (size - _SIDE) // 2) for size in image.shape[:2])
    shown, usual = even_image(np.ascontiguousarray(image[top : top + _SIDE, left : left + _SIDE]))
    gray = to_gray(shown[:, :]).astype(np.float32)
    gray = np.clip((gray - usual.mean) / max(usual.std, 1e-6), -_BEYOND, _BEYOND)
    bands, rest = [], gray
    for _ in range(_SCALES):
        lower = cv2.pyrDown(rest)
        bands.append(rest - cv2.pyrUp(lower, dstsize=rest.shape[1::-1]))
        rest = lower
    numbers = [np.log(band.std() + 1e-3) for band in bands]
    for band in bands[1:4]:
        unit = (band - band.mean()) / (band.std() + 1e-6)
        square = unit * unit
        numbers += [np.clip((square * unit).mean(), -5, 5), np.log(np.clip((square * square).mean(), 1, 100))]
    numbers += [np.sqrt((gray > 2).mean()), np.sqrt((gray < -2).mean())]
    low, high = np.percentile(cv2.blur(bands[1] ** 2, (17, 17)), (10, 90))
    numbers.append(np.log(high + 1e-4) - np.log(low + 1e-4))
    middle = bands[1]  # without the finest noise and the coarsest shading
    for band in bands[2:4]:
        middle = middle + cv2.resize(band, middle.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    across, down = (cv2.Sobel(middle, cv2.CV_32F, *way) for way in ((1, 0), (0, 1)))
    aa, dd, ad = (across * across).mean(), (down * down).mean(), (across * down).mean()
    numbers.append(np.hypot(aa - dd, 2 * ad) / (aa + dd + 1e-9))
    return np.array(numbers, np.float64)


def looks_at_sizes(image: np.ndarray) -> list[np.ndarray]:
    """`look` of an image as it is, smaller and larger, and of its upper left quarter: all are as usual."""
    looks = [look(image)]
    for scale in (0.7, 1.4):
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        looks.append(look(cv2.resize(image, None, fx=scale, fy=scale, interpolation=way)))
    height, width = image.shape[:2]
    looks.append(look(np.ascontiguousarray(image[: -(-height // 2), : -(-width // 2)])))
    return looks


def known_looks(sources: Sequence[np.ndarray]) -> Known:
    """What is to be remembered of the training images: `trust.known`.

    Args:
        sources: of each source of images their `look`s, `[N, 15]`.

    Returns:
        A matrix of 15 rows, by which looks are multiplied, then a row for each source: a look is like those
        of a source where it comes to lie within 1 of that row. Empty for too few images.
    """
    sources = [looks for looks in sources if len(looks) > 1]
    if sum(map(len, sources)) < _FEWEST:
        return ()
    centres = [looks.mean(0) for looks in sources]
    covariance = np.mean([np.cov(looks.T) for looks in sources], axis=0)
    covariance += np.eye(_FEATURES) * _SHRUNK * np.trace(covariance) / _FEATURES
    white = np.linalg.cholesky(np.linalg.inv(covariance))
    places = np.array(centres) @ white
    far = np.concatenate([_distances(looks @ white, places) for looks in sources])
    weights = np.concatenate([np.full(len(looks), 1 / len(looks)) for looks in sources])
    order = np.argsort(far)
    reached = np.cumsum(weights[order]) / weights.sum()
    limit = far[order][min(int(np.searchsorted(reached, _WITHIN)), len(far) - 1)]
    rows = np.concatenate([white, places]) / limit
    return tuple(tuple(float(f"{value:.5g}") for value in row) for row in rows)


def strangeness(image: np.ndarray, known: Known) -> float:
    """How unlike all known looks an image is: above 1 it is like none; `known` is not empty."""
    rows = np.array(known)
    return float(_distances(look(image)[None] @ rows[:_FEATURES], rows[_FEATURES:])[0])


def _distances(looks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Distance `[N]` of each row to the nearest place."""
    return np.sqrt(((looks[:, None] - places[None]) ** 2).sum(-1)).min(1)
