"""A converted data set as one `.npz` of plain arrays: training data for machines without TensorFlow.

Images, boxes and bitmaps of all records lie end to end, as `RecordStore` keeps them in memory. Nothing is
pickled, so a file from a stranger cannot run code.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write
from effdet_tf.images.normalize import even_pixels
from effdet_tf.model.weights import read_arrays

FORMAT = 1
SUFFIX = ".npz"
CELL_ARRAYS = ("boxes", "classes", "masks", "iscrowd", "scores")  # of an image, one entry a cell
_ABOUT = "about"
# Type and shape of every array; I images, N cells, P pixel values, m the side of a bitmap.
_ARRAYS = {
    "image": ("uint8", "P"),  # or uint16
    "size": ("int32", "I3"),  # height, width, channels
    "count": ("int64", "I"),  # cells of each image
    "mean": ("float32", "I"),
    "std": ("float32", "I"),
    "bit_depth": ("int32", "I"),
    "image_id": ("int64", "I"),
    "boxes": ("float32", "N4"),
    "classes": ("int32", "N"),
    "masks": ("uint8", "Nmm"),
    "iscrowd": ("uint8", "N"),
    "scores": ("float32", "N"),
    "source": ("int32", "I"),  # index of a name
    "cell_sizes": ("float64", "S2"),  # of a sample of the cells: height, width
}


@dataclass(frozen=True, eq=False)
class PackedSet:
    """A data set in memory, with the names that `RecordStore` has for the same things."""

    arrays: Mapping[str, np.ndarray]  # the flat arrays, as in the file
    class_names: tuple[str, ...]  # names of the classes
    category_ids: tuple[int, ...]  # their ids in the source
    fingerprint: str  # of the shards that were packed, hexadecimal
    masks: bool  # False when the cells are annotated by boxes alone
    source_names: tuple[str, ...] = ("",)  # names of the sources
    _pixels: np.ndarray = field(init=False, repr=False)
    _cells: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Note where each image's pixels and cells begin and end."""
        sizes = self.arrays["size"].astype(np.int64).prod(axis=1)
        object.__setattr__(self, "_pixels", np.concatenate([[0], np.cumsum(sizes)]))
        object.__setattr__(self, "_cells", np.concatenate([[0], np.cumsum(self.arrays["count"])]))

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.arrays["size"])

    @property
    def cells(self) -> np.ndarray:
        """int64 `[images]`, cells of each image."""
        return self.arrays["count"]

    @property
    def sources(self) -> np.ndarray:
        """Text `[images]`, name of the source of each."""
        return np.array(self.source_names)[self.arrays["source"]]

    @property
    def max_cells(self) -> int:
        """Cells in the fullest image."""
        return int(self.cells.max())

    @property
    def mask_size(self) -> int:
        """Side of the stored bitmaps."""
        return self.arrays["masks"].shape[1]

    @property
    def cell_sizes(self) -> np.ndarray:
        """float64 `[S, 2]`, height and width of a sample of the cells, px."""
        return self.arrays["cell_sizes"]

    def even(self) -> PackedSet:
        """The same set with images, mean and std as `data.normalization=content` shows them, in a copy."""
        arrays = {**self.arrays, **{name: self.arrays[name].copy() for name in ("image", "mean", "std")}}
        for number, (first, last) in enumerate(itertools.pairwise(self._pixels)):
            image = self.arrays["image"][first:last].reshape(self.arrays["size"][number])
            pixels, arrays["mean"][number], arrays["std"][number] = even_pixels(image)
            arrays["image"][first:last] = pixels.ravel()
        return replace(self, arrays=arrays)

    def fetch(self, number: int) -> dict[str, Any]:
        """Return one record as `RecordStore.fetch` does, in views of the arrays."""
        found: dict[str, Any] = {
            name: self.arrays[name][number] for name in ("mean", "std", "bit_depth", "image_id")
        }
        first, last = self._cells[number : number + 2]
        for name in CELL_ARRAYS:
            found[name] = self.arrays[name][first:last]
        first, last = self._pixels[number : number + 2]
        found["image"] = self.arrays["image"][first:last].reshape(self.arrays["size"][number])
        return found


def save_packed(path: str | os.PathLike[str], packed: PackedSet) -> None:
    """Write a data set, compressed and atomically."""
    names = ("class_names", "category_ids", "fingerprint", "masks", "source_names")
    about = {"format": FORMAT, **{name: getattr(packed, name) for name in names}}
    arrays = {name: packed.arrays[name] for name in _ARRAYS}
    arrays[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_packed(path: str | os.PathLike[str]) -> PackedSet:
    """Read what `save_packed` wrote, all of it into memory.

    Raises:
        UserError: when the file is missing, damaged or something else.
    """
    if os.path.isdir(path):
        raise UserError(
            f"{path}: a folder; pack it first, where TensorFlow is installed: "
            f"python -m effdet_tf pack {path} OUT{SUFFIX}"
        )
    arrays = read_arrays(path, "packed data set")
    try:
        about = json.loads(arrays.pop(_ABOUT).tobytes())
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}, this version reads {FORMAT}")
        if len(about["class_names"]) != len(about["category_ids"]):
            raise ValueError("class names and category ids differ in number")
        # Files of before 2026-11-29 have neither.
        arrays.setdefault("scores", np.ones(len(arrays["classes"]), np.float32))
        arrays.setdefault("source", np.zeros(len(arrays["size"]), np.int32))
        sources = tuple(map(str, about.get("source_names", [""])))
        _check(arrays, len(about["class_names"]), len(sources))
        names, ids = map(str, about["class_names"]), map(int, about["category_ids"])
        known = tuple(names), tuple(ids), str(about["fingerprint"]), bool(about["masks"])
        return PackedSet(arrays, *known, sources)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not what `python -m effdet_tf pack` wrote ({reason}); pack again") from None


def _check(arrays: Mapping[str, np.ndarray], classes: int, sources: int) -> None:
    """Raise ValueError unless the arrays fit together."""
    if missing := [name for name in _ARRAYS if name not in arrays]:
        raise ValueError(f"no {', '.join(missing)}")
    images, cells = len(arrays["size"]), len(arrays["classes"])
    known = {"I": images, "N": cells, "P": len(arrays["image"]), "S": len(arrays["cell_sizes"])}
    known["m"] = arrays["masks"].shape[-1] if arrays["masks"].ndim == 3 else 0
    for name, (dtype, letters) in _ARRAYS.items():
        shape = tuple(known[letter] if letter in known else int(letter) for letter in letters)
        kinds = (dtype, "uint16") if name == "image" else (dtype,)
        found = arrays[name]
        if found.shape != shape or str(found.dtype) not in kinds:
            raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, not {dtype} {list(shape)}")
    size, count = arrays["size"].astype(np.int64), arrays["count"]
    if not images or (size < 1).any() or not np.isin(size[:, 2], (1, 3)).all() or (count < 0).any():
        raise ValueError("no images, or an image without pixels")
    if size.prod(axis=1).sum() != known["P"] or count.sum() != cells:
        raise ValueError("pixels or cells are missing")
    if cells and not (0 <= arrays["classes"].min() and arrays["classes"].max() < classes):
        raise ValueError("a cell of an unknown class")
    if not (0 <= arrays["source"].min() and arrays["source"].max() < sources):
        raise ValueError("an image of an unknown source")
