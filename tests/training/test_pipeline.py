"""Batches: fixed shapes, padding, counted losses, and the same content for the same seed and epoch."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.config import AugmentConfig, Config, DataConfig
from effdet_tf.data import record as record_lib
from effdet_tf.data.manifest import Manifest
from effdet_tf.data.packed import PackedSet
from effdet_tf.data.record import ImageRecord
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.images.normalize import normalize
from training import pipeline
from training.arrays import training_batches

STILL = AugmentConfig(scale_range=(1.0, 1.0), flip=False, rot90=False, brightness=0.0, contrast=(1.0, 1.0))


def record_of(
    number: int, cells: int, sixteen: bool = False, size: tuple[int, int] = (64, 80)
) -> ImageRecord:
    """An image of its own size and texture; cell i is a square of side 2 + i % 5."""
    rng = np.random.default_rng(number)
    image = cv2.GaussianBlur(rng.integers(0, 256, size).astype(np.float32), (0, 0), 1.5).astype(np.uint8)
    if sixteen:
        image = image.astype(np.uint16) * 257
    start = rng.integers(0, 50, (cells, 2))
    side = 2 + np.arange(cells)[:, None] % 5
    boxes = np.concatenate([start, start + side], 1).astype(np.float32)
    return ImageRecord(
        image=cv2.imencode(".png", image)[1].tobytes(),
        height=size[0], width=size[1], channels=1, bit_depth=16 if sixteen else 8,
        mean=float(image.mean()), std=float(image.std()), boxes=boxes, annotated_boxes=boxes,
        classes=np.arange(cells, dtype=np.int32) % 2, masks=np.full((cells, 28, 28), 255, np.uint8),
        rles=[b"x"] * cells, iscrowd=np.zeros(cells, np.uint8), image_id=100 + number,
        file_name=f"{number}.png", source="made up", cell_type="",
    )  # fmt: skip


def write_set(
    folder: Path, records: list[ImageRecord], names: tuple[str, ...] = ("round", "long"), mask_size: int = 28
) -> Path:
    """Write records as a data set of two shards."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for part in range(2):
        name = f"part-{part}.tfrecord"
        chosen = records[part::2]
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for record in chosen:
                writer.write(record_lib.serialize(record))
        cells = sum(len(record.rles) for record in chosen)
        shards.append({"file": name, "images": len(chosen), "cells": cells, "sha256": ""})
    Manifest(
        source="made up",
        categories=[{"id": 3 + i, "name": name} for i, name in enumerate(names)],
        shards=shards,
        images=len(records),
        cells=sum(shard["cells"] for shard in shards),
        max_cells=max((len(record.rles) for record in records), default=0),
        cells_per_image={},
        image_statistics={},
        cell_sizes=[],
        cell_types={},
        dropped={},
        notes={},
        mask_size=mask_size,
    ).save(folder)
    return folder


@pytest.fixture
def data_dir(tmp_path) -> Path:
    sizes = [(64, 80), (96, 70), (40, 130)]
    return write_set(tmp_path / "set", [record_of(n, n * 3, size=sizes[n % 3]) for n in range(11)])


def config(**changes) -> DataConfig:
    return DataConfig(**{"crop_size": (48, 48), "max_instances": 40, **changes})


def numpy_batches(dataset: tf.data.Dataset) -> list[dict[str, np.ndarray]]:
    return list(dataset.as_numpy_iterator())


def assert_same(first: list, second: list) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_batches_have_fixed_shapes_and_padding(data_dir):
    dataset = pipeline.training_dataset(data_dir, config(), AugmentConfig(), 4, seed=1)
    expected = {
        "image": ((4, 48, 48, 1), tf.float32),
        "boxes": ((4, 40, 4), tf.float32),
        "classes": ((4, 40), tf.int32),
        "masks": ((4, 40, 28, 28), tf.uint8),
        "scores": ((4, 40), tf.float32),
        "ignored": ((4, 128, 4), tf.float32),
        "scale": ((4, 2), tf.float32),
        "image_id": ((4,), tf.int64),
        "dropped": ((4,), tf.int32),
    }
    assert {k: (tuple(v.shape), v.dtype) for k, v in dataset.element_spec.items()} == expected
    batches = numpy_batches(dataset)
    assert len(batches) == 2
    cells = 0
    for batch in batches:
        padding = batch["classes"] == -1
        cells += (~padding).sum()
        assert (np.diff(padding.astype(int), axis=1) >= 0).all(), "padding comes last"
        assert (batch["boxes"][padding] == 0).all() and (batch["masks"][padding] == 0).all()
        boxes = batch["boxes"][~padding]
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all() and boxes.min() >= 0 and boxes.max() <= 48
        assert (batch["masks"][~padding] == 255).all() and (batch["dropped"] == 0).all()
    assert cells > 20


def test_every_image_comes_once_per_epoch_and_crop(data_dir):
    batches = numpy_batches(
        pipeline.training_dataset(data_dir, config(crops_per_image=3), AugmentConfig(), 1, seed=1)
    )
    ids = np.concatenate([batch["image_id"] for batch in batches])
    assert sorted(ids) == sorted(list(range(100, 111)) * 3)
    images = np.stack([batch["image"][0] for batch in batches])
    assert len(np.unique(images.reshape(33, -1), axis=0)) == 33, "each crop of an image is another one"


@pytest.mark.parametrize("cache_mb", [2000, 0], ids=["cached", "stored"])
def test_seed_and_epoch_decide_the_content(data_dir, cache_mb):
    def run(seed=1, epoch=0, epochs=1, calls=2, skip=0):
        store = RecordStore(data_dir, cache_mb)
        assert store.cached == (cache_mb > 0)
        args = (store, config(), AugmentConfig(), 2, seed, epoch, epochs, calls)
        return numpy_batches(pipeline.training_dataset(*args).skip(skip))

    two = run(epochs=2)
    assert_same(two, run(epochs=2, calls=1))
    assert_same(two[5:], run(epoch=1))
    assert_same(two[3:], run(epochs=2, skip=3))
    args = (RecordStore(data_dir, cache_mb), config(), AugmentConfig(), 2, 1)
    endless = pipeline.training_dataset(*args, epochs=None)  # one pipeline for a whole training
    assert_same(two, numpy_batches(endless.take(len(two))))
    ids = [[batch["image_id"].tolist() for batch in part] for part in (two[:5], two[5:], run(seed=2))]
    assert ids[0] != ids[1] and ids[0] != ids[2]


def test_memory_and_shards_give_the_same_batches(data_dir):
    runs = [
        numpy_batches(pipeline.training_dataset(RecordStore(data_dir, mb), config(), AugmentConfig(), 2, 5))
        for mb in (2000, 0)
    ]
    assert_same(*runs)


@pytest.mark.parametrize("cache_mb", [2000, 0], ids=["cached", "stored"])
def test_content_shows_training_what_prediction_sees(tmp_path, cache_mb):
    records = [record_of(k, 3, size=(300, 280)) for k in range(4)]
    images = {}
    for k, record in enumerate(records):
        image = cv2.imdecode(np.frombuffer(record.image, np.uint8), -1)
        image[:, : 60 + 10 * k] = 255 if k % 2 else 0  # a border that moves mean and deviation
        statistics = {"mean": float(image.mean()), "std": float(image.std())}
        png = cv2.imencode(".png", image)[1].tobytes()
        records[k], images[record.image_id] = dataclasses.replace(record, image=png, **statistics), image
    folder = write_set(tmp_path / "data", records)
    data = config(crop_size=(300, 280), normalization="content")
    still = dataclasses.replace(STILL, flip_vertical=False)
    seen = Config().replace(data__normalization="content")
    store = RecordStore(folder, cache_mb, even=True)
    packed = RecordStore(folder)
    packed = PackedSet(packed.to_arrays(), packed.class_names, packed.category_ids, packed.fingerprint, True)
    batches = numpy_batches(pipeline.training_dataset(store, data, still, 2, 5))
    batches += islice(training_batches(packed, data, still, 2, 5), 2)
    assert len(batches) == 4
    for batch in batches:
        for image, number in zip(batch["image"], batch["image_id"], strict=True):
            expected = normalize(images[int(number)], seen)
            assert np.abs(image - expected).max() < 0.05  # stored in whole gray levels
    with pytest.raises(ValueError, match="even=False"):
        pipeline.training_dataset(RecordStore(folder, cache_mb), data, STILL, 2, 5)


def test_16_bit_images_give_the_same_batches_as_8_bit(tmp_path):
    batches = [
        numpy_batches(pipeline.training_dataset(folder, config(), AugmentConfig(), 3, 5))[0]
        for folder in (
            write_set(tmp_path / "8", [record_of(n, 2) for n in range(3)]),
            write_set(tmp_path / "16", [record_of(n, 2, sixteen=True) for n in range(3)]),
            write_set(tmp_path / "both", [record_of(n, 2, sixteen=n == 1) for n in range(3)]),
        )
    ]
    # Half of the images lie in the second shard; the order is the same in all three sets.
    for other in batches[1:]:
        np.testing.assert_allclose(batches[0]["image"], other["image"], atol=1e-3)
        np.testing.assert_array_equal(batches[0]["boxes"], other["boxes"])
    assert batches[0]["image"].std() > 0.5


def test_2000_cells_and_none(tmp_path):
    folder = write_set(tmp_path / "set", [record_of(0, 2000), record_of(1, 0)])
    batch = numpy_batches(
        pipeline.training_dataset(folder, config(crop_size=(64, 80), max_instances=2000), STILL, 2, 0)
    )[0]
    count = dict(zip(batch["image_id"], (batch["classes"] >= 0).sum(1), strict=True))
    assert count == {100: 2000, 101: 0}
    full = list(batch["image_id"]).index(100)
    np.testing.assert_array_equal(batch["boxes"][full], record_of(0, 2000).boxes)
    np.testing.assert_array_equal(batch["classes"][full], record_of(0, 2000).classes)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "map"])
def test_the_largest_cells_stay_and_the_rest_is_counted(eager):
    record = record_of(0, 50)
    example = {"boxes": record.boxes, "classes": np.arange(50, dtype=np.int32), "masks": record.masks}
    example["scores"] = record.scores
    sides = np.arange(200, dtype=np.float32)[:, None]
    example["ignored"] = np.concatenate([sides * 0, sides * 0, sides, sides], 1)
    example = {key: tf.constant(value) for key, value in example.items()}
    if eager:
        result = pipeline.fit_cells(example, 20)
    else:
        result = next(iter(tf.data.Dataset.from_tensors(example).map(lambda e: pipeline.fit_cells(e, 20))))
    np.testing.assert_array_equal(result["classes"], [i for i in range(50) if i % 5 >= 3])
    np.testing.assert_array_equal(result["boxes"], record.boxes[result["classes"].numpy()])
    assert result["dropped"] == 30
    assert result["ignored"][:, 2].numpy().tolist() == list(range(199, 71, -1))


def test_dropped_cells_reach_the_batch(tmp_path):
    folder = write_set(tmp_path / "set", [record_of(0, 30), record_of(1, 3)])
    data = config(crop_size=(64, 80), max_instances=10)
    batch = numpy_batches(pipeline.training_dataset(folder, data, STILL, 2, 0))[0]
    assert dict(zip(batch["image_id"], batch["dropped"], strict=True)) == {100: 20, 101: 0}


def test_data_sets_are_mixed_when_their_classes_agree(tmp_path):
    first = write_set(tmp_path / "a", [record_of(n, 2) for n in range(3)])
    second = write_set(tmp_path / "b", [record_of(n, 2) for n in range(10, 12)])
    store = RecordStore([first, second])
    assert store.images == 5 and store.class_names == ("round", "long") and store.category_ids == (3, 4)
    batches = numpy_batches(pipeline.training_dataset(store, config(), STILL, 5, 0))
    assert sorted(batches[0]["image_id"]) == [100, 101, 102, 110, 111]
    other = write_set(tmp_path / "c", [record_of(0, 1)] * 2, names=("long", "round"))
    with pytest.raises(UserError, match=r"c: classes long, round differ from round, long"):
        RecordStore([first, other])
    with pytest.raises(UserError, match="mask size"):
        RecordStore([first, write_set(tmp_path / "d", [record_of(0, 1)] * 2, mask_size=32)])


@pytest.mark.parametrize("damage", ["flipped", "missing", "short", "no image"])
def test_a_damaged_shard_is_named(data_dir, damage):
    shard = data_dir / "part-1.tfrecord"
    raw = bytearray(shard.read_bytes())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 0xFF
        shard.write_bytes(raw)
    elif damage == "missing":
        shard.unlink()
    elif damage == "short":
        length = int.from_bytes(raw[:8], "little")
        shard.write_bytes(raw[: length + 16])
    else:
        records = [record_of(n, 1) for n in range(4)]
        records[3] = ImageRecord(**{**vars(records[3]), "image": b"no png"})
        write_set(data_dir, records)
    with pytest.raises(UserError, match="part-1.tfrecord") as caught:
        RecordStore(data_dir)
    assert "\n" not in str(caught.value)


def test_unusable_requests_say_what_to_do(data_dir, tmp_path):
    with pytest.raises(UserError, match="nowhere: does not exist"):
        RecordStore(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no images"):
        RecordStore(write_set(tmp_path / "empty", []))
    with pytest.raises(UserError, match="crops_per_image=2"):
        pipeline.training_dataset(data_dir, config(), STILL, 16, 0)


@pytest.mark.parametrize("cache_mb", [100, 0], ids=["cached", "stored"])
def test_8_and_16_bit_images_of_one_set_meet_the_same_fixed_statistics(tmp_path, cache_mb):
    """The store holds both as 16 bit: only the record knows what the values mean."""
    folder = write_set(tmp_path / "set", [record_of(5, 2), record_of(5, 2, sixteen=True)])
    fixed = config(crop_size=(64, 80), normalization="fixed", mean=100.0, std=10.0, resize="fit")
    store = RecordStore(folder, cache_mb)
    assert store.cached == bool(cache_mb)
    (batch,) = numpy_batches(pipeline.training_dataset(store, fixed, STILL, 2, seed=0))
    np.testing.assert_allclose(batch["image"][0], batch["image"][1], atol=1e-3)
    assert 5 < batch["image"].std() * 10 < 100 and abs(batch["image"].mean()) < 5
