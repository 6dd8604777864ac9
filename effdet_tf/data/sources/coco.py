"""COCO JSON: any detection or segmentation set.

Each image carries the places of its own annotations in the scratch file of `coco_index`, and the process that
converts the image reads just those.
"""

from __future__ import annotations

import itertools
import marshal
import math
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import (
    Cell,
    ImageFinder,
    ImageTask,
    Source,
    encode_patch,
    page_name,
    require_folder,
)
from effdet_tf.data.sources.coco_index import CocoIndex, by_value, index_coco
from effdet_tf.errors import UserError
from effdet_tf.geometry.polygons import polygons_to_rle
from effdet_tf.geometry.rle import Patch, rle_to_patch

_INT64 = 2**63
# Boxes that are looked at, and the share of them outside their images that is no accident.
_SAMPLE, _MANY_OUTSIDE = 1000, 0.1
_OUTSIDE = 0.5  # pixels that a coordinate may lie beyond the image before it is worth a note

# Class id by category id, or one class id for all.
ClassIds = dict[Any, int] | int


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
    """Open a COCO detection or segmentation set.

    Args:
        annotations: the JSON file.
        images: folder of the images, flat or nested.
        scratch: folder for the scratch file; it must live until the conversion is over.

    Returns:
        The source, its classes by rising category id.

    Raises:
        UserError: when the file or folder is missing, or is no COCO JSON.
    """
    faults = Faults()
    index = index_coco(annotations, scratch, faults)
    _check_coordinates(index, annotations)
    categories, class_ids = coco_classes(index.categories, annotations, faults)
    tasks = coco_tasks(index, ImageFinder(images), lambda _: ("", class_ids), faults)
    return Source("coco", categories, tasks, faults, masks=not index.boxes_only)


def _check_coordinates(index: CocoIndex, annotations: Path) -> None:
    """Raise a UserError for coordinates that are shares of the image, or boxes x1 y1 x2 y2 in a set of boxes.

    Read as COCO the ones give no pixel, and the others leave their images.
    """
    sizes: dict[Any, tuple[Any, Any]] = {}
    for entry in index.images:
        if isinstance(identity := by_value(entry.get("id")), (int, str)):
            sizes[identity] = by_value(entry.get("width")), by_value(entry.get("height"))
    outside = corners = sized = count = 0
    largest = 0.0
    with index.scratch.open("rb") as file:
        for offset, image_id in zip(index.offsets[:_SAMPLE], index.image_ids, strict=False):
            file.seek(offset)
            *_, segmentation, bbox, _ = marshal.load(file)  # noqa: S302 (our scratch file)
            box = _box(bbox)
            if box is None or isinstance(segmentation, dict):
                largest = math.inf if box is None or box.max() > 1 else largest
                continue
            count, largest = count + 1, max(largest, float(box.max()))
            known = isinstance(image_id, (int, str)) and image_id in sizes
            width, height = sizes[image_id] if known else (None, None)
            if isinstance(width, int) and isinstance(height, int):
                x, y, right, bottom = map(float, bbox)
                sized += 1
                outside += x + right > width + 1 or y + bottom > height + 1
                corners += x < right <= width + 1 and y < bottom <= height + 1
    if count > 1 and largest <= 1:
        raise UserError(
            f"{annotations}: all coordinates are between 0 and 1, shares of the image; COCO has pixels"
        )
    if index.boxes_only and outside > _MANY_OUTSIDE * sized and corners == sized:
        raise UserError(
            f"{annotations}: {outside} of {sized} boxes leave their images as x, y, width, height, and none "
            "does as x1, y1, x2, y2: write them as COCO does, [x1, y1, x2 - x1, y2 - y1]"
        )


def coco_classes(
    categories: list[dict[str, Any]], annotations: Path, faults: Faults
) -> tuple[list[dict[str, Any]], dict[Any, int]]:
    """Categories by rising id, and the class id by category id.

    Raises:
        UserError: when there is no category or an id is no whole number.
    """
    by_id: dict[int, str] = {}
    for category in categories:
        identity = by_value(category.get("id"))
        if not isinstance(identity, int):
            raise UserError(f"{annotations}: the category {category} has no whole number as its id")
        if identity in by_id:
            faults.note("category id occurs twice: the first name is used", f"category {identity}")
        by_id.setdefault(identity, str(category.get("name", identity)))
    if not by_id:
        raise UserError(f'{annotations}: has no "categories"; add at least one')
    ordered = sorted(by_id)
    listed = [{"id": identity, "name": by_id[identity]} for identity in ordered]
    return listed, {identity: class_id for class_id, identity in enumerate(ordered)}


def coco_tasks(
    index: CocoIndex,
    finder: ImageFinder,
    classify: Callable[[str], tuple[str, ClassIds] | None],
    faults: Faults,
) -> list[ImageTask]:
    """Join images and annotations.

    Args:
        index: the file's index.
        finder: finds image files.
        classify: file name -> (cell type, class ids); None leaves the image out, after `classify` itself has
            said why.
        faults: takes missing files, duplicate images and annotations of unknown images.

    """
    entries: dict[Any, dict[str, Any]] = {}
    for entry in index.images:
        name, identity = entry.get("file_name"), by_value(entry.get("id"))
        if not isinstance(name, str) or not isinstance(identity, (int, str)):
            faults.drop("image entry without id or file_name", str(entry.get("file_name", identity)), cells=0)
        elif identity in entries:
            faults.drop("image id occurs twice: the first entry is used", name, cells=0)
        else:
            entries[identity] = {**entry, "id": identity}
    ordered = sorted(entries.values(), key=lambda e: (e["file_name"], _page(e) or 0, str(e["id"])))
    places = _places_by_image(index, {entry["id"]: number for number, entry in enumerate(ordered)}, faults)
    whole = all(isinstance(e["id"], int) and -_INT64 <= e["id"] < _INT64 for e in ordered)
    if not whole:
        faults.note("image ids are no whole numbers: numbered from 1 by name", ordered[0]["file_name"])
    tasks = []
    for number, entry, path, own in _one_for_a_file(ordered, places, finder, faults):
        name, height, width = entry["file_name"], by_value(entry.get("height")), by_value(entry.get("width"))
        page = _page(entry)
        kind = classify(name)
        if kind is None:
            if len(own):
                faults.drop("cells of a dropped image", name, len(own))
            continue
        cell_type, class_ids = kind
        reader = partial(_read_cells, index.scratch, own, class_ids, index.boxes_only)
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        image_id = entry["id"] if whole else number
        shown = name if page is None else page_name(name, page)
        tasks.append(ImageTask(path, shown, image_id, reader, page, size, cell_type, len(own)))
    return tasks


def _page(entry: dict[str, Any]) -> int | None:
    """The page of a stack that an entry says it is, from 0; our own files count from 1."""
    page = by_value(entry.get("page"))
    return page - 1 if isinstance(page, int) and page > 0 else None


def _one_for_a_file(
    ordered: list[dict[str, Any]], places: list[np.ndarray], finder: ImageFinder, faults: Faults
) -> list[tuple[int, dict[str, Any], Path, np.ndarray]]:
    """Number, entry, file and places of each image; entries of the same file and page are merged.

    Of entries with different names whose files cannot be told apart none is taken.
    """
    by_page: dict[tuple[Path, int | None], list[tuple[int, dict[str, Any], np.ndarray]]] = {}
    for number, (entry, own) in enumerate(zip(ordered, places, strict=True), start=1):
        path = finder.find(entry["file_name"], faults)
        if path is not None:
            by_page.setdefault((path, _page(entry)), []).append((number, entry, own))
        elif len(own):
            faults.drop("cells of a dropped image", entry["file_name"], len(own))
    merged = []
    for (path, _), found in by_page.items():
        fits = [finder.fit(path, entry["file_name"]) for _, entry, _ in found]
        best = [one for one, fit in zip(found, fits, strict=True) if fit == max(fits)]
        names = {entry["file_name"] for _, entry, _ in best}
        for _, entry, own in found:
            if len(names) > 1 or entry["file_name"] not in names:
                named = f"{entry['file_name']}: {path.name}"
                faults.drop("image file that fits another entry as well", named, cells=0)
                if len(own):
                    faults.drop("cells of a dropped image", entry["file_name"], len(own))
        if len(names) == 1:
            number, entry, _ = best[0]
            if len(best) > 1:
                text = "several entries of one image: their cells are put together"
                faults.note(text, entry["file_name"], len(best) - 1)
            merged.append((number, entry, path, np.concatenate([own for _, _, own in best])))
    return sorted(merged, key=lambda one: one[0])


def _places_by_image(index: CocoIndex, rank: dict[Any, int], faults: Faults) -> list[np.ndarray]:
    """Offset and length of each image's annotations, uint64 [N, 2], in file order."""
    ranks = np.fromiter(
        (rank.get(i, -1) if isinstance(i, (int, str)) else -1 for i in index.image_ids), dtype=np.int64
    )
    for position in np.flatnonzero(ranks < 0).tolist():
        faults.drop("annotation of an unknown image", f"image id {index.image_ids[position]}")
    offsets = np.array(index.offsets, dtype=np.uint64)
    places = np.column_stack([offsets[:-1], np.diff(offsets)])
    order = np.argsort(ranks, kind="stable")
    bounds = np.searchsorted(ranks[order], np.arange(len(rank) + 1))
    return [places[order[low:high]] for low, high in itertools.pairwise(bounds)]


class _Unusable(Exception):
    """An annotation that gives no cell; its text is the reason."""


def _read_cells(
    scratch: Path,
    places: np.ndarray,
    class_ids: ClassIds,
    boxes_only: bool,
    height: int,
    width: int,
    file_name: str,
    faults: Faults,
) -> list[Cell]:
    """Read the annotations at `places` of the scratch file, uint64 [N, 2]; see `CellReader`."""
    cells = []
    with scratch.open("rb") as file:
        for offset, length in places.tolist():
            file.seek(offset)
            identity, _, category, segmentation, bbox, iscrowd = marshal.loads(file.read(length))  # noqa: S302 (our scratch file)
            name = f"{file_name} (annotation {identity})"
            box = _box(bbox)
            notes = Faults()  # of a cell that is dropped in the end, only the drop is counted
            try:
                class_id = _class_id(category, class_ids)
                if boxes_only:
                    patch, counts = _touched_pixels(box, height, width), b""
                else:
                    patch, counts = _mask(segmentation, box, height, width, name, notes)
            except _Unusable as reason:
                faults.drop(str(reason), name)
                continue
            faults.merge(notes)
            if box is None:
                faults.note("no valid annotated box: the mask's box is used", name)
            if iscrowd:
                faults.note("crowd: no cell (CVAT marks what its brush painted so: set iscrowd to 0)", name)
            cells.append(Cell(name, patch, counts, class_id, box, bool(iscrowd)))
    return cells


def _class_id(category: Any, class_ids: ClassIds) -> int:
    if isinstance(class_ids, int):
        return class_ids
    if not isinstance(category, Hashable) or category not in class_ids:
        raise _Unusable("annotation of an unknown category")
    return class_ids[category]


def _box(bbox: Any) -> np.ndarray | None:
    """COCO [x, y, width, height] -> float32 yxyx, or None when it is no box."""
    try:
        x, y, width, height = (float(v) for v in bbox)
    except (TypeError, ValueError):
        return None
    if not (all(map(math.isfinite, (x, y, width, height))) and width > 0 and height > 0):
        return None
    return np.array([y, x, y + height, x + width], dtype=np.float32)


def _touched_pixels(box: np.ndarray | None, height: int, width: int) -> Patch:
    """The pixels of the image that a box touches."""
    if box is None:
        raise _Unusable("no valid annotated box")
    patch = _box_patch(np.floor(box[:2]), np.ceil(box[2:]), height, width)
    if patch is None:
        raise _Unusable("box outside the image")
    return patch


def _box_patch(low: np.ndarray, high: np.ndarray, height: int, width: int) -> Patch | None:
    """The pixels of the image from `low` to before `high`, whole numbers yx; None when there is none."""
    (y0, x0), (y1, x1) = np.clip([low, high], 0, [height, width]).astype(int).tolist()
    return Patch(y0, x0, np.ones((y1 - y0, x1 - x0), dtype=bool)) if y1 > y0 and x1 > x0 else None


def _mask(
    segmentation: Any, box: np.ndarray | None, height: int, width: int, name: str, notes: Faults
) -> tuple[Patch, bytes]:
    """The tight patch and the compressed counts of a segmentation, or of the box where there is none."""
    rle = None
    try:
        if isinstance(segmentation, dict):
            size = segmentation.get("size")
            if size is not None and list(size) != [height, width]:
                raise _Unusable("RLE of another size than its image")
            patch = rle_to_patch({**segmentation, "size": [height, width]})
        elif segmentation:
            rle = polygons_to_rle(_polygons(segmentation, height, width, name, notes), height, width)
            patch = rle_to_patch(rle)
        elif box is None:
            raise ValueError("neither segmentation nor box")
        else:
            patch = _box_patch(np.floor(box[:2] + 0.5), np.floor(box[2:] + 0.5), height, width)
            notes.note("no segmentation: the box is used as mask", name)
    except (ValueError, TypeError, OverflowError):
        raise _Unusable("degenerate or unreadable segmentation") from None
    if patch is None:
        raise _Unusable("cell without a pixel inside the image")
    return patch, rle["counts"].encode("ascii") if rle else encode_patch(patch, height, width)


def _polygons(segmentation: Any, height: int, width: int, name: str, notes: Faults) -> list[np.ndarray]:
    """The usable polygons of a list that lie in the image, at least in part.

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
    points = np.concatenate(good).reshape(-1, 2)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise _Unusable("polygon outside the image")
    if min(left, top) < -_OUTSIDE or right > width + _OUTSIDE or bottom > height + _OUTSIDE:
        notes.note("polygon reaches outside the image: clipped", name)
    return good
