"""COCO dicts as the metrics want them: checked, with masks as compressed RLE."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import polygons_to_rle

ANY_CLASS = 1


IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


class ImageGroups:
    """The images that were judged, and how a field of theirs splits them."""

    def __init__(self, by: str | None) -> None:
        """`by` names the field; None for no split."""
        self.ids: list[int] = []
        self._by = by
        self._groups: dict[str, set[int]] = defaultdict(set)

    def add(self, image: dict[str, Any]) -> None:
        """Take an image of COCO's, `{"id", ...}`."""
        self.ids.append(image["id"])
        if self._by is not None:
            self._groups[str(image.get(self._by) or "unknown")].add(image["id"])

    def split(self) -> dict[str, set[int]]:
        """Image ids per value of the field, sorted by value; empty when no image has the field."""
        return {} if set(self._groups) <= {"unknown"} else dict(sorted(self._groups.items()))


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


class Cell(NamedTuple):
    """An annotated cell.

    Attributes:
        category_id: its class.
        crowd: whether it is a region that is not judged.
        box: x, y, w, h, px.
        area: of the mask, or of the box where there is no mask, px^2.
        rle: compressed, with counts as bytes; None where only the box is annotated.
    """

    category_id: int
    crowd: bool
    box: list[float]
    area: float
    rle: dict[str, Any] | None


class Found(NamedTuple):
    """A detection; `box` as of `Cell`, `rle` and the `area` of its mask None without a mask."""

    category_id: int
    score: float
    box: list[float] | None
    area: float | None
    rle: dict[str, Any] | None


class ImageCase(NamedTuple):
    """One image with its cells and the detections on it, checked, with masks as compressed RLE.

    Attributes:
        image: `id`, `height`, `width`, and fields to group by.
        cells: annotated.
        found: detected.
        numbers: of the detections in the list that they came from, for messages.
    """

    image: dict[str, Any]
    cells: list[Cell]
    found: list[Found]
    numbers: Sequence[int]

    def what(self, index: int) -> str:
        """Names a detection, for messages."""
        return f"prediction {self.numbers[index]}"


def image_case(
    image: dict[str, Any],
    annotations: Iterable[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    numbers: Sequence[int] | None = None,
) -> ImageCase:
    """Prepare one image.

    Args:
        image: COCO's, `id`, `height`, `width`.
        annotations: of this image: category_id, segmentation as polygons or RLE, bbox x, y, w, h, iscrowd.
        predictions: COCO results of this image.
        numbers: of the predictions, for messages; None counts from 0.

    Raises:
        UserError: for a detection without a finite score, or whose mask is not of the image's size.
    """
    height, width = image["height"], image["width"]
    numbers = range(len(predictions)) if numbers is None else numbers
    cells = []
    for cell in annotations:
        kind, crowd = cell["category_id"], bool(cell.get("iscrowd", 0))
        if cell.get("segmentation"):
            rle = compress_segmentation(cell["segmentation"], height, width)
            box = [float(v) for v in cell.get("bbox") or coco_mask.toBbox(rle)]
            cells.append(Cell(kind, crowd, box, float(coco_mask.area(rle)), rle))
        else:
            box = [float(v) for v in cell["bbox"]]
            cells.append(Cell(kind, crowd, box, box[2] * box[3], None))
    found = []
    for number, entry in zip(numbers, predictions, strict=True):
        score = entry.get("score")
        if not isinstance(score, int | float | np.number) or not np.isfinite(score):
            raise UserError(f"prediction {number}: its score {entry.get('score')!r} is not a finite number")
        mask, values, outline = entry.get("segmentation"), entry.get("bbox"), None
        if mask is not None:
            outline = compress_segmentation(mask, height, width)
            if tuple(outline["size"]) != (height, width):
                raise UserError(
                    f"prediction {number}: its mask is {outline['size'][0]}x{outline['size'][1]}, image "
                    f"{image['id']} is {height}x{width}"
                )
            values = coco_mask.toBbox(outline) if values is None else values
        found_box = None if values is None else [float(v) for v in values]
        area = None if outline is None else float(coco_mask.area(outline))
        found.append(Found(entry.get("category_id", ANY_CLASS), float(score), found_box, area, outline))
    return ImageCase(image, cells, found, numbers)


def image_cases(ground_truth: dict[str, Any], predictions: Sequence[dict[str, Any]]) -> Iterator[ImageCase]:
    """Prepare the images of a COCO dict and COCO results one by one.

    Raises:
        UserError: for a detection on an unknown image, and as `image_case` does.
    """
    cells: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for cell in ground_truth["annotations"]:
        cells[cell["image_id"]].append(cell)
    found: dict[Any, list[int]] = {image["id"]: [] for image in ground_truth["images"]}
    for number, entry in enumerate(predictions):
        if entry.get("image_id") not in found:
            raise stranger(number, entry.get("image_id"), len(found))
        found[entry["image_id"]].append(number)
    for image in ground_truth["images"]:
        numbers = found[image["id"]]
        yield image_case(image, cells[image["id"]], [predictions[n] for n in numbers], numbers)


def unknown_class(what: str, category_id: object, classes: Iterable[int]) -> UserError:
    """What to raise for a detection of a class that is not annotated."""
    return UserError(
        f"{what}: category_id {category_id!r} is not among the annotated classes {sorted(classes)}; score "
        "without classes, or map them"
    )


def stranger(number: int, image_id: object, images: int) -> UserError:
    """What to raise for a detection on none of the annotated images."""
    return UserError(
        f"prediction {number}: image_id {image_id!r} is not among the {images} annotated images; predict on "
        "the same images, or keep only theirs"
    )
