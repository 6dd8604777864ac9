"""Outlines beside their images: ImageJ regions, GeoJSON and YOLO labels, as people correct and draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import Cell, ImageTask, Source, page_names, require_folder, type_classes
from effdet_tf.data.sources.outline_files import (
    UNNAMED,
    Outline,
    read_geojson,
    read_rois,
    read_yolo,
    yolo_classes,
)
from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import largest_component
from effdet_tf.geometry.polygons import rings_to_patch
from effdet_tf.geometry.rle import patch_to_rle
from effdet_tf.images.read import IMAGE_SUFFIXES

_OWN_PICTURES = (".labels", ".overlay")  # endings of what `predict` writes beside its outlines


class Kind(NamedTuple):
    """A kind of annotation file."""

    suffixes: tuple[str, ...]
    read: Callable[[Path, Faults], Iterator[Outline]]
    shares: bool  # whether coordinates are shares of the image's size


KINDS = {
    "imagej": Kind((".rois.zip", ".zip", ".roi"), read_rois, False),
    "geojson": Kind((".geojson", ".json"), read_geojson, False),
    "yolo": Kind((".txt",), read_yolo, True),
}


@dataclass(frozen=True)
class OutlineCells:
    """Rasterises the outlines of one image, each to its largest connected piece.

    Attributes:
        path: the annotation file.
        kind: one of `KINDS`.
        class_ids: class id by name or number.
        page: of a stack, from 0, or None.
        annotated: unknown before reading, so 0.
    """

    path: Path
    kind: str
    class_ids: dict[str | int, int]
    page: int | None = None
    annotated: int = 0

    def read(self, height: int, width: int, file_name: str, faults: Faults) -> list[Cell]:
        """Read the outlines; see `CellReader`."""
        cells = []
        size = np.array([width, height]) if KINDS[self.kind].shares else np.ones(2)
        for outline in KINDS[self.kind].read(self.path, faults):
            if None not in (self.page, outline.page) and outline.page != self.page:
                continue
            name = f"{file_name} ({outline.name})"
            if outline.label not in self.class_ids:
                faults.drop("outline of an unknown class", name)
                continue
            try:
                patch = rings_to_patch([ring * size for ring in outline.rings], height, width)
            except ValueError:
                faults.drop("degenerate or unreadable outline", name)
                continue
            if patch is None:
                faults.drop("cell without a pixel inside the image", name)
                continue
            patch, stray = largest_component(patch)
            if stray:
                faults.note("cell in several pieces: the largest is kept", name)
            counts = patch_to_rle(patch, height, width)["counts"].encode("ascii")
            cells.append(Cell(name, patch, counts, None, self.class_ids[outline.label]))
        return cells


def open_outlines(kind: str, root: Path, images: Path | None = None, outlines: Path | None = None) -> Source:
    """Open a set of images with files of outlines of the same name, at the same place in two trees or one.

    Its classes are those that the files name, by name, or YOLO's in their own order.

    Args:
        kind: one of `KINDS`.
        root: folder of the data set.
        images: folder of the images (`root/images` or `root`).
        outlines: folder of the annotation files (`root/labels` or `root`).

    Raises:
        UserError: when a folder is missing, no image has outlines, or a file cannot be read.
    """
    require_folder(root)
    images = images or (root / "images" if (root / "images").is_dir() else root)
    outlines = outlines or (root / "labels" if (root / "labels").is_dir() else root)
    for folder in (images, outlines):
        require_folder(folder)
    faults = Faults()
    found = _by_name(outlines, KINDS[kind].suffixes)
    pairs: list[tuple[Path, str, Path]] = []
    for path in sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()):
        relative = path.relative_to(images)
        if path.stem.endswith(_OWN_PICTURES) or any(part.startswith(".") for part in relative.parts):
            continue
        file = found.pop(relative.with_suffix("").as_posix(), None) or found.pop(relative.as_posix(), None)
        if file is None:
            faults.drop("image without outlines", relative.as_posix())
        else:
            pairs.append((path, relative.as_posix(), file))
    for name in sorted(found):
        if found[name].name not in ("classes.txt", "summary.json"):
            faults.drop("outlines without an image", name)
    if not pairs:
        raise UserError(
            f"{outlines}: no {' or '.join(KINDS[kind].suffixes)} file is named as an image of {images}; "
            "name the folders by --images and --outlines"
        )
    names, class_ids = _classes(kind, outlines, root, [file for _, _, file in pairs])
    tasks: list[ImageTask] = []
    for path, name, file in pairs:
        try:
            pages = page_names(path, name)
        except UserError:  # said when the image is converted
            pages = [(None, name)]
        for page, shown in pages:
            cells = OutlineCells(file, kind, class_ids, page)
            tasks.append(ImageTask(path, shown, len(tasks) + 1, None, "", cells, page))
    return Source(kind, type_classes(names)[0], tasks, faults)


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Annotation files by their path without suffix; the first suffix that is there wins."""
    found: dict[str, Path] = {}
    for suffix in suffixes:
        for path in sorted(folder.rglob(f"*{suffix}")):
            name = path.relative_to(folder).as_posix().removesuffix(suffix)
            if path.is_file() and path not in found.values():
                found.setdefault(name, path)
    return found


def _classes(
    kind: str, folder: Path, root: Path, files: list[Path]
) -> tuple[list[str], dict[str | int, int]]:
    """Names of the classes, and class id by what the files call them."""
    if kind == "yolo" and (names := yolo_classes(folder, root)):
        return names, {number: number for number in range(len(names))}
    labels = {outline.label for file in files for outline in KINDS[kind].read(file, Faults())} or {UNNAMED}
    ordered = sorted(labels, key=lambda label: (isinstance(label, str), label))
    return [str(label) for label in ordered], {label: number for number, label in enumerate(ordered)}
