"""The files of a plate, and the shards that they are processed in; what is done is not done again.

`plan.json` in the output folder lists the shards. A shard is done when `done/NAME.json` is there, which is
written after all of its results and holds the digest of its files (names, sizes, dates): a file that changed
makes its shard anew, and new files are added as new shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from effdet_tf.errors import UserError
from effdet_tf.files.untrusted import parse_json
from effdet_tf.images.read import IMAGE_SUFFIXES
from effdet_tf.outputs.jobs import is_image
from effdet_tf.plates import storage

PLAN, DONE = "plan.json", "done"
FORMAT = 1


class PlateFile(NamedTuple):
    """A file of the plate."""

    path: str  # below the folder of the images, with "/"
    size: int  # bytes
    modified: int  # seconds since 1970, whole; 0 where the store does not say


class Shard(NamedTuple):
    """Files that are processed as one piece."""

    name: str  # "00000" and so on
    files: tuple[PlateFile, ...]

    def digest(self) -> str:
        """Of its files, hexadecimal."""
        return hashlib.sha256(repr([tuple(file) for file in self.files]).encode()).hexdigest()


def find_sources(folder: str, out: str) -> list[PlateFile]:
    """All images below a folder or bucket, sorted by path; hidden ones and those in `out` are passed over.

    Raises:
        UserError: when there is none.
    """
    found = []
    results = storage.below(folder, out)
    for file in (PlateFile(*entry) for entry in storage.walk(folder)):
        parts = file.path.split("/")
        hidden = any(part.startswith(".") for part in parts)
        if is_image(parts[-1]) and not hidden and not (results and f"{file.path}/".startswith(results)):
            found.append(file)
    if not found:
        raise UserError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) here or in its subfolders")
    return sorted(found)


def make_shards(files: Iterable[PlateFile], first: int, max_files: int, max_bytes: int) -> list[Shard]:
    """Fill shards in order, each with as many files as it may hold, and one at least.

    Args:
        files: sorted.
        first: number of the first shard.
        max_files: in a shard.
        max_bytes: in a shard, so that stacks do not make one that takes hours.
    """
    batches: list[list[PlateFile]] = []
    for file in files:
        if (
            not batches
            or len(batches[-1]) >= max_files
            or sum(f.size for f in [*batches[-1], file]) > max_bytes
        ):
            batches.append([])
        batches[-1].append(file)
    return [Shard(f"{first + k:05d}", tuple(batch)) for k, batch in enumerate(batches)]


def update_plan(
    out: str,
    found: Sequence[PlateFile],
    settings: dict[str, Any],
    max_files: int,
    max_bytes: int,
    remove: Callable[[str], None],
) -> list[Shard]:
    """Read the plan of the output folder, add what is new, take out what is gone, and write it.

    Args:
        out: the output folder.
        found: the files that are there now.
        settings: what the results depend on, for JSON.
        max_files: in a new shard.
        max_bytes: likewise.
        remove: called with the path of each file that was in the plan and is gone, before that is written.

    Returns:
        All shards.

    Raises:
        UserError: when the folder holds results of other settings, or a plan that cannot be read.
    """
    plan = storage.join(out, PLAN)
    old = _read_plan(plan, settings)
    now = {file.path: file for file in found}
    shards = [Shard(s.name, tuple(now.pop(f.path) for f in s.files if f.path in now)) for s in old]
    # A shard whose files are all gone stays, empty, so that its results go, too.
    shards += make_shards(sorted(now.values()), len(shards), max_files, max_bytes)
    there = {file.path for file in found}
    for path in (file.path for shard in old for file in shard.files if file.path not in there):
        remove(path)
    if shards != old:
        document = {"format": FORMAT, "settings": settings, "shards": [s._asdict() for s in shards]}
        storage.write(plan, json.dumps(document).encode())
    return shards


def _read_plan(path: str, settings: dict[str, Any]) -> list[Shard]:
    if not storage.exists(path):
        return []
    try:
        document = parse_json(storage.read(path))
        past, version = document["settings"], document["format"]
        shards = [Shard(s["name"], tuple(PlateFile(*f) for f in s["files"])) for s in document["shards"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is no plan of a plate; choose another --out") from None
    if version != FORMAT:
        raise UserError(f"{path}: was made by another version of effdet_tf; choose another --out")
    if past != settings:
        names = [k for k in {**past, **settings} if past.get(k) != settings.get(k)]
        changes = ", ".join(f"{k} {past.get(k)} there, {settings.get(k)} now" for k in names)
        raise UserError(f"{path}: holds results of other settings ({changes}); choose another --out")
    return shards


def content_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _same(source: str, file: PlateFile, contents: dict[str, str]) -> bool:
    with storage.local_copy(storage.join(source, file.path)) as path:
        return contents.get(file.path) == content_of(path)


def done_file(out: str, shard: Shard) -> str:
    """Where a shard's mark is."""
    return storage.join(out, DONE, f"{shard.name}.json")


def missing(out: str, shards: Sequence[Shard], retry_failed: bool, verify: str | None = None) -> list[Shard]:
    """The shards that are not done, or whose files have changed since, or, on request, with failed images.

    With the folder of the images, `verify`, a file whose content is not that of before has changed as well.
    """
    marks = {path for path, _, _ in storage.walk(storage.join(out, DONE))}
    left = []
    for shard in shards:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged mark, or none
            mark = parse_json(storage.read(done_file(out, shard))) if f"{shard.name}.json" in marks else {}
            if mark["digest"] == shard.digest() and not (mark["failed"] and retry_failed):
                if verify is None or all(_same(verify, file, mark["contents"]) for file in shard.files):
                    continue
        left.append(shard)
    return left
