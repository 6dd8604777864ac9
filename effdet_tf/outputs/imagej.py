"""Outlines as a zip of ImageJ regions of interest, for the ROI manager of Fiji."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator

import numpy as np
from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi

from effdet_tf.files import atomic_write
from effdet_tf.geometry.polygons import patch_to_pieces
from effdet_tf.geometry.rle import Patch
from effdet_tf.outputs.cells import visible_shapes
from effdet_tf.outputs.page import SUFFIXES, AddPage, ImageInfo, Page

_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0  # java.awt.geom.PathIterator


@contextlib.contextmanager
def roi_zip(base: str, info: ImageInfo) -> Iterator[AddPage]:
    """Write a region for each cell, named by its number; class and score are among its properties.

    A region's outline runs along the pixels' edges, as ImageJ's wand draws it; a cell in several pieces or
    with holes is a composite region.
    """
    stacked = info.pages > 1
    with (
        atomic_write(base + SUFFIXES["imagej"]) as path,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):

        def add(page: Page) -> None:
            result = page.cells.result
            for number, patch in visible_shapes(page.cells):
                roi = _roi(patch)
                roi.name = f"{page.number + 1:04d}-{number:05d}" if stacked else f"{number:05d}"
                label = result.class_names[result.classes[number - 1]]
                roi.props = f"class: {label}\nscore: {result.scores[number - 1]:.4f}\n"
                if stacked:
                    roi.position = page.number + 1
                    place = info.axes.place(page.number, first=1)
                    for axis, position in () if "p" in place else place.items():  # has no stage positions
                        setattr(roi, f"{axis}_position", position)
                archive.writestr(f"{roi.name}.roi", roi.tobytes())

        yield add


def _roi(patch: Patch) -> ImagejRoi:
    pieces = patch_to_pieces(patch)
    rings = [ring for piece in pieces for ring in piece]
    if len(rings) == 1:
        roi = ImagejRoi.frompoints(rings[0].astype(np.int64))
        roi.roitype = ROI_TYPE.TRACED
        roi.right, roi.bottom = roi.right - 1, roi.bottom - 1  # these points are edges, not pixels
    else:
        roi = ImagejRoi()
        roi.roitype = ROI_TYPE.RECT
        path: list[float] = []
        for ring in rings:
            for k, (x, y) in enumerate(ring.tolist()):
                path += [_LINE if k else _MOVE, x, y]
            path.append(_CLOSE)
        roi.multi_coordinates = np.array(path, np.float32)
        roi.shape_roi_size = len(path)
        roi.top, roi.left = patch.y, patch.x
        roi.bottom, roi.right = patch.y + patch.mask.shape[0], patch.x + patch.mask.shape[1]
    roi.options = roi.options | ROI_OPTIONS.OVERLAY_LABELS
    return roi
