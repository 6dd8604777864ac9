"""From the pixels of an image to what the network was trained on, alike in training and prediction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from effdet_tf.config import Config, DataConfig
from effdet_tf.errors import UserError
from effdet_tf.images.content import EvenImage, content_of, describe_void
from effdet_tf.images.gray import image_statistics, stretch, to_gray

# A warning from there on: of an image's mean, in deviations of what shows cells, and of its deviation.
_MOVED, _WIDENED = 0.25, 1.25
_UNEVEN = "it is lit unevenly, or has hot pixels"
_BAND = 2**24  # pixels that are looked at together
# `data.mean` and `data.std` are of 8-bit pixels; 257 x 255 = 65,535.
SIXTEEN_BIT_UNIT = np.float32(1 / 257)


class Brightness(NamedTuple):
    """What an image is normalised by, in its own units; a part of an image by what the whole has."""

    mean: float
    std: float
    minimum: float
    maximum: float


def brightness(image: np.ndarray) -> Brightness:
    """Of an image `[H, W]` or `[H, W, C]` as gray, in bands of rows, so that a large one takes no memory."""
    rows = max(_BAND // max(image.shape[1], 1), 1)
    count, mean, spread, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for top in range(0, image.shape[0], rows):
        gray = to_gray(np.asarray(image[top : top + rows]))
        middle, square = gray.mean(dtype=np.float64), gray.var(dtype=np.float64)
        whole = count + gray.size
        off = middle - mean
        spread += square * gray.size + off * off * count * gray.size / whole  # Chan et al. (1979)
        mean += off * gray.size / whole
        low, high, count = min(low, gray.min()), max(high, gray.max()), whole
    std = max(float(np.sqrt(spread / max(count, 1))), 1e-3 * max(1.0, abs(mean)))  # as `image_statistics`
    return Brightness(float(mean), std, float(low), float(high))


def check_image(image: np.ndarray) -> np.ndarray:
    """An image `[H, W]` or `[H, W, C]`, C 1, 3 or 4, of any real type, without alpha.

    Raises:
        UserError: for an array that is no image, or holds values that are not finite.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise UserError(f"an image is [H, W] or [H, W, 1|3|4], this array is {list(image.shape)}")
    if image.dtype.kind not in "biuf":
        raise UserError(f"an image holds integer or floating-point pixels, this array {image.dtype}")
    image = image[..., :3] if image.ndim == 3 else image
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise UserError("the image holds values that are not finite; replace them before predicting")
    return image


def to_channels(image: np.ndarray, config: Config, whole: Brightness | None = None) -> np.ndarray:
    """Give an image the network's channels.

    Args:
        image: `[H, W]` or `[H, W, C]`, uint8, uint16 or float.
        config: `data.normalization`, `data.channels`.
        whole: of the image that this is a part of; None for a whole image.

    Returns:
        `[H, W, channels]` float32, gray (luma) for one channel. With "fixed" normalization in units of 8-bit
        pixels: uint16 is divided by 257, floating-point images are gray and stretched from their minimum and
        maximum to 0..255, as `convert` does it; with "image" in the image's own units.

    Raises:
        UserError: as `check_image`.
    """
    image = check_image(image)
    gray = to_gray(image)
    fixed = config.data.normalization == "fixed"
    if fixed and image.dtype.kind == "f":
        gray = stretch(gray, 255.0, None if whole is None else (whole.minimum, whole.maximum))
        return np.repeat(gray[..., None], config.data.channels, axis=-1)
    if config.data.channels == 3 and image.ndim == 3 and image.shape[2] == 3:
        values = image.astype(np.float32)
    else:
        values = np.repeat(gray[..., None], config.data.channels, axis=-1)
    return values * SIXTEEN_BIT_UNIT if fixed and image.dtype == np.uint16 else values


def normalize(image: np.ndarray, config: Config, whole: Brightness | None = None) -> np.ndarray:
    """Turn an image into what the network was trained on; arguments as for `to_channels`.

    Returns:
        `[H, W, channels]` float32: (x - mean) / std of `to_channels`, with the mean and standard deviation
        of the whole image ("image": bit depth and gain do not matter), of what of it shows cells, evenly lit
        ("content": neither do borders, bars and vignetting), or the configured ones ("fixed").

    Raises:
        UserError: as `to_channels` and `fixed_statistics`.
    """
    values = to_channels(image, config, whole)
    if config.data.normalization == "fixed":
        mean, std = fixed_statistics(config.data)
        return (values - mean) / std
    if whole is None and config.data.normalization == "content":
        shown, whole = even_image(values)
        values = shown[:, :]
    of_image = image_statistics(to_gray(values)) if whole is None else whole[:2]
    mean, std = (np.array(value, np.float32) for value in of_image)
    return (values - mean) / std


def even_image(image: np.ndarray) -> tuple[EvenImage, Brightness]:
    """An image evenly lit and without what shows no cells, to be cut into windows, and its statistics."""
    content = content_of(image)
    level, std = float(content.surface[0]), float(content.std)
    return EvenImage(image, content), Brightness(level, std, level - std, level + std)


def even_pixels(image: np.ndarray) -> tuple[np.ndarray, float, float]:
    """An image as `even_image` shows it, in its own integer type, its level and its deviation."""
    shown, statistics = even_image(image)
    limit = np.iinfo(image.dtype).max
    pixels = np.clip(np.rint(shown[:, :]), 0, limit).astype(image.dtype).reshape(image.shape)
    return pixels, statistics.mean, statistics.std


def disturbance(image: np.ndarray, config: Config) -> str:
    """What moves the statistics that an image is normalised by, in words; empty when nothing does.

    `image` is as `check_image` gives it.
    """
    if config.data.normalization != "image":
        return ""
    content, whole = content_of(image), brightness(image)
    void = float(content.void.mean())
    moved = abs(whole.mean - content.surface[0]) / content.std
    ratio = whole.std / content.std
    if moved < _MOVED and 1 / _WIDENED < ratio < _WIDENED:
        return ""
    where = f"{void:.0%} of it shows no cells ({describe_void(image, content)})" if void else _UNEVEN
    return (
        f"{where}: its mean and deviation are not those of the cells, and the network may miss some; "
        "crop the image, or take a network with data.normalization=content"
    )


def fixed_statistics(config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """The configured mean and std, float32 `[1]` or `[channels]`, in units of 8-bit pixels.

    Raises:
        UserError: for another number of values than channels, or a std that is not above 0.
    """
    found = {}
    for name, value in (("mean", config.mean), ("std", config.std)):
        values = np.atleast_1d(np.asarray(value, np.float32))
        if len(values) not in (1, config.channels):
            raise UserError(
                f"data.{name} has {len(values)} values, data.channels is {config.channels}: give one value, "
                "or one for each channel, or set data.normalization=image"
            )
        found[name] = values
    if not (found["std"] > 0).all():
        raise UserError(f"data.std {config.std}: every value must be above 0")
    return found["mean"], found["std"]
