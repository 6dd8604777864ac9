"""All files of one image or stack: they appear together, when it is done."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import tifffile

from effdet_tf.files import atomic_write
from effdet_tf.outputs.coco import CocoPages
from effdet_tf.outputs.geojson import GeoJson
from effdet_tf.outputs.imagej import RoiZip
from effdet_tf.outputs.labels import LabelPages
from effdet_tf.outputs.overlay import draw_overlay, write_overlay
from effdet_tf.outputs.page import ImageInfo, Page
from effdet_tf.outputs.yolo import write_yolo
from effdet_tf.prediction.predictor import LARGE

LABELS, TABLE, COCO, OVERLAY = ".labels.tif", ".cells.csv", ".coco.json", ".overlay.png"
ROIS, GEOJSON, YOLO, OVERLAY_STACK = ".rois.zip", ".geojson", ".txt", ".overlay.tif"
FORMATS = ("labels", "table", "coco", "overlay", "imagej", "geojson", "yolo")
DEFAULT_FORMATS = FORMATS[:4]


class ImageFiles:
    """Writes `FORMATS` of one image file, page by page, as a context manager.

    A page of a stack is a page of `NAME.labels.tif` and `NAME.overlay.tif`, an image of `NAME.coco.json`, a
    `page` in the table, a position of the regions, a plane of the GeoJSON and a `NAME_0001.txt` for YOLO.
    """

    def __init__(self, base: Path, info: ImageInfo, formats: Collection[str]) -> None:
        """Set what to write.

        Args:
            base: the files' path without suffix.
            info: of the image.
            formats: some of `FORMATS`.
        """
        self._base, self._info, self._formats = base, info, formats
        self._stack = ExitStack()
        self._labels: LabelPages | None = None
        self._adders: list[Callable[[Page], None]] = []

    def __enter__(self) -> ImageFiles:
        with self._stack:  # what was begun goes away again where the next cannot be
            self._begin()
            self._stack = self._stack.pop_all()
        return self

    def _begin(self) -> None:
        stacked = self._info.pages > 1
        if "table" in self._formats:
            path = self._open(TABLE)
            self._adders.append(lambda page: _append(path, page, stacked))
        if "coco" in self._formats:
            coco = CocoPages(self._open(COCO), self._info)
            self._stack.callback(coco.close)
            self._adders.append(lambda page: coco.add(page.cells, page.number))
        for name, suffix, kind in (("imagej", ROIS, RoiZip), ("geojson", GEOJSON, GeoJson)):
            if name in self._formats:
                file: Any = kind(self._open(suffix), self._info)
                self._stack.callback(file.close)
                self._adders.append(file.add)
        if "yolo" in self._formats:
            self._adders.append(self._add_yolo)
        if "overlay" in self._formats and stacked:
            pictures = self._stack.enter_context(tifffile.TiffWriter(self._open(OVERLAY_STACK)))
            self._adders.append(lambda page: _add_picture(pictures, page))
        elif "overlay" in self._formats:
            self._adders.append(
                lambda page: write_overlay(_with(self._base, OVERLAY), page.image, page.cells)
            )

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, page: Page, skipped: int = 0) -> None:
        """Write a page; `skipped` pages before it could not be predicted."""
        labels = page.cells.labels
        if "labels" in self._formats and labels is not None:
            if self._labels is None:
                wide = labels.size > LARGE if self._info.pages > 1 else len(page.cells.result) > 0xFFFF
                pages = LabelPages(
                    self._open(LABELS), self._info.pages, self._info.axis, wide, self._info.um_per_px
                )
                self._labels = self._stack.enter_context(pages)
            self._labels.skip(skipped)
            self._labels.add(labels)
        for add in self._adders:
            add(page)

    def skip(self, count: int) -> None:
        """The last `count` pages could not be predicted."""
        if self._labels is not None:
            self._labels.skip(count)

    def _open(self, suffix: str) -> Path:
        return self._stack.enter_context(atomic_write(_with(self._base, suffix)))

    def _add_yolo(self, page: Page) -> None:
        number = f"_{page.number + 1:04d}" if self._info.pages > 1 else ""
        write_yolo(_with(self._base, number + YOLO), page.cells)


def _with(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)


def _append(path: Path, page: Page, stacked: bool) -> None:
    table = page.table
    if stacked:
        table = pd.concat([pd.Series(page.number + 1, table.index, name="page", dtype=int), table], axis=1)
    new = not path.exists()
    table.to_csv(path, mode="a", header=new, index=False, lineterminator="\n")


def _add_picture(pictures: tifffile.TiffWriter, page: Page) -> None:
    picture = draw_overlay(page.image, page.cells)
    pictures.write(picture, compression="zlib", photometric="rgb", metadata=None)
