"""manifest.json of a converted data set: what it holds, and what was dropped on the way and why."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effdet_tf.errors import UserError, near_files
from effdet_tf.files import write_json
from effdet_tf.files.untrusted import read_json

FORMAT = 1
MANIFEST_NAME = "manifest.json"
_VERIFIED = ".verified.json"  # shards that were compared with their sums
MAX_MASK_SIZE = 1024  # px; no bitmap of a cell is larger


@dataclass(frozen=True)
class Manifest:
    """The contents of a converted data set."""

    source: str  # name of the kind of source ("livecell", "sartorius", "coco", "labelmaps")
    # [{"id", "name"}]; the place in the list is the class id inside, "id" the source's own
    categories: list[dict[str, Any]]
    shards: list[dict[str, Any]]  # [{"file", "images", "cells", "sha256"}], in reading order
    images: int  # number of images
    cells: int  # number of cells, crowd regions included
    max_cells: int  # largest number of cells in one image
    cells_per_image: dict[str, float]  # {"mean", "5", "25", "50", "75", "95", "100"}: mean and percentiles
    # {"sizes": [{"height", "width", "images"}], "bit_depths": {"8": images}, "channels": {"1": images},
    # "mean", "std"}; mean and std over all pixels in native units, null when 8 and 16 bit are mixed
    image_statistics: dict[str, Any]
    # at most 4096 evenly drawn [height, width] of tight boxes, pixels, crowds left out
    cell_sizes: list[list[float]]
    cell_types: dict[str, dict[str, int]]  # {name: {"images", "cells"}}
    dropped: dict[str, dict[str, Any]]  # {reason: {"count", "examples"}}: what is not in the shards
    notes: dict[str, dict[str, Any]]  # the same for faults that were survived
    mask_size: int  # side of the box-aligned bitmaps
    # False when the cells are annotated by boxes alone: the bitmaps are full, no mask is evaluated
    masks: bool = True  # sets from before it was written down have masks
    # what a network labelled the images with ({"network", "score", ...}); empty when people did
    pseudo: dict[str, Any] = dataclasses.field(default_factory=dict)
    # {reason: annotated cells} that could not be read or used; not those that the user left out
    lost: dict[str, int] = dataclasses.field(default_factory=dict)
    format: int = FORMAT  # version of this layout

    @property
    def lost_share(self) -> float:
        """Share of the annotated cells that are lost, 0..1."""
        lost = sum(self.lost.values())
        return lost / (lost + self.cells) if lost else 0.0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class id."""
        return tuple(category["name"] for category in self.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The source's category ids by class id."""
        return tuple(category["id"] for category in self.categories)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON values, `format` first."""
        values = dataclasses.asdict(self)
        if not self.lost:
            del values["lost"]
        return {"format": values.pop("format"), **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """Undo `to_dict`.

        Raises:
            ValueError: when a key is missing or unknown, or a value is of another type.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        optional = ("masks", "pseudo", "lost", "format")
        needed = fields.keys() - set(optional)
        missing, unknown = sorted(needed - values.keys()), sorted(values.keys() - fields.keys())
        if missing or unknown:
            raise ValueError(f"keys missing: {missing}, unknown: {unknown}")
        kinds = {"int": int, "str": str, "list": list, "dict": dict, "bool": bool}
        for name, value in values.items():
            kind = kinds[str(fields[name].type).split("[")[0]]
            if type(value) is not kind:  # a bool would pass for an int
                raise ValueError(f"{name} is {type(value).__name__}, not {kind.__name__}")
        manifest = cls(**values)
        manifest._check_parts()
        return manifest

    def _check_parts(self) -> None:
        """Check what others rely on; a ValueError names the first part that is wrong."""
        for shard in self.shards:
            shard = shard if isinstance(shard, dict) else {}
            file, images = shard.get("file"), shard.get("images")
            # A name with a folder in it would lead out of the data set; no file system takes longer ones.
            name = isinstance(file, str) and file.isprintable() and 0 < len(os.fsencode(file)) <= 255
            if not name or Path(str(file)).name != file:
                raise ValueError(f"shard {str(file)[:60]!r} is not the name of a file")
            if type(images) is not int or images < 0:
                raise ValueError(f"shard {file} has {images!r} images")
        counts = [("images", self.images), ("cells", self.cells), ("max_cells", self.max_cells)]
        counts += [(f"cells of shard {shard['file']}", shard.get("cells", 0)) for shard in self.shards]
        for what, count in counts:
            if type(count) is not int or not 0 <= count < 2**53:
                raise ValueError(f"{what} is {count!r}")
        for kind, total in (("images", self.images), ("cells", self.cells)):
            parts = [shard[kind] for shard in self.shards if kind in shard]
            if len(parts) == len(self.shards) and sum(parts) != total:
                raise ValueError(f"its shards have {sum(parts)} {kind}, it says {total}")
        ids = [category.get("id") for category in self.categories if isinstance(category, dict)]
        if len(set(map(str, ids))) != len(ids):
            raise ValueError("a category id occurs twice")
        for category in self.categories:
            named = isinstance(category, dict) and isinstance(category.get("name"), str)
            if not named or type(category.get("id")) is not int:
                raise ValueError(f"category {category!r} is no id with a name")
        for size in self.cell_sizes:
            pair = isinstance(size, list) and len(size) == 2 and all(type(x) in (int, float) for x in size)
            if not pair or not all(0 <= x < 2**31 for x in size):
                raise ValueError(f"cell size {size!r} is not [height, width]")
        if not all(type(count) is int and count > 0 for count in self.lost.values()):
            raise ValueError("lost holds no numbers of cells")
        if not 1 <= self.mask_size <= MAX_MASK_SIZE:
            raise ValueError(f"mask_size is {self.mask_size}")

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write manifest.json into `directory`, atomically."""
        write_json(Path(directory) / MANIFEST_NAME, self.to_dict())


def load_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a converted data set.

    Raises:
        UserError: when the folder has no manifest, or one that is damaged or of another format.
    """
    path = Path(directory) / MANIFEST_NAME
    try:
        values = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not Path(directory).exists():
            advice = near_files(directory) or "; name a converted data set"
            raise UserError(f"{directory}: does not exist{advice}") from error
        raise UserError(
            f"{directory}: holds no {MANIFEST_NAME}; name a folder that `python -m effdet_tf convert` wrote "
            "to its end"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); convert the data again") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: has format {found!r}, this version reads {FORMAT}; convert the data again")
    try:
        return Manifest.from_dict(values)
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); convert the data again") from error


def verify_shards(directory: str | os.PathLike[str], manifest: Manifest, remember: bool = False) -> None:
    """Compare the shards with the sums that the manifest has of them.

    Args:
        directory: of the data set.
        manifest: of it.
        remember: whether a shard that has been compared before, with the size and the time that it has now,
            is not read again; that is kept in a file beside the shards, where it can be.

    Raises:
        UserError: when a shard is missing or has other contents.
    """
    folder = Path(directory)
    before: Any = None
    with contextlib.suppress(OSError, ValueError):
        before = read_json(folder / _VERIFIED) if remember else None
    known = before if isinstance(before, dict) else {}
    seen = {}
    for shard in manifest.shards:
        path, expected = folder / shard["file"], shard.get("sha256")
        if not expected:  # sets that others made have none
            continue
        try:
            found = path.stat()
            seen[shard["file"]] = [found.st_size, found.st_mtime_ns, expected]
            if known.get(shard["file"]) == seen[shard["file"]]:
                continue
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); convert the data again") from error
        if digest != expected:
            raise UserError(f"{path}: is not what `convert` wrote (another SHA-256); convert the data again")
    if remember and seen != known:
        with contextlib.suppress(OSError):  # a disk that cannot be written to
            write_json(folder / _VERIFIED, seen)


def refuse_pseudo(directory: str | os.PathLike[str], manifest: Manifest, advice: str) -> None:
    """Refuse a data set that a network labelled where people's annotations are wanted.

    Raises:
        UserError: with the advice, what to do instead.
    """
    if manifest.pseudo:
        network = manifest.pseudo.get("network", "a network")
        raise UserError(f"{directory}: was labelled by {network}, not by people; {advice}")
