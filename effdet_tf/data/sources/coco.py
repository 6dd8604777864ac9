"""COCO JSON: any detection or segmentation set.

Each image carries the places of its own annotations in the scratch file of `coco_index`, and the process that
converts the image reads just those.
"""

from __future__ import annotations

import marshal
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import Cell, ImageFinder, ImageTask, Source, require_folder
from effdet_tf.data.sources.coco_index import CocoIndex, index_coco
from effdet_tf.errors import UserError
from effdet_tf.geometry.polygons import polygons_to_rle
from effdet_tf.geometry.rle import Patch, patch_to_rle, rle_to_patch

_INT64 = 2**63
_OUTSIDE = 0.5  # pixels that a coordinate may lie beyond the image before it is worth a note


@dataclass(frozen=True)
class CocoCells:
    """Reads the annotations of one image from the scratch file.

    Attributes:
        scratch: the scratch file.
        places: uint64 [N, 2] offset and length of each annotation in it.
        class_ids: class id by category id; None puts every cell into class `only_class`.
        only_class: see `class_ids`.
        boxes_only: no cell of the set has a mask; else a box stands in for a mask that is missing.
    """

    scratch: Path
    places: np.ndarray
    class_ids: dict[Any, int] | None
    only_class: int = 0
    boxes_only: bool = False

    @property
    def annotated(self) -> int:
        """Number of annotations."""
        return len(self.places)

    def _class_of(self, category: Any) -> int | None:
        if self.class_ids is None:
            return self.only_class
        return self.class_ids.get(category) if isinstance(category, Hashable) else None

    def read(self, height: int, width: int, file_name: str, faults: Faults) -> list[Cell]:
        """Rasterise the annotations; see `CellReader`."""
        cells = []
        with self.scratch.open("rb") as file:
            for offset, length in self.places.tolist():
                file.seek(offset)
                identity, _, category, segmentation, bbox, iscrowd = marshal.loads(file.read(length))
                name = f"{file_name} (annotation {identity})"
                class_id = self._class_of(category)
                if class_id is None:
                    faults.drop("annotation of an unknown category", name)
                    continue
                if self.boxes_only:
                    found = _only_box(bbox, height, width, name, faults)
                else:
                    found = _mask(segmentation, bbox, height, width, name, faults)
                if found is not None:
                    box = _box(bbox)
                    if box is None:
                        faults.note("no valid annotated box: the mask's box is used", name)
                    cells.append(Cell(name, *found, box, class_id, bool(iscrowd)))
        return cells


def find_annotations(root: Path) -> Path:
    """The one JSON file below `root`, at any depth.

    Raises:
        UserError: when `root` is no folder, or holds no JSON file or several.
    """
    require_folder(root)
    files = sorted(root.rglob("*.json"))
    if len(files) != 1:
        found = ", ".join(str(path.relative_to(root)) for path in files[:5]) or "none"
        raise UserError(f"{root}: holds {len(files)} JSON files ({found}); name one by --annotations")
    return files[0]


def open_coco(annotations: Path, images: Path, scratch: Path) -> Source:
    """Open a COCO detection or segmentation set; its classes are by rising category id.

    Args:
        annotations: the JSON file.
        images: folder of the images, flat or nested.
        scratch: folder for the scratch file; it must live until the conversion is over.

    Raises:
        UserError: when the file or folder is missing, or is no COCO JSON.
    """
    faults = Faults()
    index = index_coco(annotations, scratch, faults)
    categories, class_ids = coco_classes(index.categories, annotations, faults)
    tasks = coco_tasks(index, ImageFinder(images), lambda _: ("", class_ids, 0), faults)
    return Source("coco", categories, tasks, faults, masks=not index.boxes_only)


def coco_classes(
    categories: list[dict[str, Any]], annotations: Path, faults: Faults
) -> tuple[list[dict[str, Any]], dict[Any, int]]:
    """Categories by rising id, and the class id by category id.

    Raises:
        UserError: when there is no category or an id is no whole number.
    """
    by_id: dict[int, str] = {}
    for category in categories:
        identity = category.get("id")
        if not isinstance(identity, int) or isinstance(identity, bool):
            raise UserError(f"{annotations}: the category {category} has no whole number as its id")
        if identity in by_id:
            faults.note("category id occurs twice: the first name is used", f"category {identity}")
        by_id.setdefault(identity, str(category.get("name", identity)))
    if not by_id:
        raise UserError(f'{annotations}: has no "categories"; add at least one')
    listed = [{"id": identity, "name": by_id[identity]} for identity in sorted(by_id)]
    return listed, {category["id"]: class_id for class_id, category in enumerate(listed)}


def coco_tasks(
    index: CocoIndex,
    finder: ImageFinder,
    classify: Callable[[str], tuple[str, dict[Any, int] | None, int] | None],
    faults: Faults,
) -> list[ImageTask]:
    """Join images and annotations to tasks by rising file name.

    Args:
        index: the file's index.
        finder: finds image files.
        classify: file name -> (cell type, class ids or None, only class), as in `CocoCells`; None leaves the
            image out, after `classify` itself has said why.
        faults: takes missing files, duplicate images and annotations of unknown images.
    """
    entries: dict[Any, dict[str, Any]] = {}
    for entry in index.images:
        if not isinstance(entry.get("file_name"), str) or not isinstance(entry.get("id"), (int, str)):
            faults.drop("image entry without id or file_name", str(entry.get("file_name", entry.get("id"))))
        elif entry["id"] in entries:
            faults.drop("image id occurs twice: the first entry is used", entry["file_name"])
        else:
            entries[entry["id"]] = entry
    ordered = sorted(entries.values(), key=lambda entry: (entry["file_name"], str(entry["id"])))
    rank = {entry["id"]: number for number, entry in enumerate(ordered)}
    places = _places_by_image(index, rank, faults)
    whole = all(isinstance(e["id"], int) and -_INT64 <= e["id"] < _INT64 for e in ordered)
    if not whole:
        faults.note("image ids are no whole numbers: numbered from 1 by name", ordered[0]["file_name"])
    tasks = []
    for number, entry in enumerate(ordered):
        name = entry["file_name"]
        path, kind = finder.find(name, faults), classify(name)
        if path is None or kind is None:
            if len(places[number]):
                faults.drop("cells of a dropped image", name, len(places[number]))
            continue
        cell_type, class_ids, only_class = kind
        cells = CocoCells(index.scratch, places[number], class_ids, only_class, index.boxes_only)
        image_id = entry["id"] if whole else number + 1
        tasks.append(ImageTask(path, name, image_id, _size(entry), cell_type, cells))
    return tasks


def _places_by_image(index: CocoIndex, rank: dict[Any, int], faults: Faults) -> list[np.ndarray]:
    """Offset and length of each image's annotations, uint64 [N, 2], in file order."""
    known = (rank.get(i, -1) if isinstance(i, (int, str)) else -1 for i in index.image_ids)
    ranks = np.fromiter(known, dtype=np.int64, count=len(index.image_ids))
    for position in np.flatnonzero(ranks < 0).tolist():
        faults.drop("annotation of an unknown image", f"image id {index.image_ids[position]}")
    offsets = np.array(index.offsets, dtype=np.uint64)
    places = np.column_stack([offsets[:-1], np.diff(offsets)])
    order = np.argsort(ranks, kind="stable")
    bounds = np.searchsorted(ranks[order], np.arange(len(rank) + 1))
    return [places[order[low:high]] for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (int(height), int(width)) if isinstance(height, int) and isinstance(width, int) else None


def _box(bbox: Any) -> np.ndarray | None:
    """COCO [x, y, width, height] -> float32 yxyx, or None when it is no box."""
    try:
        x, y, width, height = (float(v) for v in bbox)
    except (TypeError, ValueError):
        return None
    if not (all(map(math.isfinite, (x, y, width, height))) and width > 0 and height > 0):
        return None
    return np.array([y, x, y + height, x + width], dtype=np.float32)


def _only_box(bbox: Any, height: int, width: int, name: str, faults: Faults) -> tuple[Patch, bytes] | None:
    """The pixels that a box touches, and no counts; None after saying why there is no such pixel."""
    box = _box(bbox)
    if box is None:
        faults.drop("no valid annotated box", name)
        return None
    patch = _filled(np.floor(box[:2]), np.ceil(box[2:]), height, width)
    if patch is None:
        faults.drop("box outside the image", name)
    return patch and (patch, b"")


def _mask(
    segmentation: Any, bbox: Any, height: int, width: int, name: str, faults: Faults
) -> tuple[Patch, bytes] | None:
    """The tight patch and the compressed counts, or None after saying why there is none."""
    notes = Faults()  # of a cell that is dropped in the end, only the drop is counted
    try:
        if isinstance(segmentation, dict):
            size = segmentation.get("size")
            if size is not None and list(size) != [height, width]:
                faults.drop("RLE of another size than its image", name)
                return None
            patch, rle = rle_to_patch({**segmentation, "size": [height, width]}), None
        elif segmentation:
            polygons = _polygons(segmentation, height, width, name, notes)
            if polygons is None:
                faults.drop("polygon outside the image", name)
                return None
            rle = polygons_to_rle(polygons, height, width)
            patch = rle_to_patch(rle)
        else:
            patch, rle = _box_patch(bbox, height, width), None
            notes.note("no segmentation: the box is used as mask", name)
    except (ValueError, TypeError, OverflowError):
        faults.drop("degenerate or unreadable segmentation", name)
        return None
    if patch is None:
        faults.drop("cell without a pixel inside the image", name)
        return None
    faults.merge(notes)
    rle = rle or patch_to_rle(patch, height, width)
    return patch, rle["counts"].encode("ascii")


def _polygons(segmentation: Any, height: int, width: int, name: str, notes: Faults) -> list[Any] | None:
    """The usable polygons of a list; None when they lie wholly outside the image.

    Raises:
        ValueError: when none is usable.
    """
    if isinstance(segmentation[0], (int, float)):
        segmentation = [segmentation]  # one flat polygon without its outer list
    arrays = [np.asarray(polygon, dtype=np.float64).ravel() for polygon in segmentation]
    good = [p for p in arrays if p.size >= 6 and p.size % 2 == 0 and np.isfinite(p).all()]
    if not good:
        raise ValueError("no usable polygon")
    if len(good) < len(arrays):
        notes.note("degenerate part of a cell left out", name)
    points = np.concatenate(good) if len(good) > 1 else good[0]
    left, right = float(points[0::2].min()), float(points[0::2].max())
    top, bottom = float(points[1::2].min()), float(points[1::2].max())
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return None
    if min(left, top) < -_OUTSIDE or right > width + _OUTSIDE or bottom > height + _OUTSIDE:
        notes.note("polygon reaches outside the image: clipped", name)
    return good


def _box_patch(bbox: Any, height: int, width: int) -> Patch | None:
    box = _box(bbox)
    if box is None:
        raise ValueError("neither segmentation nor box")
    return _filled(np.floor(box[:2] + 0.5), np.floor(box[2:] + 0.5), height, width)


def _filled(low: np.ndarray, high: np.ndarray, height: int, width: int) -> Patch | None:
    """All pixels of a box, y and x of its corners, that lie in the image; None where none does."""
    (y0, x0), (y1, x1) = np.clip([low, high], 0, [height, width]).astype(int).tolist()
    return Patch(y0, x0, np.ones((y1 - y0, x1 - x0), dtype=bool)) if y1 > y0 and x1 > x0 else None
