"""Every reader answers damaged input with its documented error: no crash, no hang, no flood of memory.

`EFFDET_FUZZ=N` gives each reader N inputs in place of a few hundred: 8,000 make more than 100,000 in all.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tifffile
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from effdet_tf.config import load_config
from effdet_tf.data.build import build_image
from effdet_tf.data.manifest import MANIFEST_NAME
from effdet_tf.data.record import ImageRecord, deserialize, iterate_records, serialize
from effdet_tf.data.sources.coco import open_coco
from effdet_tf.data.sources.labelmaps import open_labelmaps
from effdet_tf.data.sources.sartorius import open_sartorius
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.geometry.polygons import polygons_to_rle
from effdet_tf.geometry.rle import (
    decode_kaggle_rle,
    decode_rle,
    encode_kaggle_rle,
    encode_rle,
    kaggle_rle_to_patch,
    rle_to_patch,
)
from effdet_tf.images.read import Stack, encode_png, read_image, read_labels
from effdet_tf.model.weights import read_arrays
from effdet_tf.outputs.wells import parse_name
from effdet_tf.prediction.metadata import describe, read_metadata
from effdet_tf.presets import preset
from effdet_tf.pretrained.torch_file import read_state_dict
from tests.fuzz.damage import damaged_bytes, damaged_document, damaged_text
from tests.pretrained.torch_format import tensor, write_legacy, write_state_dict

EXAMPLES = int(os.environ.get("EFFDET_FUZZ", "200"))
SECONDS = 20  # for one input
MOST = 1 << 30  # bytes that an input may cost beyond what was in use before

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=SECONDS * 1000,
    derandomize=True,  # the same inputs in every run of CI
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
GRAY = (np.add.outer(np.arange(20) * 7, np.arange(30) * 3) % 251).astype(np.uint8)
MASK = np.zeros((20, 30), bool)
MASK[4:9, 5:12] = True
OTHER = np.zeros((20, 30), bool)
OTHER[10:19, 15:29] = True


@pytest.fixture(autouse=True)
def bounded_memory():
    """No test may need more than `MOST` beyond what the process took before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they then refuse
        yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MOST


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def answer(reader: Callable[[], Any], *errors: type[Exception]) -> Any:
    """What a reader gives, or None for a documented error, which is one line."""
    try:
        return reader()
    except errors as error:
        assert str(error) and "\n" not in str(error), repr(error)
        return None


def build_all(source: Any) -> None:
    """Read every image of a source with its cells, as `convert` does."""
    for task in source.tasks:
        built = build_image(task, 28)
        if built.fields is not None:
            assert np.isfinite(built.fields["boxes"]).all()
            assert len(built.fields["boxes"]) == len(built.fields["rles"]) == len(built.fields["masks"])


@given(document=damaged_document(encode_rle(MASK)))
@fuzz
def test_coco_rle(document):
    mask = answer(lambda: decode_rle(document), ValueError)
    patch = answer(lambda: rle_to_patch(document), ValueError)
    assert mask is None or (patch is None) == (not mask.any())


@given(text=damaged_text([encode_kaggle_rle(MASK | OTHER), encode_kaggle_rle(MASK)]))
@fuzz
def test_kaggle_rle(text):
    mask = answer(lambda: decode_kaggle_rle(text, 20, 30), ValueError)
    patch = answer(lambda: kaggle_rle_to_patch(text, 20, 30), ValueError)
    assert mask is None or (patch is None) == (not mask.any())


@given(document=damaged_document([[5.0, 4.0, 12.0, 4.0, 12.0, 9.0, 5.0, 9.0], [1, 1, 3, 1.5, 2, 4]]))
@fuzz
def test_polygons(document):
    code = answer(lambda: polygons_to_rle(document, 20, 30), ValueError)
    assert code is None or decode_rle(code).shape == (20, 30)


COCO = {
    "images": [{"id": k, "file_name": f"{k}.png", "height": 20, "width": 30} for k in (1, 2)],
    "categories": [{"id": 7, "name": "cell"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 0, "area": 35, "bbox": [5, 4, 7, 5],
         "segmentation": [[5.0, 4.0, 12.0, 4.0, 12.0, 9.0, 5.0, 9.0]]},
        {"id": 2, "image_id": 1, "category_id": 7, "iscrowd": 1, "area": 126, "bbox": [15, 10, 14, 9],
         "segmentation": encode_rle(OTHER)},
        {"id": 3, "image_id": 2, "category_id": 7, "iscrowd": 0, "area": 35, "bbox": [5, 4, 7, 5],
         "segmentation": {"size": [20, 30], "counts": [100, 20, 480]}},
    ],
}  # fmt: skip


def coco_folder(folder: Path) -> Path:
    place = folder / "coco"
    if not place.exists():
        place.mkdir()
        for k in (1, 2):
            (place / f"{k}.png").write_bytes(encode_png(GRAY))
    return place


@given(document=damaged_document(COCO))
@fuzz
def test_coco_document(folder, document):
    place = coco_folder(folder)
    path = place / "a.json"
    path.write_text(json.dumps(document))
    source = answer(lambda: open_coco(path, place, folder), UserError)
    if source is not None:
        answer(lambda: build_all(source), UserError)


@given(data=damaged_bytes([json.dumps(COCO).encode()]))
@fuzz
def test_coco_bytes(folder, data):
    place = coco_folder(folder)
    path = place / "a.json"
    path.write_bytes(data)
    source = answer(lambda: open_coco(path, place, folder), UserError)
    if source is not None:
        answer(lambda: build_all(source), UserError)


CSV = (
    "id,annotation,width,height,cell_type,plate_time,sample_date,sample_id,elapsed_timedelta\n"
    f"a,{encode_kaggle_rle(MASK)},30,20,cort,11h30m00s,2019-06-16,x,0 days\n"
    f"a,{encode_kaggle_rle(OTHER)},30,20,cort,11h30m00s,2019-06-16,x,0 days\n"
    f"b,{encode_kaggle_rle(MASK)},30,20,astro,11h30m00s,2019-06-16,x,0 days\n"
)


@given(text=damaged_text([CSV]))
@fuzz
def test_sartorius_csv(folder, text):
    place = folder / "sartorius"
    if not place.exists():
        (place / "train").mkdir(parents=True)
        for name in "ab":
            (place / f"train/{name}.png").write_bytes(encode_png(GRAY))
    (place / "train.csv").write_text(text, encoding="utf-8", errors="replace")
    source = answer(lambda: open_sartorius(place), UserError)
    if source is not None:
        answer(lambda: build_all(source), UserError)


def pictures() -> list[bytes]:
    """GRAY in every format that is read."""
    found = [encode_png(GRAY), encode_png(GRAY.astype(np.uint16) * 200), encode_png(np.dstack([GRAY] * 3))]
    for kind, mode in (
        ("PNG", "P"),
        ("PNG", "1"),
        ("PNG", "LA"),
        ("JPEG", "L"),
        ("JPEG", "RGB"),
        ("BMP", "RGB"),
    ):
        file = io.BytesIO()
        Image.fromarray(GRAY).convert(mode).save(file, kind)
        found.append(file.getvalue())
    for options in (
        {},
        {"compression": "zlib", "tile": (16, 16)},
        {"compression": "lzw", "byteorder": ">"},
        {"bigtiff": True, "predictor": True, "compression": "zlib"},
        {"imagej": True},
    ):
        file = io.BytesIO()
        tifffile.imwrite(file, GRAY.astype(np.uint16), **options)
        found.append(file.getvalue())
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for _ in range(3):
            writer.write(GRAY, compression="zlib")
    return [*found, file.getvalue()]


@given(data=damaged_bytes(pictures()))
@fuzz
def test_images(folder, data):
    path = folder / "image.tif"
    path.write_bytes(data)
    image = answer(lambda: read_image(path, 10**7), UserError)
    assert image is None or (image.ndim == 3 and np.isfinite(image).all())
    labels = answer(lambda: read_labels(path, 10**7), UserError)
    assert labels is None or (labels.ndim == 2 and labels.min() >= 0)

    def pages() -> None:
        with Stack(path, 10**7) as stack:
            for page in range(min(stack.pages, 5)):
                answer(lambda page=page: stack.read(page), UserError)

    answer(pages, UserError)


@given(data=damaged_bytes([encode_png(MASK.astype(np.uint16) + 2 * OTHER.astype(np.uint16))]))
@fuzz
def test_label_maps(folder, data):
    place = folder / "maps"
    place.mkdir(exist_ok=True)
    (place / "a_img.png").write_bytes(encode_png(GRAY))
    (place / "a_masks.png").write_bytes(data)
    source = answer(lambda: open_labelmaps(place), UserError)
    if source is not None:
        answer(lambda: build_all(source), UserError)


@pytest.fixture(scope="module")
def converted(folder, write_records) -> Path:
    """A converted data set of two images."""
    place = coco_folder(folder)
    path = place / "sound.json"
    path.write_text(json.dumps(COCO))
    source = open_coco(path, place, folder)
    records = [ImageRecord(source="coco", **build_image(task, 28).fields) for task in source.tasks]
    return write_records(folder / "converted", records)


def beside_manifest(converted: Path, place: Path) -> Path:
    """A folder with the manifest of a sound set; returns where its shard belongs."""
    place.mkdir(exist_ok=True)
    (place / MANIFEST_NAME).write_bytes((converted / MANIFEST_NAME).read_bytes())
    return place / "one.tfrecord"


def read_set(place: Path) -> None:
    """Read a converted set in both ways: record by record, and as training does."""
    answer(lambda: list(iterate_records(place)), UserError)
    store = answer(lambda: RecordStore(place), UserError)
    if store is not None:
        for number in range(store.images):
            store.fetch(tf.constant(number, tf.int64))


@given(data=st.data())
@fuzz
def test_shards(converted, folder, data):
    shard = beside_manifest(converted, folder / "shards")
    shard.write_bytes(data.draw(damaged_bytes([(converted / shard.name).read_bytes()])))
    read_set(shard.parent)


@given(data=st.data())
@fuzz
def test_records_with_sound_checksums(converted, folder, data):
    shard = beside_manifest(converted, folder / "records")
    sound = [serialize(record) for record in iterate_records(converted)]
    damaged = data.draw(damaged_bytes(sound))
    answer(lambda: deserialize(damaged), ValueError)
    with tf.io.TFRecordWriter(str(shard)) as writer:
        writer.write(sound[0])
        writer.write(damaged)
    read_set(shard.parent)


@given(data=st.data())
@fuzz
def test_manifests(converted, folder, data):
    place = folder / "manifests"
    place.mkdir(exist_ok=True)
    (place / "one.tfrecord").write_bytes((converted / "one.tfrecord").read_bytes())
    document = json.loads((converted / MANIFEST_NAME).read_text())
    (place / MANIFEST_NAME).write_text(json.dumps(data.draw(damaged_document(document))))
    read_set(place)


CONFIG = json.loads(json.dumps(dataclasses.asdict(preset("cells-lite0"))))  # lists in place of tuples


@given(document=damaged_document(CONFIG))
@fuzz
def test_config_document(folder, document):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    config = answer(lambda: load_config(path), UserError)
    if config is not None:  # what was read can be written and read again
        config.save(path)
        assert repr(load_config(path)) == repr(config)  # by repr, since nan differs from itself


@given(data=damaged_bytes([yaml.safe_dump(CONFIG).encode()]))
@fuzz
def test_config_bytes(folder, data):
    path = folder / "config.yaml"
    path.write_bytes(data)
    answer(lambda: load_config(path), UserError)


@given(document=damaged_document(json.loads(json.dumps(describe(preset("cells-lite0"), "float32")))))
@fuzz
def test_descriptions_of_exports(document):
    answer(lambda: read_metadata(json.dumps(document), "model"), UserError)


def archives() -> list[bytes]:
    """Weights as `np.savez` writes them, stored and compressed."""
    arrays = {"a/kernel": np.ones((3, 3, 1, 2), np.float32), "a/bias": np.zeros(2, np.float16)}
    found = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        found.append(file.getvalue())
    return found


@given(data=damaged_bytes(archives()))
@fuzz
def test_weights(folder, data):
    path = folder / "weights.npz"
    path.write_bytes(data)
    answer(lambda: read_arrays(path), UserError)


@pytest.fixture(scope="module")
def torch_files(folder) -> list[bytes]:
    """The same weights in both formats of `torch.save`."""
    arrays = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(2, np.float32)}
    tree = {"a.weight": tensor("FloatStorage", "0", 6, 0, (2, 3), (3, 1))}
    storages = {"0": (6, np.ones(6, np.float32).tobytes())}
    files = [write_state_dict(folder / "a.pth", arrays), write_legacy(folder / "b.pth", tree, storages)]
    return [file.read_bytes() for file in files]


@given(data=st.data())
@fuzz
def test_torch_files(folder, torch_files, data):
    path = folder / "weights.pth"
    path.write_bytes(data.draw(damaged_bytes(torch_files)))
    answer(lambda: read_state_dict(path), UserError)


@given(name=damaged_text(["A172_Phase_A7_1_00d00h00m_1.tif", "B2_1_2021y04m07d_10h30m.tif"]))
@fuzz
def test_names_of_plates(name):
    place = parse_name(name)
    assert place.site >= 0 and len(place.well) <= 3
