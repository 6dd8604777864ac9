"""Polygons of cell masks: outlines along pixel edges, with holes, and back to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.files.limits import limit
from effdet_tf.geometry.masks import mask_to_patch
from effdet_tf.geometry.rle import Patch, rle_to_patch

_FAR = 16  # a coordinate beyond this many image sizes is a fault
# pycocotools walks along all edges in fifths of a pixel, and keeps every step: 100 MB for this length.
_WALKED = 2**20  # pixels
_CROSSED = 2**24  # columns that the edges of a polygon cross at most
_AT_ONCE = 2**20  # crossings
_SCALE, _HALF = 5, 2  # steps of a pixel, and those before its middle
# Directions of a boundary step (dy, dx), clockwise in the image: right, down, left, up.
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def polygons_to_rle(
    polygons: Sequence[Sequence[float] | np.ndarray], height: int, width: int
) -> dict[str, Any]:
    """Rasterise the union of polygons by COCO's own rule, clipped to the image.

    Args:
        polygons: each x, y, x, y, ... in pixels (pixel edges: pixel 3 spans [3, 4)), at least three points.
        height: image height, pixels.
        width: image width, pixels.

    Returns:
        {"size": [H, W], "counts": str}; an empty mask when the polygons enclose no pixel of the image.

    Raises:
        ValueError: when there is no polygon, one has fewer than three points or an odd number of coordinates,
            or a coordinate is not finite or absurdly far outside.
    """
    try:
        arrays = [np.asarray(polygon, dtype=np.float64) for polygon in polygons]
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a polygon is not a list of numbers") from None
    if not arrays:
        raise ValueError("no polygon")
    for points in arrays:
        if points.ndim != 1 or points.size < 6 or points.size % 2:
            raise ValueError(f"a polygon needs 3 or more x, y pairs in one list, got {points.size} numbers")
        if not np.abs(points).max() <= _FAR * max(height, width):  # also false for NaN
            raise ValueError("a polygon coordinate is not finite or lies far outside the image")
        if points.size > 2 * limit("points"):
            raise ValueError(f"a polygon of {points.size // 2:,} corners")
    rles = [_drawn(points.reshape(-1, 2), height, width) for points in arrays]
    rle = coco_mask.merge(rles) if len(rles) > 1 else rles[0]
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _drawn(points: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """The pixels of a polygon, float64 `[K, 2]` x, y, as COCO's rule has them, as RLE with bytes."""
    longest = (points.max(axis=0) - points.min(axis=0)).max()  # no edge is longer
    if longest * len(points) <= _WALKED or _length(points) <= _WALKED:
        return dict(coco_mask.frPyObjects([points.ravel().tolist()], height, width)[0])
    return dict(coco_mask.encode(_crossings_filled(points, height, width)))


def _length(points: np.ndarray) -> float:
    """Length of a closed polygon, px, of each edge the longer side."""
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _crossings_filled(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """As pycocotools draws a polygon on a canvas without end: uint8 `[H, W]`, column by column in memory.

    That goes along the edges in steps of 1 / 5 px and turns the pixels below each point at which they pass
    the middle of a column. Here the steps between two columns are left out.

    Raises:
        ValueError: when the edges cross far too many columns.
    """
    x, y = (points * _SCALE + 0.5).astype(np.int64).T  # towards 0, as in C
    x0, y0, x1, y1 = x, y, np.roll(x, -1), np.roll(y, -1)
    flat = np.abs(x1 - x0) >= np.abs(y1 - y0)
    turned = np.where(flat, x0 > x1, y0 > y1)  # each edge is walked in the direction of its longer side
    x0, x1 = np.where(turned, x1, x0), np.where(turned, x0, x1)
    y0, y1 = np.where(turned, y1, y0), np.where(turned, y0, y1)
    low, high = np.minimum(x0, x1), np.maximum(x0, x1)
    first = np.clip(-((_HALF - low) // _SCALE), 0, width)  # columns whose middle lies in low..high - 1
    last = np.clip((high - 1 - _HALF) // _SCALE + 1, 0, width)
    counts = np.maximum(last - first, 0)
    if (total := int(counts.sum())) > _CROSSED:
        raise ValueError(f"the edges of a polygon cross {total:,} columns of pixels")
    turns = np.zeros(width * (height + 1), np.uint8)  # how often, up to a multiple of 256
    at_once = max(_AT_ONCE // width, 1)
    for begin in range(0, len(points), at_once):
        part = slice(begin, begin + at_once)
        edge = np.repeat(np.arange(len(points))[part], counts[part])
        before = np.cumsum(counts[part]) - counts[part]
        column = np.arange(len(edge)) - np.repeat(before, counts[part]) + first[edge]
        rows = np.where(
            flat[edge],
            _lower_of_flat(column, x0[edge], y0[edge], x1[edge], y1[edge]),
            _lower_of_steep(column, x0[edge], y0[edge], x1[edge], y1[edge]),
        )
        row = np.ceil(np.clip((rows + 0.5) / _SCALE - 0.5, 0, height)).astype(np.int64)
        np.add.at(turns, column * (height + 1) + row, np.uint8(1))
    odd = (turns & 1).reshape(width, height + 1)
    filled: np.ndarray = np.bitwise_xor.accumulate(odd, axis=1)[:, :height]
    return np.ascontiguousarray(filled).T


def _lower_of_flat(
    column: np.ndarray, x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray
) -> np.ndarray:
    """The lower of the two rows, in steps, between which edges wider than high pass a column's middle."""
    slope = (y1 - y0) / np.maximum(x1 - x0, 1)
    t = column * _SCALE + _HALF - x0
    return np.minimum(*((y0 + slope * at + 0.5).astype(np.int64) for at in (t, t + 1)))


def _lower_of_steep(
    column: np.ndarray, x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray
) -> np.ndarray:
    """As `_lower_of_flat` for edges higher than wide."""
    slope = (x1 - x0) / np.maximum(y1 - y0, 1)
    middle = column * _SCALE + _HALF
    rising = slope > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        guess = np.nan_to_num((middle + 0.5 - x0) / slope).astype(np.int64)
    found = np.zeros_like(guess)
    for at in range(2, -3, -1):  # the first step on the other side of the middle, in spite of rounding
        there = (x0 + slope * (guess + at) + 0.5).astype(np.int64)
        found = np.where(np.where(rising, there > middle, there <= middle), guess + at, found)
    return y0 + found - 1


def patch_to_polygons(patch: Patch) -> list[list[float]]:
    """Outline each 4-connected piece of a patch along its pixel edges.

    Polygons are x, y, x, y, ... in pixels, clockwise, corners only. They give the same pixels back through
    `polygons_to_rle`, except that holes are filled: COCO polygons have no form for them.
    """
    outer = [ring for ring in _rings(patch) if _signed_area(ring) > 0]
    return [[float(v) for y, x in ring for v in (x, y)] for ring in outer]


def patch_to_pieces(patch: Patch) -> list[list[np.ndarray]]:
    """Outline each 4-connected piece of a patch along its pixel edges, with its holes.

    Returns:
        For each piece its rings, float64 `[K, 2]` x, y in pixels, corners only: the outer one first,
        clockwise, then its holes, the other way round.
    """
    count, labels = cv2.connectedComponents(patch.mask.astype(np.uint8), connectivity=4)
    pieces = []
    for number in range(1, count):
        rings = _rings(Patch(patch.y, patch.x, labels == number) if count > 2 else patch)
        rings.sort(key=_signed_area, reverse=True)  # the outer ring alone runs clockwise
        pieces.append([np.array(ring, np.float64)[:, ::-1] for ring in rings])
    return pieces


def rings_to_patch(rings: Sequence[np.ndarray], height: int, width: int) -> Patch | None:
    """The pixels inside an odd number of rings, as polygon programs fill them (even-odd rule).

    Args:
        rings: `[K, 2]` each, x, y in pixels.
        height: image height, pixels.
        width: image width, pixels.

    Returns:
        The tight patch, or None when no pixel is inside.

    Raises:
        ValueError: for a ring without an area or with coordinates that are not finite.
    """
    parts = [rle_to_patch(polygons_to_rle([np.ravel(ring).tolist()], height, width)) for ring in rings]
    found = [part for part in parts if part is not None]
    if len(found) < 2:
        return found[0] if found else None
    top, left = min(part.y for part in found), min(part.x for part in found)
    bottom = max(part.y + part.mask.shape[0] for part in found)
    right = max(part.x + part.mask.shape[1] for part in found)
    mask = np.zeros((bottom - top, right - left), dtype=bool)
    for y, x, part in found:
        mask[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] ^= part
    return mask_to_patch(mask, top, left)


def _rings(patch: Patch) -> list[list[tuple[int, int]]]:
    """Closed boundaries of a patch as corners (y, x) in pixels: outer ones clockwise, holes the other way."""
    mask = np.pad(np.asarray(patch.mask, dtype=bool), 1)
    inside = mask[1:-1, 1:-1]
    # Boundary steps keep the cell on their right: (start corner offset, neighbour that must be background).
    faces = (
        ((0, 0), mask[:-2, 1:-1]),
        ((0, 1), mask[1:-1, 2:]),
        ((1, 1), mask[2:, 1:-1]),
        ((1, 0), mask[1:-1, :-2]),
    )
    steps: dict[tuple[int, int], list[int]] = {}
    for direction, ((dy, dx), neighbour) in enumerate(faces):
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            steps.setdefault((y + dy, x + dx), []).append(direction)
    rings = []
    for corner in sorted(steps):
        while steps[corner]:
            rings.append([(y + patch.y, x + patch.x) for y, x in _trace(steps, corner)])
    return rings


def _trace(steps: dict[tuple[int, int], list[int]], corner: tuple[int, int]) -> list[tuple[int, int]]:
    """Follow and use up one closed boundary from `corner`; returns its corner points (y, x)."""
    points = []
    here, direction = corner, -1
    while steps[here]:
        leaving = steps[here]
        # Where two pieces touch at a corner, turning right stays with the same piece.
        right = (direction + 1) % 4
        turn = right if direction >= 0 and right in leaving else leaving[0]
        leaving.remove(turn)
        if turn != direction:
            points.append(here)
        direction = turn
        here = (here[0] + _STEPS[turn][0], here[1] + _STEPS[turn][1])
        if here == corner and (direction + 1) % 4 not in steps[here]:  # it does not go on with a right turn
            break
    return points


def _signed_area(points: list[tuple[int, int]]) -> int:
    """Twice the shoelace area of (y, x) points; positive when clockwise in the image."""
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return sum(x0 * y1 - x1 * y0 for (y0, x0), (y1, x1) in pairs)
