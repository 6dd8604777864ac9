"""Which files a run wrote for which image: what `--overwrite` may remove, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from effdet_tf.outputs.page import OVERLAY_STACK, SUFFIXES

RECORD = ".written.jsonl"  # a line {"image": its path, "files": [...]} for each image; the last one counts


def files_of(name: str, pages: int, formats: Collection[str]) -> list[str]:
    """The files that `formats` are of an image, or of a stack of `pages`, relative to the output folder."""
    if pages == 1:
        return [name + SUFFIXES[kind] for kind in formats]
    files = [
        name + (OVERLAY_STACK if kind == "overlay" else SUFFIXES[kind]) for kind in formats if kind != "yolo"
    ]
    numbers = range(1, pages + 1) if "yolo" in formats else ()
    return files + [f"{name}_{number:04d}{SUFFIXES['yolo']}" for number in numbers]


class Record:
    """The record of an output folder, kept as images are done."""

    def __init__(self, out: Path) -> None:
        """Read what an earlier run wrote; a record that is damaged counts as none from there on."""
        self._out = out
        self._files: dict[str, list[str]] = {}  # by image
        self._owner: dict[str, str] = {}  # the image of each file: the last that was written there
        try:
            for line in (out / RECORD).read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self._note(str(entry["image"]), [str(name) for name in entry["files"]])
        except (OSError, ValueError, KeyError, TypeError):
            return  # what is not told of is not removed

    def replace(self, image: Path, files: Sequence[str]) -> None:
        """Note the files of an image, and remove those that an earlier run wrote for it and this one did not.

        Raises:
            OSError: when one cannot be removed, or the record not be written.
        """
        key, root = os.path.realpath(image), self._out.resolve()
        for name in set(self._files.get(key, ())) - set(files):
            path = root / name
            # Another image may have the name now, and a record says nothing outside its folder.
            if self._owner.get(name) == key and path.parent.resolve().is_relative_to(root):
                path.unlink(missing_ok=True)
        self._note(key, files)
        with (self._out / RECORD).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"image": key, "files": list(files)}) + "\n")

    def _note(self, image: str, files: Sequence[str]) -> None:
        self._files[image] = list(files)
        self._owner.update(dict.fromkeys(files, image))
