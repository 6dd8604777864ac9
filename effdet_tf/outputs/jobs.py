"""The images that a user's files, patterns and folders stand for, and the names of their outputs."""

from __future__ import annotations

import glob
import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from effdet_tf.data.manifest import MANIFEST_NAME
from effdet_tf.errors import UserError, near_files
from effdet_tf.images.bioio_file import ZARR, how_to_read, is_one_image
from effdet_tf.images.read import IMAGE_SUFFIXES
from effdet_tf.outputs.page import OVERLAY_STACK, SUFFIXES

# Microscopes' own formats, and others that need a reader of their own.
_OTHER_IMAGES = (
    ".czi .nd2 .lif .lifext .oib .oif .oir .vsi .svs .ndpi .scn .mrxs .zvi .ims .dv .r3d .dcm .sldy .sld "
    ".zarr .mrc .heic .heif .avif .jxr .jxl .exr .tga"
).split()
_LONGEST = 200  # bytes of a name; file systems take 255
_OF_PAGE = re.compile(r"(.+)_\d{4,}$")  # what files of a stack's pages are called
_RESERVED = {"classes"}  # YOLO's classes.txt
OWN_PICTURES = (SUFFIXES["labels"], SUFFIXES["overlay"], OVERLAY_STACK)


class Job(NamedTuple):
    """One image to predict: its path, and the output name under the output folder without suffix."""

    path: Path
    name: str


def find_images(inputs: Sequence[str | os.PathLike[str]]) -> list[Job]:
    """Turn files, glob patterns and folders into jobs.

    Folders are searched through all their subfolders, which the output names mirror. Hidden files and this
    program's own label and overlay pictures in a folder are passed over; images of formats that are not read
    are counted and named in a warning. A file that is named twice is predicted once. Where two images would
    get the same output name, both get a longer one: with their suffix, then with the name of their folder,
    then with a number.

    Args:
        inputs: existing files and folders, or patterns (`*`, `?`, `[...]`, and `**` for any depth).

    Returns:
        Jobs in the order of `inputs`, sorted within each of them, with unique names.

    Raises:
        UserError: when one of the inputs matches no image.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    other: list[Path] = []
    for text in (str(os.fspath(one)) for one in inputs):
        matches = list(_expand(text, other))
        if not matches:
            raise UserError(_no_match(text, other))
        for path, relative in matches:
            found.setdefault(Path(os.path.realpath(path)), (path, relative))
    if other:
        logging.getLogger("effdet_tf").warning("left out, of formats that are not read: %s", _listed(other))
    names = output_names([(resolved.parent.name, relative) for resolved, (_, relative) in found.items()])
    return [Job(path, name) for (path, _), name in zip(found.values(), names, strict=True)]


def _expand(text: str, other: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Images of one input, each with its path relative to where the output names begin.

    Images in folders, of formats that are not read, are added to `other`.
    """
    path = Path(text)
    if path.is_dir() and path.suffix.lower() != ZARR:
        yield from _walk(path, path, other)
    elif path.exists():
        yield path, Path(path.name)
    else:
        pattern, deep = os.path.expanduser(text), "**" in text
        parts = Path(pattern).parts
        fixed = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        root = Path(*parts[:fixed])  # the folders before the first wildcard
        for path in map(Path, sorted(glob.glob(pattern, recursive=True))):
            if is_one_image(path) and not path.name.lower().endswith(OWN_PICTURES):
                if not deep or is_image(path.name):  # "**" takes all: other files are no fault
                    yield path, path.relative_to(root)
            elif path.is_dir() and not deep:
                yield from _walk(path, root, other)


def _walk(folder: Path, root: Path, other: list[Path]) -> Iterator[tuple[Path, Path]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if any(parent.suffix.lower() == ZARR for parent in relative.parents):
            continue  # an image is a folder of many files
        if is_image(path.name) and (is_one_image(path) or not path.exists()):  # a broken link gets its row
            yield path, path.relative_to(root)
        elif path.suffix.lower() in _OTHER_IMAGES:
            other.append(path)


def _listed(other: list[Path]) -> str:
    kinds = Counter(path.suffix.lower() for path in other)
    listed = ", ".join(f"{count} {suffix}" for suffix, count in kinds.items())
    advice = sorted({how_to_read(suffix) for suffix in kinds}, key=len)[-1]
    return f"{listed} ({other[0]}); {advice}"


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, and no label image or overlay of this program's own."""
    name = name.lower()
    return name.endswith(IMAGE_SUFFIXES) and not name.endswith(OWN_PICTURES)


def _no_match(text: str, other: list[Path]) -> str:
    if (Path(text) / MANIFEST_NAME).is_file():
        return (
            f"{text}: holds converted data ({MANIFEST_NAME}), to train on; name image files or their folder"
        )
    if Path(text).is_dir():
        advice = f"of formats that are not read there are {_listed(other)}" if other else "name another one"
        return f"{text}: no image in this folder or below ({', '.join(IMAGE_SUFFIXES)}); {advice}"
    if glob.has_magic(text):
        return f"{text}: matches no file; check the pattern"
    return f"{text}: does not exist{near_files(text) or '; check the name'}"


def printable(text: str) -> str:
    """A name or message that any file takes: bytes of a file name that are no UTF-8 become `%E9`."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def fitting(name: str) -> str:
    """A name whose last part file systems take with any suffix, and with the mark of an unfinished file."""
    folder, slash, last = printable(name).rpartition("/")
    data = last.encode()
    if len(data) > _LONGEST:
        digest = hashlib.sha256(data).hexdigest()[:8]
        last = f"{data[: _LONGEST - 9].decode(errors='ignore')}-{digest}"
    return f"{folder}{slash}{last}"


def _taken(name: str, counts: Counter[str]) -> bool:
    """Whether a name, folded, is another image's too, or of a file of its own, as of a stack's page."""
    of_page = _OF_PAGE.match(name)
    return counts[name] > 1 or name in _RESERVED or (of_page is not None and of_page[1] in counts)


def output_names(images: Sequence[tuple[str, PurePath]]) -> list[str]:
    """Names of images' outputs: the shortest form in which no two are alike, whatever their case.

    Args:
        images: for each image the name of its folder, empty where unknown, and its path relative to where
            the names begin.

    Returns:
        The names, POSIX style, without suffix where no two images need it; long ones are cut, with a hash.
        `classes` (of `classes.txt`) and names like those of a stack's pages are not short ones.
    """
    forms = [
        [
            relative.with_suffix("").as_posix(),
            relative.as_posix(),
            relative.with_name(f"{folder}__{relative.name}" if folder else relative.name).as_posix(),
        ]
        for folder, relative in images
    ]
    while True:
        counts = Counter(form[0].casefold() for form in forms)
        clashing = [form for form in forms if len(form) > 1 and _taken(form[0].casefold(), counts)]
        if not clashing:
            break
        for form in clashing:
            del form[0]
    used: set[str] = set()
    names = []
    for form in forms:
        form[0] = fitting(form[0])
    for form in forms:  # add -2, -3, ... to names that are still alike
        longer = itertools.chain(form[:1], (f"{form[0]}-{number}" for number in itertools.count(2)))
        names.append(next(name for name in longer if name.casefold() not in used))
        used.add(names[-1].casefold())
    return names
