"""Shape and brightness of every cell of a label image.

scikit-image's `regionprops` defines each value, and the names are its own. It goes cell by cell, which takes
seconds for 2,000 cells; here sums over pixels are made for all cells at once, in bands of rows, so that an
image of any size takes the same memory. Only what needs a convex hull goes cell by cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from effdet_tf.images.gray import to_gray

_BAND = 2**20  # pixels that are looked at together

# Length that a border pixel adds, by 1 + 2 * (side neighbours) + 10 * (corner neighbours) on the border:
# Benkrid, Crookes, "Design and FPGA implementation of a perimeter estimator" (2000), as scikit-image has it.
_BORDER_LENGTH = np.zeros(50)
_BORDER_LENGTH[[5, 7, 15, 17, 25, 27]] = 1
_BORDER_LENGTH[[21, 33]] = np.sqrt(2)
_BORDER_LENGTH[[13, 23]] = (1 + np.sqrt(2)) / 2
_BORDER_REACH = 2  # rows beyond a band that its border lengths depend on
_SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))
_CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_AROUND = np.array([[-1, 1, 0, 0], [0, 0, -1, 1]])[..., None]  # x, y of a pixel's edges, doubled


def measure_cells(labels: np.ndarray, image: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Measure the cells 1 to `count`.

    Args:
        labels: integers `[H, W]`, 0 is background.
        image: `[H, W]` or `[H, W, C]`, in its own units; colours are measured as gray.
        count: largest label; a label without a pixel has area 0 and NaN elsewhere.

    Returns:
        float64 `[count]` each, in pixels unless said otherwise: area, centroid_y and centroid_x (the first
        pixel's centre is 0), perimeter, axis_major_length and axis_minor_length (of the ellipse with the same
        second moments), orientation (of its major axis against the rows' axis, radians, -pi/2 to pi/2),
        eccentricity (0 for a circle, near 1 for a line), equivalent_diameter_area, feret_diameter_max, extent
        (share of the upright box), solidity (share of the convex hull), intensity_mean, intensity_std,
        intensity_min and intensity_max (in the image's own units).
    """
    sums = _Sums(count)
    height, width = labels.shape
    rows = max(_BAND // max(width, 1), 1)
    for top in range(0, height, rows):
        sums.add(labels, image, top, min(top + rows, height))
    measures = sums.measures()
    feret, solidity = np.full(count, np.nan), np.full(count, np.nan)
    for index in np.flatnonzero(sums.area).tolist():
        (y0, x0), (y1, x1) = sums.low[:, index].astype(int), sums.high[:, index].astype(int) + 1
        hull_area, feret[index] = _hull(labels[y0:y1, x0:x1] == index + 1)
        solidity[index] = sums.area[index] / hull_area
    return measures | {"feret_diameter_max": feret, "solidity": solidity}


class _Sums:
    """Sums over the pixels of each cell; places are counted from the first pixel that was met of it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.area = np.zeros(count)
        self.border = np.zeros(count)
        self.first = np.full((2, count), -1.0)  # y, x
        self.low, self.high = np.full((2, count), np.inf), np.full((2, count), -np.inf)
        self.places = np.zeros((5, count))  # y, x, yy, xx, yx
        self.start = np.zeros(count)  # intensity of the first pixel
        self.light = np.zeros((2, count))  # sum and sum of squares, above that
        self.darkest, self.brightest = np.full(count, np.inf), np.full(count, -np.inf)

    def add(self, labels: np.ndarray, image: np.ndarray, top: int, bottom: int) -> None:
        """Add the rows `top` to `bottom`."""
        band = np.asarray(labels[top:bottom])
        ys, xs = np.nonzero(band)
        if not len(ys):
            return
        cell = band[ys, xs].astype(np.int64) - 1
        gray = to_gray(np.asarray(image[top:bottom]))[ys, xs].astype(np.float64)
        above = max(top - _BORDER_REACH, 0)
        around = np.asarray(labels[above : bottom + _BORDER_REACH])
        lengths = _border_length(around)[top - above :][ys, xs]
        ys = ys + top
        new = self.first[0, cell] < 0
        # Of several pixels the last that is written stays: from the end, that is the first one.
        for values, target in ((ys, self.first[0]), (xs, self.first[1]), (gray, self.start)):
            target[cell[new][::-1]] = values[new][::-1]

        def total(values: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(cell, weights=values, minlength=self.count)[: self.count]

        self.area += total()
        self.border += total(lengths)
        y, x, light = ys - self.first[0, cell], xs - self.first[1, cell], gray - self.start[cell]
        self.places += [total(values) for values in (y, x, y * y, x * x, y * x)]
        self.light += [total(values) for values in (light, light * light)]
        for axis, values in enumerate((ys.astype(np.float64), xs.astype(np.float64))):
            np.minimum.at(self.low[axis], cell, values)
            np.maximum.at(self.high[axis], cell, values)
        np.minimum.at(self.darkest, cell, gray)
        np.maximum.at(self.brightest, cell, gray)

    def measures(self) -> dict[str, np.ndarray]:
        """All that needs no more than the sums."""
        area = np.where(self.area > 0, self.area, np.nan)
        y, x, yy, xx, yx = self.places / area
        spread_y, spread_x, covariance = yy - y * y, xx - x * x, yx - y * x
        # Eigenvalues of the 2 x 2 covariance matrix: half the trace, plus and minus the root.
        middle = (spread_y + spread_x) / 2
        root = np.sqrt(((spread_y - spread_x) / 2) ** 2 + covariance**2)
        long, short = middle + root, np.maximum(middle - root, 0)
        difference = spread_y - spread_x
        tilt = np.arctan2(2 * covariance, difference) / 2
        # A shape without a long axis: scikit-image's choice.
        tilt = np.where(difference == 0, np.where(covariance > 0, np.pi / 4, -np.pi / 4), tilt)
        mean, square = self.light / area
        sides = self.high - self.low + 1
        return {
            "area": self.area,
            "centroid_y": self.first[0] + y,
            "centroid_x": self.first[1] + x,
            "perimeter": np.where(self.area > 0, self.border, np.nan),
            "axis_major_length": 4 * np.sqrt(long),
            "axis_minor_length": 4 * np.sqrt(short),
            "orientation": np.where(self.area > 0, tilt, np.nan),
            "eccentricity": np.sqrt(1 - np.divide(short, long, out=np.ones_like(long), where=long > 0)),
            "equivalent_diameter_area": np.sqrt(4 * area / np.pi),
            "extent": self.area / np.where(self.area > 0, sides[0] * sides[1], np.nan),
            "intensity_mean": self.start + mean,
            "intensity_std": np.sqrt(np.maximum(square - mean * mean, 0)),
            "intensity_min": np.where(self.area > 0, self.darkest, np.nan),
            "intensity_max": np.where(self.area > 0, self.brightest, np.nan),
        }


def _hull(mask: np.ndarray) -> tuple[int, float]:
    """Pixels of the convex hull of a tight mask, and its largest diameter (Feret's), px."""
    corners = _hull_corners(mask)
    x, y = corners.T
    right, down = np.diff(x, append=x[0]), np.diff(y, append=y[0])
    ys, xs = np.arange(0, 2 * mask.shape[0], 2), np.arange(0, 2 * mask.shape[1], 2)
    # On the inner side of each edge, or on it: whole numbers, so nothing is lost to rounding.
    across = right[:, None] * ys - (right * y - down * x)[:, None]
    inside = (across[:, :, None] >= (down[:, None] * xs)[:, None]).all(axis=0)
    outer = _hull_corners(inside) / 2
    apart = ((outer[:, None] - outer[None]) ** 2).sum(-1)
    return int(np.count_nonzero(inside)), float(np.sqrt(apart.max()))


def _hull_corners(mask: np.ndarray) -> np.ndarray:
    """Corners int64 `[K, 2]` (x, y; doubled pixels), the inside on the same hand throughout.

    They are of the hull around the middles of the pixels' edges.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    x, y = np.concatenate([first, last]) * 2, np.concatenate([rows, rows]) * 2
    points = np.stack([x + _AROUND[0], y + _AROUND[1]], axis=-1).astype(np.int32)
    return cv2.convexHull(points.reshape(-1, 2), clockwise=False)[:, 0].astype(np.int64)


def _border_length(labels: np.ndarray) -> np.ndarray:
    """Length float64 `[H, W]` that each pixel adds to the perimeter of its own cell."""
    inner = np.ones(labels.shape, bool)
    for neighbour in _neighbours(labels, _SIDES):
        inner &= neighbour == labels
    border = np.where(inner, 0, labels)
    code = np.ones(labels.shape, np.uint8)
    for weight, steps in ((2, _SIDES), (10, _CORNERS)):
        for neighbour in _neighbours(border, steps):
            code += np.uint8(weight) * (neighbour == border)
    return np.where(border > 0, _BORDER_LENGTH[code], 0.0)


def _neighbours(image: np.ndarray, steps: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The neighbour of each pixel at each of the steps (dy, dx); 0 outside the image."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, 1), (3, 3))
    return [windows[..., 1 + dy, 1 + dx] for dy, dx in steps]
