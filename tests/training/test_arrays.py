"""The numpy loader: the crops of the TensorFlow pipeline, in the same order, without TensorFlow."""

from __future__ import annotations

from itertools import islice, product
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.config import AugmentConfig, DataConfig
from effdet_tf.data.packed import PackedSet
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from training import augment as tf_augment
from training import numpy_crops, pipeline
from training.arrays import PLACES, first_places, stack, training_batches
from training.crop_params import CropParams

SIZE = (90, 130)
CELLS = 25


def example(channels: int = 1, sixteen: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """An image with texture and 25 round cells of 6 to 40 px, some up to the frame, one of them crowd."""
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.uniform(0, 255, (*SIZE, 3)).astype(np.float32), (0, 0), 1.2)
    image = image[..., :channels].astype(np.uint8)
    if sixteen:
        image = image.astype(np.uint16) * 257
    side = rng.uniform(6, 40, (CELLS, 2))
    start = rng.uniform(0, 1, (CELLS, 2)) * (SIZE - side)
    y, x = np.mgrid[:28, :28] - 13.5
    edge = rng.uniform(9, 14, (CELLS, 1, 1))
    return {
        "image": image,
        "boxes": np.concatenate([start, start + side], 1).astype(np.float32),
        "classes": np.arange(CELLS, dtype=np.int32),
        "masks": (np.clip(edge - np.hypot(y, x) + 0.5, 0, 1) * 255).astype(np.uint8),
        "iscrowd": (np.arange(CELLS) == 7).astype(np.uint8),
        "scores": np.linspace(0.1, 1, CELLS, dtype=np.float32),
        "mean": np.float32(image.mean()),
        "std": np.float32(image.std()),
        "bit_depth": np.int32(16 if sixteen else 8),
        "image_id": np.int64(3),
    }


def params(scale: float = 1.0, y: float = 0.4, x: float = 0.6, turn: tuple = (0, 0, 0), **tone: float):
    tone = {"gain": 1.2, "offset": 0.1} | tone
    numbers = [np.float32(v) for v in (scale, y, x)]
    return CropParams(*numbers, *map(bool, turn), *(np.float32(tone[k]) for k in ("gain", "offset")))


FIXED = {"normalization": "fixed", "mean": 110.0, "std": 30.0}
CASES = {
    "as it is": (params(), {}, {}),
    "enlarged": (params(1.7), {}, {}),
    "shrunk a little": (params(0.8, y=0.0, x=0.99), {}, {"crop_size": (48, 64)}),
    "shrunk through a low-pass": (params(0.41), {}, {"crop_size": (32, 40)}),
    "at the border": (params(1.2, y=0.999, x=0.0), {}, {}),
    "larger than the image": (params(0.45, y=0.3, x=0.8), {}, {"crop_size": (64, 64)}),
    "larger along one axis": (params(0.9, y=0.3, x=0.8), {}, {"crop_size": (96, 64)}),
    "16 bit": (params(1.3), {"sixteen": True}, {}),
    "16 bit, fixed": (params(1.3), {"sixteen": True}, FIXED),
    "RGB to gray": (params(0.7), {"channels": 3}, {}),
    "gray to RGB, fixed": (params(0.7), {}, FIXED | {"channels": 3, "std": (20.0, 30.0, 40.0)}),
    "RGB": (params(0.7), {"channels": 3}, {"channels": 3}),
    "fitted, smaller": (params(0.35, turn=(1, 0, 1)), {}, {"resize": "fit", "crop_size": (64, 64)}),
    "fitted, cut": (params(1.1, y=0.9), {}, {"resize": "fit", "crop_size": (64, 80)}),
    **{f"turn {turn}": (params(0.9, turn=turn), {}, {}) for turn in product((0, 1), repeat=3)},
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_draws_give_the_crop_that_tensorflow_gives(name: str, monkeypatch) -> None:
    chosen, image, settings = CASES[name]
    source = example(**image)
    data = DataConfig(**{"crop_size": (56, 56), **settings})
    monkeypatch.setattr(numpy_crops, "draw", lambda *arguments: chosen)
    monkeypatch.setattr(tf_augment, "draw", lambda *arguments: CropParams(*map(tf.constant, chosen)))
    seed = np.int32([1, 2])
    found = numpy_crops.augment(source, seed, AugmentConfig(), data)
    tensors = {key: tf.constant(value) for key, value in source.items()}
    expected = tf_augment.augment(tensors, tf.constant(seed), AugmentConfig(), data)
    expected = {key: value.numpy() for key, value in expected.items()}
    assert set(found) == set(expected)
    assert found["image"].shape == (*data.crop_size, data.channels) and found["image"].std() > 0.1
    np.testing.assert_allclose(found["image"], expected["image"], atol=1e-3)
    np.testing.assert_array_equal(found["classes"], expected["classes"])
    assert len(found["classes"]) > 3 and 7 not in found["classes"]
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-3)
    difference = np.abs(found["masks"].astype(int) - expected["masks"])
    assert difference.max() <= 1 and found["masks"].max() == 255
    np.testing.assert_allclose(found["ignored"], expected["ignored"], atol=1e-3)
    np.testing.assert_allclose(found["scale"], expected["scale"], rtol=1e-6)
    assert found["image_id"] == 3
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key


def test_an_image_without_cells_gives_a_crop_without_cells() -> None:
    source = example() | {"boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, np.int32)}
    source |= {"masks": np.zeros((0, 28, 28), np.uint8), "iscrowd": np.zeros(0, np.uint8)}
    source["scores"] = np.zeros(0, np.float32)
    found = numpy_crops.augment(source, np.int32([1, 2]), AugmentConfig(), DataConfig(crop_size=(32, 32)))
    assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, 28, 28)
    assert found["classes"].shape == (0,) and found["image"].shape == (32, 32, 1)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(scale_range=(0.5, 2.0)),
        AugmentConfig(short_sides=(40, 80, 120)),
        AugmentConfig(scale_range=(0.1, 2.0), flip_vertical=False, rot90=False),
        AugmentConfig(flip=False),
        AugmentConfig(scale_range=(0.9, 1.1)),
    ],
    ids=["range", "sides", "fitted", "turned only", "zoomed"],
)
def test_chance_is_spread_as_in_tensorflow(config: AugmentConfig) -> None:
    fit = config.scale_range[0] == 0.1
    size, crop = np.array(SIZE), (64, 64)
    zoom = 1.5 if config.scale_range[0] == 0.9 else 1.0
    found = [numpy_crops.draw(np.int32([k, 5]), size, crop, config, fit, zoom) for k in range(4000)]
    fitting = tf.constant(64 / 130) if fit else None
    seeds = tf.data.Dataset.from_tensor_slices(np.stack([np.arange(4000), np.full(4000, 5)], 1))
    drawn = seeds.map(lambda s: tf_augment.draw(s, tf.constant(90.0), crop, config, fitting, zoom)).batch(
        4000
    )
    (expected,) = drawn.as_numpy_iterator()
    for name in CropParams._fields:
        a = np.sort(np.array([getattr(draw, name) for draw in found], np.float64))
        b = np.sort(getattr(expected, name).astype(np.float64))
        spread = np.ptp(b)
        # Two samples of 4,000: their quantiles differ by some hundredths of the range.
        np.testing.assert_allclose(a[100::200], b[100::200], atol=0.05 * spread + 1e-6, err_msg=name)


def test_turns_of_an_oblong_crop_keep_its_shape() -> None:
    made = [
        numpy_crops.draw(np.int32([k, 0]), np.array(SIZE), (32, 64), AugmentConfig(), False)
        for k in range(200)
    ]
    assert not any(draw.transpose for draw in made)
    assert {(draw.flip_y, draw.flip_x) for draw in made} == set(product((False, True), repeat=2))


@pytest.fixture(scope="module")
def packed(train_data: Path) -> PackedSet:
    store = RecordStore(train_data)
    return PackedSet(store.to_arrays(), store.class_names, store.category_ids, store.fingerprint, store.masks)


DATA = DataConfig(crop_size=(48, 48), max_instances=200, crops_per_image=3)


def batches(packed: PackedSet, count: int, **changes) -> list[dict[str, np.ndarray]]:
    settings = {"data_config": DATA, "augment_config": AugmentConfig(), "batch_size": 5, "seed": 4} | changes
    return list(islice(training_batches(packed, **settings), count))


def assert_same(first: list, second: list) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_are_those_of_the_pipeline_in_shape_and_order(packed: PackedSet, train_data: Path) -> None:
    found = batches(packed, 4)
    expected = pipeline.training_dataset(train_data, DATA, AugmentConfig(), 5, seed=4, epochs=2)
    for ours, theirs in zip(found, expected.as_numpy_iterator(), strict=True):
        assert set(ours) == set(theirs)
        np.testing.assert_array_equal(ours["image_id"], theirs["image_id"])
        for name, value in theirs.items():
            assert ours[name].dtype == value.dtype, name
            if name not in ("boxes", "classes", "masks", "scores"):
                assert ours[name].shape == value.shape, name
        assert ours["classes"].shape == (5, PLACES) and ours["boxes"].shape == (5, PLACES, 4)
        cells = ours["classes"] >= 0
        assert cells.any() and (ours["classes"][~cells] == -1).all()
        assert not ours["boxes"][~cells].any() and not ours["masks"][~cells].any()
        assert (ours["masks"][cells].max((1, 2)) > 127).all()


def test_any_number_of_threads_and_any_restart_give_the_same(packed: PackedSet) -> None:
    whole = batches(packed, 6, threads=1)
    assert_same(whole, batches(packed, 6, threads=3))
    assert_same(whole[1:], batches(packed, 5, done=1))
    assert_same(whole[2:], batches(packed, 4, epoch=1))
    assert_same(whole, batches(packed, 6, processes=2))
    other = batches(packed, 1, seed=5)[0]
    assert not np.array_equal(other["image"], whole[0]["image"])


def test_the_places_for_cells_suit_the_crops() -> None:
    arrays = {"size": np.int32([[400, 600, 1], [200, 300, 1]]), "count": np.int64([2000, 900])}
    data = PackedSet(arrays, ("cell",), (1,), "", True)
    crops = AugmentConfig(scale_range=(0.5, 2))

    def places(zoom: float = 1.0, augment: AugmentConfig = crops, **changes) -> int:
        settings = {"crop_size": (100, 150), "max_instances": 5000, "zoom": zoom} | changes
        return first_places(data, DataConfig(**settings), augment)

    # At half size a crop sees a quarter of the large image, and all of the small one, which has 900 cells.
    assert places() == 960
    # Magnified twice, a sixteenth of 2,000 cells or a quarter of 900, and half again.
    assert places(zoom=2.0) == 384
    assert places(zoom=100.0) == PLACES
    assert places(max_instances=77) == 77
    # No crops but whole images.
    assert places(resize="fit") == places(augment=AugmentConfig(short_sides=(100,))) == 2048


def test_padding_grows_by_steps_and_the_largest_cells_stay() -> None:
    crowded = example()
    many = 2 * PLACES + 6
    crowded["boxes"] = np.tile(np.float32([[5, 5, 25, 25]]), (many, 1))
    crowded["boxes"][:, 2] += np.arange(many, dtype=np.float32) / 4
    crowded |= {"classes": np.arange(many, dtype=np.int32), "iscrowd": np.zeros(many, np.uint8)}
    crowded["masks"] = np.full((many, 28, 28), 255, np.uint8)
    crowded["scores"] = np.ones(many, np.float32)
    arrays = {
        "size": np.int32([[*SIZE, 1]]),
        "count": np.int64([many]),
        "image": crowded.pop("image").reshape(-1),
        **{k: np.array([crowded.pop(k)]) for k in ("mean", "std", "bit_depth", "image_id")},
        **crowded,
    }
    one = PackedSet(arrays, ("cell",), (1,), "", True)
    still = AugmentConfig(scale_range=(1, 1), flip=False, rot90=False)
    settings = {"augment_config": still, "batch_size": 1}
    data = DataConfig(crop_size=SIZE, max_instances=2000)
    (batch,) = batches(one, 1, data_config=data, **settings)
    assert (
        batch["classes"].shape == (1, -(-many // PLACES) * PLACES) and (batch["classes"] >= 0).sum() == many
    )
    assert batch["dropped"] == [0]
    data = DataConfig(crop_size=SIZE, max_instances=30)
    (batch,) = batches(one, 1, data_config=data, **settings)
    assert batch["classes"].tolist() == [list(range(many - 30, many))] and batch["dropped"] == [many - 30]
    assert batch["ignored"].shape == (1, 128, 4) and not batch["ignored"].any()


def test_the_largest_regions_to_ignore_stay() -> None:
    crop = numpy_crops.augment(example(), np.int32([1, 2]), AugmentConfig(), DataConfig(crop_size=(32, 32)))
    sides = np.arange(200, dtype=np.float32)[:, None]
    crop["ignored"] = np.concatenate([sides * 0, sides * 0, sides, sides], 1)
    few = crop | {"ignored": crop["ignored"][5:7]}
    batch = stack([crop, few], 2000)
    assert batch["ignored"][0, :, 2].tolist() == list(range(199, 71, -1))
    assert batch["ignored"][1, :3, 2].tolist() == [6, 5, 0]


def test_too_few_crops_are_refused(packed: PackedSet) -> None:
    with pytest.raises(UserError, match="data.crops_per_image=4"):
        batches(packed, 1, batch_size=16)
