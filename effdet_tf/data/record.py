"""The one tf.Example schema: an annotated image with its cells as boxes, bitmaps and full-resolution RLEs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from effdet_tf.data.manifest import load_manifest
from effdet_tf.errors import UserError

_READ_BUFFER = 1 << 20  # bytes; a few records at a time

# Field of `ImageRecord`: its feature, and how it is written. Per-cell arrays are little-endian bytes, one
# fixed-length feature each: an image without cells is no special case, and 2,000 cells touch no varint.
_FIELDS = {
    "image": ("image/encoded", "bytes"),
    "height": ("image/height", "int"),
    "width": ("image/width", "int"),
    "channels": ("image/channels", "int"),
    "bit_depth": ("image/bit_depth", "int"),
    "mean": ("image/mean", "float"),
    "std": ("image/std", "float"),
    "image_id": ("image/id", "int"),
    "file_name": ("image/file_name", "text"),
    "source": ("image/source", "text"),
    "cell_type": ("image/cell_type", "text"),
    "boxes": ("cells/boxes", "<f4"),
    "annotated_boxes": ("cells/annotated_boxes", "<f4"),
    "classes": ("cells/classes", "<i4"),
    "iscrowd": ("cells/iscrowd", "u1"),
    "scores": ("cells/scores", "<f4"),
}
_COUNT, _MASK_SIZE, _MASKS, _RLES = "cells/count", "cells/mask_size", "cells/masks", "cells/rles"
_SCORES = _FIELDS["scores"][
    0
]  # records of before 2026-11-29 lack it: people annotated them, or certain labels
# What training reads.
_TRAINING_FEATURES = {
    key: tf.io.FixedLenFeature([], {"int": tf.int64, "float": tf.float32}.get(kind, tf.string))
    for key, kind in (*_FIELDS.values(), (_COUNT, "int"), (_MASK_SIZE, "int"), (_MASKS, "bytes"))
    if kind != "text" and key not in ("cells/annotated_boxes", _SCORES)
} | {_SCORES: tf.io.FixedLenFeature([], tf.string, "")}


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One annotated image.

    Raises:
        ValueError: when the arrays disagree in the number of cells or have another shape.
    """

    image: bytes  # PNG file bytes, 8 or 16 bit gray, or 8 bit RGB
    height: int  # image height in pixels
    width: int  # image width in pixels
    channels: int  # 1 or 3
    bit_depth: int  # 8 or 16
    mean: float  # mean of all pixels of the whole image (RGB as gray), in native units
    # their standard deviation, floored by the writer at 1e-3 * max(1, |mean|): a flat image must not be
    # divided by 0
    std: float
    boxes: np.ndarray  # float32 `[N, 4]` yxyx pixels, tight around each mask
    annotated_boxes: np.ndarray  # float32 `[N, 4]` yxyx pixels, as annotated, for evaluation
    classes: np.ndarray  # int32 `[N]`, from 0
    masks: np.ndarray  # uint8 `[N, m, m]`, 0-255 coverage over `boxes`
    # N compressed COCO `counts`, full resolution: what evaluation compares with; empty where only a box is
    # annotated
    rles: list[bytes]
    iscrowd: np.ndarray  # uint8 `[N]`, 1 for a cell that neither training nor evaluation may count
    image_id: int  # the id in the source, or the running number
    file_name: str  # path of the image inside the source
    source: str  # name of the data set
    cell_type: str  # cell type, empty when unknown
    # float32 `[N]`, how sure each label is: 1 of people's (the default), of a network's the score to aim at
    scores: np.ndarray = field(default_factory=lambda: np.ones(0, np.float32))

    def __post_init__(self) -> None:
        """Refuse arrays that disagree."""
        cells = len(self.rles)
        if not len(self.scores):
            object.__setattr__(self, "scores", np.ones(cells, np.float32))
        size = self.masks.shape[-1] if self.masks.ndim == 3 else -1
        expected = {
            "boxes": (cells, 4),
            "annotated_boxes": (cells, 4),
            "classes": (cells,),
            "masks": (cells, size, size),
            "iscrowd": (cells,),
            "scores": (cells,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape or size < 1:
                raise ValueError(f"{self.file_name}: {name} is {getattr(self, name).shape}, not {shape}")
        if self.channels not in (1, 3) or self.bit_depth not in (8, 16):
            raise ValueError(f"{self.file_name}: {self.channels} channels of {self.bit_depth} bit")
        if not self.std > 0:
            raise ValueError(f"{self.file_name}: std {self.std} is not above 0")


def serialize(record: ImageRecord) -> bytes:
    """Return the record as a serialized tf.Example; the same record gives the same bytes."""
    masks = np.ascontiguousarray(record.masks, np.uint8)
    features = {key: _feature(getattr(record, name), kind) for name, (key, kind) in _FIELDS.items()}
    features |= {_COUNT: _feature(len(record.rles), "int"), _MASK_SIZE: _feature(masks.shape[-1], "int")}
    features[_MASKS] = _feature(zlib.compress(masks.tobytes(), 6), "bytes")
    features[_RLES] = tf.train.Feature(bytes_list=tf.train.BytesList(value=record.rles))
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def _feature(value: Any, kind: str) -> tf.train.Feature:
    if kind == "int":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))
    if kind == "float":
        return tf.train.Feature(float_list=tf.train.FloatList(value=[float(value)]))
    if kind == "text":
        value = value.encode()
    elif kind != "bytes":
        value = np.ascontiguousarray(value, kind).tobytes()
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def deserialize(serialized: bytes) -> ImageRecord:
    """Return the record of `serialize`, in numpy.

    Raises:
        ValueError: when the bytes are no such record.
    """
    try:
        features = dict(tf.train.Example.FromString(serialized).features.feature)
        known = {name: entry for name, entry in _FIELDS.items() if name != "scores" or _SCORES in features}
        fields = {name: _value(features[key], kind) for name, (key, kind) in known.items()}
        for name in ("boxes", "annotated_boxes"):
            fields[name] = fields[name].reshape(-1, 4)
        size = _value(features[_MASK_SIZE], "int")
        masks = np.frombuffer(zlib.decompress(_value(features[_MASKS], "bytes")), np.uint8)
        rles = list(features[_RLES].bytes_list.value)
        return ImageRecord(masks=masks.reshape(-1, size, size), rles=rles, **fields)
    except (KeyError, IndexError, zlib.error, DecodeError) as error:
        raise ValueError(f"not an annotated image record: {error!r}") from error


def _value(feature: tf.train.Feature, kind: str) -> Any:
    if kind == "int":
        return feature.int64_list.value[0]
    if kind == "float":
        return feature.float_list.value[0]
    value = feature.bytes_list.value[0]
    if kind == "text":
        return value.decode()
    return value if kind == "bytes" else np.frombuffer(value, kind)


def parse(serialized: tf.Tensor, image_dtype: tf.DType = tf.float32) -> dict[str, tf.Tensor]:
    """Return the tensors that training needs; the RLEs stay unread.

    Args:
        serialized: scalar string, one record.
        image_dtype: type of the returned image. The pixel values are the native ones in every case,
            so uint8 holds 8-bit images only and uint16 both.

    Returns:
        `image [H, W, C]` image_dtype, `boxes [N, 4]` float32 yxyx pixels, `classes [N]` int32,
        `masks [N, m, m]` uint8, `iscrowd [N]` uint8, `scores [N]` float32, scalars `mean` and `std` float32,
        `bit_depth` int32 (8 or 16: what the pixel values are, whatever their type), `image_id` int64.
    """
    features = tf.io.parse_single_example(serialized, _TRAINING_FEATURES)
    encoded = features["image/encoded"]
    image = tf.cond(
        features["image/bit_depth"] == 16,
        lambda: tf.cast(tf.io.decode_png(encoded, dtype=tf.uint16), image_dtype),
        lambda: tf.cast(tf.io.decode_png(encoded, dtype=tf.uint8), image_dtype),
    )
    shape = tf.stack([features["image/height"], features["image/width"], features["image/channels"]])
    count, size = features["cells/count"], features["cells/mask_size"]
    masks = tf.io.decode_raw(tf.io.decode_compressed(features["cells/masks"], "ZLIB"), tf.uint8)
    scores = tf.io.decode_raw(features[_SCORES], tf.float32)
    missing = tf.equal(tf.strings.length(features[_SCORES]), 0)
    return {
        "image": tf.ensure_shape(tf.reshape(image, shape), [None, None, None]),
        "boxes": tf.reshape(tf.io.decode_raw(features["cells/boxes"], tf.float32), [-1, 4]),
        "classes": tf.io.decode_raw(features["cells/classes"], tf.int32),
        "masks": tf.reshape(masks, tf.stack([count, size, size])),
        "iscrowd": tf.io.decode_raw(features["cells/iscrowd"], tf.uint8),
        "scores": tf.cond(missing, lambda: tf.ones(tf.stack([count])), lambda: scores),
        "mean": features["image/mean"],
        "std": features["image/std"],
        "bit_depth": tf.cast(features["image/bit_depth"], tf.int32),
        "image_id": features["image/id"],
    }


def shard_paths(directory: str | Path) -> list[Path]:
    """Return the shard files of a converted data set, in order.

    Raises:
        UserError: when the manifest or a shard is missing.
    """
    folder = Path(directory)
    paths = [folder / shard["file"] for shard in load_manifest(folder).shards]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path}: this shard is in the manifest but not in the folder; convert the data again"
            )
    return paths


def read_shard(path: str | Sequence[str]) -> tf.data.Dataset:
    """Return the serialized records of one shard, or of several in order; reading checks their checksums."""
    return tf.data.TFRecordDataset(path, buffer_size=_READ_BUFFER)


def iterate_records(directory: str | Path) -> Iterator[ImageRecord]:
    """Yield every record of a converted data set, shard by shard.

    Raises:
        UserError: for a missing manifest or shard, a record that cannot be read, and a shard with
            another number of images than the manifest says; it names the shard.
    """
    paths = shard_paths(directory)
    for path, shard in zip(paths, load_manifest(directory).shards, strict=True):
        seen = 0
        try:
            for serialized in read_shard(str(path)).as_numpy_iterator():
                yield deserialize(serialized)
                seen += 1
        except (tf.errors.OpError, ValueError) as error:
            reason = getattr(error, "message", str(error)).splitlines()[0]
            raise UserError(f"{path}: record {seen} is damaged ({reason}); convert the data again") from error
        if seen != shard["images"]:
            raise UserError(
                f"{path}: {seen} images, the manifest says {shard['images']}; convert the data again"
            )
