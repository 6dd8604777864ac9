"""Small converted data sets and runs for the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.config import Config
from effdet_tf.data.record import ImageRecord
from effdet_tf.data.synthetic.phase_contrast import render_image
from effdet_tf.geometry import MASK_SIZE
from effdet_tf.geometry.masks import patch_box, patch_to_bitmap
from effdet_tf.geometry.polygons import polygons_to_rle
from effdet_tf.geometry.rle import rle_to_patch
from effdet_tf.images.read import encode_png

WriteRecords = Callable[[Path, list[ImageRecord]], Path]
SIDE = 96


def make_record(image_id: int, cells: int) -> ImageRecord:
    """A synthetic image of 96 x 96 px with at most `cells` cells."""
    image, drawn = render_image(np.random.default_rng([7, image_id]), SIDE, SIDE, cells, "Round")
    codes = [polygons_to_rle([cell.polygon.ravel().tolist()], SIDE, SIDE) for cell in drawn]
    found = [(code, rle_to_patch(code)) for code in codes]
    patches = [(code, patch) for code, patch in found if patch is not None]
    boxes = np.array([patch_box(patch) for _, patch in patches], np.float32).reshape(-1, 4)
    bitmaps = [patch_to_bitmap(patch, MASK_SIZE) for _, patch in patches]
    return ImageRecord(
        image=encode_png(image),
        height=SIDE,
        width=SIDE,
        channels=1,
        bit_depth=8,
        mean=float(image.mean()),
        std=float(image.std()),
        boxes=boxes,
        annotated_boxes=boxes,
        classes=np.zeros(len(boxes), np.int32),
        masks=np.array(bitmaps, np.uint8).reshape(-1, MASK_SIZE, MASK_SIZE),
        rles=[code["counts"].encode() for code, _ in patches],
        iscrowd=np.zeros(len(boxes), np.uint8),
        image_id=image_id,
        file_name=f"{image_id}.png",
        source="made up",
        cell_type="Round",
    )


@pytest.fixture(scope="session")
def records() -> list[ImageRecord]:
    """Six images with 5 to 12 cells, ids 101-106."""
    return [make_record(101 + k, 12) for k in range(6)]


@pytest.fixture(scope="session")
def train_data(
    tmp_path_factory: pytest.TempPathFactory, records: list[ImageRecord], write_records: WriteRecords
) -> Path:
    """Four images."""
    return write_records(tmp_path_factory.mktemp("train") / "data", records[:4])


@pytest.fixture(scope="session")
def val_data(
    tmp_path_factory: pytest.TempPathFactory, records: list[ImageRecord], write_records: WriteRecords
) -> Path:
    """Two other images."""
    return write_records(tmp_path_factory.mktemp("val") / "data", records[4:])


@pytest.fixture(scope="session")
def run_config(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as a YAML file for --config: constant speed, no random depth, batches of 2."""
    config = tiny_config.override(["train.batch=2", "train.learning_rate=3e-3", "train.warmup=0.1"])
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.save(path)
    return path
