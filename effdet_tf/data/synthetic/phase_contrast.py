"""Synthetic phase-contrast pictures: rims, halos, grains, debris and noise round known outlines."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from effdet_tf.data.synthetic.shapes import CellShape, lay_out

FINE = 2  # outlines are rasterised this much finer than the picture
_MARGIN = 7  # pixels round a cell that its halo reaches
_GRAIN = 256  # more than the longest cell with its margin
_DEPTHS = np.arange(-10, 40, 1 / 16, dtype=np.float32)  # pixels from a cell's rim, inwards


class RenderedCell(NamedTuple):
    """One cell of a synthetic picture."""

    polygon: np.ndarray  # float32 [K, 2], x and y in pixels, inside the image
    look: str  # "refractile" or "flat"


class _Grain(NamedTuple):
    """Band-limited noise of unit deviation, float32 `[_GRAIN, _GRAIN]`, from which cells take cut-outs."""

    fine: np.ndarray
    coarse: np.ndarray


def render_image(
    rng: np.random.Generator | int, height: int, width: int, n_cells: int, cell_type: str
) -> tuple[np.ndarray, list[RenderedCell]]:
    """Render one synthetic phase-contrast image.

    Like the flat-fielded images of a live-cell imager it has a mean gray near 128; cells are darker or
    brighter than that only near their rims, halos are bright and lie outside.

    Args:
        rng: a generator, or a seed; the same seed gives the same bytes.
        height: image height in pixels.
        width: image width in pixels.
        n_cells: cells to draw; one whose visible part is under 12 square pixels is left out.
        cell_type: one of `cell_shapes.CELL_TYPES`.

    Returns:
        The image uint8 `[height, width]` and its cells.

    Raises:
        ValueError: when `cell_type` is unknown.
    """
    rng = np.random.default_rng(rng)
    outlines = lay_out(rng, height, width, n_cells, cell_type)
    grain = _Grain(noise(rng, 0.8), noise(rng, 2.2))
    canvas = np.zeros((height, width), np.float32)
    strength = rng.uniform(0.85, 1.5)
    light = rng.uniform(0, 2 * np.pi)
    if cell_type == "Neuron":
        _draw_neurites(rng, canvas, outlines)
    _draw_debris(rng, canvas)
    cells = []
    for outline in outlines:
        if (polygon := _draw_cell(rng, canvas, outline, grain, strength, light)) is not None:
            cells.append(RenderedCell(polygon, outline.look))
    return _expose(rng, canvas), cells


def noise(rng: np.random.Generator, sigma: float, side: int = _GRAIN) -> np.ndarray:
    """Smooth noise float32 `[side, side]` with grains of `sigma` pixels, zero mean and unit deviation."""
    field = cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), sigma)
    field -= cv2.GaussianBlur(field, (0, 0), 2.5 * sigma)
    return field / field.std()


def _draw_cell(
    rng: np.random.Generator,
    canvas: np.ndarray,
    outline: CellShape,
    grain: _Grain,
    strength: float,
    light: float,
) -> np.ndarray | None:
    """Draw one cell onto `canvas`; return its polygon inside it, or None when too little is visible."""
    height, width = canvas.shape
    mask, x0, y0 = rasterise(outline.pieces, _MARGIN)
    x1, y1 = x0 + mask.shape[1] // FINE, y0 + mask.shape[0] // FINE
    polygon = trace(mask, x0, y0, height, width)
    if polygon is None:
        return None
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3)
    depth = cv2.resize((inside - outside) / FINE, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    row, column = rng.integers(0, _GRAIN - np.array(depth.shape), endpoint=True)
    cut = np.s_[row : row + depth.shape[0], column : column + depth.shape[1]]
    fine, coarse = grain.fine[cut], grain.coarse[cut]
    paint = _refractile if outline.look == "refractile" else _flat
    look = paint(rng, depth, fine, coarse, outline.size) * (strength * rng.uniform(0.75, 1.25))
    # One flank is lit and the other in shade, as with a condenser that is slightly off axis.
    across, down = cv2.Sobel(depth, cv2.CV_32F, 1, 0), cv2.Sobel(depth, cv2.CV_32F, 0, 1)
    towards = across * np.cos(light) + down * np.sin(light)
    look += bell(_DEPTHS, 0, 1.5)[_levels(depth)] * towards * np.float32(strength)
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
    part = np.s_[top - y0 : bottom - y0, left - x0 : right - x0]
    cover = np.clip(depth[part] + 0.5, 0, 1) * (0.85 if outline.look == "refractile" else 0.6)
    window = canvas[top:bottom, left:right]
    window *= 1 - cover
    window += look[part]
    return polygon


def rasterise(pieces: list[np.ndarray], margin: int) -> tuple[np.ndarray, int, int]:
    """Mask uint8 of the union of polygons, `FINE` times finer than pixels, and its first x and y."""
    points = np.concatenate(pieces)
    x0, y0 = np.floor(points.min(0)).astype(int) - margin
    x1, y1 = np.ceil(points.max(0)).astype(int) + margin
    mask = np.zeros(((y1 - y0) * FINE, (x1 - x0) * FINE), np.uint8)
    for piece in pieces:
        # 4 fractional bits; fillPoly counts from pixel centres
        corners = np.round(((piece - (x0, y0)) * FINE - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(mask, [corners], 1, shift=4)
    return mask, int(x0), int(y0)


def trace(mask: np.ndarray, x0: int, y0: int, height: int, width: int) -> np.ndarray | None:
    """Polygon float32 `[K, 2]` round the largest part of a fine mask that lies in the image."""
    top, left = max(-y0, 0), max(-x0, 0)
    visible = mask[top * FINE : max(height - y0, 0) * FINE, left * FINE : max(width - x0, 0) * FINE]
    contours, _ = cv2.findContours(visible, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    contour = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 0.7, True)[:, 0]
    polygon = ((contour + 0.5) / FINE + (x0 + left, y0 + top)).astype(np.float32)
    return None if len(polygon) < 3 or cv2.contourArea(polygon) < 12 else polygon


def _flat(
    rng: np.random.Generator, depth: np.ndarray, fine: np.ndarray, coarse: np.ndarray, size: float
) -> np.ndarray:
    """Gray-level change by a thin, spread cell: dark rim, bright halo, grains and a nucleus."""
    d = _DEPTHS
    inner = np.clip(d + 0.3, 0, 1)
    profile = -rng.uniform(2, 10) * inner * (1 - np.exp(-np.maximum(d, 0) / 2))
    profile -= rng.uniform(16, 32) * bell(d, 0.7, rng.uniform(0.7, 0.95))
    profile += rng.uniform(18, 34) * bell(d, -0.95, 0.95) + 4 * bell(d, -3, 2.2)
    grains = rng.uniform(8, 18) * inner * np.clip(d / (0.26 * size), 0.25, 1)
    levels = _levels(depth)
    look = profile[levels] + grains[levels] * (fine + 0.45 * coarse)
    _draw_nucleus(rng, look, depth, size)
    return look


def _draw_nucleus(rng: np.random.Generator, look: np.ndarray, depth: np.ndarray, size: float) -> None:
    """Add to `look` an oval with a dark line round it and dark nucleoli, where the cell is thickest."""
    thickest = float(depth.max())
    if thickest < 3.2:
        return
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    radius = min(0.62 * thickest, 0.26 * size)
    reach = int(radius) + 4
    top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
    window = look[top : y + reach + 1, left : x + reach + 1]
    rows = np.arange(window.shape[0], dtype=np.float32)[:, None] + (top - y)
    columns = np.arange(window.shape[1], dtype=np.float32)[None] + (left - x)
    squeeze, turn = rng.uniform(0.75, 1.0), rng.uniform(0, np.pi)
    u = columns * np.float32(np.cos(turn)) + rows * np.float32(np.sin(turn))
    v = rows * np.float32(np.cos(turn)) - columns * np.float32(np.sin(turn))
    distance = np.sqrt(u * u + (v / squeeze) ** 2) - radius
    window -= rng.uniform(2, 12) * bell(distance, 0, 0.8)
    window += 4 * bell(distance, -1.6, 1.0)
    for _ in range(rng.integers(1, 4)):
        spot = rng.normal(0, 0.35 * radius, 2)
        window -= rng.uniform(10, 26) * np.exp(-((u - spot[0]) ** 2 + (v - spot[1]) ** 2) / 1.3)


def _refractile(
    rng: np.random.Generator, depth: np.ndarray, fine: np.ndarray, coarse: np.ndarray, size: float
) -> np.ndarray:
    """Gray-level change by a ball: bright ring at its rim, dark ring within, mottled or glowing centre."""
    d, scale = _DEPTHS, max(size / 15, 0.6)
    profile = rng.uniform(45, 85) * bell(d, 0.55 * scale, 0.95 * scale**0.5)
    profile -= rng.uniform(45, 85) * bell(d, 2.5 * scale, 1.05 * scale**0.5)
    profile += rng.uniform(3, 8) * bell(d, -4, 1.5) - rng.uniform(8, 20) * bell(d, -1.5, 1.0)
    core = np.clip((d - 2.6 * scale) / 1.5, 0, 1)
    profile += core * (rng.uniform(25, 80) if rng.random() < 0.2 else rng.uniform(-12, 30))
    inner = np.clip(d / 2, 0, 1)
    levels = _levels(depth)
    return profile[levels] + inner[levels] * (rng.uniform(16, 34) * fine + rng.uniform(8, 24) * coarse)


def bell(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    """exp(-((x - centre) / width)^2)."""
    return np.exp(-(((x - centre) / width) ** 2))


def _levels(depth: np.ndarray) -> np.ndarray:
    """Index of each depth in `_DEPTHS`: a profile is computed once per cell and looked up per pixel."""
    return np.clip((depth - _DEPTHS[0]) * 16, 0, len(_DEPTHS) - 1).astype(np.intp)


def _draw_neurites(rng: np.random.Generator, canvas: np.ndarray, outlines: list[CellShape]) -> None:
    """Draw a net of hair-thin processes, beaded and crossing; they belong to no annotated cell."""
    height, width = canvas.shape
    line = np.zeros((height, width), np.float32)
    for outline in outlines:
        count, steps = int(rng.integers(1, 6)), 24
        length = rng.uniform(40, 170, (count, 1))
        angle = rng.uniform(0, 2 * np.pi, (count, 1)) + np.cumsum(rng.normal(0, 0.09, (count, steps)), 1)
        moves = np.stack([np.cos(angle), np.sin(angle)], 2) * (length / steps)[..., None]
        paths = outline.pieces[0].mean(0) + np.cumsum(moves, 1)
        strokes = np.round(paths * 16).astype(np.int32)
        for stroke, shade in zip(strokes, rng.uniform(0.3, 1, count), strict=True):
            cv2.polylines(line, [stroke], False, float(shade), 1, cv2.LINE_AA, 4)
        beads = paths[rng.random((count, steps)) < 0.1].astype(int)
        beads = beads[((beads >= 0) & (beads < (width, height))).all(1)]
        line[beads[:, 1], beads[:, 0]] = 5
    canvas += 30 * cv2.GaussianBlur(line, (0, 0), 1.5) - 36 * cv2.GaussianBlur(line, (0, 0), 0.6)


def _draw_debris(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Scatter specks, dead vesicles in heaps and now and then a fibre."""
    height, width = canvas.shape
    share = height * width / (520 * 704)
    specks = rng.uniform((0, 0), (width, height), (rng.poisson(26 * share), 2))
    spots = [(speck, rng.uniform(0.5, 1.6)) for speck in specks]
    for _ in range(rng.poisson(3 * share)):
        heap = rng.uniform((0, 0), (width, height))
        spots += [(heap + rng.normal(0, 4, 2), rng.uniform(1, 2.6)) for _ in range(rng.integers(3, 12))]
    for (x, y), radius in spots:
        reach = int(np.ceil(radius * 3)) + 2
        top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
        bottom, right = min(int(y) + reach + 1, height), min(int(x) + reach + 1, width)
        if top >= bottom or left >= right:
            continue
        rows, columns = np.ogrid[top:bottom, left:right]
        distance = np.hypot(columns - x, rows - y)
        ring = np.exp(-(((distance - 1.5 * radius) / (0.5 * radius + 0.4)) ** 2))
        heart = np.exp(-((distance / (0.75 * radius)) ** 2))
        sign = -1 if rng.random() < 0.75 else 1
        canvas[top:bottom, left:right] += rng.uniform(12, 60) * (sign * heart - 0.5 * sign * ring)
    for _ in range(rng.poisson(0.5 * share)):
        start, heading = rng.uniform((0, 0), (width, height)), rng.uniform(0, 2 * np.pi)
        turns = np.cumsum(rng.normal(0, 0.12, 12))
        path = start + np.cumsum(np.stack([np.cos(heading + turns), np.sin(heading + turns)], 1) * 4, 0)
        fibre = np.zeros_like(canvas)
        cv2.polylines(fibre, [np.round(path * 16).astype(np.int32)], False, 1.0, 2, cv2.LINE_AA, 4)
        canvas += 26 * cv2.GaussianBlur(fibre, (0, 0), 2.2) - 32 * cv2.GaussianBlur(fibre, (0, 0), 0.7)


def _expose(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Optics and camera: blur, uneven background, faint ripples, noise; uint8 about 128."""
    height, width = canvas.shape
    picture = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 0.75))
    # A ring-shaped phase plate passes coarse structures weakly: wide areas return to the background's gray.
    picture -= 0.6 * cv2.GaussianBlur(picture, (0, 0), 9)
    coarse = rng.standard_normal((5, 6), np.float32)
    picture += rng.uniform(0.5, 1.5) * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    bend = cv2.resize(rng.standard_normal((4, 5), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    picture += rng.uniform(0.2, 0.8) * np.sin(along * (2 * np.pi / rng.uniform(7, 16)) + 2 * bend)
    slope = rng.normal(0, 1.5, 2)
    picture += slope[0] * (x / width - 0.5) + slope[1] * (y / height - 0.5)
    grain = rng.standard_normal((height, width), np.float32)
    grain = 0.75 * grain + 0.6 * cv2.GaussianBlur(grain, (0, 0), 0.7)
    picture += rng.uniform(0.8, 1.5) * grain
    return np.clip(np.round(picture + 128), 0, 255).astype(np.uint8)
