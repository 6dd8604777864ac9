"""The images that a user's files, patterns and folders stand for, and the names of their outputs."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from effdet_tf.data.manifest import MANIFEST_NAME
from effdet_tf.errors import UserError, near_files
from effdet_tf.images.read import IMAGE_SUFFIXES
from effdet_tf.outputs.page import OVERLAY_STACK, SUFFIXES

OWN_PICTURES = (SUFFIXES["labels"], SUFFIXES["overlay"], OVERLAY_STACK)


class Job(NamedTuple):
    """One image to predict: its path, and the output name under the output folder without suffix."""

    path: Path
    name: str


def find_images(inputs: Sequence[str | os.PathLike[str]]) -> list[Job]:
    """Turn files, glob patterns and folders into jobs.

    Folders are searched through all their subfolders, which the output names mirror. Hidden files and this
    program's own label and overlay pictures in a folder are passed over. A file that is named twice is
    predicted once. Where two images would get the same output name, both get a longer one: with their
    suffix, then with the name of their folder, then with a number.

    Args:
        inputs: existing files and folders, or patterns (`*`, `?`, `[...]`, and `**` for any depth).

    Returns:
        Jobs in the order of `inputs`, sorted within each of them, with unique names.

    Raises:
        UserError: when one of the inputs matches no image.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for text in inputs:
        matches = list(_expand(os.fspath(text)))
        if not matches:
            raise UserError(_no_match(os.fspath(text)))
        for path, relative in matches:
            found.setdefault(path.resolve(), (path, relative))
    pairs = list(found.values())
    named = [(path.resolve().parent.name, relative) for path, relative in pairs]
    return [Job(path, name) for (path, _), name in zip(pairs, output_names(named), strict=True)]


def _expand(text: str) -> Iterator[tuple[Path, Path]]:
    """Images of one input, each with its path relative to where the output names begin."""
    path = Path(text)
    if path.is_dir():
        yield from _walk(path)
    elif path.exists():
        yield path, Path(path.name)
    else:
        pattern = os.path.expanduser(text)
        root = _fixed_part(pattern)
        for match in sorted(glob.glob(pattern, recursive=True)):
            path = Path(match)
            if path.is_file() and not path.name.lower().endswith(OWN_PICTURES):
                if "**" not in text or is_image(path.name):  # "**" takes all: other files are no fault
                    yield path, path.relative_to(root)
            elif path.is_dir() and "**" not in text:
                for inside, relative in _walk(path):
                    yield inside, path.relative_to(root) / relative


def _fixed_part(pattern: str) -> Path:
    """The folders of a pattern before its first wildcard."""
    parts = Path(pattern).parts
    fixed = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed])


def _walk(folder: Path) -> Iterator[tuple[Path, Path]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and is_image(path.name) and path.is_file():
            yield path, relative


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, and no label image or overlay of this program's own."""
    name = name.lower()
    return name.endswith(IMAGE_SUFFIXES) and not name.endswith(OWN_PICTURES)


def _no_match(text: str) -> str:
    if (Path(text) / MANIFEST_NAME).is_file():
        return (
            f"{text}: holds converted data ({MANIFEST_NAME}), to train on; name image files or their folder"
        )
    if Path(text).is_dir():
        return f"{text}: no image in this folder or below ({', '.join(IMAGE_SUFFIXES)}); name another one"
    if glob.has_magic(text):
        return f"{text}: matches no file; check the pattern"
    return f"{text}: does not exist{near_files(text) or '; check the name'}"


def output_names(images: Sequence[tuple[str, PurePath]]) -> list[str]:
    """Names of images' outputs: the shortest form in which no two are alike, whatever their case.

    Args:
        images: for each image the name of its folder, empty where unknown, and its path relative to where
            the names begin.

    Returns:
        The names, POSIX style, without suffix where no two images need it.
    """
    forms = [
        [
            relative.with_suffix("").as_posix(),
            relative.as_posix(),
            relative.with_name(f"{folder}__{relative.name}" if folder else relative.name).as_posix(),
        ]
        for folder, relative in images
    ]
    level = [0] * len(images)
    while True:
        names = [form[rank] for form, rank in zip(forms, level, strict=True)]
        counts = Counter(name.casefold() for name in names)
        clashing = [k for k, name in enumerate(names) if counts[name.casefold()] > 1 and level[k] < 2]
        if not clashing:
            return _numbered(names)
        for k in clashing:
            level[k] += 1


def _numbered(names: list[str]) -> list[str]:
    """Add -2, -3, ... to names that are still alike."""
    used: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 1
        while candidate.casefold() in used:
            number += 1
            candidate = f"{name}-{number}"
        used.add(candidate.casefold())
        unique.append(candidate)
    return unique
