"""What the browser draws: the image in 8 bit, a small one for the list, and the outlines of all cells.

The outlines hold every cell that the network gives, best score first. The label image at a threshold t is
the one of all cells without the cells below t, since a cell never takes a pixel from a better one, nor lets
it be dropped. So the browser hides cells by their score alone, and shows what `predict --score t` writes.
"""

from __future__ import annotations

import json

import cv2
import numpy as np

from effdet_tf.geometry.polygons import patch_to_polygons
from effdet_tf.images.content import stretch_contrast
from effdet_tf.images.gray import to_gray
from effdet_tf.images.read import encode_png
from effdet_tf.outputs import NumberedCells, visible_shapes

DRAWINGS = PREVIEW, THUMBNAIL, OUTLINES, SCORES = (
    "preview.png",
    "thumbnail.png",
    "outlines.json",
    "scores.json",
)
_LONGEST_SIDES = {PREVIEW: 4096, THUMBNAIL: 160}  # px; browsers draw no picture of any size


def picture_files(image: np.ndarray) -> dict[str, bytes]:
    """The image as the eye sees it, contrast-stretched as in the overlays, and a small one.

    Args:
        image: `[H, W]` or `[H, W, C]`, C 1 or 3, any real type.

    Returns:
        `PREVIEW` and `THUMBNAIL`, PNG.
    """
    gray = stretch_contrast(to_gray(image))
    height, width = gray.shape
    files = {}
    for name, side in _LONGEST_SIDES.items():
        scale = side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        shown = gray if scale >= 1 else cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
        files[name] = encode_png(shown)
    return files


def outline_files(cells: NumberedCells) -> dict[str, bytes]:
    """The cells for the browser to draw, and the scores alone, by which it counts.

    Args:
        cells: all cells of the image, numbered.

    Returns:
        `OUTLINES` and `SCORES`, JSON. The outlines have height and width in pixels, names of the classes,
        whether there are `masks`, and by cell: scores (float32, falling), index of the class, area in pixels
        of the label image (0 without masks), and polygons `[x, y, x, y, ...]` along pixel edges (the box
        without masks).
    """
    result = cells.result
    areas, polygons = [0] * len(result), []
    if cells.labels is None:
        polygons = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for y0, x0, y1, x1 in result.boxes.tolist()]
    else:
        for number, patch in visible_shapes(cells):
            areas[number - 1] = int(np.count_nonzero(patch.mask))
            polygons.append([[int(v) for v in points] for points in patch_to_polygons(patch)])
    scores = result.scores.tolist()
    outlines = {
        "height": result.height,
        "width": result.width,
        "classes": list(result.class_names),
        "masks": cells.labels is not None,
        "scores": scores,
        "class": result.classes.tolist(),
        "area": areas,
        "polygons": polygons,
    }
    documents = {OUTLINES: outlines, SCORES: scores}
    return {name: json.dumps(value, separators=(",", ":")).encode() for name, value in documents.items()}
