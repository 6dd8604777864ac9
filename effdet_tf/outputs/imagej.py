"""Outlines as a zip of ImageJ regions of interest, for the ROI manager of Fiji."""

from __future__ import annotations

import os
import zipfile

import numpy as np
from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi

from effdet_tf.geometry.masks import Patch, patch_to_pieces
from effdet_tf.outputs.cells import visible_shapes
from effdet_tf.outputs.page import ImageInfo, Page

_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0  # java.awt.geom.PathIterator


class RoiZip:
    """One region for each cell, named by its number; class and score are among its properties.

    A region's outline runs along the pixels' edges, as ImageJ's wand draws it; a cell in several pieces or
    with holes is a composite region.
    """

    def __init__(self, path: str | os.PathLike[str], info: ImageInfo) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self._info = info

    def add(self, page: Page) -> None:
        """Write the cells of one page."""
        stacked = self._info.pages > 1
        for number, patch in visible_shapes(page.cells):
            result = page.cells.result
            roi = _roi(patch)
            roi.name = f"{page.number + 1:04d}-{number:05d}" if stacked else f"{number:05d}"
            label = result.class_names[result.classes[number - 1]]
            roi.props = f"class: {label}\nscore: {result.scores[number - 1]:.4f}\n"
            if stacked:
                roi.position = page.number + 1
                setattr(roi, f"{self._info.axis.lower()}_position", page.number + 1)
            self._zip.writestr(f"{roi.name}.roi", roi.tobytes())

    def close(self) -> None:
        """Finish the file."""
        self._zip.close()


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
        path = [value for ring in rings for value in _path(ring)]
        roi.multi_coordinates = np.array(path, np.float32)
        roi.shape_roi_size = len(path)
        roi.top, roi.left = patch.y, patch.x
        roi.bottom, roi.right = patch.y + patch.mask.shape[0], patch.x + patch.mask.shape[1]
    roi.options = roi.options | ROI_OPTIONS.OVERLAY_LABELS
    return roi


def _path(ring: np.ndarray) -> list[float]:
    values: list[float] = []
    for k, (x, y) in enumerate(ring.tolist()):
        values += [_LINE if k else _MOVE, x, y]
    return [*values, _CLOSE]
