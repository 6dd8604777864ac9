"""One COCO file for each image, with scores; overlaps are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pycocotools import mask as coco_mask

from effdet_tf.files import write_json
from effdet_tf.outputs.cells import Cells


def write_coco(
    path: str | os.PathLike[str], cells: Cells, file_name: str, category_ids: Sequence[int], image_id: int = 1
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
    result = cells.result
    annotations = []
    for number, entry in enumerate(result.to_coco(image_id, category_ids), start=1):
        box = entry["bbox"]
        area = box[2] * box[3]
        if "segmentation" in entry:
            area = int(coco_mask.area(entry["segmentation"]))
        annotations.append({"id": number, **entry, "area": area, "iscrowd": 0})
    image = {"id": image_id, "file_name": file_name, "width": result.width, "height": result.height}
    categories = [
        {"id": int(category), "name": name, "supercategory": "cell"}
        for category, name in zip(category_ids, result.class_names, strict=True)
    ]
    document = {"images": [image], "annotations": annotations, "categories": categories}
    write_json(path, document, indent=None)
