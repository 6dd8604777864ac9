"""Looks other than phase contrast on gray: no polarity and no size is tied to one kind of picture."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from effdet_tf.data.synthetic.arrangement import SHAPES, arrange
from effdet_tf.data.synthetic.phase_contrast import FINE, RenderedCell, bell, noise, rasterise, trace
from effdet_tf.data.synthetic.shapes import CellShape
from effdet_tf.data.synthetic.surroundings import add_debris, expose, light

# Dark bodies with bright rims; bright cells; dark cells; one flank bright and the other dark (DIC); faint
# bodies with a line of defocus (bright field).
LOOKS = ("Rimmed", "Bright", "Dark", "Relief", "Outlined")
MAX_CELLS = 600
# How often each look takes each of `SHAPES`.
_SHAPE_SHARES = {
    "Rimmed": (0.15, 0.15, 0.45, 0.1, 0.05, 0.1),
    "Bright": (0.2, 0.15, 0.1, 0.2, 0.15, 0.2),
    "Dark": (0.2, 0.15, 0.1, 0.2, 0.15, 0.2),
    "Relief": (0.25, 0.15, 0.1, 0.2, 0.2, 0.1),
    "Outlined": (0.15, 0.15, 0.2, 0.25, 0.15, 0.1),
}
_GRAIN = 448  # more than the longest cell with its margin
_DEPTHS = np.arange(-16, 76, 1 / 8, dtype=np.float32)  # pixels from a cell's rim, inwards


class _Style(NamedTuple):
    """How the cells of one picture look, in gray levels (in thickness for "Relief")."""

    ground: float  # mean gray of the empty field
    body: float  # of a cell's middle, against the ground
    dome: float  # 0: as strong at the rim as in the middle; 1: fades out towards the rim
    rim: float  # of a line along the outline, against the body
    rim_at: float  # pixels from the outline to the line's middle, inwards
    rim_width: float  # pixels
    fringe: float  # of the halo outside the outline, against the ground
    fringe_width: float  # pixels
    grain: float  # deviation of the texture
    spots: float  # of granules and vacuoles
    opacity: float  # how far a cell hides what lies below
    tilt: tuple[float, float] = (0.0, 0.0)  # x and y: how much stronger lines are on this flank


def render_varied(
    rng: np.random.Generator | int,
    height: int,
    width: int,
    look: str | None = None,
    max_cells: int = MAX_CELLS,
) -> tuple[np.ndarray, list[RenderedCell]]:
    """Render one picture of cells of one look, with debris, uneven light, noise and perhaps a scale bar.

    A cell's polygon is the outer edge of its body and rim; the halo beyond is not part of it.

    Args:
        rng: a generator, or a seed; the same seed gives the same bytes.
        height: image height in pixels.
        width: image width in pixels.
        look: one of `LOOKS`; None chooses one.
        max_cells: most cells of an image; some have none.

    Returns:
        The image uint8 `[height, width]` and its cells, the bottom one first.

    Raises:
        ValueError: when `look` is unknown.
    """
    rng = np.random.default_rng(rng)
    look = str(rng.choice(LOOKS)) if look is None else look
    if look not in LOOKS:
        raise ValueError(f"unknown look {look!r}: choose one of {', '.join(LOOKS)}")
    shape = str(rng.choice(SHAPES, p=_SHAPE_SHARES[look]))
    outlines, diameter = arrange(rng, height, width, shape, max_cells)
    style = _choose_style(rng, look, diameter)
    grains = (noise(rng, rng.uniform(0.7, 1.2), _GRAIN), noise(rng, max(diameter / 14, 1.3), _GRAIN))
    canvas = np.zeros((height, width), np.float32)
    strength = max(abs(style.body), abs(style.rim), abs(style.spots))
    add_debris(rng, canvas, diameter, 0.6 * strength)
    cells = []
    for outline in outlines:
        if (polygon := _draw_cell(rng, canvas, outline, grains, style)) is not None:
            cells.append(RenderedCell(polygon, look))
    if look == "Relief":
        canvas, strength = _shear(rng, canvas, diameter)
    field = light(rng, height, width, style.ground, diameter)
    # What shines through cells is the same uneven light.
    picture = field + canvas * (0.5 + 0.5 * field / max(style.ground, 1.0))
    return expose(rng, picture, diameter, strength), cells


def _choose_style(rng: np.random.Generator, look: str, diameter: float) -> _Style:
    """Choose how the cells of one picture look."""
    scale = float(np.sqrt(diameter / 25))  # lines grow with cells, but more slowly
    if look == "Rimmed":
        return _rimmed(rng, scale)
    if look == "Outlined":
        return _outlined(rng, scale)
    if look == "Relief":
        height = np.sqrt(diameter / 2) * rng.uniform(0.7, 1.2)
        return _Style(
            ground=rng.uniform(70, 180),
            body=height,
            dome=rng.uniform(0.6, 1.0),
            rim=rng.uniform(0, 0.5),
            rim_at=1.0 * scale,
            rim_width=0.8 * scale,
            fringe=0.0,
            fringe_width=1.0,
            grain=np.exp(rng.uniform(np.log(0.1), np.log(0.9))),
            spots=rng.uniform(0.2, 1.6),
            opacity=rng.uniform(0.7, 1.0),
        )
    sign = 1 if look == "Bright" else -1
    if look == "Bright":
        ground = rng.uniform(2, 30) if rng.random() < 0.55 else rng.uniform(40, 150)
        body = rng.uniform(30, min(190, 250 - ground))
    else:
        ground = rng.uniform(90, 235)
        body = -rng.uniform(30, 0.8 * ground)
    return _Style(
        ground=ground,
        body=body,
        dome=rng.uniform(0.1, 0.9),
        rim=sign * rng.choice([0.0, 0.0, 0.3]) * abs(body),
        rim_at=1.2 * scale,
        rim_width=0.9 * scale,
        fringe=sign * rng.choice([0.0, 0.1, -0.15]) * abs(body) * rng.random(),
        fringe_width=rng.uniform(1.5, 4) * scale,
        grain=rng.uniform(0.04, 0.2) * abs(body),
        spots=rng.uniform(0.1, 0.4) * abs(body),
        opacity=rng.uniform(0.6, 1.0),
    )


def _rimmed(rng: np.random.Generator, scale: float) -> _Style:
    """Dark bodies with bright rims, as budding yeast has them: on black, on gray, on lighter ground."""
    ground = (rng.uniform(4, 35), rng.uniform(50, 120), rng.uniform(120, 190))[
        rng.choice(3, p=(0.4, 0.35, 0.25))
    ]
    bright = rng.uniform(35, 190) if ground < 120 else rng.uniform(25, 240 - ground)
    # On black a body cannot be darker than the ground: it is like it, or a little lighter.
    body = rng.uniform(-0.75, 0.15) * ground + (rng.uniform(0, 25) if ground < 35 else 0)
    rim = bright - min(body, 0)  # so that it is brighter than the ground, too
    return _Style(
        ground=ground,
        body=body,
        dome=rng.uniform(-0.3, 0.4),
        rim=rim,
        rim_at=rng.uniform(0.7, 1.3) * scale,
        rim_width=rng.uniform(0.6, 1.6) * scale,
        fringe=rng.choice([0.0, 0.15, 0.35]) * bright * rng.uniform(0.5, 1),
        fringe_width=rng.uniform(2, 5) * scale,
        grain=rng.uniform(0.02, 0.1) * bright,
        spots=rng.uniform(0.1, 0.5) * bright,
        opacity=rng.uniform(0.8, 1.0),
        tilt=tuple(rng.normal(0, 0.15, 2).clip(-0.35, 0.35)),
    )


def _outlined(rng: np.random.Generator, scale: float) -> _Style:
    """Faint bodies with a thin line of defocus, dark or bright, and a weaker, opposite one outside."""
    ground = rng.uniform(80, 200)
    line = rng.choice([-1, 1]) * np.exp(rng.uniform(np.log(14), np.log(70)))
    return _Style(
        ground=ground,
        body=rng.normal() * 0.12 * abs(line),
        dome=rng.uniform(0, 1),
        rim=line,
        rim_at=rng.uniform(0.7, 1.2) * scale,
        rim_width=rng.uniform(0.6, 1.2) * scale,
        fringe=-line * rng.uniform(0, 0.45),
        fringe_width=rng.uniform(1.2, 2.5) * scale,
        grain=rng.uniform(0.03, 0.25) * abs(line),
        spots=rng.choice([-1, 1]) * rng.uniform(0.1, 0.8) * abs(line),
        opacity=rng.uniform(0.4, 1.0),
        tilt=tuple(rng.normal(0, 0.2, 2).clip(-0.4, 0.4)),
    )


def _draw_cell(
    rng: np.random.Generator,
    canvas: np.ndarray,
    outline: CellShape,
    grains: tuple[np.ndarray, np.ndarray],
    style: _Style,
) -> np.ndarray | None:
    """Draw one cell onto `canvas`; return its polygon inside it, or None when too little is visible."""
    height, width = canvas.shape
    margin = min(int(2 * style.fringe_width) + 3, 15)
    mask, x0, y0 = rasterise(outline.pieces, margin)
    polygon = trace(mask, x0, y0, height, width)
    if polygon is None:
        return None
    rows, columns = mask.shape[0] // FINE, mask.shape[1] // FINE
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    depth = cv2.resize((inside - outside) / FINE, (columns, rows), interpolation=cv2.INTER_AREA)
    look = _paint(rng, depth, grains, outline.size, style)
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y0 + rows, height), min(x0 + columns, width)
    part = np.s_[top - y0 : bottom - y0, left - x0 : right - x0]
    window = canvas[top:bottom, left:right]
    window *= 1 - np.float32(style.opacity) * np.clip(depth[part] + 0.5, 0, 1)
    window += look[part]
    return polygon


def _paint(
    rng: np.random.Generator,
    depth: np.ndarray,
    grains: tuple[np.ndarray, np.ndarray],
    size: float,
    style: _Style,
) -> np.ndarray:
    """Gray-level change float32 by one cell, from the depth of each pixel behind its outline."""
    # Ridges of the depth would show as creases: they are smoothed where they lie, far from the outline.
    smooth = cv2.GaussianBlur(depth, (0, 0), max(0.07 * size, 0.5))
    depth = depth + (smooth - depth) * np.clip(depth / (0.25 * size) - 0.3, 0, 1)
    d = _DEPTHS
    bulge = np.sqrt(1 - (1 - np.clip(d / (0.45 * size), 0, 1)) ** 2)
    cover = np.clip(d + 0.5, 0, 1)
    profile = style.body * rng.uniform(0.8, 1.2) * cover * (1 - style.dome + style.dome * bulge)
    line = style.rim * rng.uniform(0.75, 1.2) * bell(d, style.rim_at, style.rim_width) * cover
    fade = np.clip((d[0] - d) / d[0], 0, 1)
    profile += style.fringe * bell(d, -0.6, style.fringe_width) * (d < 0) * fade
    levels = np.clip((depth - d[0]) * 8, 0, len(d) - 1).astype(np.intp)
    row, column = (int(rng.integers(0, _GRAIN - side, endpoint=True)) for side in depth.shape)
    cut = np.s_[row : row + depth.shape[0], column : column + depth.shape[1]]
    inner = np.clip((depth - style.rim_at) / 2, 0, 1)
    v, u = np.ogrid[-1 : 1 : depth.shape[0] * 1j, -1 : 1 : depth.shape[1] * 1j]
    flank = 1 + style.tilt[0] * u + style.tilt[1] * v
    look = profile.astype(np.float32)[levels] + line[levels] * flank.astype(np.float32)
    look += np.float32(style.grain) * inner * (0.6 * grains[0][cut] + grains[1][cut])
    contents = _contents(rng, depth, size, style.spots)
    return look + inner * contents


def _contents(rng: np.random.Generator, depth: np.ndarray, size: float, strength: float) -> np.ndarray:
    """Vacuoles, a nucleus and granules of one cell: float32 of the shape of `depth`, of either sign."""
    found = np.zeros_like(depth)
    deep = np.argwhere(depth > max(0.12 * size, 1.5))
    if not len(deep):
        return found
    kinds = [(0.2, 0.32, int(rng.random() < 0.6), 1.0), (0.03, 0.07, int(rng.poisson(0.08 * size)), 0.8)]
    for smallest, largest, count, gain in kinds:
        for y, x in deep[rng.integers(0, len(deep), min(count, 14))]:
            radius = max(size * rng.uniform(smallest, largest), 0.7)
            radius = min(radius, float(depth[y, x]) * 0.75)
            reach = int(radius) + 4
            top, left = max(y - reach, 0), max(x - reach, 0)
            window = found[top : y + reach + 1, left : x + reach + 1]
            rows, columns = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
            distance = np.hypot(columns - x, rows - y).astype(np.float32)
            amount = strength * gain * rng.normal(0.35, 0.6)
            # A vesicle is a disc with a line round it, which is darker than what lies about.
            window += np.float32(amount) * np.clip(radius - distance + 0.5, 0, 1)
            window -= np.float32(0.3 * abs(amount)) * bell(distance, radius + 0.5, 0.9)
    return found


def _shear(rng: np.random.Generator, thickness: np.ndarray, diameter: float) -> tuple[np.ndarray, float]:
    """Gray levels of a relief, the slope of the thickness towards a light from any side; those of a flank."""
    smooth = cv2.GaussianBlur(thickness, (0, 0), rng.uniform(0.6, min(0.7 + 0.012 * diameter, 1.4)))
    angle, gain = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(40), np.log(170)))
    across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)
    down = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    slope = np.float32(np.cos(angle)) * across + np.float32(np.sin(angle)) * down
    return np.float32(gain) * slope, 0.4 * float(gain)
