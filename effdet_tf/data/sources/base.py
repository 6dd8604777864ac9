"""What every kind of source gives: a sorted list of images, each with a reader for its cells."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.errors import UserError, near_files
from effdet_tf.geometry.rle import Patch
from effdet_tf.images.read import IMAGE_SUFFIXES, Stack


class Cell(NamedTuple):
    """One annotated cell.

    Attributes:
        name: for reports, for example "a.tif (annotation 7)".
        patch: the mask to train on, tight.
        counts: compressed COCO counts of the annotation itself, full resolution: what evaluation takes. Empty
            in a set of boxes alone; the patch is all that the box touches then.
        box: float32 [4] yxyx pixels as annotated, or None where the source has no boxes of its own.
        class_id: from 0.
        iscrowd: neither trained on nor counted.
    """

    name: str
    patch: Patch
    counts: bytes
    box: np.ndarray | None
    class_id: int
    iscrowd: bool = False


class CellReader(Protocol):
    """Reads the cells of one image; picklable, so that it can run in another process."""

    @property
    def annotated(self) -> int:
        """Number of annotations, faulty ones too; 0 where that is known only after reading."""
        ...

    def read(self, height: int, width: int, file_name: str, faults: Faults) -> list[Cell]:
        """Give the cells of an image of this size; what is wrong goes to `faults`.

        Raises:
            UserError: when the annotation of the whole image cannot be used.
        """
        ...


@dataclass(frozen=True)
class ImageTask:
    """One image to convert.

    Attributes:
        path: the image file.
        file_name: its name in the data set, with "/" between folders.
        image_id: the source's own id, or a running number.
        size: (height, width) as annotated, or None.
        cell_type: cell type, empty when unknown.
        cells: reader of its cells.
        page: of a stack, from 0; None for a file that must be one image.
    """

    path: Path
    file_name: str
    image_id: int
    size: tuple[int, int] | None
    cell_type: str
    cells: CellReader
    page: int | None = None


@dataclass
class Source:
    """An annotated image set, opened.

    Attributes:
        name: kind of source.
        categories: [{"id", "name"}] by class id.
        tasks: the images by rising file name.
        faults: what was wrong before any image was read.
        masks: False when the cells are annotated by boxes alone.
        pseudo: what a network labelled the images with; empty when people did.
    """

    name: str
    categories: list[dict[str, Any]]
    tasks: list[ImageTask]
    faults: Faults = field(default_factory=Faults)
    masks: bool = True
    pseudo: dict[str, Any] = field(default_factory=dict)


class ImageFinder:
    """Finds image files by the names that an annotation file gives them, in flat and nested folders."""

    def __init__(self, root: Path) -> None:
        """List the files below `root`, which must be a folder."""
        require_folder(root)
        self.root = root
        self._by_name: dict[str, list[Path]] = {}
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                self._by_name.setdefault(name, []).append(Path(folder) / name)

    def find(self, file_name: str, faults: Faults) -> Path | None:
        """The file of this name: at that very place, or anywhere below; None, noted, when there is none."""
        exact = self.root / file_name
        name = file_name.replace("\\", "/").rsplit("/", 1)[-1]
        candidates = self._by_name.get(name, [])
        if exact in candidates:
            return exact
        if not candidates:
            faults.drop("image file missing", file_name)
            return None
        if len(candidates) > 1:
            faults.note("image file in several folders: the first is used", file_name)
        return candidates[0]


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, which must be one, by name."""
    require_folder(folder)
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def page_names(path: Path, name: str) -> list[tuple[int | None, str]]:
    """The pages of an image file and their names in the data set: one without a number for one image.

    Raises:
        UserError: when the file cannot be read.
    """
    with Stack(path) as stack:
        pages = stack.pages
    return [(page, f"{name}#{page + 1:04d}") for page in range(pages)] if pages > 1 else [(None, name)]


def require_folder(folder: Path) -> None:
    """Raise a UserError where `folder` is missing or a file."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else f"does not exist{near_files(folder)}"
        end = "" if what.endswith("?") else "; name the folder that holds the data set"
        raise UserError(f"{folder}: {what}{end}")


def type_classes(names: list[str]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Categories with ids from 1, and the class id by case-folded name."""
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    return categories, {name.casefold(): index for index, name in enumerate(names)}
