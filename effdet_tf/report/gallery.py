"""Pictures of images with the outlines of their cells over them, by the error type of each cell."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from effdet_tf.data.ground_truth import decode_pixels
from effdet_tf.geometry.masks import labels_to_patches, resolve_overlaps
from effdet_tf.geometry.rle import Patch, rle_to_patch
from effdet_tf.images.content import stretch_contrast
from effdet_tf.metrics.cell_metrics import match_cells
from effdet_tf.metrics.error_types import ERROR_TYPES, error_types
from effdet_tf.metrics.evaluation import AnnotatedImage, annotated_images
from effdet_tf.metrics.instances import Instance, image_instances
from effdet_tf.metrics.matching import match_boxes

LONGEST_SIDE = 1000  # px; larger images are made smaller
_QUALITY = 82  # of the JPEG
_SMOOTH = 0.6  # px that an outline may be off, to be short


class GalleryPicture(NamedTuple):
    """One image of a gallery."""

    entry: dict[str, Any]  # of the examples file: what, file_name, cell_type, true, found and so on
    width: int  # of the image, px
    height: int
    uri: str  # the image as JPEG, contrast stretched, as data URI
    paths: dict[str, str]  # SVG path of the outlines by error type, and of all annotated cells as "true"
    counts: dict[str, int]  # cells by error type


def make_gallery(examples: dict[str, Any]) -> list[GalleryPicture]:
    """Draw the images of an examples file, in its order; those that their data set lacks are left out.

    Args:
        examples: of `examples.read_examples`; the folder that it names must be there.

    Raises:
        UserError: when the data set cannot be read, or the predictions do not fit its images.
    """
    wanted = {image["id"]: image for image in examples["images"]}
    drawn: dict[Any, GalleryPicture] = {}
    for annotated in annotated_images(examples["data"]):
        entry = wanted.get(annotated.image["id"])
        if entry is not None:
            drawn[entry["id"]] = draw(annotated, entry, examples["masks"])
        if len(drawn) == len(wanted):
            break
    return [drawn[identity] for identity in wanted if identity in drawn]


def draw(annotated: AnnotatedImage, entry: dict[str, Any], masks: bool) -> GalleryPicture:
    """Draw one image with its entry in an examples file; `masks` or boxes alone were evaluated."""
    image = image_instances(annotated.image, annotated.cells, entry["found_cells"])
    match = match_cells(image) if masks else match_boxes(image.ground_truth, image.predictions, overlaps=True)
    gt_types, pred_types = error_types(match)
    gt = [image.ground_truth[k] for k in match.gt_index]
    pred = [image.predictions[k] for k in match.pred_index]
    gt_paths = [outline(_patch(cell)) if masks else _box_path(cell) for cell in gt]
    pred_paths = _visible_outlines(pred, image.image) if masks else [_box_path(entry) for entry in pred]
    counts = dict.fromkeys(ERROR_TYPES, 0)
    paths = {"true": "".join(gt_paths)} | dict.fromkeys(ERROR_TYPES, "")  # the first lies below the others
    # An annotated cell that is right shows as the prediction that matches it.
    missed = [(kind, path) for kind, path in zip(gt_types, gt_paths, strict=True) if kind == "missed"]
    for kind, path in [*missed, *zip(pred_types, pred_paths, strict=True)]:
        counts[kind] += 1
        paths[kind] += path
    pixels = decode_pixels(annotated.record)
    return GalleryPicture(entry, pixels.shape[1], pixels.shape[0], jpeg_uri(pixels), paths, counts)


def jpeg_uri(pixels: np.ndarray) -> str:
    """An image `[H, W, C]`, C 1 or 3 (RGB), contrast stretched, as the data URI of a JPEG."""
    shown = stretch_contrast(pixels)
    factor = LONGEST_SIDE / max(shown.shape[:2])
    if factor < 1:
        size = tuple(max(1, round(side * factor)) for side in shown.shape[1::-1])
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    bgr = shown[..., ::-1] if shown.ndim == 3 else shown
    _, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(bgr), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode('ascii')}"


def _visible_outlines(predictions: Sequence[Instance], image: dict[str, Any]) -> list[str]:
    """Outlines of the predictions, best first, as they were evaluated: no pixel in two cells."""
    labels = np.zeros((image["height"], image["width"]), np.int32)
    kept = resolve_overlaps(map(_patch, predictions), labels, 0.0)
    visible = {kept[label - 1]: patch for label, patch in labels_to_patches(labels)}
    return [outline(visible[k]) for k in range(len(predictions))]


def _box_path(instance: Instance) -> str:
    x, y, width, height = instance.box or (0.0, 0.0, 0.0, 0.0)
    return f"M{x:.1f} {y:.1f}h{width:.1f}v{height:.1f}h{-width:.1f}z"


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


def _patch(instance: Instance) -> Patch:
    patch = None if instance.rle is None else rle_to_patch(instance.rle)
    if patch is None:
        raise ValueError("a cell that was evaluated has pixels")
    return patch
