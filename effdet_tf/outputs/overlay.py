"""Outlines drawn on the contrast-stretched image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import cv2
import numpy as np
import tifffile

from effdet_tf.files import atomic_write
from effdet_tf.images.content import stretch_contrast
from effdet_tf.images.gray import to_gray
from effdet_tf.images.read import encode_png
from effdet_tf.outputs.cells import NumberedCells, visible_shapes
from effdet_tf.outputs.page import OVERLAY_STACK, SUFFIXES, AddPage, ImageInfo, Page

_SIDE = 1400  # smaller images are enlarged to about this, so that outlines stay thin beside tiny cells
_MOST = 6000  # larger ones are shrunk below this: a picture to look at, not to measure in
_BAND = 2**24  # pixels that are shrunk together


def draw_overlay(image: np.ndarray, cells: NumberedCells) -> np.ndarray:
    """Draw the outline of each cell, in a colour of its own, on the contrast-stretched image.

    Small images are enlarged by a whole factor first, very large ones shrunk. Without masks the boxes are
    drawn, with the name of the class where there are several.

    Args:
        image: `[H, W]` or `[H, W, C]`, C 1 or 3 (RGB), any real type.
        cells: numbered cells.

    Returns:
        uint8 RGB `[H * factor, W * factor, 3]`.
    """
    height, width = image.shape[:2]
    shrink = -(-max(height, width) // _MOST)
    gray = stretch_contrast(to_gray(image) if shrink == 1 else _shrunk(image, shrink))
    enlarge = int(np.clip(round(_SIDE / max(height, width)), 1, 4))
    factor = enlarge / shrink
    if enlarge > 1:
        gray = cv2.resize(gray, (width * enlarge, height * enlarge), interpolation=cv2.INTER_CUBIC)
    canvas = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    for number, outline in _outlines(cells):
        # 4 fractional bits; the centre of pixel 0 lies at (factor - 1) / 2 of the enlarged image
        points = np.round(((outline + 0.5) * factor - 0.5) * 16).astype(np.int32)
        cv2.polylines(canvas, [points], True, cell_colour(number), 1, cv2.LINE_AA, 4)
    if cells.labels is None and len(cells.result.class_names) > 1:
        for number, (box, index) in enumerate(zip(cells.result.boxes, cells.result.classes, strict=True), 1):
            corner = int(box[1] * factor) + 2, int(box[0] * factor) + 12
            name = cells.result.class_names[index]
            cv2.putText(
                canvas, name, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.4, cell_colour(number), 1, cv2.LINE_AA
            )
    return canvas


@contextlib.contextmanager
def overlay_file(base: str, info: ImageInfo) -> Iterator[AddPage]:
    """Write `draw_overlay` as PNG, or of a stack as tif."""
    stacked = info.pages > 1
    with (
        atomic_write(base + (OVERLAY_STACK if stacked else SUFFIXES["overlay"])) as path,
        tifffile.TiffWriter(path) if stacked else contextlib.nullcontext() as writer,
    ):

        def add(page: Page) -> None:
            picture = draw_overlay(page.image, page.cells)
            if writer is None:
                path.write_bytes(encode_png(picture))
            else:
                writer.write(picture, compression="zlib", photometric="rgb", metadata=None)

        yield add


def _shrunk(image: np.ndarray, shrink: int) -> np.ndarray:
    """The image as gray, float32, each pixel the mean of `shrink` x `shrink`, made in bands of rows."""
    height, width = image.shape[:2]
    rows = max(_BAND // width // shrink, 1) * shrink
    bands = []
    for top in range(0, height, rows):
        gray = to_gray(np.asarray(image[top : top + rows]))
        size = -(-width // shrink), -(-gray.shape[0] // shrink)
        bands.append(cv2.resize(gray, size, interpolation=cv2.INTER_AREA))
    return np.concatenate(bands)


def _outlines(cells: NumberedCells) -> Iterator[tuple[int, np.ndarray]]:
    """Number of a cell and one closed outline float64 `[K, 2]`, x and y of pixel centres."""
    if cells.labels is None:
        for number, (y0, x0, y1, x1) in enumerate(cells.result.boxes.astype(np.float64), start=1):
            yield number, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) - 0.5
        return
    for number, patch in visible_shapes(cells):
        contours, _ = cv2.findContours(
            patch.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(patch.x, patch.y)
        )
        for contour in contours:
            yield number, contour[:, 0].astype(np.float64)


def cell_colour(number: int) -> tuple[int, int, int]:
    """A bright colour; consecutive numbers get hues far apart (steps of the golden ratio)."""
    hue = int(number * 0.6180339887 % 1 * 180)
    pixel = cv2.cvtColor(np.array([[[hue, (150, 215)[number % 2], 255]]], np.uint8), cv2.COLOR_HSV2RGB)
    red, green, blue = pixel[0, 0].tolist()
    return red, green, blue
