"""Gray values: luma, statistics, and stretches of contrast."""

from __future__ import annotations

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def to_gray(image: np.ndarray) -> np.ndarray:
    """Turn an image gray: luma .299 R + .587 G + .114 B, or the channel itself when all are equal.

    Args:
        image: [H, W] or [H, W, C], C 1 or 3, any real type; float32 [H, W] in the same units is returned.

    Raises:
        ValueError: for another number of channels.
    """
    if image.ndim == 2:
        return image.astype(np.float32)
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"an image is [H, W], [H, W, 1] or [H, W, 3], not {list(image.shape)}")
    if image.shape[2] == 1 or (image == image[..., :1]).all():
        return image[..., 0].astype(np.float32)
    return image.astype(np.float32) @ LUMA


def image_statistics(gray: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of an image [H, W], in its units.

    The deviation is at least 1e-3 * max(1, |mean|), so that a flat image is not divided by 0.
    """
    mean, std = float(gray.mean(dtype=np.float64)), float(gray.std(dtype=np.float64))
    return mean, max(std, 1e-3 * max(1.0, abs(mean)))


def stretch(gray: np.ndarray, top: float, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Spread a floating-point image `[H, W]` over 0..top: its minimum becomes 0, its maximum `top`.

    A flat image becomes 0. `limits` are those values, of the image that this is a part of.
    """
    low, high = limits or (float(gray.min()), float(gray.max()))
    return (gray - low) * (top / (high - low)) if high > low else np.zeros_like(gray)
