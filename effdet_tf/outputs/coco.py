"""A COCO file for each image, with scores; overlaps are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from pycocotools import mask as coco_mask

from effdet_tf.files import atomic_write
from effdet_tf.outputs.cells import NumberedCells
from effdet_tf.outputs.page import ImageInfo


def write_coco(
    path: str | os.PathLike[str],
    cells: NumberedCells,
    file_name: str,
    category_ids: Sequence[int],
    image_id: int = 1,
) -> None:
    """Write the cells as a COCO file with one image.

    An annotation's id is the cell's number; its mask is the whole cell, also where another cell has the
    pixels in the label image. `score` is added to the usual fields.

    Args:
        path: the json.
        cells: numbered cells.
        file_name: name of the image, as the file shall state it.
        category_ids: COCO category id of each class.
        image_id: id of the image.
    """
    info = ImageInfo(file_name, category_ids, cells.result.class_names)
    with atomic_write(path) as temporary:
        pages = CocoPages(temporary, info, image_id)
        pages.add(cells)
        pages.close()


class CocoPages:
    """A COCO file of the pages of one image file, written cell by cell.

    The pages of a stack are images of the same name; "page" tells them apart, and annotations are numbered
    through.
    """

    def __init__(self, path: str | os.PathLike[str], info: ImageInfo, first_id: int = 1) -> None:
        """Begin a file; the images' ids begin with `first_id`."""
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - `close` closes it
        self._file.write('{"annotations": [')
        self._info, self._first_id = info, first_id
        self._images: list[dict[str, object]] = []
        self._count = 0

    def add(self, cells: NumberedCells, page: int = 0) -> None:
        """Write the cells of one page."""
        result = cells.result
        image = {"id": self._first_id + page, "file_name": self._info.file_name}
        image |= {"width": result.width, "height": result.height}
        self._images.append(image | ({"page": page + 1} if self._info.pages > 1 else {}))
        for entry in result.coco_entries(self._first_id + page, self._info.category_ids):
            box = entry["bbox"]
            area = box[2] * box[3]
            if "segmentation" in entry:
                area = int(coco_mask.area(entry["segmentation"]))
            self._file.write(", " if self._count else "")
            self._count += 1
            self._file.write(json.dumps({"id": self._count, **entry, "area": area, "iscrowd": 0}))

    def close(self) -> None:
        """Finish the file."""
        categories = [
            {"id": int(category), "name": name, "supercategory": "cell"}
            for category, name in zip(self._info.category_ids, self._info.class_names, strict=True)
        ]
        self._file.write('], "images": ' + json.dumps(self._images))
        self._file.write(', "categories": ' + json.dumps(categories) + "}\n")
        self._file.close()
