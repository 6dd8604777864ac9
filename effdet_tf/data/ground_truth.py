"""The ground truth of a converted image for evaluation: COCO entries at full resolution, and the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from effdet_tf.data.record import ImageRecord
from effdet_tf.errors import UserError


def image_entry(record: ImageRecord) -> dict[str, Any]:
    """The record as an entry of COCO's "images", with its cell type."""
    return {
        "id": int(record.image_id),
        "file_name": record.file_name,
        "height": int(record.height),
        "width": int(record.width),
        "cell_type": record.cell_type,
    }


def cell_entries(record: ImageRecord, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The record's cells as entries of COCO's "annotations", without `id`.

    Each has the box as annotated (x, y, w, h pixels), and the mask as compressed RLE at full resolution
    unless only the box is annotated. `category_ids` are the COCO category ids by class.
    """
    cells = []
    for box, index, counts, crowd in zip(
        record.annotated_boxes, record.classes, record.rles, record.iscrowd, strict=True
    ):
        y0, x0, y1, x1 = (float(v) for v in box)
        cell = {
            "image_id": int(record.image_id),
            "category_id": int(category_ids[index]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": int(crowd),
        }
        if counts:
            size = [int(record.height), int(record.width)]
            cell["segmentation"] = {"size": size, "counts": counts.decode("ascii")}
        cells.append(cell)
    return cells


def decode_pixels(record: ImageRecord) -> np.ndarray:
    """The record's image as `[H, W, C]`, uint8 or uint16, C 1 or 3 (RGB).

    Raises:
        UserError: when the PNG inside the record is damaged.
    """
    image = cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UserError(f"{record.file_name}: the image inside the record is damaged; convert the data again")
    if image.ndim == 2:
        return image[:, :, None]
    return np.ascontiguousarray(image[:, :, ::-1])


def match_classes(class_names: Sequence[str], categories: Sequence[dict[str, Any]]) -> list[int | None]:
    """COCO category id of each of the network's classes, by name; None for one that the data do not have."""
    ids = {str(category["name"]): int(category["id"]) for category in categories}
    return [ids.get(name) for name in class_names]
