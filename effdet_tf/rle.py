"""Run-length codes and polygons of cell masks: COCO (column-major) and Kaggle (row-major, 1-based).

Both codes are read and written as runs, so that a cell of 40 pixels never costs a whole frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

# A coordinate beyond this many frame sizes is a fault: the rasteriser would walk all the way to it.
_FAR = 16


class Patch(NamedTuple):
    """A cell's mask and its place in the image.

    Attributes:
        y: image row of the mask's first row.
        x: image column of the mask's first column.
        mask: bool [h, w], wholly inside the image.
    """

    y: int
    x: int
    mask: np.ndarray


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a full-frame mask as compressed COCO RLE.

    Args:
        mask: bool [H, W].

    Returns:
        {"size": [H, W], "counts": str}.
    """
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode("ascii")}


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """Decode a COCO RLE to a full-frame mask.

    Args:
        rle: {"size": [H, W], "counts": compressed str or bytes, or uncompressed list of ints}.

    Returns:
        bool [H, W].

    Raises:
        ValueError: when the code is malformed or does not fill the frame.
    """
    height, width = _rle_size(rle)
    counts = _rle_counts(rle, height * width)
    values = np.arange(counts.size) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def rle_to_patch(rle: dict[str, Any]) -> Patch | None:
    """Decode a COCO RLE to a tight patch, touching only the columns that the cell spans.

    Args:
        rle: as for `decode_rle`.

    Returns:
        The tight patch, or None when the mask is empty.

    Raises:
        ValueError: when the code is malformed or does not fill the frame.
    """
    height, width = _rle_size(rle)
    edges = np.cumsum(_rle_counts(rle, height * width))
    starts = edges[0 : edges.size - 1 : 2]
    found = _runs_to_mask(starts, edges[1::2], height)
    if found is None:
        return None
    x, y, columns = found
    return Patch(y, x, np.ascontiguousarray(columns.T))


def patch_to_rle(patch: Patch, height: int, width: int) -> dict[str, Any]:
    """Encode a patch as compressed COCO RLE of the whole frame.

    Args:
        patch: a patch inside the frame.
        height: frame height, pixels.
        width: frame width, pixels.

    Returns:
        {"size": [H, W], "counts": str}.
    """
    starts, ends = _mask_to_runs(patch.mask.T, patch.x, patch.y, height)
    counts = _interleave(starts, ends)
    counts[1:] -= counts[:-1].copy()
    rest = height * width - (int(ends[-1]) if ends.size else 0)
    listed = {"size": [height, width], "counts": [*counts.tolist(), rest] if rest else counts.tolist()}
    code = coco_mask.frPyObjects(listed, height, width)
    return {"size": [height, width], "counts": code["counts"].decode("ascii")}


def polygons_to_rle(polygons: Sequence[Sequence[float]], height: int, width: int) -> dict[str, Any]:
    """Rasterise the union of polygons by COCO's own rule, clipped to the frame.

    Args:
        polygons: each x, y, x, y, ... in pixels (pixel edges: pixel 3 spans [3, 4)), at least three points.
        height: frame height, pixels.
        width: frame width, pixels.

    Returns:
        {"size": [H, W], "counts": str}; an empty mask when the polygons enclose no pixel of the frame.

    Raises:
        ValueError: when there is no polygon, one has fewer than three points or an odd number of coordinates,
            or a coordinate is not finite or absurdly far outside.
    """
    if not len(polygons):
        raise ValueError("no polygon")
    arrays = [np.asarray(polygon, dtype=np.float64) for polygon in polygons]
    for points in arrays:
        if points.ndim != 1 or points.size < 6 or points.size % 2:
            raise ValueError(
                f"a polygon needs at least 3 x, y pairs in one flat list, got {points.size} numbers"
            )
        if not np.abs(points).max() <= _FAR * max(height, width):  # also false for NaN
            raise ValueError("a polygon coordinate is not finite or lies far outside the image")
    code = coco_mask.merge(coco_mask.frPyObjects([points.tolist() for points in arrays], height, width))
    return {"size": [height, width], "counts": code["counts"].decode("ascii")}


def decode_kaggle_rle(text: str, height: int, width: int) -> np.ndarray:
    """Decode a Kaggle code, "start length start length ...", row-major and 1-based.

    Args:
        text: the code; blank means an empty mask.
        height: frame height, pixels.
        width: frame width, pixels.

    Returns:
        bool [H, W].

    Raises:
        ValueError: when the numbers are not pairs of rising, positive runs inside the frame.
    """
    mask = np.zeros((height, width), dtype=bool)
    patch = kaggle_rle_to_patch(text, height, width)
    if patch is not None:
        h, w = patch.mask.shape
        mask[patch.y : patch.y + h, patch.x : patch.x + w] = patch.mask
    return mask


def kaggle_rle_to_patch(text: str, height: int, width: int) -> Patch | None:
    """Decode a Kaggle code to a tight patch; arguments and errors as for `decode_kaggle_rle`.

    Returns:
        The tight patch, or None when the mask is empty.

    Raises:
        ValueError: as for `decode_kaggle_rle`.
    """
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError("run-length code holds something that is not a whole number") from error
    if numbers.size % 2:
        raise ValueError(f"run-length code has {numbers.size} numbers, not start and length pairs")
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    if (lengths < 1).any() or (starts < 0).any():
        raise ValueError("run-length code has a start or a length below 1")
    if (lengths > height * width - starts).any():
        raise ValueError(f"run-length code runs past the last pixel of a {height}x{width} image")
    if (starts[1:] < (starts + lengths)[:-1]).any():
        raise ValueError("run-length code has runs that overlap or are out of order")
    found = _runs_to_mask(starts, starts + lengths, width)
    return None if found is None else Patch(*found)


def encode_kaggle_rle(mask: np.ndarray) -> str:
    """Encode a full-frame mask as a Kaggle code (row-major, 1-based).

    Args:
        mask: bool [H, W].

    Returns:
        "start length start length ..."; an empty string for an empty mask.
    """
    mask = np.asarray(mask, dtype=bool)
    starts, ends = _mask_to_runs(mask, 0, 0, mask.shape[1])
    return " ".join(map(str, _interleave(starts + 1, ends - starts).tolist()))


def _rle_size(rle: dict[str, Any]) -> tuple[int, int]:
    try:
        height, width = (int(n) for n in rle["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("RLE has no size [height, width]") from error
    if height < 1 or width < 1:
        raise ValueError(f"RLE size {height}x{width} is not an image")
    return height, width


def _rle_counts(rle: dict[str, Any], pixels: int) -> np.ndarray:
    """Run lengths int64 [R], background first, checked against the number of pixels."""
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        runs = _uncompress(counts.encode("ascii") if isinstance(counts, str) else counts)
    elif isinstance(counts, (list, tuple, np.ndarray)):
        runs = [int(count) for count in counts]
    else:
        raise ValueError("RLE has no counts")
    if sum(runs) != pixels or min(runs) < 0:
        raise ValueError(f"RLE counts add up to {sum(runs)}, the image has {pixels} pixels")
    return np.array(runs, dtype=np.int64)


def _uncompress(code: bytes) -> list[int]:
    """Undo COCO's compression: 5-bit groups, low first, and differences to the run two before."""
    runs: list[int] = []
    value = shift = 0
    for byte in code:  # a cell has about a hundred bytes: fewer than numpy's own cost per call
        group = byte - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("RLE counts are not a compressed COCO code")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("RLE counts are not a compressed COCO code")
    return runs


def _runs_to_mask(starts: np.ndarray, ends: np.ndarray, line: int) -> tuple[int, int, np.ndarray] | None:
    """Paint runs over lines of `line` pixels.

    Args:
        starts: int64 [R] rising flat positions; a run may continue on the next line.
        ends: int64 [R] exclusive ends.
        line: length of one line, pixels.

    Returns:
        (first line, first position, bool [lines, positions]) tight, or None without a pixel.
    """
    full = ends > starts
    if not full.all():
        starts, ends = starts[full], ends[full]
    if starts.size == 0:
        return None
    start_lines, end_lines = starts // line, (ends - 1) // line
    starts, ends = starts - start_lines * line, ends - end_lines * line  # now positions in their lines
    first, last = int(start_lines[0]), int(end_lines[-1])
    crossing = bool((start_lines != end_lines).any())
    low, high = (0, line) if crossing else (int(starts.min()), int(ends.max()))
    span = high - low
    steps = np.zeros((last - first + 1) * span + 1, dtype=np.int8)
    steps[(start_lines - first) * span + (starts - low)] = 1
    steps[(end_lines - first) * span + (ends - low)] -= 1  # runs without a gap between them cancel out
    lines = steps[:-1].cumsum(dtype=np.int8).view(bool).reshape(-1, span)
    if crossing:
        spans = np.flatnonzero(lines.any(axis=0))
        low, high = int(spans[0]), int(spans[-1]) + 1
        lines = lines[:, low:high].copy()
    return first, low, lines


def _mask_to_runs(lines: np.ndarray, first: int, low: int, line: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat starts and ends of the runs of bool [lines, positions], placed at (first, low)."""
    count, span = lines.shape
    flat = np.zeros(count * (span + 1) + 1, dtype=bool)  # background before everything and behind each line
    flat[1:].reshape(count, span + 1)[:, :span] = lines
    changes = (flat[1:] != flat[:-1]).nonzero()[0]
    rows = changes // (span + 1)
    flat_positions = changes + rows * (line - span - 1) + (first * line + low)
    starts, ends = flat_positions[0::2], flat_positions[1::2]
    if span == line and starts.size:  # a run to the end of a line goes on where the next begins with one
        apart = starts[1:] != ends[:-1]
        starts, ends = starts[np.append(True, apart)], ends[np.append(apart, True)]
    return starts, ends


def _interleave(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    both = np.empty(2 * a.size, dtype=np.int64)
    both[0::2], both[1::2] = a, b
    return both
