"""Run-length encodings of cell masks: COCO (column-major) and Kaggle (row-major, 1-based).

Both are read and written as runs, so that a cell of 40 pixels never costs a whole canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, cycle
from operator import mul
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.files.limits import limit

# A 16-bit gray image of this size takes one GiB; a larger one is a whole slide or a decompression bomb.
MAX_PIXELS = limit("pixels")

# A byte of compressed COCO counts less 48 is: 5 bits of a number, and 32 when more of it follow.
_COUNTS_BYTES = bytes(range(48, 112))
_MORE = 48 + 32
_LONGEST = 60  # bits of a number
_LAST_GROUP = {byte: byte - 48 - (32 if byte - 48 & 16 else 0) for byte in range(48, _MORE)}  # with its sign


class Patch(NamedTuple):
    """A cell's mask and its place in the image."""

    y: int  # image row of the mask's first row
    x: int  # image column of the mask's first column
    mask: np.ndarray  # bool [h, w], wholly inside the image


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask of the whole image, bool [H, W], as compressed COCO RLE: {"size": [H, W], "counts": str}."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """Decode a COCO RLE to a mask of the whole image, bool [H, W].

    Args:
        rle: {"size": [H, W], "counts": compressed str or bytes, or uncompressed list of ints}.

    Raises:
        ValueError: when the encoding is malformed or does not fill the image.
    """
    height, width = _rle_size(rle)
    runs = _rle_counts(rle, height * width)
    return np.array(_paint(runs).reshape(width, height).T, order="C")


def rle_to_patch(rle: dict[str, Any]) -> Patch | None:
    """Decode a COCO RLE to a tight patch, or None when the mask is empty; touches only the cell's columns.

    Raises:
        ValueError: as for `decode_rle`.
    """
    height, width = _rle_size(rle)
    found = _runs_to_lines(_rle_counts(rle, height * width), height)
    if found is None:
        return None
    x, y, columns = found
    return Patch(y, x, np.array(columns.T, order="C"))


def patch_to_rle(patch: Patch, height: int, width: int) -> dict[str, Any]:
    """Encode a patch inside an image of this size, px, as compressed COCO RLE of the whole image.

    Raises:
        ValueError: when the image is larger than `decode_rle` takes.
    """
    height, width = _rle_size({"size": (height, width)})
    runs = _lengths(*_mask_to_runs(patch.mask.T, patch.x, patch.y, height), height * width)
    listed = {"size": [height, width], "counts": runs if runs[-1] else runs[:-1]}
    rle = coco_mask.frPyObjects(listed, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def decode_kaggle_rle(text: str, height: int, width: int) -> np.ndarray:
    """Decode a Kaggle encoding, "start length start length ...", row-major and 1-based, to bool [H, W].

    Args:
        text: the encoding; blank means an empty mask.
        height: image height, pixels.
        width: image width, pixels.

    Raises:
        ValueError: when the numbers are not pairs of rising, positive runs inside the image.
    """
    mask = np.zeros((height, width), dtype=bool)
    patch = kaggle_rle_to_patch(text, height, width)
    if patch is not None:
        h, w = patch.mask.shape
        mask[patch.y : patch.y + h, patch.x : patch.x + w] = patch.mask
    return mask


def kaggle_rle_to_patch(text: str, height: int, width: int) -> Patch | None:
    """As `decode_kaggle_rle`, to a tight patch, or None when the mask is empty.

    Raises:
        ValueError: as for `decode_kaggle_rle`.
    """
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError("run-length encoding holds something that is not a whole number") from error
    if numbers.size % 2:
        raise ValueError(f"run-length encoding has {numbers.size} numbers, not start and length pairs")
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    if (lengths < 1).any() or (starts < 0).any():
        raise ValueError("run-length encoding has a start or a length below 1")
    if (lengths > height * width - starts).any():
        raise ValueError(f"run-length encoding runs past the last pixel of a {height}x{width} image")
    if (starts[1:] < (starts + lengths)[:-1]).any():
        raise ValueError("run-length encoding has runs that overlap or are out of order")
    found = _runs_to_lines(_lengths(starts, starts + lengths, height * width), width)
    return None if found is None else Patch(found[0], found[1], found[2].copy())


def encode_kaggle_rle(mask: np.ndarray) -> str:
    """Encode a mask of the whole image, bool [H, W], as `decode_kaggle_rle` reads it."""
    mask = np.asarray(mask, dtype=bool)
    starts, ends = _mask_to_runs(mask, 0, 0, mask.shape[1])
    return " ".join(map(str, _interleave(starts + 1, ends - starts).tolist()))


def _rle_size(rle: dict[str, Any]) -> tuple[int, int]:
    try:
        height, width = (int(n) for n in rle["size"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError("RLE has no size [height, width]") from error
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"RLE size {height}x{width} is not an image")
    return height, width


def _rle_counts(rle: dict[str, Any], pixels: int) -> list[int]:
    """Run lengths, background first, checked against the number of pixels."""
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        runs = _uncompress(counts.encode("ascii") if isinstance(counts, str) else counts)
    elif isinstance(counts, (list, tuple, np.ndarray)):
        try:
            runs = [int(count) for count in counts]
        except (TypeError, OverflowError):
            raise ValueError("RLE counts are not whole numbers") from None
    else:
        raise ValueError("RLE has no counts")
    if sum(runs) != pixels or min(runs) < 0:
        raise ValueError(f"RLE counts add up to {sum(runs)}, the image has {pixels} pixels")
    return runs


def _uncompress(counts: bytes) -> list[int]:
    """Undo COCO's compression: 5-bit groups, low first, and differences to the run two before."""
    if not counts or counts.translate(None, _COUNTS_BYTES) or counts[-1] >= _MORE:
        raise ValueError("RLE counts are not compressed as COCO's")
    runs: list[int] = []
    value = shift = 0
    for byte in counts:  # a cell has about a hundred bytes: fewer than numpy's own cost per call
        if byte < _MORE:
            runs.append(value + (_LAST_GROUP[byte] << shift))
            value = shift = 0
        else:
            value += (byte - _MORE) << shift
            shift += 5
            if shift > _LONGEST:  # without this, bytes that all go on take time that grows with their square
                raise ValueError("RLE counts are not compressed as COCO's: a number is far too long")
    runs[1::2] = accumulate(runs[1::2])
    runs[2::2] = accumulate(runs[2::2])  # not from the first: the format adds from the fourth run on
    return runs


def _paint(runs: Sequence[int]) -> np.ndarray:
    """Runs, background first, as bool pixels in a row; read-only."""
    return np.frombuffer(b"".join(map(mul, cycle((b"\0", b"\1")), runs)), dtype=bool)


def _runs_to_lines(runs: Sequence[int], line: int) -> tuple[int, int, np.ndarray] | None:
    """Paint the lines of an image that hold foreground, from runs that fill it, background first.

    Gives the first line, the first position and bool [lines, positions], read-only, tight; None without a
    pixel.
    """
    if len(runs) < 2:
        return None
    first, before = divmod(runs[0], line)
    near = [before, *runs[1:]]
    if len(runs) % 2:
        near[-1] %= line  # background behind the last cell pixel
    lines = _paint(near).reshape(-1, line)
    positions = np.flatnonzero(lines.any(axis=0))
    if positions.size == 0:
        return None
    filled = np.flatnonzero(lines.any(axis=1))  # runs of length 0 may leave empty lines at either end
    top, low = int(filled[0]), int(positions[0])
    return first + top, low, lines[top : int(filled[-1]) + 1, low : int(positions[-1]) + 1]


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


def _lengths(starts: np.ndarray, ends: np.ndarray, pixels: int) -> list[int]:
    """Run lengths, background first and last, from flat rising starts and ends."""
    edges = _interleave(starts, ends)
    rest = pixels - (int(edges[-1]) if edges.size else 0)
    edges[1:] -= edges[:-1].copy()
    return [*edges.tolist(), rest]


def _interleave(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    both = np.empty(2 * a.size, dtype=np.int64)
    both[0::2], both[1::2] = a, b
    return both
