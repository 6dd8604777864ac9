"""A COCO file for each image, with scores; overlaps are kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from pycocotools import mask as coco_mask

from effdet_tf.files import atomic_write
from effdet_tf.outputs.page import SUFFIXES, AddPage, ImageInfo, Page


@contextlib.contextmanager
def coco_file(base: str, info: ImageInfo) -> Iterator[AddPage]:
    """Write a COCO file, cell by cell.

    An annotation's id is the cell's number; its mask is the whole cell, also where another cell has the
    pixels in the label image. `score` is added to the usual fields. The pages of a stack are images of the
    same name; "page" tells them apart, and annotations are numbered through.
    """
    images: list[dict[str, Any]] = []
    count = 0
    with atomic_write(base + SUFFIXES["coco"]) as path, path.open("w", encoding="utf-8") as file:
        file.write('{"annotations": [')

        def add(page: Page) -> None:
            nonlocal count
            result, image_id = page.cells.result, page.number + 1
            image = {"id": image_id, "file_name": info.file_name}
            image |= {"width": result.width, "height": result.height}
            place = info.axes.place(page.number, first=1)
            images.append(image | ({"page": image_id, **place} if place else {}))
            for entry in result.coco_entries(image_id, info.category_ids):
                area = entry["bbox"][2] * entry["bbox"][3]
                if "segmentation" in entry:
                    area = int(coco_mask.area(entry["segmentation"]))
                file.write(", " if count else "")
                count += 1
                file.write(json.dumps({"id": count, **entry, "area": area, "iscrowd": 0}))

        yield add
        file.write(f'], "images": {json.dumps(images)}, "categories": {json.dumps(_categories(info))}}}\n')


def _categories(info: ImageInfo) -> list[dict[str, Any]]:
    pairs = zip(info.category_ids, info.class_names, strict=True)
    return [{"id": int(number), "name": name, "supercategory": "cell"} for number, name in pairs]
