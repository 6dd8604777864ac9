"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effdet_tf.config import Config
from effdet_tf.presets import preset

# TensorFlow's graphs are millions of objects in the end: to look at them again and again takes time.
gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotated images, or a skip that says how to name it."""
    folder = os.environ.get("EFFDET_REAL_DATA")
    if not folder:
        pytest.skip("EFFDET_REAL_DATA is unset: no real images to test on")
    return Path(folder)


# A browser that does nothing on its own: no sandbox (it may run as root), no look for updates.
BROWSER_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The machine's Chromium, driven by playwright; a skip where there is none."""
    places = ("/usr/bin/chromium", *(shutil.which(name) for name in ("chromium", "chromium-browser")))
    program = next((place for place in places if place and os.path.exists(place)), None)
    if program is None:
        pytest.skip("no Chromium at /usr/bin/chromium or on PATH: nothing to open pages in")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=list(BROWSER_FLAGS))
        yield running
        running.close()


@pytest.fixture(scope="module", autouse=True)
def _same_start() -> None:
    """Give every test file the same random weights and draws on every run."""
    random.seed(0)
    np.random.seed(0)
    if "keras" in sys.modules:  # else the file builds no network: importing TensorFlow would take seconds
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """The cell preset cut down to what steps in a second: P2-P3, 8 channels, 64 px crops; with anchors."""
    return preset("cells-lite0").override(
        [
            "data.normalization=image",
            "model.backbone_levels=[2, 3]",
            "model.max_level=3",
            "model.fpn_channels=8",
            "model.fpn_repeats=1",
            "model.head_repeats=1",
            "model.mask.channels=8",
            "model.mask.samples=8",
            "model.mask.head=filters",
            "model.mask.hidden=8",
            "anchors.code=center",
            "anchors.ratios=[1, 2, 0.5]",
            "anchors.sizes=[[9, 14], [20, 30]]",
            "anchors.from_data=false",
            "assign.method=iou",
            "assign.negative_iou=0.4",
            "data.crop_size=[64, 64]",
            "data.zoom=1",
            "data.balance=0",
            "data.max_instances=200",
            "postprocess.vote_iou=0",
        ]
    )


@pytest.fixture(scope="session")
def tiny_points(tiny_config: Config) -> Config:
    """The same as the cell presets are: no anchors, task-aligned, shared mask convolutions, magnified."""
    return tiny_config.override(
        [
            "model.mask.head=convolution",
            "anchors.code=sides",
            "anchors.ratios=[1]",
            "anchors.sizes=[[12], [24]]",
            "assign.method=task_aligned",
            "data.zoom=1.5",
            "data.balance=0.5",
            "postprocess.vote_iou=0.65",
        ]
    )


@pytest.fixture(scope="session")
def write_records() -> Callable[..., Path]:
    """`write_records(folder, records, categories)` makes a converted data set of one shard in `folder`."""
    import tensorflow as tf

    from effdet_tf.data.manifest import Manifest
    from effdet_tf.data.record import ImageRecord, serialize
    from effdet_tf.geometry import MASK_SIZE

    def write(
        folder: Path,
        records: Sequence[ImageRecord],
        categories: Sequence[dict[str, Any]] = ({"id": 5, "name": "cell"},),
    ) -> Path:
        folder.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / "one.tfrecord")) as writer:
            for record in records:
                writer.write(serialize(record))
        counts = [len(record.rles) for record in records]
        sizes = [[float(y1 - y0), float(x1 - x0)] for record in records for y0, x0, y1, x1 in record.boxes]
        Manifest(
            source="made up",
            categories=list(categories),
            shards=[{"file": "one.tfrecord", "images": len(records), "cells": sum(counts), "sha256": ""}],
            images=len(records),
            cells=sum(counts),
            max_cells=max(counts),
            cells_per_image={},
            image_statistics={},
            cell_sizes=sizes,
            cell_types={},
            dropped={},
            notes={},
            mask_size=MASK_SIZE,
        ).save(folder)
        return folder

    return write
