"""What lies round the cells of the varied looks: debris, dust, uneven light, the camera, a scale bar."""

from __future__ import annotations

import cv2
import numpy as np

from effdet_tf.data.synthetic.phase_contrast import bell


def add_debris(rng: np.random.Generator, canvas: np.ndarray, diameter: float, strength: float) -> None:
    """Scatter specks, dead vesicles and fibres, much smaller than a cell, that are bright or dark.

    Args:
        rng: random numbers.
        canvas: float32 `[H, W]`, changed in place.
        diameter: typical diameter of the cells in pixels.
        strength: gray levels (or thickness) of the strongest.
    """
    height, width = canvas.shape
    share = height * width / (520 * 704) * rng.choice([0.2, 1.0, 2.5])
    largest = min(0.13 * diameter, 5.0)
    for _ in range(rng.poisson(22 * share)):
        radius = rng.uniform(0.5, max(largest, 0.9))
        x, y = rng.uniform((0, 0), (width, height))
        _add_spot(canvas, x, y, radius, strength * rng.normal() * 0.6, rng.uniform(0, 0.8))
    for _ in range(rng.poisson(2 * share)):
        heap, sign = rng.uniform((0, 0), (width, height)), rng.choice([-1, 1])
        for x, y in heap + rng.normal(0, 0.2 * diameter, (int(rng.integers(2, 9)), 2)):
            radius = rng.uniform(0.7, max(largest, 1.0))
            _add_spot(canvas, x, y, radius, sign * strength * rng.uniform(0.3, 1), 1.0)
    for _ in range(rng.poisson(0.5 * share)):
        _add_fibre(rng, canvas, strength * rng.choice([-1, 1]) * rng.uniform(0.3, 1))


def _add_spot(canvas: np.ndarray, x: float, y: float, radius: float, amount: float, ring: float) -> None:
    """Add a soft spot with a ring of the other sign round it."""
    height, width = canvas.shape
    reach = int(3 * radius) + 3
    top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
    rows, columns = np.ogrid[top : min(int(y) + reach + 1, height), left : min(int(x) + reach + 1, width)]
    distance = np.hypot(columns - x, rows - y).astype(np.float32)
    spot = bell(distance, 0, radius) - ring * bell(distance, 1.7 * radius, 0.5 * radius + 0.4)
    canvas[top : top + spot.shape[0], left : left + spot.shape[1]] += np.float32(amount) * spot


def _add_fibre(rng: np.random.Generator, canvas: np.ndarray, amount: float) -> None:
    """Add a long thread with a border of the other sign."""
    height, width = canvas.shape
    turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, 40))
    steps = np.stack([np.cos(turns), np.sin(turns)], 1) * rng.uniform(2, 9)
    path = rng.uniform((0, 0), (width, height)) + np.cumsum(steps, 0)
    thread = np.zeros_like(canvas)
    thickness = int(rng.integers(1, 4))
    cv2.polylines(thread, [np.round(path * 16).astype(np.int32)], False, 1.0, thickness, cv2.LINE_AA, 4)
    canvas += np.float32(amount) * (
        cv2.GaussianBlur(thread, (0, 0), 0.8) - 0.6 * cv2.GaussianBlur(thread, (0, 0), 2.5)
    )


def light(rng: np.random.Generator, height: int, width: int, ground: float, diameter: float) -> np.ndarray:
    """Gray levels of the empty field: a slope, a vignette, clouds and dust that is out of focus.

    Args:
        rng: random numbers.
        height: image height in pixels.
        width: image width in pixels.
        ground: mean gray level, 0 to 255.
        diameter: typical diameter of the cells in pixels; dust is far softer than they are.

    Returns:
        float32 `[height, width]`.
    """
    y, x = np.ogrid[:height, :width]
    v, u = (y / height - 0.5).astype(np.float32), (x / width - 0.5).astype(np.float32)
    centre, slope = rng.normal(0, 0.12, 2), rng.normal(0, rng.choice([0.02, 0.15]), 2)
    gain = 1 + np.float32(slope[0]) * u + np.float32(slope[1]) * v
    if rng.random() < 0.35:
        fall = np.float32(rng.uniform(0.2, 1.2))
        gain = gain - fall * ((u - np.float32(centre[0])) ** 2 + (v - np.float32(centre[1])) ** 2)
    clouds = cv2.resize(
        rng.standard_normal((5, 6), np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    field = ground * (gain + np.float32(rng.uniform(0.0, 0.03)) * clouds)
    for _ in range(rng.poisson(rng.choice([0.0, 2.0]))):
        radius = float(rng.uniform(0.4, 1.2) * max(diameter, 20))
        spot = np.zeros((height // 4 + 1, width // 4 + 1), np.float32)
        place = rng.uniform((0, 0), spot.shape[::-1]).astype(int)
        cv2.circle(spot, place.tolist(), max(int(radius / 4), 1), 1.0, -1)
        soft = cv2.resize(cv2.GaussianBlur(spot, (0, 0), radius / 8 + 1), (width, height))
        field += np.float32(ground * rng.uniform(-0.15, 0.06)) * soft
    return field.astype(np.float32)


def expose(rng: np.random.Generator, picture: np.ndarray, diameter: float, contrast: float) -> np.ndarray:
    """Blur, noise, a scale bar now and then, and the roughness of a lossy file.

    Args:
        rng: random numbers.
        picture: float32 `[H, W]` in gray levels.
        diameter: typical diameter of the cells in pixels: small ones stand less blur.
        contrast: gray levels between a cell's marks and the field: weak ones stand less noise.

    Returns:
        The image uint8 `[H, W]`.
    """
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, min(0.6 + 0.012 * diameter, 1.5)))
    grain = rng.standard_normal(picture.shape, np.float32)
    if rng.random() < 0.4:
        grain = 1.6 * cv2.GaussianBlur(grain, (0, 0), 0.7)
    # Light arrives in quanta: bright places are noisier.
    level = np.float32(min(rng.choice([0.5, 1.5, 3.0]) * rng.uniform(0.6, 1.4), contrast / 9))
    picture = picture + level * grain * (0.5 + 0.5 * np.sqrt(np.maximum(picture, 0) / 128))
    image = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    if rng.random() < 0.22 and min(image.shape) >= 200:
        _add_scale_bar(rng, image)
    if rng.random() < 0.35:
        quality = int(rng.integers(45, 92))
        code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE), np.uint8)
    return image


def _add_scale_bar(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw a bar near a corner, white or black, with or without its length: nothing that is a cell."""
    height, width = image.shape
    length, thick = int(width * rng.uniform(0.08, 0.25)), int(rng.integers(3, 12))
    gap = int(rng.integers(8, 30))
    left = gap if rng.random() < 0.5 else width - gap - length
    bottom = gap + 40 if rng.random() < 0.25 else height - gap
    tone = 255 if rng.random() < 0.65 else 0
    if rng.random() < 0.2:
        box = np.s_[max(bottom - thick - 26, 0) : bottom + 6, max(left - 6, 0) : left + length + 6]
        image[box] = 255 - tone
    image[bottom - thick : bottom, left : left + length] = tone
    if rng.random() < 0.6:
        text = f"{rng.choice([5, 10, 20, 50, 100])} um"
        size = rng.uniform(0.4, 0.7)
        cv2.putText(
            image, text, (left, bottom - thick - 5), cv2.FONT_HERSHEY_SIMPLEX, size, tone, 1, cv2.LINE_AA
        )
