"""Polygons of cell masks: outlines along pixel edges, with holes, and back to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.geometry.masks import mask_to_patch
from effdet_tf.geometry.rle import Patch, rle_to_patch

# A coordinate beyond this many image sizes is a fault: the rasteriser would walk all the way to it.
_FAR = 16
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
    rle = coco_mask.merge(coco_mask.frPyObjects([points.tolist() for points in arrays], height, width))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


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
