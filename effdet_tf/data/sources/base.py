"""What every kind of source gives: a sorted list of images, each with a reader for its cells."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.errors import UserError, near_files
from effdet_tf.geometry.rle import Patch, patch_to_rle
from effdet_tf.images.bioio_file import is_one_image
from effdet_tf.images.read import IMAGE_SUFFIXES, Stack
from effdet_tf.images.tif_metadata import Axes


class Cell(NamedTuple):
    """One annotated cell."""

    name: str  # for reports, for example "a.tif (annotation 7)"
    patch: Patch  # the mask to train on, tight; in a set of boxes alone all that the box touches
    counts: bytes  # COCO counts of the annotation at full resolution, for evaluation; empty for a box alone
    class_id: int  # from 0
    box: np.ndarray | None = None  # float32 [4] yxyx pixels as annotated, where the source has boxes
    iscrowd: bool = False  # neither trained on nor counted
    score: float = 1.0  # how sure the label is, see `ImageRecord.scores`
    bitmap: np.ndarray | None = None  # uint8 [m, m], a network's probability over the patch's box, times 255


# (height, width, file name, faults) -> the cells of an image of that size; what is wrong goes to `faults`. A
# UserError says that none of the image's annotation can be used. Picklable, to run in another process.
CellReader = Callable[[int, int, str, Faults], list[Cell]]


@dataclass(frozen=True)
class ImageTask:
    """One image to convert."""

    path: Path
    file_name: str  # in the data set, with "/" between folders
    image_id: int  # the source's own, or a running number
    read_cells: CellReader
    page: int | None = None  # of a stack, from 0; None for a file that must be one image
    size: tuple[int, int] | None = None  # (height, width) as annotated
    cell_type: str = ""  # empty when unknown
    annotated: int = 0  # annotations, usable or not; 0 where that is known only after reading


@dataclass
class Source:
    """An annotated image set, opened."""

    name: str  # kind of source
    categories: list[dict[str, Any]]  # [{"id", "name"}] by class id
    tasks: list[ImageTask]  # the images by rising file name
    faults: Faults = field(default_factory=Faults)  # what was wrong before any image was read
    masks: bool = True  # False when the cells are annotated by boxes alone
    # of the network that labelled the images, if one did
    pseudo: dict[str, Any] = field(default_factory=dict)


class ImageFinder:
    """Finds image files by the names that an annotation file gives them, in flat and nested folders.

    Args:
        root: folder that holds the images, at any depth.

    Raises:
        UserError: when `root` is no folder.
    """

    def __init__(self, root: Path) -> None:
        require_folder(root)
        self.root = root
        self._by_name: dict[str, list[Path]] = {}
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(name for name in names if not is_hidden(Path(name))):
                self._by_name.setdefault(_folded(name)[-1], []).append(Path(folder) / name)

    def find(self, file_name: str, faults: Faults) -> Path | None:
        """The file whose path has the longest end in common with a name, in any case and with any separator.

        None, dropped, when no file has that name, or several fit alike.
        """
        candidates = self._by_name.get(_folded(file_name)[-1], [])
        if not candidates and "%" in file_name:  # as Label Studio writes blanks
            file_name = unquote(file_name)
            candidates = self._by_name.get(_folded(file_name)[-1], [])
        if not candidates:
            faults.drop("image file missing", file_name, cells=0)
            return None
        fits = [self.fit(path, file_name) for path in candidates]
        best = [path for path, fit in zip(candidates, fits, strict=True) if fit == max(fits)]
        if len(best) > 1:
            places = " and ".join(path.relative_to(self.root).as_posix() for path in best[:2])
            faults.drop("image file in several folders", f"{file_name}: {places}", cells=0)
            return None
        return best[0]

    def fit(self, path: Path, file_name: str) -> tuple[int, bool, int]:
        """How well a path below the root fits a name; the larger, the better."""
        own, asked = _folded(path.relative_to(self.root).as_posix())[::-1], _folded(file_name)[::-1]
        alike = [a == b for a, b in zip(own, asked, strict=False)]
        common = alike.index(False) if False in alike else len(alike)
        parts = re.split(r"[\\/]", file_name)[::-1]
        exact = sum(a == b for a, b in zip(path.parts[::-1], parts, strict=False))
        return common, own == asked, exact


def _folded(name: str) -> list[str]:
    """The parts of a path for comparison: separators, case, spelling of accents, `.` and drives are alike."""
    parts = re.split(r"[\\/]+", unicodedata.normalize("NFC", name).casefold())
    return [part for part in parts if part not in ("", ".") and not re.fullmatch("[a-z]:", part)] or [""]


def encode_patch(patch: Patch, height: int, width: int) -> bytes:
    """The `counts` of a `Cell` whose annotation is this patch, in an image of this size."""
    return patch_to_rle(patch, height, width)["counts"].encode("ascii")


def decode_patch(
    what: str, name: str, faults: Faults, decode: Callable[..., Patch | None], *args: Any
) -> Patch | None:
    """`decode(*args)`, the patch of a cell; None, dropped, where it is unreadable or has no pixel."""
    try:
        patch = decode(*args)
    except ValueError:
        faults.drop(f"degenerate or unreadable {what}", name)
        return None
    if patch is None:
        faults.drop("cell without a pixel inside the image", name)
    return patch


def is_hidden(path: Path) -> bool:
    """Whether a path is hidden, or lies in what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, by name; UserError when it is no folder."""
    require_folder(folder)
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and is_one_image(p))
    return sorted(p for p in files if not is_hidden(Path(p.name)))


def axes_of(path: Path) -> Axes:
    """Along what the pages of an image file lie.

    Raises:
        UserError: when the file cannot be read.
    """
    with Stack(path) as stack:
        return stack.axes


def page_names(name: str, pages: int) -> list[tuple[int | None, str]]:
    """The pages of an image file and their names in the data set: one without a number for one image."""
    return [(page, page_name(name, page)) for page in range(pages)] if pages > 1 else [(None, name)]


def page_name(name: str, page: int) -> str:
    """The name in the data set of a page, from 0, of an image file."""
    return f"{name}#{page + 1:04d}"


def annotated_pages(name: str, axes: Axes, marked: set[int], faults: Faults) -> list[tuple[int | None, str]]:
    """The pages of a file, see `page_names`, without channels on none of whose pages, `marked`, a cell lies.

    What a person outlined in one channel is not missing in the others, which would be images without cells.
    """
    pages = page_names(name, axes.pages)
    channels = {axes.place(page)["c"] for page in marked} if "C" in axes.letters else set()
    if not channels:
        return pages
    kept = [(page, shown) for page, shown in pages if axes.place(page or 0)["c"] in channels]
    if len(kept) < len(pages):
        taken = ", ".join(str(channel + 1) for channel in sorted(channels))
        faults.note("pages of channels without any annotation: left out", f"{name}: channel {taken} has some")
    return kept


def require_folder(folder: Path) -> None:
    """Raise a UserError unless `folder` is a folder: it is missing, or a file."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else f"does not exist{near_files(folder)}"
        end = "" if what.endswith("?") else "; name the folder that holds the data set"
        raise UserError(f"{folder}: {what}{end}")


def number_categories(names: list[str]) -> list[dict[str, Any]]:
    """Categories of these names, with ids from 1."""
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
