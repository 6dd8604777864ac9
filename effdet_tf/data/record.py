"""The one tf.Example schema: an annotated image with its cells as boxes, bitmaps and full-resolution RLEs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from effdet_tf.data.manifest import Manifest, load_manifest
from effdet_tf.errors import UserError

_READ_BUFFER = 1 << 20  # bytes; a few records at a time

# Per-cell arrays are little-endian bytes: one fixed-length feature each, so an image without cells
# needs no special case and parsing 2,000 cells touches no varint.
_BYTES = tf.io.FixedLenFeature([], tf.string)
_INT = tf.io.FixedLenFeature([], tf.int64)
_FLOAT = tf.io.FixedLenFeature([], tf.float32)
_TRAINING_FEATURES = {
    "image/encoded": _BYTES,
    "image/height": _INT,
    "image/width": _INT,
    "image/channels": _INT,
    "image/bit_depth": _INT,
    "image/mean": _FLOAT,
    "image/std": _FLOAT,
    "image/id": _INT,
    "cells/count": _INT,
    "cells/boxes": _BYTES,
    "cells/classes": _BYTES,
    "cells/iscrowd": _BYTES,
    "cells/mask_size": _INT,
    "cells/masks": _BYTES,
}


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One annotated image.

    Attributes:
        image: PNG file bytes, 8 or 16 bit gray, or 8 bit RGB.
        height: image height in pixels.
        width: image width in pixels.
        channels: 1 or 3.
        bit_depth: 8 or 16.
        mean: mean of all pixels of the whole image (RGB as gray), in native units.
        std: their standard deviation, floored by the writer at 1e-3 * max(1, |mean|): a flat image
            must not be divided by 0.
        boxes: float32 `[N, 4]` yxyx pixels, tight around each mask.
        annotated_boxes: float32 `[N, 4]` yxyx pixels, as annotated, for evaluation.
        classes: int32 `[N]`, from 0.
        masks: uint8 `[N, m, m]`, 0-255 coverage over `boxes`.
        rles: N compressed COCO `counts`, full resolution: what evaluation compares with; empty where only a
            box is annotated.
        iscrowd: uint8 `[N]`, 1 for a cell that neither training nor evaluation may count.
        image_id: the id in the source, or the running number.
        file_name: path of the image inside the source.
        source: name of the data set.
        cell_type: cell type, empty when unknown.

    Raises:
        ValueError: when the arrays disagree in the number of cells or have another shape.
    """

    image: bytes
    height: int
    width: int
    channels: int
    bit_depth: int
    mean: float
    std: float
    boxes: np.ndarray
    annotated_boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray
    rles: list[bytes]
    iscrowd: np.ndarray
    image_id: int
    file_name: str
    source: str
    cell_type: str

    def __post_init__(self) -> None:
        """Refuse arrays that disagree."""
        cells = len(self.rles)
        size = self.masks.shape[-1] if self.masks.ndim == 3 else -1
        expected = {
            "boxes": (cells, 4),
            "annotated_boxes": (cells, 4),
            "classes": (cells,),
            "masks": (cells, size, size),
            "iscrowd": (cells,),
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
    features = {
        "image/encoded": _bytes(record.image),
        "image/height": _ints(record.height),
        "image/width": _ints(record.width),
        "image/channels": _ints(record.channels),
        "image/bit_depth": _ints(record.bit_depth),
        "image/mean": _floats(record.mean),
        "image/std": _floats(record.std),
        "image/id": _ints(record.image_id),
        "image/file_name": _bytes(record.file_name.encode()),
        "image/source": _bytes(record.source.encode()),
        "image/cell_type": _bytes(record.cell_type.encode()),
        "cells/count": _ints(len(record.rles)),
        "cells/boxes": _array(record.boxes, "<f4"),
        "cells/annotated_boxes": _array(record.annotated_boxes, "<f4"),
        "cells/classes": _array(record.classes, "<i4"),
        "cells/iscrowd": _array(record.iscrowd, "u1"),
        "cells/mask_size": _ints(masks.shape[-1]),
        "cells/masks": _bytes(zlib.compress(masks.tobytes(), 6)),
        "cells/rles": tf.train.Feature(bytes_list=tf.train.BytesList(value=record.rles)),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def deserialize(serialized: bytes) -> ImageRecord:
    """Return the record of `serialize`, in numpy.

    Raises:
        ValueError: when the bytes are no such record.
    """
    try:
        feature = dict(tf.train.Example.FromString(serialized).features.feature)
        size = feature["cells/mask_size"].int64_list.value[0]
        masks = zlib.decompress(feature["cells/masks"].bytes_list.value[0])
        return ImageRecord(
            image=feature["image/encoded"].bytes_list.value[0],
            height=feature["image/height"].int64_list.value[0],
            width=feature["image/width"].int64_list.value[0],
            channels=feature["image/channels"].int64_list.value[0],
            bit_depth=feature["image/bit_depth"].int64_list.value[0],
            mean=feature["image/mean"].float_list.value[0],
            std=feature["image/std"].float_list.value[0],
            boxes=_numpy(feature["cells/boxes"], "<f4").reshape(-1, 4),
            annotated_boxes=_numpy(feature["cells/annotated_boxes"], "<f4").reshape(-1, 4),
            classes=_numpy(feature["cells/classes"], "<i4"),
            masks=np.frombuffer(masks, np.uint8).reshape(-1, size, size),
            rles=list(feature["cells/rles"].bytes_list.value),
            iscrowd=_numpy(feature["cells/iscrowd"], "u1"),
            image_id=feature["image/id"].int64_list.value[0],
            file_name=feature["image/file_name"].bytes_list.value[0].decode(),
            source=feature["image/source"].bytes_list.value[0].decode(),
            cell_type=feature["image/cell_type"].bytes_list.value[0].decode(),
        )
    except (KeyError, IndexError, zlib.error, DecodeError) as error:
        raise ValueError(f"not an annotated image record: {error!r}") from error


def parse(serialized: tf.Tensor, image_dtype: tf.DType = tf.float32) -> dict[str, tf.Tensor]:
    """Return the tensors that training needs; the RLEs stay unread.

    Args:
        serialized: scalar string, one record.
        image_dtype: type of the returned image. The pixel values are the native ones in every case,
            so uint8 holds 8-bit images only and uint16 both.

    Returns:
        `image [H, W, C]` image_dtype, `boxes [N, 4]` float32 yxyx pixels, `classes [N]` int32,
        `masks [N, m, m]` uint8, `iscrowd [N]` uint8, scalars `mean` and `std` float32, `bit_depth` int32
        (8 or 16: what the pixel values are, whatever their type), `image_id` int64.
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
    return {
        "image": tf.ensure_shape(tf.reshape(image, shape), [None, None, None]),
        "boxes": tf.reshape(tf.io.decode_raw(features["cells/boxes"], tf.float32), [-1, 4]),
        "classes": tf.io.decode_raw(features["cells/classes"], tf.int32),
        "masks": tf.reshape(masks, tf.stack([count, size, size])),
        "iscrowd": tf.io.decode_raw(features["cells/iscrowd"], tf.uint8),
        "mean": features["image/mean"],
        "std": features["image/std"],
        "bit_depth": tf.cast(features["image/bit_depth"], tf.int32),
        "image_id": features["image/id"],
    }


def read_manifest(directory: str | Path) -> Manifest:
    """Return the manifest of a converted data set.

    Raises:
        UserError: when the folder has no manifest or one of another format.
    """
    return load_manifest(directory)


def shard_paths(directory: str | Path) -> list[Path]:
    """Return the shard files of a converted data set, in order.

    Raises:
        UserError: when the manifest or a shard is missing.
    """
    folder = Path(directory)
    paths = [folder / shard["file"] for shard in read_manifest(folder).shards]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path}: this shard is in the manifest but not in the folder; convert the data again"
            )
    return paths


def read_shard(path: str | tf.Tensor) -> tf.data.Dataset:
    """Return the serialized records of one shard; reading checks their checksums."""
    return tf.data.TFRecordDataset(path, buffer_size=_READ_BUFFER)


def iterate_records(directory: str | Path) -> Iterator[ImageRecord]:
    """Yield every record of a converted data set, shard by shard.

    Raises:
        UserError: for a missing manifest or shard, a record that cannot be read, and a shard with
            another number of images than the manifest says; it names the shard.
    """
    paths = shard_paths(directory)
    for path, shard in zip(paths, read_manifest(directory).shards, strict=True):
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


def _bytes(value: bytes) -> Any:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _ints(value: int) -> Any:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))


def _floats(value: float) -> Any:
    return tf.train.Feature(float_list=tf.train.FloatList(value=[float(value)]))


def _array(value: np.ndarray, dtype: str) -> Any:
    return _bytes(np.ascontiguousarray(value, dtype).tobytes())


def _numpy(feature: Any, dtype: str) -> np.ndarray:
    return np.frombuffer(feature.bytes_list.value[0], dtype)
