"""Random access to the records of converted data sets: decoded in memory, or read from the shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from effdet_tf.data import record as record_lib
from effdet_tf.data.manifest import Manifest, load_manifest, refuse_pseudo, verify_shards
from effdet_tf.data.packed import CELL_ARRAYS
from effdet_tf.errors import UserError
from effdet_tf.images.normalize import even_pixels

_MEGABYTE = 1 << 20
_HEADER, _FOOTER = 12, 4  # bytes of TFRecord framing around each record: length + its CRC, CRC of the data

_OUTLINE_KEYS = ("height", "width", "channels", "bit_depth")
_OUTLINE_FEATURES = {
    **{f"image/{key}": tf.io.FixedLenFeature([], tf.int64) for key in _OUTLINE_KEYS},
    "cells/count": tf.io.FixedLenFeature([], tf.int64),
    "cells/mask_size": tf.io.FixedLenFeature([], tf.int64),
    "image/source": tf.io.FixedLenFeature([], tf.string),
}


# Where a record is: number of its shard, offset and bytes of its data; and how large.
_INDEX = ("shard", "offset", "length", *_OUTLINE_KEYS, "count", "mask_size")


class RecordStore:
    """The images of one or more converted data sets, by number.

    The shards are read once on opening, checksums included. When all of it fits, the decoded images and
    masks stay in memory as a few flat tensors: decoding PNG anew in each epoch would cost more than all
    augmentations. Otherwise each record is read from its shard when it is asked for. Both give the same
    numbers in the same order.

    Attributes:
        images: number of images.
        cells: int64 `[images]`, cells of each.
        sources: text `[images]`, name of the source of each.
        fingerprint: of the contents of all shards, hexadecimal.
        class_names: names of the classes.
        category_ids: their ids in the source.
        max_cells: cells in the fullest image.
        mask_size: side of the stored bitmaps.
        masks: False when one of the data sets is annotated by boxes alone.
        cell_sizes: float64 `[N, 2]`, height and width of a sample of the cells, px.
        even: whether images come as `data.normalization=content` shows them.
        cached: whether the decoded images are in memory.
        decoded_mb: what they take, or would take, there.
    """

    def __init__(
        self,
        directories: str | Path | Sequence[str | Path],
        cache_mb: int = 2000,
        pseudo: Sequence[str | Path] = (),
        even: bool = False,
    ) -> None:
        """Open data sets that `convert` wrote.

        Args:
            directories: one folder or several, with the same classes, annotated by people.
            cache_mb: decoded images up to this size are kept in memory; 0 keeps none. While they are
                loaded, up to twice that is in use.
            pseudo: folders of images that a network labelled, likewise.
            even: show the images as `data.normalization=content` does, with the mean and std of that.

        Raises:
            UserError: for a folder without manifest, a missing or damaged shard, no images, data sets that
                differ in their classes or in the size of their masks, or labels of a network among those of
                people, or the other way round.
        """
        named = [directories] if isinstance(directories, (str, Path)) else list(directories)
        if not named:
            raise UserError("no data set was named; give a folder that `convert` wrote")
        annotated, folders = len(named), [Path(folder) for folder in (*named, *pseudo)]
        manifests = _read_manifests(folders, annotated)
        for folder, manifest in zip(folders, manifests, strict=True):
            verify_shards(folder, manifest, remember=True)
        self.fingerprint = hashlib.sha256(
            repr([sorted(shard.items()) for manifest in manifests for shard in manifest.shards]).encode()
        ).hexdigest()
        self.class_names = manifests[0].class_names
        self.category_ids = manifests[0].category_ids
        self.mask_size = manifests[0].mask_size
        self.masks = all(manifest.masks for manifest in manifests)
        self.cell_sizes = np.concatenate([np.reshape(m.cell_sizes, (-1, 2)) for m in manifests])
        self._paths, self._index, self.sources = _scan(folders)
        self.images, self.even = len(self._index), even
        if self.images == 0:
            raise UserError(f"{', '.join(map(str, folders))}: no images; convert a source that has some")
        self.cells = self._index.count
        self.max_cells = int(self.cells.max())
        self.decoded_mb = self._decoded_bytes() / _MEGABYTE
        self.cached = self.decoded_mb <= cache_mb
        with tf.device("CPU:0"):
            (self._load if self.cached else self._locate)()

    def fetch(self, number: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return one record, in eager mode or inside `tf.data.map`.

        Args:
            number: scalar int64 in 0..images-1; data sets follow each other in the order given.

        Returns:
            As `record.parse`, with the image as uint8 or uint16.
        """
        example = self._fetch_cached(number) if self.cached else self._fetch_stored(number)
        example["masks"] = tf.ensure_shape(example["masks"], [None, self.mask_size, self.mask_size])
        return example

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All records of a store that is in memory, end to end; `data.packed` says which arrays these are.

        The arrays share the memory of the store.
        """
        index = self._index
        return {
            **{name: np.asarray(value) for name, value in {**self._flat, **self._scalars}.items()},
            "size": np.stack([index.height, index.width, index.channels], 1).astype(np.int32),
            "count": index.count,
            "cell_sizes": self.cell_sizes,
            "source": np.unique(self.sources, return_inverse=True)[1].astype(np.int32),
        }

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, in the order that `to_arrays` counts them."""
        return tuple(map(str, np.unique(self.sources)))

    @property
    def _image_dtype(self) -> tf.DType:
        return tf.uint16 if (self._index.bit_depth > 8).any() else tf.uint8

    def _decoded_bytes(self) -> int:
        """What all records take in memory once decoded."""
        index = self._index
        pixels = int((index.height * index.width * index.channels).sum()) * self._image_dtype.size
        return pixels + int((index.count * (index.mask_size**2 + 4 * 4 + 4 + 1 + 4)).sum())

    def _locate(self) -> None:
        index = self._index
        ends = np.array([os.path.getsize(path) for path in self._paths], np.int64)[index.shard]
        start = index.offset + _HEADER
        self._spans = tf.constant(np.stack([start, index.length, ends - start - index.length], 1))
        self._files = tf.constant(np.array(self._paths)[index.shard])

    def _fetch_stored(self, number: tf.Tensor) -> dict[str, tf.Tensor]:
        start, length, rest = tf.unstack(self._spans[number])
        file = tf.data.FixedLengthRecordDataset(self._files[number], length, start, rest)
        example = record_lib.parse(file.get_single_element(), self._image_dtype)
        if not self.even:
            return example
        types = [self._image_dtype, tf.float32, tf.float32]
        image, mean, std = tf.numpy_function(_even, [example["image"]], types, stateful=False)
        image = tf.ensure_shape(image, [None, None, None])
        return {**example, "image": image, "mean": tf.ensure_shape(mean, []), "std": tf.ensure_shape(std, [])}

    def _load(self) -> None:
        index, size = self._index, self.mask_size
        pixels = index.height * index.width * index.channels
        pixel_ends, cell_ends = np.cumsum(pixels), np.cumsum(index.count)
        cells = int(cell_ends[-1])
        arrays = {
            "image": np.empty(int(pixel_ends[-1]), self._image_dtype.as_numpy_dtype),
            "boxes": np.empty((cells, 4), np.float32),
            "classes": np.empty(cells, np.int32),
            "masks": np.empty((cells, size, size), np.uint8),
            "iscrowd": np.empty(cells, np.uint8),
            "scores": np.empty(cells, np.float32),
        }
        scalars: dict[str, np.ndarray] = {
            "mean": np.empty(self.images, np.float32),
            "std": np.empty(self.images, np.float32),
            "bit_depth": np.empty(self.images, np.int32),
            "image_id": np.empty(self.images, np.int64),
        }
        # Nothing is for AutoGraph to convert; looking for it takes as long as reading a small set.
        parse = tf.autograph.experimental.do_not_convert(
            lambda serialized: record_lib.parse(serialized, self._image_dtype)
        )
        records = record_lib.read_shard(self._paths).map(parse, tf.data.AUTOTUNE)
        number = -1
        try:
            for number, record in enumerate(records.prefetch(4).as_numpy_iterator()):
                if self.even:
                    record |= dict(zip(("image", "mean", "std"), _even(record["image"]), strict=True))
                for name, array in arrays.items():
                    end = pixel_ends[number] if name == "image" else cell_ends[number]
                    value = record[name].reshape(-1) if name == "image" else record[name]
                    array[end - len(value) : end] = value
                for name, scalar in scalars.items():
                    scalar[number] = record[name]
        except (tf.errors.OpError, ValueError) as error:
            path = self._paths[index.shard[number]]
            raise UserError(f"{path}: {_reason(error)}; convert the data again") from error
        self._flat = {name: tf.constant(arrays.pop(name)) for name in list(arrays)}
        self._scalars = {name: tf.constant(scalar) for name, scalar in scalars.items()}
        spans = [pixel_ends - pixels, pixel_ends, cell_ends - index.count, cell_ends]
        self._spans = tf.constant(np.stack([*spans, index.height, index.width, index.channels], 1))

    def _fetch_cached(self, number: tf.Tensor) -> dict[str, tf.Tensor]:
        first, last, cell, cell_end, height, width, channels = tf.unstack(self._spans[number])
        example = {name: value[number] for name, value in self._scalars.items()}
        for name in CELL_ARRAYS:
            example[name] = self._flat[name][cell:cell_end]
        example["image"] = tf.reshape(self._flat["image"][first:last], tf.stack([height, width, channels]))
        return example


def _even(image: np.ndarray) -> tuple[np.ndarray, np.float32, np.float32]:
    pixels, mean, std = even_pixels(image)
    return pixels, np.float32(mean), np.float32(std)


def _scan(folders: Sequence[Path]) -> tuple[list[str], np.recarray, np.ndarray]:
    """Read all shards once, checksums included.

    Returns:
        Their paths, the `_INDEX` of every record, int64, and the name of its source.
    """
    paths: list[str] = []
    rows: list[np.ndarray] = []
    names: list[bytes] = []
    for folder in folders:
        shards = load_manifest(folder).shards
        for path, shard in zip(record_lib.shard_paths(folder), shards, strict=True):
            try:
                parts = [_outlines(records) for records in record_lib.read_shard(str(path)).batch(16)]
            except (tf.errors.OpError, ValueError) as error:
                raise UserError(f"{path}: damaged ({_reason(error)}); convert the data again") from error
            found = np.concatenate([np.zeros((0, 7), np.int64), *(numbers for numbers, _ in parts)])
            names += [name for _, part in parts for name in part]
            if len(found) != shard["images"]:
                raise UserError(
                    f"{path}: {len(found)} images, not {shard['images']} as in the manifest; convert again"
                )
            ends = np.cumsum(found[:, 0] + _HEADER + _FOOTER)
            place = np.stack([np.full(len(found), len(paths)), ends - found[:, 0] - _HEADER - _FOOTER], 1)
            rows.append(np.concatenate([place, found], 1))
            paths.append(str(path))
    table = np.concatenate([np.zeros((0, len(_INDEX)), np.int64), *rows])
    index = np.rec.fromarrays(table.T, names=list(_INDEX))  # type: ignore[call-overload]
    return paths, index, np.array([name.decode() for name in names], np.str_)


def _outlines(serialized: tf.Tensor) -> tuple[np.ndarray, list[bytes]]:
    """Length and `_OUTLINE_FEATURES` of a few records, int64 `[R, 7]`, and the names of their sources."""
    features = tf.io.parse_example(serialized, _OUTLINE_FEATURES)
    sizes = [features[f"image/{key}"] for key in _OUTLINE_KEYS]
    length = tf.cast(tf.strings.length(serialized), tf.int64)
    numbers = tf.stack([length, *sizes, features["cells/count"], features["cells/mask_size"]], 1)
    return numbers.numpy(), features["image/source"].numpy().tolist()


def _reason(error: Exception) -> str:
    return str(getattr(error, "message", error)).splitlines()[0]


def _read_manifests(folders: Sequence[Path], annotated: int) -> list[Manifest]:
    """Manifests of folders, the first `annotated` of them labelled by people; refuses what does not fit."""
    manifests = [load_manifest(folder) for folder in folders]
    first = manifests[0]
    for place, (folder, manifest) in enumerate(zip(folders, manifests, strict=True)):
        if place < annotated:
            refuse_pseudo(folder, manifest, "to train on it, give it with --pseudo")
        elif not manifest.pseudo:
            raise UserError(f"{folder}: was annotated by people; give it as data, not as pseudo-labels")
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.class_names != first.class_names:
            raise UserError(
                f"{folder}: classes {', '.join(manifest.class_names)} differ from "
                f"{', '.join(first.class_names)} of {folders[0]}; convert both alike"
            )
        if manifest.mask_size != first.mask_size:
            raise UserError(
                f"{folder}: masks of {manifest.mask_size} x {manifest.mask_size}, {folders[0]} has "
                f"{first.mask_size}; convert both with the same mask size"
            )
    return manifests
