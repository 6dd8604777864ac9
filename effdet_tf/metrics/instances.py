"""COCO dicts as the metrics want them: checked, with masks as compressed RLE."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.errors import UserError
from effdet_tf.geometry.polygons import polygons_to_rle

ANY_CLASS = 1
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


# A field of an image that metrics are split by, several of which no two share a value, or none.
Fields = str | Sequence[str] | None


class ImageGroups:
    """The ids of the evaluated images, split by a field of theirs, or by several, one after the other."""

    def __init__(self, by: Fields) -> None:
        """`by` names the field or fields; None for no split."""
        self.ids: list[int] = []
        fields = (by,) if isinstance(by, str) else by or ()
        self._groups: dict[str, dict[str, set[int]]] = {field: defaultdict(set) for field in fields}

    def add(self, image: dict[str, Any]) -> None:
        """Take an image of COCO's, `{"id", ...}`."""
        self.ids.append(image["id"])
        for field, groups in self._groups.items():
            groups[str(image.get(field) or "unknown")].add(image["id"])

    def split(self) -> dict[str, set[int]]:
        """Image ids per value of a field, sorted by value; nothing of a field that no image has."""
        known = [groups for groups in self._groups.values() if not set(groups) <= {"unknown"}]
        return {value: ids for groups in known for value, ids in sorted(groups.items())}


def compress_segmentation(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation, polygons or any RLE, as compressed RLE: `{"size": [H, W], "counts": bytes}`.

    Args:
        segmentation: as COCO has it.
        height: of its image, px.
        width: likewise.
    """
    if isinstance(segmentation, list):
        rle = polygons_to_rle(segmentation, height, width)
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}


class Instance(NamedTuple):
    """An annotated or a predicted cell."""

    category_id: int
    box: list[float] | None  # x, y, w, h, px; None for a prediction without a box
    area: float | None  # of the mask, px^2; without a mask that of the annotated box, None for a prediction
    rle: dict[str, Any] | None  # compressed, with counts as bytes; None without a mask
    crowd: bool = False  # an annotated region that is not evaluated
    score: float = 0.0  # of a prediction


class ImageInstances(NamedTuple):
    """The ground truth and the predictions of one image, checked."""

    image: dict[str, Any]  # `id`, `height`, `width`, and fields to group by
    ground_truth: list[Instance]
    predictions: list[Instance]
    numbers: Sequence[int]  # of the predictions in the list that they came from, for messages

    def name(self, index: int) -> str:
        """Names a prediction, for messages."""
        return f"prediction {self.numbers[index]}"


def image_instances(
    image: dict[str, Any],
    annotations: Iterable[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    numbers: Sequence[int] | None = None,
) -> ImageInstances:
    """Prepare one image.

    Args:
        image: COCO's, `id`, `height`, `width`.
        annotations: of this image: category_id, segmentation as polygons or RLE, bbox x, y, w, h, iscrowd.
        predictions: COCO results of this image.
        numbers: of the predictions, for messages; None counts from 0.

    Raises:
        UserError: for a prediction without a finite score, or whose mask is not of the image's size.
    """
    height, width = image["height"], image["width"]
    numbers = range(len(predictions)) if numbers is None else numbers
    annotations = list(annotations)
    ground_truth, found = [], []
    rles, areas = _masks([entry.get("segmentation") or None for entry in annotations], height, width)
    for entry, rle, area in zip(annotations, rles, areas, strict=True):
        box: Any = entry.get("bbox")
        if rle is not None:
            box = box or coco_mask.toBbox(rle)
        box = [float(v) for v in box]
        area = box[2] * box[3] if area is None else area
        ground_truth.append(Instance(entry["category_id"], box, area, rle, bool(entry.get("iscrowd", 0))))
    for number, entry in zip(numbers, predictions, strict=True):
        score = entry.get("score")
        if not isinstance(score, int | float | np.number) or not math.isfinite(score):
            raise UserError(f"prediction {number}: its score {score!r} is not a finite number")
    rles, areas = _masks([entry.get("segmentation") for entry in predictions], height, width)
    for number, entry, rle, area in zip(numbers, predictions, rles, areas, strict=True):
        box = entry.get("bbox")
        if rle is not None:
            if tuple(rle["size"]) != (height, width):
                wrong = f"its mask is {rle['size'][0]}x{rle['size'][1]}"
                raise UserError(f"prediction {number}: {wrong}, image {image['id']} is {height}x{width}")
            box = coco_mask.toBbox(rle) if box is None else box
        box = None if box is None else [float(v) for v in box]
        kind, score = entry.get("category_id", ANY_CLASS), float(entry["score"])
        found.append(Instance(kind, box, area, rle, score=score))
    return ImageInstances(image, ground_truth, found, numbers)


def _masks(
    segmentations: Sequence[Any], height: int, width: int
) -> tuple[list[dict[str, Any] | None], list[float | None]]:
    """Compressed masks and their areas, px; None where there is none."""
    rles = [None if mask is None else compress_segmentation(mask, height, width) for mask in segmentations]
    real = [rle for rle in rles if rle is not None]
    # More than 255 at once are an OverflowError of pycocotools with numpy 2.
    parts = (coco_mask.area(real[start : start + 255]) for start in range(0, len(real), 255))
    areas = itertools.chain.from_iterable(parts)
    return rles, [None if rle is None else float(next(areas)) for rle in rles]


def iterate_instances(
    ground_truth: dict[str, Any], predictions: Sequence[dict[str, Any]]
) -> Iterator[ImageInstances]:
    """Prepare the images of a COCO dict and COCO results one by one; a UserError for an unknown image."""
    annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in ground_truth["annotations"]:
        annotations[entry["image_id"]].append(entry)
    numbers: dict[Any, list[int]] = {image["id"]: [] for image in ground_truth["images"]}
    for number, entry in enumerate(predictions):
        if entry.get("image_id") not in numbers:
            raise unknown_image(number, entry.get("image_id"), len(numbers))
        numbers[entry["image_id"]].append(number)
    for image in ground_truth["images"]:
        own = numbers[image["id"]]
        yield image_instances(image, annotations[image["id"]], [predictions[n] for n in own], own)


def unknown_class(what: str, category_id: object, classes: Iterable[int]) -> UserError:
    """The error for a prediction of a class that is not annotated."""
    return UserError(
        f"{what}: category_id {category_id!r} is not among the annotated classes {sorted(classes)}; score "
        "without classes, or map them"
    )


def unknown_image(number: int, image_id: object, images: int) -> UserError:
    """The error for a prediction on none of the annotated images."""
    return UserError(
        f"prediction {number}: image_id {image_id!r} is not among the {images} annotated images; predict on "
        "the same images, or keep only theirs"
    )
