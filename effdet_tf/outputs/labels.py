"""Label images as tif: 0 is background, cell k has the value k."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile

from effdet_tf.files import atomic_write
from effdet_tf.images.tif_metadata import Axes
from effdet_tf.outputs.page import SUFFIXES, AddPage, ImageInfo, Page
from effdet_tf.prediction.predictor import LARGE

_TILE = 512  # px; of large label images, which are written tile by tile
_LARGE = 2**26  # pixels from which an image is
_BIG_TIFF = 2**31  # bytes, not compressed
# How ImageJ calls the axes; in it channels follow each other first, then slices, then frames.
_IMAGEJ_ORDERS = ("", "T", "Z", "C", "TZ", "TC", "ZC", "TZC")
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


@contextlib.contextmanager
def label_file(base: str, info: ImageInfo) -> Iterator[AddPage]:
    """Write the label images of an image file; a network without masks makes none."""
    pages: LabelPages | None = None
    with contextlib.ExitStack() as stack:

        def add(page: Page) -> None:
            nonlocal pages
            labels = page.cells.labels
            if labels is None:
                return
            if pages is None:
                wide = labels.size > LARGE if info.pages > 1 else len(page.cells.result) > 0xFFFF
                path = stack.enter_context(atomic_write(base + SUFFIXES["labels"]))
                pages = stack.enter_context(LabelPages(path, info.axes, wide, info.um_per_px, info.ome))
            pages.add(labels, page.number)

        yield add


class LabelPages:
    """A tif of label images, written page by page, that says along what its pages lie.

    It says so as ImageJ does; as OME for an image that is OME, and where ImageJ has other axes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        axes: Axes = Axes(),  # noqa: B008 (it does not change)
        wide: bool = False,
        um_per_px: float | None = None,
        ome: bool = False,
    ) -> None:
        """Begin a file, as a context manager; `wide` labels, above 65,535, take 32 bits; see `ImageInfo`."""
        self._path, self._axes, self._pages, self._um_per_px = path, axes, axes.pages, um_per_px
        self._ome = bool(axes.letters) and (ome or axes.letters not in _IMAGEJ_ORDERS)
        self._dtype = np.dtype(np.uint32 if wide else np.uint16)
        self._options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack", "metadata": None}
        if um_per_px is not None:
            self._options |= {"resolution": (1 / um_per_px,) * 2, "resolutionunit": "NONE"}
        self._writer: tifffile.TiffWriter | None = None
        self._written = 0

    def __enter__(self) -> LabelPages:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None:
            with self._writer:
                if kind is None:
                    self._leave_out(self._pages)

    def add(self, labels: np.ndarray, number: int = 0) -> None:
        """Write a page, integers `[H, W]`; pages between it and the one before are empty, to stay aligned.

        Raises:
            OverflowError: when a label does not fit.
        """
        if labels.max(initial=0) > np.iinfo(self._dtype).max:  # type: ignore[type-var]
            raise OverflowError(f"label {labels.max()} does not fit into {self._dtype}")
        self._shape = labels.shape
        if self._writer is None:
            large = labels.size * self._dtype.itemsize * self._pages >= _BIG_TIFF
            self._writer = tifffile.TiffWriter(self._path, bigtiff=large)
        self._leave_out(number)
        self._write(labels)

    def _leave_out(self, end: int) -> None:
        """Write empty pages up to page `end`."""
        while self._written < end:
            self._write(np.zeros(self._shape, self._dtype))

    def _write(self, labels: np.ndarray) -> None:
        options = dict(self._options)
        if not self._written and (said := self._ome_xml(labels) if self._ome else self._imagej()):
            options["description"] = said
        self._written += 1
        writer = self._writer
        assert writer is not None  # `add` opened it
        if labels.size < _LARGE:
            writer.write(labels.astype(self._dtype), **options)
        else:
            options |= {"shape": labels.shape, "dtype": self._dtype, "tile": (_TILE, _TILE)}
            writer.write(_tiles(labels, self._dtype), **options)

    def _imagej(self) -> str:
        """How ImageJ describes a stack and its calibration; empty where there is neither."""
        sizes = [f"{_AXES[axis]}={n}" for axis, n in zip(self._axes.letters, self._axes.lengths, strict=True)]
        stack = [*sizes, "hyperstack=true"] if sizes else []
        unit = ["unit=micron"] if self._um_per_px is not None else []
        lines = ["ImageJ=1.54f", f"images={self._pages}", *stack, *unit, "loop=false", ""]
        return "\n".join(lines) if stack or unit else ""

    def _ome_xml(self, labels: np.ndarray) -> str:
        """OME's description: an image for each position, the pages one behind the other."""
        letters, lengths = self._axes.letters, self._axes.lengths
        positions = lengths[letters.index("P")] if "P" in letters else 1
        inner = [(axis, size) for axis, size in zip(letters, lengths, strict=True) if axis != "P"]
        shape = *(size for _, size in inner), *labels.shape
        options: dict[str, Any] = {}
        if self._um_per_px is not None:
            for side in "XY":
                options |= {f"PhysicalSize{side}": self._um_per_px, f"PhysicalSize{side}Unit": "µm"}
        ome = tifffile.OmeXml()
        for _ in range(positions):
            stored = self._pages // positions, 1, 1, *labels.shape, 1
            axes = "".join(axis for axis, _ in inner) + "YX"
            ome.addimage(self._dtype, shape, stored, axes=axes, **options)
        return str(ome.tostring(declaration=True))


def _tiles(labels: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    for top in range(0, labels.shape[0], _TILE):
        for left in range(0, labels.shape[1], _TILE):
            part = labels[top : top + _TILE, left : left + _TILE]
            missing = [(0, _TILE - side) for side in part.shape]
            yield np.pad(part.astype(dtype), missing)
