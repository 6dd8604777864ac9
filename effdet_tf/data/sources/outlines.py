"""Outlines beside their images: ImageJ regions, GeoJSON, LabelMe and YOLO, as people draw them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import (
    Cell,
    ImageTask,
    Source,
    annotated_pages,
    axes_of,
    decode_patch,
    encode_patch,
    is_hidden,
    number_categories,
    page_name,
    require_folder,
)
from effdet_tf.data.sources.outline_files import (
    UNNAMED,
    Outline,
    read_geojson,
    read_labelme,
    read_rois,
    read_yolo,
    yolo_classes,
)
from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import largest_component
from effdet_tf.geometry.polygons import rings_to_patch
from effdet_tf.images.bioio_file import is_one_image
from effdet_tf.images.read import IMAGE_SUFFIXES
from effdet_tf.images.tif_metadata import Axes

_OWN_PICTURES = (".labels", ".overlay")  # endings of what `predict` writes beside its outlines
# kind -> endings of its annotation files, and their reader
KINDS = {
    "imagej": ((".rois.zip", "_RoiSet.zip", ".zip", ".roi"), read_rois),
    "geojson": (("_instanseg_prediction.geojson", ".geojson", ".json"), read_geojson),
    "labelme": ((".json",), read_labelme),
    "yolo": ((".txt",), read_yolo),
}


def open_outlines(kind: str, root: Path, images: Path | None = None, outlines: Path | None = None) -> Source:
    """Open a set of images with files of outlines of the same name, at the same place in two trees or one.

    Args:
        kind: one of `KINDS`.
        root: folder of the data set.
        images: folder of the images (`root/images` or `root`).
        outlines: folder of the annotation files (`root/labels`, or that of the images, or `root`).

    Returns:
        The source; its classes are those that the files name, by name, or YOLO's in their own order.

    Raises:
        UserError: when a folder is missing, no image has outlines, or a file cannot be read.
    """
    require_folder(root)
    images = images or (root / "images" if (root / "images").is_dir() else root)
    if outlines is None and (root / "labels").is_dir():
        outlines = root / "labels"
    elif outlines is None:
        endings = tuple(ending.lower() for ending in KINDS[kind][0])
        beside = any(path.name.lower().endswith(endings) for path in images.rglob("*"))
        outlines = images if beside else root
    for folder in (images, outlines):
        require_folder(folder)
    faults = Faults()
    pairs = _pairs(kind, images, outlines, faults)
    if not pairs:
        raise UserError(
            f"{outlines}: no {' or '.join(KINDS[kind][0])} file is named as an image of {images}; "
            "name the folders by --images and --outlines"
        )
    names, class_ids = _classes(kind, outlines, root, [file for _, _, file, _ in pairs])
    tasks: list[ImageTask] = []
    for path, name, file, number in pairs:
        if number is not None:
            reader = partial(_read_cells, file, kind, class_ids, Axes(), None)
            tasks.append(ImageTask(path, name, len(tasks) + 1, reader, number))
            continue
        axes = Axes()
        with contextlib.suppress(UserError):  # said when the image is converted
            axes = axes_of(path)
        for page, shown in annotated_pages(name, axes, _marked(file, kind, axes), faults):
            reader = partial(_read_cells, file, kind, class_ids, axes, page)
            tasks.append(ImageTask(path, shown, len(tasks) + 1, reader, page))
    return Source(kind, number_categories(names), tasks, faults)


def _pairs(
    kind: str, images: Path, outlines: Path, faults: Faults
) -> list[tuple[Path, str, Path, int | None]]:
    """Image files, their names, their outlines, and the page of which alone these are, where they are."""
    files = _by_name(outlines, KINDS[kind][0])
    pairs: list[tuple[Path, str, Path, int | None]] = []
    found = sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and is_one_image(p))
    stems = {path.relative_to(images).with_suffix("").as_posix() for path in found}
    for path in found:
        relative = path.relative_to(images)
        if path.stem.endswith(_OWN_PICTURES) or is_hidden(relative):
            continue
        name = relative.as_posix()
        stem = relative.with_suffix("").as_posix()
        file = files.pop(stem, None) or files.pop(name, None)
        paged = _page_files(path, stem, files, stems) if kind == "yolo" and file is None else {}
        if file is not None:
            pairs.append((path, name, file, None))
        elif paged:
            pairs += [(path, page_name(name, page), own, page) for page, own in paged.items()]
        else:
            faults.drop("image without outlines", name, cells=0)
    for name in sorted(files):
        if files[name].name not in ("classes.txt", "summary.json"):
            faults.drop("outlines without an image", name, cells=0)
    return pairs


def _page_files(image: Path, stem: str, files: dict[str, Path], others: set[str]) -> dict[int, Path]:
    """The files of the pages of a stack, `stem_0001` and so on, which are taken from `files`.

    `others` are the stems of all images: a file that is named as one of them is that image's.
    """
    if not any(name.startswith(f"{stem}_") and name not in others for name in files):
        return {}
    with contextlib.suppress(UserError):  # said when the image is converted
        names = [f"{stem}_{page + 1:04d}" for page in range(axes_of(image).pages)]
        if len(names) > 1:
            own = [(page, name) for page, name in enumerate(names) if name in files and name not in others]
            return {page: files.pop(name) for page, name in own}
    return {}


def _marked(file: Path, kind: str, axes: Axes) -> set[int]:
    """The pages of an image with channels on which outlines lie."""
    if "C" not in axes.letters:
        return set()
    places = [{"page": page, **axes.place(page)} for page in range(axes.pages)]
    marked: set[int] = set()
    with contextlib.suppress(UserError):  # said when the image is converted
        for outline in KINDS[kind][1](file, Faults()):
            marked |= {page for page, place in enumerate(places) if _lies_on(outline, place)}
    return marked


def _lies_on(outline: Outline, place: dict[str, int]) -> bool:
    """Whether an outline is of the page at a place: it may be of all pages along some axes."""
    return all(place.get(axis, index) == index for axis, index in outline.where.items())


def _read_cells(
    path: Path,
    kind: str,
    class_ids: dict[str | int, int],
    axes: Axes,
    page: int | None,
    height: int,
    width: int,
    file_name: str,
    faults: Faults,
) -> list[Cell]:
    """Rasterise the outlines of an image or page, each to its largest connected piece; see `CellReader`."""
    cells = []
    place = {} if page is None else {"page": page, **axes.place(page)}
    last = {} if page is None else {"page": axes.pages - 1, **axes.place(axes.pages - 1)}
    # A file is read for each of its pages; what is wrong with it is told once.
    for outline in KINDS[kind][1](path, Faults() if page else faults):
        name = f"{file_name} ({outline.name})"
        if page == 0 and any(index > last.get(axis, index) for axis, index in outline.where.items()):
            faults.drop("outline on a page that the image lacks", name)
        if not _lies_on(outline, place):
            continue
        if outline.size not in (None, (height, width)):
            own = "{}x{}".format(*outline.size)
            raise UserError(f"{path}: was drawn on an image of {own} px, this one is {height}x{width}")
        if outline.label not in class_ids:
            faults.drop("outline of an unknown class", name)
            continue
        rings = [ring * ((width, height) if outline.shares else (1, 1)) for ring in outline.rings]
        patch = decode_patch("outline", name, faults, rings_to_patch, rings, height, width)
        if patch is None:
            continue
        if kind != "yolo" and patch.mask.shape == (height, width) and patch.mask.all():
            faults.note("outline of the whole image: a region and no cell, left out", name)
            continue
        patch, stray = largest_component(patch)
        if stray:
            faults.note("cell in several pieces: the largest is kept", name)
        cells.append(Cell(name, patch, encode_patch(patch, height, width), class_ids[outline.label]))
    return cells


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Annotation files by their path without suffix, of any case; the first suffix that is there wins."""
    files = sorted((path.relative_to(folder), path) for path in folder.rglob("*") if path.is_file())
    names = {path: relative.as_posix() for relative, path in files if not is_hidden(relative)}
    found: dict[str, Path] = {}
    taken: set[Path] = set()
    for suffix in suffixes:
        for path, name in names.items():
            fits = path not in taken and name.lower().endswith(suffix.lower())
            if fits and found.setdefault(name[: -len(suffix)], path) is path:
                taken.add(path)
    return found


def _classes(
    kind: str, folder: Path, root: Path, files: list[Path]
) -> tuple[list[str], dict[str | int, int]]:
    """Names of the classes, and class id by what the files call them."""
    if kind == "yolo" and (names := yolo_classes(folder, root, *folder.parents[:2], *root.parents[:1])):
        if sorted(names) == list(range(len(names))):
            _refuse_shifted(folder, files, len(names))
        return list(names.values()), {number: place for place, number in enumerate(names)}
    labels = set(_labels(kind, files)) or {UNNAMED}
    ordered = sorted(labels, key=lambda label: (isinstance(label, str), label))
    return [str(label) for label in ordered], {label: number for number, label in enumerate(ordered)}


def _refuse_shifted(folder: Path, files: list[Path], count: int) -> None:
    """Raise a UserError for labels that count from 1 where the `count` names count from 0."""
    highest = 0
    for label in _labels("yolo", files):
        if not label:  # most sets have the first class in their first file
            return
        highest = max(highest, int(label))
    if highest == count:
        raise UserError(
            f"{folder}: the labels use the classes 1 to {count}, the names those from 0 to {count - 1}: one "
            "of the two is shifted by one; number both alike"
        )


def _labels(kind: str, files: list[Path]) -> Iterator[str | int]:
    """What the files call their classes; one that cannot be read is told of when its image is converted."""
    for file in files:
        with contextlib.suppress(UserError):
            yield from (outline.label for outline in KINDS[kind][1](file, Faults()))
