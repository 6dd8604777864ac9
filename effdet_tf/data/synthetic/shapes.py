"""Where synthetic cells lie and which outline each one has."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Invented types, each with its own look: refractile balls in clumps, elongated cells with processes, flat
# cells in colonies, and somas in a net of thin neurites.
CELL_TYPES = ("Round", "Spindle", "Cluster", "Neuron")
ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
# Above this share of the image, cells are made smaller so that the number asked for still fits.
_MAX_COVER = {"Round": 0.72, "Spindle": 0.34, "Cluster": 0.9, "Neuron": 0.3}


class CellShape(NamedTuple):
    """One cell before it is drawn."""

    pieces: list[np.ndarray]  # closed polygons, float64 `[K, 2]` in x, y pixels, whose union is the cell
    look: str  # "refractile" (bright ball) or "flat" (thin, gray, granular)
    size: float  # the typical width in pixels, which scales its rims and grains


def lay_out(
    rng: np.random.Generator, height: int, width: int, n_cells: int, cell_type: str
) -> list[CellShape]:
    """Choose the place, the shape and the look of every cell of an image.

    Args:
        rng: random numbers.
        height: image height in pixels.
        width: image width in pixels.
        n_cells: how many cells; each has its centre inside the image.
        cell_type: one of `CELL_TYPES`.

    Returns:
        `n_cells` outlines, the bottom one first; they may cross the image's edges and each other.

    Raises:
        ValueError: when `cell_type` is unknown.
    """
    if cell_type not in CELL_TYPES:
        raise ValueError(f"unknown cell type {cell_type!r}: choose one of {', '.join(CELL_TYPES)}")
    if n_cells == 0:
        return []
    low, high = {"Round": (12, 19), "Spindle": (21, 33), "Cluster": (22, 38), "Neuron": (17, 25)}[cell_type]
    fitting = np.sqrt(_MAX_COVER[cell_type] * height * width / n_cells)
    diameter = min(rng.uniform(low, high), fitting)
    spacing = diameter * {"Round": 0.98, "Spindle": 0.72, "Cluster": 0.9, "Neuron": 1.5}[cell_type]
    loneliness = {"Round": 0.12, "Spindle": 0.3, "Cluster": 0.06, "Neuron": 0.6}[cell_type]
    centres = place(rng, height, width, n_cells, spacing, loneliness)
    if cell_type == "Round":
        return _round_cells(rng, centres, diameter)
    if cell_type == "Cluster":
        return _flat_cells(rng, centres, diameter)
    return _long_cells(rng, centres, diameter, cell_type, height, width)


def place(
    rng: np.random.Generator, height: int, width: int, n_cells: int, spacing: float, loneliness: float
) -> np.ndarray:
    """Grow colonies: most cells settle beside one that is there, some start anew.

    Args:
        rng: random numbers.
        height: image height in pixels.
        width: image width in pixels.
        n_cells: number of centres.
        spacing: usual distance between neighbours in pixels.
        loneliness: share of the cells that start away from the others.

    Returns:
        Centres float64 `[n_cells, 2]`, x and y.
    """
    centres = np.empty((n_cells, 2))
    for k in range(n_cells):
        best, best_distance = np.zeros(2), -1.0
        alone = k == 0 or rng.random() < loneliness
        for attempt in range(24):
            if alone or attempt >= 16:
                candidate = rng.uniform((0, 0), (width, height))
            else:
                parent = centres[rng.integers(k)]
                angle = rng.uniform(0, 2 * np.pi)
                step = spacing * rng.uniform(0.9, 1.25)
                candidate = parent + step * np.array([np.cos(angle), np.sin(angle)])
                if not (0 <= candidate[0] < width and 0 <= candidate[1] < height):
                    continue
            apart = centres[:k] - candidate
            distance = float(np.sqrt((apart * apart).sum(1).min())) if k else spacing
            if distance > best_distance:
                best, best_distance = candidate, distance
            if distance >= spacing * 0.82:
                break
        centres[k] = best
    return centres


def blob(rng: np.random.Generator, radius: float, aspect: float, roughness: float) -> np.ndarray:
    """Radii `[40]` of a wobbly ellipse with a random direction, for `ANGLES`."""
    turn = rng.uniform(0, np.pi)
    long, short = radius * np.sqrt(aspect), radius / np.sqrt(aspect)
    radii = long * short / np.hypot(short * np.cos(ANGLES - turn), long * np.sin(ANGLES - turn))
    for order in (2, 3, 4, 5, 7):
        phase, amount = rng.uniform(0, 2 * np.pi), rng.normal() * roughness / order
        radii = radii * (1 + amount * np.cos(order * ANGLES + phase))
    return radii


def _press(radii: np.ndarray, centres: np.ndarray, k: int, give: float) -> np.ndarray:
    """Flatten cell `k` against its neighbours: cut its radii at the bisectors, moved out by `give` pixels."""
    apart = centres - centres[k]
    distances = np.hypot(apart[:, 0], apart[:, 1])
    for j in np.flatnonzero((distances > 0) & (distances < 2.2 * radii.max())):
        cosine = np.cos(ANGLES - np.arctan2(apart[j, 1], apart[j, 0]))
        wall = (distances[j] / 2 + give) / np.maximum(cosine, 1e-3)
        radii = np.minimum(radii, wall)
    return radii


def closed(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Polygon `[40, 2]` in x, y from radii round a centre."""
    return centre + radii[:, None] * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)


def _round_cells(rng: np.random.Generator, centres: np.ndarray, diameter: float) -> list[CellShape]:
    """Balls that touch and sit a little on top of each other; a few are flat or dividing."""
    cells = []
    for k, centre in enumerate(centres):
        size = diameter * rng.uniform(0.82, 1.15)
        dividing = rng.random() < 0.05
        radii = blob(rng, size / 2, 1.5 if dividing else rng.uniform(1.0, 1.2), 0.03)
        radii = _press(radii, centres, k, 0.07 * diameter)
        look = "flat" if rng.random() < 0.08 else "refractile"
        cells.append(CellShape([closed(centre, radii)], look, size))
    return cells


def _flat_cells(rng: np.random.Generator, centres: np.ndarray, diameter: float) -> list[CellShape]:
    """Spread cells that fill a colony without gaps; some have rounded up to divide."""
    cells = []
    for k, centre in enumerate(centres):
        if rng.random() < 0.06:
            size = min(diameter * rng.uniform(0.45, 0.65), 22.0)
            cells.append(CellShape([closed(centre, blob(rng, size / 2, 1.1, 0.03))], "refractile", size))
            continue
        size = diameter * rng.uniform(0.9, 1.3)
        radii = blob(rng, 0.56 * size, rng.uniform(1.0, 1.8), 0.2)
        pieces = [closed(centre, _press(radii, centres, k, 0.03 * diameter))]
        if rng.random() < 0.2:
            pieces.append(_process(rng, centre, rng.uniform(0, 2 * np.pi), size * 0.95, size * 0.6))
        cells.append(CellShape(pieces, "flat", size))
    # Rounded cells sit on top of the sheet.
    return sorted(cells, key=lambda cell: cell.look == "refractile")


def _long_cells(
    rng: np.random.Generator, centres: np.ndarray, diameter: float, cell_type: str, height: int, width: int
) -> list[CellShape]:
    """Bodies with processes; neighbours point in similar directions."""
    swirl = rng.uniform(0, 2 * np.pi, 3)
    cells = []
    for centre in centres:
        if rng.random() < 0.07:
            size = diameter * rng.uniform(0.4, 0.55)
            cells.append(CellShape([closed(centre, blob(rng, size / 2, 1.1, 0.03))], "refractile", size))
            continue
        size = diameter * rng.uniform(0.8, 1.25)
        x, y = centre / max(height, width)
        heading = (
            swirl[0] + 1.3 * np.sin(4 * x + swirl[1]) + 1.3 * np.cos(4 * y + swirl[2]) + rng.normal() * 0.45
        )
        if cell_type == "Spindle":
            pieces = [
                spindle(rng, centre, heading, size * rng.uniform(0.6, 0.95), size * rng.uniform(0.16, 0.26))
            ]
            headings = [heading, heading + np.pi] + [
                rng.uniform(0, 2 * np.pi) for _ in range(rng.integers(0, 3))
            ]
            reach, thickness = (0.6, 1.5), 0.17
        else:
            pieces = [closed(centre, blob(rng, size * 0.32, rng.uniform(1.0, 1.6), 0.12))]
            headings = [heading + turn for turn in rng.uniform(0, 2 * np.pi, rng.integers(2, 6))]
            reach, thickness = (0.45, 1.2), 0.2
        for direction in headings:
            pieces.append(_process(rng, centre, direction, size * rng.uniform(*reach), size * thickness))
        cells.append(CellShape(pieces, "flat", size * 0.6))
    return cells


def spindle(
    rng: np.random.Generator, centre: np.ndarray, heading: float, half: float, wide: float
) -> np.ndarray:
    """A bent lens `[K, 2]`: `half` long to each side and `wide` to each side of its axis."""
    along = np.linspace(-1, 1, 17)
    lens = 1 - np.abs(along) ** rng.uniform(1.4, 2.2)
    profile = wide * lens * (1 + 0.12 * rng.normal(size=along.size)) + 0.5
    bend = rng.normal() * 0.18 * half * along**2
    return centre + strip(along * half, bend, profile, heading)


def _process(
    rng: np.random.Generator, start: np.ndarray, heading: float, length: float, wide: float
) -> np.ndarray:
    """A curved strip `[K, 2]` that runs out to a tip of two pixels: a finer one would leave its mask."""
    along = np.linspace(0, 1, 9)
    profile = np.maximum(wide * (1 - along) ** 2.2, rng.uniform(0.85, 1.1)) + 0.25 * rng.random(along.size)
    bend = rng.normal() * 0.16 * length * along**2
    return start + strip(along * length, bend, profile, heading)


def strip(along: np.ndarray, bend: np.ndarray, half_width: np.ndarray, angle: float) -> np.ndarray:
    """Polygon `[K, 2]` of this half width round a bent axis, turned by `angle`."""
    upper = np.stack([along, bend + half_width], 1)
    lower = np.stack([along, bend - half_width], 1)[::-1]
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.concatenate([upper, lower]) @ turn
