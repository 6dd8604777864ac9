"""All files of one image or stack: they appear together, when it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import pandas as pd

from effdet_tf.files import atomic_write
from effdet_tf.outputs.appended_csv import table_text
from effdet_tf.outputs.coco import coco_file
from effdet_tf.outputs.geojson import geojson_file
from effdet_tf.outputs.imagej import roi_zip
from effdet_tf.outputs.labels import label_file
from effdet_tf.outputs.overlay import overlay_file
from effdet_tf.outputs.page import SUFFIXES, AddPage, ImageInfo, Page
from effdet_tf.outputs.yolo import yolo_file

FORMATS = tuple(SUFFIXES)
DEFAULT_FORMATS = FORMATS[:4]


@contextlib.contextmanager
def open_image_files(base: str, info: ImageInfo, formats: Collection[str]) -> Iterator[AddPage]:
    """Write `FORMATS` of one image file, page by page; without a page there are none.

    A page of a stack is a page of `NAME.labels.tif` and `NAME.overlay.tif`, an image of `NAME.coco.json`, a
    `page` in the table, a position of the regions, a plane of the GeoJSON and a `NAME_0001.txt` for YOLO.

    Args:
        base: the files' path without suffix.
        info: of the image.
        formats: some of `FORMATS`; a network without masks has no label images.

    Yields:
        Adds a page; pages that are left out are empty in the label image.
    """
    adders: list[AddPage] = []
    with contextlib.ExitStack() as stack:

        def add(page: Page) -> None:
            if not adders:
                adders.extend(stack.enter_context(WRITERS[name](base, info)) for name in formats)
            for add_to_file in adders:
                add_to_file(page)

        yield add


@contextlib.contextmanager
def _table_file(base: str, info: ImageInfo) -> Iterator[AddPage]:
    with atomic_write(base + SUFFIXES["table"]) as path, path.open("w", encoding="utf-8", newline="") as file:

        def add(page: Page) -> None:
            table = page.table
            if info.pages > 1:
                place = {"page": page.number + 1} | info.axes.place(page.number, first=1)
                numbers = pd.DataFrame(place, table.index, dtype=int)
                table = pd.concat([numbers, table], axis=1)
            table = table.assign(**{"class": table["class"].map(table_text)})
            table.to_csv(file, header=not file.tell(), index=False, lineterminator="\n")

        yield add


WRITERS = {
    "labels": label_file,
    "table": _table_file,
    "coco": coco_file,
    "overlay": overlay_file,
    "imagej": roi_zip,
    "geojson": geojson_file,
    "yolo": yolo_file,
}
