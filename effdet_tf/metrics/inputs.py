"""COCO dicts as the metrics want them: checked, with masks as compressed RLE."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.errors import UserError
from effdet_tf.masks import polygons_to_rle

ANY_CLASS = 1


def group_images(images: Iterable[dict[str, Any]], by: str | None) -> dict[str, set[int]]:
    """Image ids per value of a field, sorted by value; empty when no image has the field."""
    if by is None:
        return {}
    groups: dict[str, set[int]] = defaultdict(set)
    for image in images:
        groups[str(image.get(by) or "unknown")].add(image["id"])
    if set(groups) <= {"unknown"}:
        return {}
    return dict(sorted(groups.items()))


def compress_segmentation(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation (polygons or any RLE) as compressed RLE with counts as bytes.

    Args:
        segmentation: list of polygons, or an RLE dict, compressed or not.
        height: height of the image, pixels.
        width: width of the image, pixels.
    """
    if isinstance(segmentation, list):
        rle = polygons_to_rle(segmentation, height, width)
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}


def has_masks(ground_truth: dict[str, Any]) -> bool:
    """Whether every annotation has a mask."""
    return all(cell.get("segmentation") for cell in ground_truth["annotations"])


def prepare_ground_truth(ground_truth: dict[str, Any], per_class: bool = False) -> dict[str, Any]:
    """A copy with masks as compressed RLE, ids from 1 and, unless `per_class`, one class.

    The area is the mask's, or the box's where only that is annotated; `segmentation` is absent there.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    annotations = []
    # Ids start at 1: pycocotools takes a match with annotation 0 for no match.
    for number, cell in enumerate(ground_truth["annotations"], start=1):
        prepared = {
            "id": number,
            "image_id": cell["image_id"],
            "category_id": cell["category_id"] if per_class else ANY_CLASS,
            "iscrowd": int(cell.get("iscrowd", 0)),
        }
        if cell.get("segmentation"):
            rle = compress_segmentation(cell["segmentation"], *sizes[cell["image_id"]])
            box = [float(v) for v in cell.get("bbox") or coco_mask.toBbox(rle)]
            prepared |= {"segmentation": rle, "bbox": box, "area": float(coco_mask.area(rle))}
        else:
            box = [float(v) for v in cell["bbox"]]
            prepared |= {"bbox": box, "area": box[2] * box[3]}
        annotations.append(prepared)
    categories = ground_truth["categories"] if per_class else [{"id": ANY_CLASS, "name": "cell"}]
    return {"images": ground_truth["images"], "categories": categories, "annotations": annotations}


def check_predictions(
    truth: dict[str, Any], predictions: Sequence[dict[str, Any]], per_class: bool = False
) -> None:
    """Raise a UserError for the first detection on an unknown image or class, or without a finite score."""
    images = {image["id"] for image in truth["images"]}
    classes = {category["id"] for category in truth["categories"]}
    for index, found in enumerate(predictions):
        if found.get("image_id") not in images:
            raise UserError(
                f"prediction {index}: image_id {found.get('image_id')!r} is not among the {len(images)} "
                "annotated images; predict on the same images, or keep only theirs"
            )
        if per_class and found.get("category_id") not in classes:
            raise UserError(
                f"prediction {index}: category_id {found.get('category_id')!r} is not among the annotated "
                f"classes {sorted(classes)}; score without classes, or map them"
            )
        if not np.isfinite(found.get("score", np.nan)):
            raise UserError(f"prediction {index}: its score {found.get('score')!r} is not a finite number")
