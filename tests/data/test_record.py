"""Records come back as they were written, in numpy and in TensorFlow, and say which file is damaged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.data import record as record_lib
from effdet_tf.data.record import ImageRecord
from effdet_tf.errors import UserError


def make_record(cells: int, bit_depth: int = 8, channels: int = 1, seed: int = 0) -> ImageRecord:
    rng = np.random.default_rng(seed)
    high = 256 if bit_depth == 8 else 65536
    shape = (40, 60) if channels == 1 else (40, 60, 3)
    image = rng.integers(0, high, shape, dtype=np.uint8 if bit_depth == 8 else np.uint16)
    start = rng.uniform(0, 30, (cells, 2))
    boxes = np.concatenate([start, start + rng.uniform(1, 9, (cells, 2))], -1).astype(np.float32)
    png = cv2.imencode(".png", image[..., ::-1] if channels == 3 else image)[1].tobytes()
    return ImageRecord(
        image=png, height=40, width=60, channels=channels, bit_depth=bit_depth,
        mean=float(image.mean()), std=float(image.std()), boxes=boxes, annotated_boxes=boxes + 0.5,
        classes=rng.integers(0, 8, cells).astype(np.int32),
        masks=rng.integers(0, 256, (cells, 28, 28), dtype=np.uint8),
        rles=[bytes(f"abc{i}", "ascii") for i in range(cells)],
        iscrowd=(np.arange(cells) % 7 == 3).astype(np.uint8),
        image_id=2**40 + cells, file_name="train/é.png", source="made up", cell_type="BV2",
    )  # fmt: skip


def decode(record: ImageRecord) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_UNCHANGED)
    return image[..., None] if image.ndim == 2 else image[..., ::-1]


CASES = [(0, 8, 1), (1, 8, 1), (1, 16, 1), (3, 8, 3), (2000, 8, 1)]


@pytest.mark.parametrize(("cells", "bit_depth", "channels"), CASES)
def test_round_trip_in_numpy(cells, bit_depth, channels):
    record = make_record(cells, bit_depth, channels)
    again = record_lib.deserialize(record_lib.serialize(record))
    for field in dataclasses.fields(record):
        expected, found = getattr(record, field.name), getattr(again, field.name)
        if isinstance(expected, np.ndarray):
            assert found.dtype == expected.dtype, field.name
            np.testing.assert_array_equal(found, expected, err_msg=field.name)
        elif isinstance(expected, float):
            assert found == np.float32(expected), field.name
        else:
            assert found == expected, field.name


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "map"])
@pytest.mark.parametrize(("cells", "bit_depth", "channels"), CASES)
def test_parse_gives_the_same_tensors(cells, bit_depth, channels, eager):
    record = make_record(cells, bit_depth, channels)
    serialized = record_lib.serialize(record)
    if eager:
        tensors = record_lib.parse(tf.constant(serialized))
    else:
        tensors = next(iter(tf.data.Dataset.from_tensors(serialized).map(record_lib.parse)))
    assert tensors["image"].dtype == tf.float32
    np.testing.assert_array_equal(tensors["image"], decode(record).astype(np.float32))
    for name in ("boxes", "classes", "masks", "iscrowd"):
        np.testing.assert_array_equal(tensors[name], getattr(record, name))
    assert tensors["image_id"] == record.image_id
    assert tensors["mean"] == np.float32(record.mean)
    assert tensors["std"] == np.float32(record.std)
    assert tensors["bit_depth"] == bit_depth


def test_one_dtype_holds_8_and_16_bit_images_in_native_units():
    for bit_depth in (8, 16):
        record = make_record(1, bit_depth)
        image = record_lib.parse(record_lib.serialize(record), tf.uint16)["image"]
        assert image.dtype == tf.uint16
        np.testing.assert_array_equal(image, decode(record))


def test_the_same_record_gives_the_same_bytes():
    assert record_lib.serialize(make_record(5)) == record_lib.serialize(make_record(5))


def test_arrays_that_disagree_are_refused():
    record = make_record(3)
    with pytest.raises(ValueError, match="classes"):
        dataclasses.replace(record, classes=record.classes[:2])
    with pytest.raises(ValueError, match="std"):
        dataclasses.replace(record, std=0.0)


def test_bytes_that_are_no_record_are_a_value_error():
    with pytest.raises(ValueError, match="not an annotated image record"):
        record_lib.deserialize(b"\xff\xff\xff no example")
    with pytest.raises(ValueError, match="not an annotated image record"):
        record_lib.deserialize(tf.train.Example().SerializeToString())


def write_set(folder: Path, monkeypatch, images: int = 3) -> Path:
    """Write one shard and have the manifest reader return an entry for it."""
    shard = folder / "shard-00000.tfrecord"
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for number in range(3):
            writer.write(record_lib.serialize(make_record(number)))

    class Stub:
        shards = ({"file": shard.name, "images": images, "cells": 3, "sha256": ""},)

    monkeypatch.setattr(record_lib, "load_manifest", lambda directory: Stub)
    return shard


def test_iterate_yields_all_records_in_order(tmp_path, monkeypatch):
    write_set(tmp_path, monkeypatch)
    assert [len(record.rles) for record in record_lib.iterate_records(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "short"])
def test_a_damaged_shard_is_named(tmp_path, monkeypatch, damage):
    shard = write_set(tmp_path, monkeypatch, images=4 if damage == "short" else 3)
    raw = bytearray(shard.read_bytes())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 0xFF
        shard.write_bytes(raw)
    elif damage == "truncated":
        shard.write_bytes(raw[:-100])
    elif damage == "missing":
        shard.unlink()
    with pytest.raises(UserError, match=shard.name) as caught:
        list(record_lib.iterate_records(tmp_path))
    assert "convert" in str(caught.value) and "\n" not in str(caught.value)


def test_no_manifest_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="manifest"):
        next(record_lib.iterate_records(tmp_path))
