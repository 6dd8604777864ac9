"""Cell masks as small patches: tight boxes, bitmaps, pasting, label images and overlap removal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from effdet_tf.geometry.resample import weights_at
from effdet_tf.geometry.rle import Patch


def mask_to_patch(mask: np.ndarray, y: int = 0, x: int = 0) -> Patch | None:
    """The tight patch, a view, of a mask bool [h, w] that starts at (y, x); None when nothing is set."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    return Patch(y + top, x + left, mask[top:bottom, left:right])


def patch_box(patch: Patch) -> np.ndarray:
    """The tight box of a patch: float32 [4], yxyx pixels, y1 and x1 exclusive.

    Raises:
        ValueError: when the patch is empty.
    """
    tight = _tight(patch)
    height, width = tight.mask.shape
    return np.array([tight.y, tight.x, tight.y + height, tight.x + width], dtype=np.float32)


def fill_holes(patch: Patch) -> tuple[Patch, int]:
    """Fill background that no 4-connected path joins to the outside; the patch, and how many pixels."""
    height, width = patch.mask.shape
    outside = np.zeros((height + 2, width + 2), dtype=np.uint8)
    outside[1:-1, 1:-1] = patch.mask
    cv2.floodFill(outside, None, (0, 0), 2)
    filled = outside[1:-1, 1:-1] != 2
    return Patch(patch.y, patch.x, filled), int(np.count_nonzero(filled) - np.count_nonzero(patch.mask))


def largest_component(patch: Patch) -> tuple[Patch, int]:
    """The tight patch of the largest 8-connected piece of a patch, and the number of pixels dropped.

    Raises:
        ValueError: when the patch is empty.
    """
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(
        patch.mask.astype(np.uint8), connectivity=8
    )
    if count < 2:
        raise ValueError("an empty mask has no component")
    if count == 2:
        return patch, 0
    areas = statistics[1:, cv2.CC_STAT_AREA]
    best = int(areas.argmax()) + 1
    kept = mask_to_patch(labels == best, patch.y, patch.x)
    assert kept is not None
    return kept, int(areas.sum() - areas[best - 1])


def patch_to_bitmap(patch: Patch, size: int) -> np.ndarray:
    """Resample the tight patch to a bitmap uint8 [size, size], coverage 0..255.

    An axis that shrinks is averaged by area, one that grows is linear.

    Raises:
        ValueError: when the patch is empty.
    """
    tight = _tight(patch)
    height, width = tight.mask.shape
    bitmap = tight.mask.astype(np.uint8) * np.uint8(255)
    # One axis at a time: with one axis shrinking and the other growing, INTER_AREA would be linear in both.
    if height != size:
        bitmap = cv2.resize(bitmap, (width, size), interpolation=_interpolation(height, size))
    if width != size:
        bitmap = cv2.resize(bitmap, (size, size), interpolation=_interpolation(width, size))
    return bitmap


def paste_bitmap(
    bitmap: np.ndarray, box: Sequence[float] | np.ndarray, height: int, width: int, threshold: float = 0.5
) -> Patch | None:
    """Resample a box-aligned bitmap to the pixels of the image, bilinearly, and cut at a threshold.

    The centre of bitmap cell (i, j) lies at y0 + (i + .5) * (y1 - y0) / m; pixel centres lie at +.5. A pixel
    belongs to the box when its centre does; beyond the outermost bitmap centres the edge value holds.

    Args:
        bitmap: uint8 [m, m], probability or coverage times 255.
        box: yxyx pixels, the box that the bitmap covers.
        height: image height, pixels.
        width: image width, pixels.
        threshold: a pixel is set when its value is above it, 0..1.

    Returns:
        The tight patch, or None when no pixel is above the threshold.
    """
    y0, x0, y1, x1 = (float(v) for v in box)
    top, rows = _interpolate(y0, y1, height, bitmap.shape[0])
    left, columns = _interpolate(x0, x1, width, bitmap.shape[1])
    if rows is None or columns is None:
        return None
    values = rows @ bitmap.astype(np.float32) @ columns.T
    return mask_to_patch(values > threshold * 255.0, top, left)


def resolve_overlaps(
    patches: Iterable[Patch | None], labels: np.ndarray, min_visible: float = 0.5
) -> list[int]:
    """Give each pixel to one cell: the one that comes first.

    A cell that keeps less than `min_visible` of its area, or no pixel, is dropped and claims nothing; with
    `min_visible` 0 every cell stays, also one without a pixel.

    Args:
        patches: inside the image, best first; None is a cell without a pixel.
        labels: integers [H, W], all 0; is changed: label k + 1 belongs to the patch `kept[k]`.
        min_visible: share of its area that a cell must keep.

    Returns:
        kept: places of the cells that stay, rising.
    """
    kept: list[int] = []
    for index, patch in enumerate(patches):
        if patch is None:
            if min_visible == 0:
                kept.append(index)
            continue
        y, x, mask = patch
        window = labels[y : y + mask.shape[0], x : x + mask.shape[1]]
        free = mask & (window == 0)
        if min_visible and np.count_nonzero(free) < max(1, min_visible * np.count_nonzero(mask)):
            continue
        kept.append(index)
        window[free] = len(kept)
    return kept


def labels_to_patches(labels: np.ndarray) -> list[tuple[int, Patch]]:
    """Cut a label image, integers [H, W] with 0 for background, into (label, tight patch) by rising label.

    Raises:
        ValueError: when a label is negative.
    """
    labels = np.asarray(labels)
    ys, xs = np.nonzero(labels)
    if ys.size == 0:
        return []
    values = labels[ys, xs]
    order = np.argsort(values, kind="stable")
    values, ys, xs = values[order], ys[order], xs[order]
    if values[0] < 0:
        raise ValueError(f"a label image holds {values[0]}; labels are 0 for background, 1, 2, ... for cells")
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    tops, lefts = np.minimum.reduceat(ys, starts), np.minimum.reduceat(xs, starts)
    bottoms, rights = np.maximum.reduceat(ys, starts) + 1, np.maximum.reduceat(xs, starts) + 1
    boxes = np.stack([tops, lefts, bottoms, rights], axis=1).tolist()
    pairs = zip(values[starts].tolist(), boxes, strict=True)
    return [(label, Patch(y0, x0, labels[y0:y1, x0:x1] == label)) for label, (y0, x0, y1, x1) in pairs]


def _tight(patch: Patch) -> Patch:
    mask = patch.mask
    if mask.size and mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any():
        return patch
    tight = mask_to_patch(patch.mask, patch.y, patch.x)
    if tight is None:
        raise ValueError("an empty mask has neither a box nor a bitmap")
    return tight


def _interpolation(length: int, size: int) -> int:
    return cv2.INTER_AREA if length > size else cv2.INTER_LINEAR


def _interpolate(low: float, high: float, limit: int, cells: int) -> tuple[int, np.ndarray | None]:
    """First pixel and float32 [pixels, cells] weights of the pixels whose centres lie in [low, high)."""
    if not high > low:  # also for NaN
        return 0, None
    first = int(max(np.ceil(max(low, 0.0) - 0.5), 0))
    last = int(min(np.ceil(min(high, limit) - 0.5), limit))
    if last <= first:
        return 0, None
    position = (np.arange(first, last, dtype=np.float32) + (0.5 - low)) * (cells / (high - low)) - 0.5
    return first, weights_at(position.astype(np.float32), cells)
