"""Where the cells of the varied looks lie: one typical size an image, from none to pressed sheets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from effdet_tf.data.synthetic.shapes import ANGLES, CellShape, blob, closed, place, spindle, strip

SHAPES = ("round", "oval", "budding", "spread", "ragged", "long")
SIZES = (8.0, 120.0)  # typical diameter of an image's cells, pixels
_EMPTY = 0.06  # share of the images without any cell
_LONGEST = 330.0  # pixels: a cell with its margin has to fit into the grain it is filled with
# Share of the field that cells cover, and how often: a few cells, sparse, half full, colonies, sheets.
_COVERS = ((0.15, 0.0, 0.03), (0.25, 0.03, 0.12), (0.25, 0.12, 0.35), (0.15, 0.35, 0.6), (0.2, 0.75, 1.0))


def arrange(
    rng: np.random.Generator, height: int, width: int, shape: str, max_cells: int
) -> tuple[list[CellShape], float]:
    """Choose number, size, place and outline of an image's cells.

    Args:
        rng: random numbers.
        height: image height in pixels.
        width: image width in pixels.
        shape: one of `SHAPES`.
        max_cells: most cells of an image.

    Returns:
        Outlines, the bottom one first, which may cross the image's edges, and their typical diameter in
        pixels (also of an empty field).
    """
    low, high = SIZES
    # A picture of few pixels has smaller cells: one that fills it has no outline to learn.
    diameter = float(np.exp(rng.uniform(np.log(low), np.log(max(min(high, 0.5 * min(height, width)), low)))))
    _, least, most = _COVERS[rng.choice(len(_COVERS), p=[share for share, _, _ in _COVERS])]
    cover = rng.uniform(least, most)
    count = int(round(cover * height * width / (np.pi / 4 * diameter**2)))
    empty = rng.random() < _EMPTY
    count = 0 if empty else min(max(count, int(rng.integers(1, 7))), max_cells)
    if count == 0:
        return [], diameter
    if least >= 0.75 and shape != "budding":
        centres = _sheet(rng, height, width, diameter * 0.97, count)
    else:
        spacing = diameter * (1.25 if shape == "budding" else rng.uniform(0.85, 1.05))
        mothers = max(count * 2 // 3, 1) if shape == "budding" else count
        centres = place(rng, height, width, mothers, spacing, rng.choice([0.04, 0.2, 0.6, 1.0]))
    spread = rng.uniform(0.04, 0.25)
    sizes = diameter * np.exp(np.clip(rng.normal(0, spread, len(centres)), -0.5, 0.35))
    if shape == "budding":
        centres, sizes = _bud(rng, centres, sizes, count)
    outline = _long_outlines(rng) if shape == "long" else _closed_outlines(rng, shape, centres, sizes)
    cells = [CellShape([outline(k, centres[k], sizes[k])], shape, float(sizes[k])) for k in range(len(sizes))]
    return cells, diameter


def _sheet(rng: np.random.Generator, height: int, width: int, spacing: float, count: int) -> np.ndarray:
    """Centres `[K, 2]` of a sheet without gaps: a jittered honeycomb round a point of the field."""
    rows, columns = int(height / (spacing * 0.87)) + 2, int(width / spacing) + 2
    y, x = np.mgrid[:rows, :columns].astype(float)
    centres = np.stack([(x + 0.5 * (y % 2)) * spacing, y * spacing * 0.87], 2).reshape(-1, 2)
    centres += rng.normal(0, 0.13 * spacing, centres.shape) - spacing / 4
    centres = centres[((centres >= 0) & (centres < (width, height))).all(1)]
    seed = rng.uniform((0, 0), (width, height))
    distance = np.hypot(*(centres - seed).T) + rng.normal(0, 0.7 * spacing, len(centres))
    # Some sheets leave a part of the field free, so that their edge can be seen.
    return centres[np.argsort(distance)[: max(int(count * rng.choice([1.0, 1.3])), 1)]][:count]


def _bud(
    rng: np.random.Generator, centres: np.ndarray, sizes: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give mothers a bud, a cell of its own that touches, on the side with most room, until `count` cells."""
    places, diameters = list(centres), list(sizes)
    for k in rng.permutation(len(centres))[: count - len(centres)]:
        size = max(sizes[k] * rng.uniform(0.35, 0.85), 5.0)
        angles = rng.uniform(0, 2 * np.pi, 6)
        tips = centres[k] + 0.47 * (sizes[k] + size) * np.stack([np.cos(angles), np.sin(angles)], 1)
        others = np.delete(np.array(places), k, 0)
        room = np.hypot(*(tips[:, None] - others[None]).transpose(2, 0, 1)).min(1) if len(others) else angles
        places.append(tips[int(np.argmax(room))])
        diameters.append(size)
    return np.array(places), np.array(diameters)


def _closed_outlines(
    rng: np.random.Generator, shape: str, centres: np.ndarray, sizes: np.ndarray
) -> Callable[[int, np.ndarray, float], np.ndarray]:
    """How one compact cell of this shape is outlined, pressed flat against its neighbours."""
    # In most pictures neighbours share a border or leave a gap, in some they lie on each other.
    give = rng.uniform(-0.03, 0.01) if rng.random() < 0.7 else rng.uniform(0.01, 0.06)
    roundness = {"round": 1.12, "oval": 1.6, "budding": 1.35, "spread": 1.9, "ragged": 1.7}[shape]
    roughness = {"round": 0.02, "oval": 0.04, "budding": 0.02, "spread": 0.16, "ragged": 0.2}[shape]
    swelling = {"spread": 1.15, "ragged": 1.05}.get(shape, 1.0)

    def outline(k: int, centre: np.ndarray, size: float) -> np.ndarray:
        radii = blob(rng, swelling * size / 2, rng.uniform(1.0, roundness), roughness)
        if shape == "spread":
            radii = _cut_corners(rng, radii)
        radii = np.maximum(_press(radii, centres, sizes, k, give * size), 2.0)
        if shape == "ragged":
            return _fray(rng, closed(centre, radii), centre)
        return closed(centre, radii)

    return outline


def _long_outlines(rng: np.random.Generator) -> Callable[[int, np.ndarray, float], np.ndarray]:
    """How one long cell is outlined: rods or spindles, lined up or in all directions."""
    aspect, rods = rng.uniform(2.0, 5.0), rng.random() < 0.5
    common, disorder = rng.uniform(0, np.pi), rng.choice([0.25, 0.6, 3.0])

    def outline(k: int, centre: np.ndarray, size: float) -> np.ndarray:
        ratio = aspect * rng.uniform(0.8, 1.2)
        half = min(size / 2 * np.sqrt(ratio), _LONGEST / 2)
        wide = max(size / 2 / np.sqrt(ratio), 2.0)
        heading = common + disorder * rng.normal()
        if not rods:
            return spindle(rng, centre, heading, half * 1.15, wide * 1.2)
        along = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 25)) * half
        cap = np.clip(1 - np.maximum(np.abs(along) - (half - wide), 0) ** 2 / wide**2, 0, 1)
        bend = rng.normal() * 0.1 * half * (along / half) ** 2
        return centre + strip(along, bend, wide * np.sqrt(cap) + 0.2, heading)

    return outline


def _press(radii: np.ndarray, centres: np.ndarray, sizes: np.ndarray, k: int, give: float) -> np.ndarray:
    """Flatten cell `k` against its neighbours where their diameters meet, moved out by `give` pixels."""
    apart = centres - centres[k]
    distances = np.hypot(apart[:, 0], apart[:, 1])
    for j in np.flatnonzero((distances > 0) & (distances < radii.max() + sizes)):
        cosine = np.cos(ANGLES - np.arctan2(apart[j, 1], apart[j, 0]))
        # The larger of two cells keeps the larger part, so that buds are not cut in half.
        wall = (distances[j] * sizes[k] / (sizes[k] + sizes[j]) + give) / np.maximum(cosine, 1e-3)
        radii = np.minimum(radii, wall)
    return radii


def _cut_corners(rng: np.random.Generator, radii: np.ndarray) -> np.ndarray:
    """Turn a wobbly oval into a polygon of few sides with round corners."""
    sides = int(rng.integers(3, 7))
    turns = np.linspace(0, 2 * np.pi, sides, endpoint=False) + rng.uniform(0, 2 * np.pi)
    walls = radii.mean() * rng.uniform(0.7, 1.0, sides)
    for turn, wall in zip(turns + rng.normal(0, 0.2, sides), walls, strict=True):
        radii = np.minimum(radii, wall / np.maximum(np.cos(ANGLES - turn), 1e-3))
    return (np.roll(radii, 1) + 2 * radii + np.roll(radii, -1)) / 4


def _fray(rng: np.random.Generator, points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Roughen an outline `[40, 2]` with small bumps: polygon `[160, 2]`."""
    steps = np.arange(4)[:, None] / 4
    fine = (points[:, None] * (1 - steps) + np.roll(points, -1, 0)[:, None] * steps).reshape(-1, 2)
    bumps = rng.normal(size=len(fine))
    bumps = bumps + np.roll(bumps, 1) + np.roll(bumps, 2)
    return centre + (fine - centre) * (1 + rng.uniform(0.01, 0.04) * bumps[:, None])
