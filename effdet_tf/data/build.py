"""Turn one annotated image into the fields of a record: the part of a conversion that runs on every core.

Nothing here imports TensorFlow, so that a worker process stays small and starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import Cell, ImageTask
from effdet_tf.errors import UserError, reason_of
from effdet_tf.geometry.masks import patch_to_bitmap
from effdet_tf.images.gray import image_statistics, stretch, to_gray
from effdet_tf.images.read import Stack, encode_png, read_image

CROWDED = 2000  # cells of an image, the default limit of loader, NMS and metrics; more are worth a note
_BOX_OFF = 2.0  # pixels between an annotated box and its mask that are worth a note
_TINY = 4  # pixels below which a cell is worth a note


@dataclass
class BuiltImage:
    """What a worker gives back."""

    # the arguments of `ImageRecord` except `source`; None when the image was dropped
    fields: dict[str, Any] | None
    faults: Faults = field(default_factory=Faults)  # what was dropped and survived


def build_image(task: ImageTask, mask_size: int) -> BuiltImage:
    """Read one image and its cells; an image that cannot be used has no fields, and the reason.

    Args:
        task: the image.
        mask_size: side of the box-aligned bitmaps.
    """
    faults = Faults()
    try:
        return _build(task, mask_size, faults)
    except Exception as error:  # whatever is wrong with one image, the others are converted
        faults.drop("image that failed", f"{task.file_name}: {reason_of(error)}", cells=0)
        return _dropped(task, faults)


def _build(task: ImageTask, mask_size: int, faults: Faults) -> BuiltImage:
    image = _load(task, faults)
    if image is None:
        return _dropped(task, faults)
    image, depth = _storable(image, task.file_name, faults)
    height, width, channels = image.shape
    try:
        cells = task.read_cells(height, width, task.file_name, faults)
    except UserError as error:
        unknown = int(not task.annotated)  # how many there are is not known: one at least
        faults.drop("annotation of the image unusable", f"{task.file_name}: {error}", cells=unknown)
        return _dropped(task, faults)
    cells = _checked(cells, task.file_name, height, width, faults)
    if faults.lost and not cells:  # an image kept as one without cells would teach that these are none
        faults.drop("image all of whose annotations failed", task.file_name, cells=0)
        return BuiltImage(None, faults)
    mean, std = image_statistics(to_gray(image))
    boxes = np.array([_box(cell, height, width) for cell in cells], dtype=np.float32).reshape(-1, 4)
    annotated = [box if cell.box is None else cell.box for cell, box in zip(cells, boxes, strict=True)]
    masks = [patch_to_bitmap(cell.patch, mask_size) if cell.bitmap is None else cell.bitmap for cell in cells]
    fields = {
        "image": encode_png(image),
        "height": height,
        "width": width,
        "channels": channels,
        "bit_depth": depth,
        "mean": mean,
        "std": std,
        "boxes": boxes,
        "annotated_boxes": np.array(annotated, dtype=np.float32).reshape(-1, 4),
        "classes": np.array([cell.class_id for cell in cells], dtype=np.int32),
        "masks": np.array(masks, np.uint8).reshape(-1, mask_size, mask_size),
        "rles": [cell.counts for cell in cells],
        "iscrowd": np.array([cell.iscrowd for cell in cells], dtype=np.uint8),
        "scores": np.array([cell.score for cell in cells], dtype=np.float32),
        "image_id": task.image_id,
        "file_name": task.file_name,
        "cell_type": task.cell_type,
    }
    return BuiltImage(fields, faults)


def _dropped(task: ImageTask, faults: Faults) -> BuiltImage:
    if task.annotated:
        faults.drop("cells of a dropped image", task.file_name, task.annotated)
    return BuiltImage(None, faults)


def _load(task: ImageTask, faults: Faults) -> np.ndarray | None:
    """The image [H, W, C], or None, said why."""
    try:
        if task.page is None:
            image = read_image(task.path)
        else:
            with Stack(task.path) as stack:
                image = stack.read(task.page)
    except UserError as error:
        faults.drop("image unreadable", f"{task.file_name}: {error}", cells=0)
        return None
    if task.size is not None and image.shape[:2] != task.size:
        found, said = "x".join(map(str, image.shape[:2])), "x".join(map(str, task.size))
        faults.drop(
            "image of another size than annotated", f"{task.file_name}: {found}, annotated {said}", cells=0
        )
        return None
    return image


def _storable(image: np.ndarray, file_name: str, faults: Faults) -> tuple[np.ndarray, int]:
    """The image as 8 or 16 bit gray or 8 bit RGB, and its bit depth."""
    if image.shape[2] == 3 and (image == image[..., :1]).all():
        image = np.ascontiguousarray(image[..., :1])
    if image.dtype == np.float32:
        # Invisible to a network that normalises images by their own mean and std; with fixed ones prediction
        # stretches alike.
        scaled = stretch(to_gray(image), 65535.0)
        faults.note("float image stored as 16 bit between its least and largest value", file_name)
        return np.rint(scaled).astype(np.uint16)[..., None], 16
    if image.dtype == np.uint16 and image.shape[2] == 3:
        faults.note("16-bit colour image stored as gray", file_name)
        image = np.rint(to_gray(image)).astype(np.uint16)[..., None]
    return image, 8 * image.dtype.itemsize


def _checked(cells: list[Cell], file_name: str, height: int, width: int, faults: Faults) -> list[Cell]:
    """Drop exact duplicates and note what is odd."""
    kept: list[Cell] = []
    seen: set[tuple[int, bytes]] = set()
    for cell in cells:
        key = (cell.class_id, cell.counts or np.asarray(cell.box).tobytes())
        if key in seen:
            faults.drop("exact double of a cell", cell.name, cells=0)
            continue
        seen.add(key)
        kept.append(cell)
        tight = _box(cell, height, width)
        if cell.counts and cell.box is not None and np.abs(cell.box - tight).max() > _BOX_OFF:
            faults.note("annotated box more than 2 px off its mask", cell.name)
        if cell.patch.mask.size < 4 * _TINY and np.count_nonzero(cell.patch.mask) < _TINY:
            faults.note(f"cell of fewer than {_TINY} pixels", cell.name)
    if not kept:
        faults.note("image without any cell", file_name)
    if len(kept) > CROWDED:
        faults.note(f"image with more than {CROWDED} cells", f"{file_name} ({len(kept)} cells)")
    return kept


def _box(cell: Cell, height: int, width: int) -> np.ndarray:
    """The box yxyx to train on: tight around the mask, or as annotated where there is none, float32 [4]."""
    if not cell.counts:
        return np.clip(
            np.asarray(cell.box, np.float32), 0, np.array([height, width, height, width], np.float32)
        )
    y, x, mask = cell.patch
    return np.array([y, x, y + mask.shape[0], x + mask.shape[1]], np.float32)
