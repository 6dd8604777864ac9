"""Annotated images made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from effdet_tf.data.record import ImageRecord
from effdet_tf.geometry.masks import patch_box, patch_to_bitmap
from effdet_tf.geometry.rle import Patch, patch_to_rle


def record_of(image: np.ndarray, patches: Sequence[Patch], image_id: int, **changes: Any) -> ImageRecord:
    """The record of a gray image, uint8 `[H, W]`, whose cells are `patches`, all of the first class.

    `changes` are other fields of it.
    """
    height, width = image.shape
    boxes = np.array([patch_box(patch) for patch in patches], np.float32).reshape(-1, 4)
    fields: dict[str, Any] = {
        "image": cv2.imencode(".png", image)[1].tobytes(),
        "height": height,
        "width": width,
        "channels": 1,
        "bit_depth": 8,
        "mean": float(image.mean()),
        "std": max(float(image.std()), 1.0),
        "boxes": boxes,
        "annotated_boxes": boxes,
        "classes": np.zeros(len(boxes), np.int32),
        "masks": np.array([patch_to_bitmap(p, 28) for p in patches], np.uint8).reshape(-1, 28, 28),
        "rles": [patch_to_rle(p, height, width)["counts"].encode() for p in patches],
        "iscrowd": np.zeros(len(boxes), np.uint8),
        "image_id": image_id,
        "file_name": f"{image_id}.png",
        "source": "made up",
        "cell_type": "",
    }
    return ImageRecord(**{**fields, **changes})
