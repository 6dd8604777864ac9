"""Hand-made cells and predictions, and a reader of pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.data.record import ImageRecord
from effdet_tf.geometry.rle import Patch, patch_to_rle
from tests.records import record_of

HEIGHT, WIDTH = 80, 120
# A class and a cell type that would be markup, or mathematics, if nobody escaped them.
CATEGORIES = [{"id": 9, "name": "<b>round</b>"}, {"id": 4, "name": "thin & $\\frac"}]
TYPES = ("BV2", "<i>A172</i>")
CELLS = {
    31: [(4, 4, 12, 16), (4, 30, 12, 16), (30, 50, 12, 16), (30, 67, 12, 16), (60, 10, 12, 40)],
    32: [(10, 10, 12, 16), (40, 60, 12, 16)],
    33: [(50, 50, 12, 16)],
}
# Image 31: one right, one missed, one over two cells, one cell in two parts, one where nothing is.
FOUND = {
    31: [(4, 4, 12, 16), (29, 50, 14, 33), (60, 10, 12, 15), (60, 32, 12, 15), (4, 90, 12, 16)],
    32: [(10, 10, 12, 16), (40, 60, 12, 16)],
    33: [],
}


def make_record(image_id: int, masks: bool) -> ImageRecord:
    """An image with the cells of `CELLS`, classes in turn; with boxes alone on request."""
    image = np.random.default_rng(image_id).normal(100, 4, (HEIGHT, WIDTH)).astype(np.uint8)
    patches = [Patch(y, x, np.ones((h, w), bool)) for y, x, h, w in CELLS[image_id]]
    for y, x, h, w in CELLS[image_id]:
        image[y : y + h, x : x + w] += 60
    changes = {} if masks else {"rles": [b""] * len(patches)}
    classes = np.arange(len(patches), dtype=np.int32) % 2
    name, kind = f"{image_id}<script>.png", TYPES[image_id % 2]
    return record_of(image, patches, image_id, classes=classes, file_name=name, cell_type=kind, **changes)


def predictions(masks: bool) -> list[dict[str, Any]]:
    """`FOUND` as COCO results, all of the first class."""
    entries = []
    for image_id, found in FOUND.items():
        for number, (y, x, h, w) in enumerate(found):
            entry = {
                "image_id": image_id,
                "category_id": 9,
                "score": 0.9 - 0.05 * number,
                "bbox": [x, y, w, h],
            }
            if masks:
                entry["segmentation"] = patch_to_rle(Patch(y, x, np.ones((h, w), bool)), HEIGHT, WIDTH)
            entries.append(entry)
    return entries


class Page(HTMLParser):
    """What a browser would find in a page: tags, the text of each part, and the large figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.links: list[str] = []
        self.figures: dict[str, str] = {}
        self.sections: dict[str, str] = {}
        self._section, self._figure = "header", ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action") and v]
        if tag in ("section", "details") and values.get("id"):
            self._section = str(values["id"])
        self._figure = values.get("data-figure") or ""

    def handle_data(self, data: str) -> None:
        text = re.sub(r"\s+", " ", data)
        self.sections[self._section] = self.sections.get(self._section, "") + text
        if self._figure:
            self.figures[self._figure] = text.strip()
            self._figure = ""
