"""Pictures of images with the outlines of their cells over them, sorted by what became of each cell."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from effdet_tf.data.ground_truth import decode_pixels
from effdet_tf.geometry.masks import Patch, labels_to_patches, resolve_overlaps, rle_to_patch
from effdet_tf.images.read import stretch_contrast
from effdet_tf.metrics.cell_metrics import match_cells
from effdet_tf.metrics.error_types import FATES, box_overlaps, fates, mask_overlaps
from effdet_tf.metrics.evaluation import Truth, annotated_images
from effdet_tf.metrics.instances import ImageCase, image_case

LONGEST_SIDE = 1000  # px; larger images are made smaller
_QUALITY = 82  # of the JPEG
_SMOOTH = 0.6  # px that an outline may be off, to be short


class Picture(NamedTuple):
    """One image of a gallery.

    Attributes:
        entry: what the examples file tells of it: what, file_name, cell_type, true, found and so on.
        width: of the image, px.
        height: of the image, px.
        uri: the image as JPEG, contrast stretched, as data URI.
        paths: SVG path of the outlines by fate, and of all true cells as "true".
        counts: cells by fate.
    """

    entry: dict[str, Any]
    width: int
    height: int
    uri: str
    paths: dict[str, str]
    counts: dict[str, int]


def make_gallery(examples: dict[str, Any]) -> list[Picture]:
    """Draw the images of an examples file, in its order; those that their data set lacks are left out.

    Args:
        examples: of `examples.read_examples`; the folder that it names must be there.

    Raises:
        UserError: when the data set cannot be read, or what was found does not fit its images.
    """
    wanted = {image["id"]: image for image in examples["images"]}
    drawn: dict[Any, Picture] = {}
    for truth in annotated_images(examples["data"]):
        entry = wanted.get(truth.image["id"])
        if entry is not None:
            drawn[entry["id"]] = draw(truth, entry, examples["masks"])
        if len(drawn) == len(wanted):
            break
    return [drawn[identity] for identity in wanted if identity in drawn]


def draw(truth: Truth, entry: dict[str, Any], masks: bool) -> Picture:
    """Draw one image.

    Args:
        truth: the annotated image.
        entry: its entry in an examples file.
        masks: whether masks were judged, or boxes alone.
    """
    case = image_case(truth.image, truth.cells, entry["found_cells"])
    shapes = list(_masks(case) if masks else _boxes(case))
    counts = dict.fromkeys(FATES, 0)
    paths = dict.fromkeys(("true", *FATES), "")  # the first lies below the others
    for is_true, fate, path in shapes:
        if is_true:
            paths["true"] += path
        if not is_true or fate == "missed":  # a true cell that is right shows as the found one
            counts[fate] += 1
            paths[fate] += path
    pixels = decode_pixels(truth.record)
    return Picture(entry, pixels.shape[1], pixels.shape[0], jpeg_uri(pixels), paths, counts)


def jpeg_uri(pixels: np.ndarray) -> str:
    """An image `[H, W, C]`, C 1 or 3 (RGB), contrast stretched, as the data URI of a JPEG."""
    shown = stretch_contrast(pixels)
    factor = LONGEST_SIDE / max(shown.shape[:2])
    if factor < 1:
        size = tuple(max(1, round(side * factor)) for side in shown.shape[1::-1])
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    bgr = shown[..., ::-1] if shown.ndim == 3 else shown
    _, code = cv2.imencode(".jpg", np.ascontiguousarray(bgr), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(code.tobytes()).decode('ascii')}"


def _masks(case: ImageCase) -> Iterator[tuple[bool, str, str]]:
    """Of each judged cell: whether it is a true one, its fate and its outline."""
    match = match_cells(case)
    of_true, of_found = fates(mask_overlaps(match))
    for number, fate in zip(match.true_index, of_true, strict=True):
        yield True, fate, outline(_patch(case.cells[number].rle))
    # As judged: no pixel in two cells, the best first.
    labels = np.zeros((case.image["height"], case.image["width"]), np.int32)
    kept = resolve_overlaps((_patch(case.found[number].rle) for number in match.found_index), labels, 0.0)
    visible = {kept[label - 1]: patch for label, patch in labels_to_patches(labels)}
    for number, fate in enumerate(of_found):
        yield False, fate, outline(visible[number])


def _boxes(case: ImageCase) -> Iterator[tuple[bool, str, str]]:
    overlaps, true, found = box_overlaps(case)
    of_true, of_found = fates(overlaps)
    for is_true, boxes, names in ((True, true, of_true), (False, found, of_found)):
        for (x, y, width, height), fate in zip(boxes, names, strict=True):
            yield is_true, fate, f"M{x:.1f} {y:.1f}h{width:.1f}v{height:.1f}h{-width:.1f}z"


def outline(patch: Patch) -> str:
    """The outline of a cell as SVG path, in pixels of the image, through the middle of its border pixels."""
    contours, _ = cv2.findContours(
        patch.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(patch.x, patch.y)
    )
    return "".join(_path(cv2.approxPolyDP(contour, _SMOOTH, True)[:, 0]) for contour in contours)


def _path(points: np.ndarray) -> str:
    x, y = points[0]
    steps = " ".join(f"{dx} {dy}" for dx, dy in np.diff(points, axis=0))
    return f"M{x + 0.5} {y + 0.5}{'l' + steps if steps else ''}z"


def _patch(rle: dict[str, Any] | None) -> Patch:
    patch = None if rle is None else rle_to_patch(rle)
    if patch is None:
        raise ValueError("a cell that was judged has pixels")
    return patch


def example_counts(pictures: Sequence[Picture]) -> dict[str, int]:
    """Cells by fate, of all pictures together."""
    return {fate: sum(picture.counts[fate] for picture in pictures) for fate in FATES}


def data_is_there(examples: dict[str, Any]) -> bool:
    """Whether the folder of the converted images is still where it was."""
    return Path(examples["data"]).is_dir()
