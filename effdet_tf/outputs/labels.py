"""Label images as tif: 0 is background, cell k has the value k."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile

from effdet_tf.files import atomic_write

_TILE = 512  # px; of large label images, which are written tile by tile
_LARGE = 2**26  # pixels from which an image is
_BIG_TIFF = 2**31  # bytes, not compressed
_AXES = {"T": "frames", "Z": "slices", "C": "channels"}


def write_labels(path: str | os.PathLike[str], labels: np.ndarray, um_per_px: float | None = None) -> None:
    """Write a label image as zlib-compressed tif: uint16, or uint32 when there are more than 65,535 labels.

    Args:
        path: the tif.
        labels: integers `[H, W]`, 0 is background.
        um_per_px: side of a pixel in micrometres, written as ImageJ's calibration; None for none.
    """
    wide = int(labels.max(initial=0)) > np.iinfo(np.uint16).max
    with atomic_write(path) as temporary, LabelPages(temporary, wide=wide, um_per_px=um_per_px) as pages:
        pages.add(labels)


class LabelPages:
    """A tif of label images, written page by page, as ImageJ, napari and tifffile read a stack."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        pages: int = 1,
        axis: str = "T",
        wide: bool = False,
        um_per_px: float | None = None,
    ) -> None:
        """Begin a file, as a context manager.

        Args:
            path: the tif.
            pages: how many there will be.
            axis: what changes from page to page: "T" time, "Z" depth, "C" channel.
            wide: whether labels above 65,535 may occur, so that they take 32 bits.
            um_per_px: side of a pixel in micrometres, or None.
        """
        self._path = path
        self._pages, self._axis = pages, axis
        self._dtype = np.uint32 if wide else np.uint16
        self._um_per_px = um_per_px
        self._writer: tifffile.TiffWriter | None = None
        self._begun = False
        self._blanks = 0  # pages that failed before the size was known

    def __enter__(self) -> LabelPages:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, labels: np.ndarray) -> None:
        """Write the next page, integers `[H, W]`.

        Raises:
            OverflowError: when a label does not fit.
        """
        if labels.max(initial=0) > np.iinfo(self._dtype).max:
            raise OverflowError(f"label {labels.max()} does not fit into {np.dtype(self._dtype)}")
        if self._writer is None:
            size = labels.size * np.dtype(self._dtype).itemsize * self._pages
            self._writer = tifffile.TiffWriter(self._path, bigtiff=size >= _BIG_TIFF)
            for _ in range(self._blanks):
                self._write(np.zeros_like(labels))
        self._shape = labels.shape
        self._write(labels)

    def skip(self, count: int) -> None:
        """The next `count` pages could not be predicted: they are empty, so that pages stay aligned."""
        if self._writer is None:
            self._blanks += count
            return
        for _ in range(count):
            self._write(np.zeros(self._shape, self._dtype))

    def _write(self, labels: np.ndarray) -> None:
        assert self._writer is not None
        options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack", "metadata": None}
        if not self._begun and (self._pages > 1 or self._um_per_px is not None):
            options["description"] = self._description()
        self._begun = True
        if self._um_per_px is not None:
            options |= {"resolution": (1 / self._um_per_px,) * 2, "resolutionunit": "NONE"}
        if labels.size < _LARGE:
            self._writer.write(labels.astype(self._dtype), **options)
        else:
            options |= {"shape": labels.shape, "dtype": self._dtype, "tile": (_TILE, _TILE)}
            self._writer.write(_tiles(labels, self._dtype), **options)

    def _description(self) -> str:
        """How ImageJ describes a stack and its calibration."""
        lines = ["ImageJ=1.54f", f"images={self._pages}"]
        if self._pages > 1:
            lines += [f"{_AXES[self._axis]}={self._pages}", "hyperstack=true"]
        if self._um_per_px is not None:
            lines.append("unit=micron")
        return "\n".join([*lines, "loop=false", ""])


def _tiles(labels: np.ndarray, dtype: Any) -> Iterator[np.ndarray]:
    for top in range(0, labels.shape[0], _TILE):
        for left in range(0, labels.shape[1], _TILE):
            part = labels[top : top + _TILE, left : left + _TILE]
            missing = [(0, _TILE - side) for side in part.shape]
            yield np.pad(part.astype(dtype), missing)
