"""Converted, annotated data sets, one or several, that are evaluated as one set of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effdet_tf.data.manifest import Manifest, load_manifest, refuse_pseudo
from effdet_tf.errors import UserError

Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_TAKEN = {"all", "unknown"}  # groups of a report


def folder_list(data: Folders) -> list[Path]:
    """The folders, one or several, as a list."""
    return [Path(data)] if isinstance(data, str | os.PathLike) else [Path(folder) for folder in data]


def folder_text(data: Folders) -> str | list[str]:
    """The folders as they are written to JSON: one as text, several as a list."""
    names = [str(folder) for folder in folder_list(data)]
    return names[0] if len(names) == 1 else names


@dataclass(frozen=True)
class AnnotatedSets:
    """The sets of some folders; their classes are the same.

    With several, the images are numbered anew from 1, in the order of the folders, since ids of two sets may
    be the same, and each has a "source": the name of its set.
    """

    folders: tuple[Path, ...]
    manifests: tuple[Manifest, ...]
    names: tuple[str, ...]  # of the folders, with those that they lie in where they are called alike

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self.folders) > 1

    @property
    def title(self) -> str:
        """All folders, for messages."""
        return ", ".join(map(str, self.folders))

    @property
    def categories(self) -> list[dict[str, Any]]:
        """COCO's categories: those of the first set, by class id."""
        return self.manifests[0].categories

    @property
    def by(self) -> tuple[str, ...]:
        """The fields of an image that a report is split by."""
        return ("source", "cell_type") if self.several else ("cell_type",)

    def images(self, limit: int | None = None) -> int:
        """Number of images, of each set at most `limit`."""
        return sum(
            manifest.images if limit is None else min(limit, manifest.images) for manifest in self.manifests
        )

    def place(self, index: int) -> tuple[int, str] | None:
        """New id of the first image of the set `index`, and its source; None for a single set."""
        if not self.several:
            return None
        return 1 + sum(manifest.images for manifest in self.manifests[:index]), self.names[index]


def open_annotated(data: Folders, advice: str = "evaluate on annotated images") -> AnnotatedSets:
    """Read the manifests of one folder or several.

    Args:
        data: the folders.
        advice: what to do in place of using a set that a network labelled.

    Raises:
        UserError: when there is no folder, one is given twice, holds no data set or one that a network
            labelled, or when sets differ in their classes, or in whether cells have masks.
    """
    folders = folder_list(data)
    if not folders:
        raise UserError("no folder of converted images was given")
    manifests = [load_manifest(folder) for folder in folders]
    first, seen = manifests[0], set()
    for folder, manifest in zip(folders, manifests, strict=True):
        refuse_pseudo(folder, manifest, advice)
        if folder.resolve() in seen:
            raise UserError(f"{folder}: is given twice; each of its images would count twice")
        seen.add(folder.resolve())
        if manifest.class_names != first.class_names:
            raise UserError(
                f"{folder}: classes {', '.join(manifest.class_names)} differ from "
                f"{', '.join(first.class_names)} of {folders[0]}; convert both alike, or take one"
            )
        if manifest.masks != first.masks:
            boxes, masks = (folders[0], folder) if manifest.masks else (folder, folders[0])
            raise UserError(
                f"{boxes}: its cells are annotated by boxes alone, those of {masks} by masks; take one"
            )
    return AnnotatedSets(tuple(folders), tuple(manifests), _names(folders, manifests))


def _names(folders: Sequence[Path], manifests: Sequence[Manifest]) -> tuple[str, ...]:
    """The last parts of paths, as many as tell them from each other and from the cell types beside them."""
    parts = [folder.resolve().parts for folder in folders]
    taken = _TAKEN.union(*(manifest.cell_types for manifest in manifests))
    names: tuple[str, ...] = ()
    for depth in range(1, 1 + max(map(len, parts))):
        names = tuple("/".join(own[-depth:]) for own in parts)
        if len({*names}) == len(names) and taken.isdisjoint(names):
            break
    return names
