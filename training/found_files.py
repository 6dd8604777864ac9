"""Cells that any tool has found: files beside each other, or a submission, read image by image."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import is_hidden
from effdet_tf.data.sources.labelmaps import IMAGE_ENDINGS, MASK_ENDINGS
from effdet_tf.data.sources.outline_files import UNNAMED, yolo_classes
from effdet_tf.data.sources.outlines import KINDS
from effdet_tf.data.sources.seg_npy import read_seg_npy
from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import labels_to_patches, largest_component
from effdet_tf.geometry.polygons import rings_to_patch
from effdet_tf.geometry.rle import Patch, kaggle_rle_to_patch, patch_to_rle
from effdet_tf.images.read import IMAGE_SUFFIXES, Stack, read_labels

Entries = list[dict[str, Any]]

# By falling worth: the first two may have scores. The last are images without an ending that tells.
_TITLES = {
    "geojson": "GeoJSON",
    "yolo": "YOLO labels",
    "labelmaps": "label maps",
    "cellpose": "Cellpose's _seg.npy",
    "imagej": "ImageJ regions",
    "plain": "label maps named as the images",
}
_OUTLINES = ("geojson", "yolo", "imagej")
_LONGEST_FIELD = 1 << 27
_MANY_SPLIT, _FEW = 0.5, 10  # share of labels in pieces that tells of an image, of so many at least


class _Found(NamedTuple):
    patch: Patch | None  # None: not a pixel of it lies in the image
    label: str  # name of its class; UNNAMED where the format has none
    score: float | None


class FoundFiles:
    """What a tool found in the images of a data set, read image by image from a folder, or a submission.

    Attributes:
        title: what was read, for a person.
    """

    def __init__(self, path: Path, categories: Sequence[Mapping[str, Any]]) -> None:
        """Look at what there is.

        Args:
            path: folder of files that are named as the images, or a submission, `.csv`.
            categories: of the data set, COCO's.

        Raises:
            UserError: when there is no such file.
        """
        self._path, self._ids = path, {str(one["name"]): int(one["id"]) for one in categories}
        self._first = int(categories[0]["id"])
        self._names: dict[int, str] = {}  # of YOLO's classes
        self._faults = Faults()
        if path.is_dir():
            self.kind, self._files = _of_most(path, self._faults)
            self.title = f"{len(self._files)} files, {_TITLES[self.kind]}"
            if self.kind == "yolo":
                self._names = yolo_classes(path, path.parent)
        else:
            self.kind, self._rows = "submission", _submission(path)
            self._files = dict.fromkeys(self._rows, path)
            self.title = f"{len(self._rows)} images of a submission"
        self._by_end: dict[str, list[str]] = defaultdict(list)
        for name in self._files:
            self._by_end[name.rsplit("/", 1)[-1]].append(name)
        self._used: set[str] = set()
        self._lent: dict[str, str] = {}  # files that lie in another folder than their image, and that
        self._missing: list[str] = []
        self._cells = self._number = self._scored = 0
        self._foreign: Counter[str] = Counter()

    def take(self, image: Mapping[str, Any]) -> tuple[Entries, list[int]]:
        """The cells of an image, an entry of COCO's "images", as COCO results, and their numbers.

        Raises:
            UserError: when its file cannot be read, is of another size, or went to another image.
        """
        name = self._name(str(image["file_name"]))
        if name is None:
            self._missing.append(str(image["file_name"]))
            return [], []
        self._used.add(name)
        height, width = int(image["height"]), int(image["width"])
        _, page = _paged(str(image["file_name"]))
        entries: Entries = []
        for patch, label, score in self._read(name, int(page) - 1 if page else None, height, width):
            self._cells += 1
            self._scored += score is not None
            category = self._category(label)
            if category is None:
                self._foreign[label] += 1
            elif patch is not None:
                rle = patch_to_rle(patch, height, width)
                score = 1.0 if score is None else score
                entry = {"image_id": image["id"], "category_id": category, "score": score}
                entries.append({**entry, "segmentation": rle})
        start, self._number = self._number, self._number + len(entries)
        return entries, list(range(start, self._number))

    def close(self, whole: bool = True) -> None:
        """Say on stderr what was read, and what was not as it should be; `whole`: all images were asked for.

        Raises:
            UserError: when no file belongs to any of the images.
        """
        if not self._used:
            some = next(iter(self._files), "nothing")
            raise UserError(
                f"{self._path}: holds {self.title}, for example {some}, and none is named as an image of the "
                f"data, for example {self._missing[0] if self._missing else 'none'}; name them alike"
            )
        lines = [f"{self._path}: {self.title}; {self._cells} cells"]
        if self._cells and not self._scored:
            lines[0] += ", none with a score: AP takes all for equally sure"
        elif self._scored < self._cells:
            lines[0] += f", {self._cells - self._scored} without a score, which count as sure"
        if self._missing:
            images = f"{len(self._missing)} images have no file and count as images where nothing was found"
            lines.append(f"warning: {images}: {_some(self._missing)}")
        left = [name for name in self._files if name not in self._used]
        if left and whole:
            lines.append(f"warning: {len(left)} files are named as no image and were left out: {_some(left)}")
        if self._foreign:
            classes = ", ".join(f"{label} ({count})" for label, count in self._foreign.most_common(5))
            lines.append(f"warning: cells of classes that the data lack were left out: {classes}")
        lines += [line.strip() for line in self._faults.lines()]
        print("\n".join(lines), file=sys.stderr)

    def _name(self, file_name: str) -> str | None:
        """The name among the files of what belongs to an image; None where there is none, or several."""
        whole, page = _paged(file_name)
        stem = Path(whole).with_suffix("").as_posix()
        names = [stem, *(stem.removesuffix(end) for end in IMAGE_ENDINGS if stem.endswith(end)), whole]
        names += [f"{name}_{page}" for name in names if page]  # as YOLO names pages
        for name in names:
            # In another folder than the image's only where no two are called so.
            ends = self._by_end.get(name.rsplit("/", 1)[-1], [])
            for found in [name] if name in self._files else ends if len(ends) == 1 else []:
                if self._lent.get(found, whole) != whole:
                    raise taken(whole, self._lent[found])
                if page or found not in self._used:
                    if found != name:
                        self._lent[found] = whole
                    return found
        return None

    def _category(self, label: str) -> int | None:
        if label in self._ids:
            return self._ids[label]
        return self._first if label == UNNAMED or len(self._ids) == 1 else None

    def _read(self, name: str, page: int | None, height: int, width: int) -> Iterator[_Found]:
        path = self._files[name]
        if self.kind == "submission":
            for text in self._rows[name]:
                try:
                    yield _Found(kaggle_rle_to_patch(text, height, width), UNNAMED, None)
                except ValueError as error:
                    raise UserError(f"{path}: image {name}: {error}") from error
        elif self.kind in _OUTLINES:
            yield from self._outlines(path, page, height, width)
        else:
            labels = _labels(path, page, self.kind)
            if labels.shape != (height, width):
                found = f"{labels.shape[0]}x{labels.shape[1]}"
                raise UserError(f"{path}: is {found}, the image {name} is {height}x{width}")
            patches = [patch for _, patch in labels_to_patches(labels)]
            split = sum(largest_component(patch)[1] > 0 for patch in patches) if self.kind == "plain" else 0
            if split > _MANY_SPLIT * max(len(patches), _FEW):
                raise UserError(
                    f"{path}: {split} of its {len(patches)} values lie in several pieces: it is an image and "
                    "no label map, in which each cell has a value of its own"
                )
            yield from (_Found(patch, UNNAMED, None) for patch in patches)

    def _outlines(self, path: Path, page: int | None, height: int, width: int) -> Iterator[_Found]:
        outlines = list(KINDS[self.kind][1](path, self._faults))
        # Which axis pages lie along is not known here; where one alone is used, it is that.
        used = {axis for one in outlines for axis, index in one.where.items() if index and axis != "page"}
        if len(used) > 1 and page is not None:
            raise UserError(
                f"{path}: its outlines lie along several axes ({', '.join(sorted(used))}), and which pages "
                "these are is not known here; give label maps of such stacks"
            )
        for outline in outlines:
            if any(outline.where.get(axis, page or 0) != (page or 0) for axis in ("page", *(used or {"t"}))):
                continue
            rings = [ring * ((width, height) if outline.shares else (1, 1)) for ring in outline.rings]
            label = str(outline.label)
            if isinstance(outline.label, int):  # YOLO's
                label = self._names.get(outline.label, f"{outline.label}, which no classes.txt names")
            try:
                patch = rings_to_patch(rings, height, width)
            except ValueError:
                self._faults.drop("degenerate or unreadable outline", f"{path.name}: {outline.name}")
                continue
            yield _Found(patch, label, outline.score)


def _labels(path: Path, page: int | None, kind: str) -> np.ndarray:
    if kind == "cellpose":
        labels = read_seg_npy(path)
        if labels.ndim == 3:
            if page is None or page >= len(labels):
                raise UserError(f"{path}: has {len(labels)} pages, the image has no such page")
            labels = labels[page]
        return labels
    if page is None:
        return read_labels(path)
    with Stack(path) as stack:
        return stack.read_labels(page)


def _paged(file_name: str) -> tuple[str, str]:
    """The name of a file, and the number of the page in it, as `page_name` joins them; empty without one."""
    match = re.fullmatch(r"(.*)#(\d{4,})", file_name)
    return (match[1], match[2]) if match else (file_name, "")


def _of_most(folder: Path, faults: Faults) -> tuple[str, dict[str, Path]]:
    """The kind of which there are most files in a folder, and these by name, without their endings."""
    kinds: dict[str, dict[str, Path]] = {kind: {} for kind in _TITLES}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if is_hidden(relative) or not path.is_file():
            continue
        kind, ending = _kind(path)
        if kind:
            name = relative.as_posix()[: -len(ending)]
            if kinds[kind].setdefault(name, path) is not path:
                faults.drop("two files of one name: the first is used", relative.as_posix())
    most = max(kinds, key=lambda kind: len(kinds[kind]))  # of equals the first
    if kinds["labelmaps"] and most == "plain":
        most = "labelmaps"  # the others are the images
    if not kinds[most]:
        raise UserError(
            f"{folder}: holds no predictions; they are label maps (x.tif, x_cp_masks.png, ...), x_seg.npy, "
            "x.geojson, YOLO's x.txt or ImageJ's x.zip, named as the images"
        )
    return most, kinds[most]


def _kind(path: Path) -> tuple[str, str]:
    """Kind of a file, and the ending of its name that is not the image's; empty where it is none."""
    lower = path.name.lower()
    if lower.endswith("_seg.npy"):
        return "cellpose", "_seg.npy"
    for kind in ("geojson", "imagej"):
        for ending in KINDS[kind][0]:
            if lower.endswith(ending.lower()) and ending != ".json":
                return kind, ending
    if path.suffix.lower() == ".txt" and path.name != "classes.txt":
        return "yolo", path.suffix
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.stem.endswith(".overlay"):
        ending = next((end for end in MASK_ENDINGS if path.stem.endswith(end) and path.stem != end), "")
        return ("labelmaps" if ending else "plain"), ending + path.suffix
    return "", ""


def _submission(path: Path) -> dict[str, list[str]]:
    """Run-length encodings by image id, of a csv with the columns id, and predicted or annotation."""
    rows: dict[str, list[str]] = defaultdict(list)
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name for name in ("predicted", "annotation") if name in (reader.fieldnames or ())]
            if not columns or "id" not in (reader.fieldnames or ()):
                raise UserError(f"{path}: is no submission, which has the columns id and predicted")
            for line in reader:
                text = (line[columns[0]] or "").strip()
                rows[(line["id"] or "").strip()] += [text] if text else []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no csv file ({error})") from error
    finally:
        csv.field_size_limit(before)
    return dict(rows)


def taken(name: str, other: str) -> UserError:
    """What is named as one image went to another one, which came first and is called so in its folder."""
    return UserError(f"{name}: what was found there went to {other}; name both in their folders")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
