"""Fixtures that every test may use."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.config import Config
from effdet_tf.presets import preset


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotated images, or a skip that says how to name it."""
    folder = os.environ.get("EFFDET_REAL_DATA")
    if not folder:
        pytest.skip("EFFDET_REAL_DATA is unset: no real images to test on")
    return Path(folder)


@pytest.fixture(scope="module", autouse=True)
def _same_start() -> None:
    """Give every test file the same random weights and draws on every run."""
    random.seed(0)
    np.random.seed(0)
    if "keras" in sys.modules:  # else the file builds no network: importing TensorFlow would take seconds
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """The cell preset cut down to what steps in a second: P2-P3, 8 channels, 64 px crops."""
    return preset("cells-lite0").override(
        [
            "model.backbone_levels=[2, 3]",
            "model.max_level=3",
            "model.fpn_channels=8",
            "model.fpn_repeats=1",
            "model.head_repeats=1",
            "model.mask.channels=8",
            "model.mask.samples=8",
            "anchors.sizes=[[9, 14], [20, 30]]",
            "anchors.from_data=false",
            "data.crop_size=[64, 64]",
            "data.max_instances=200",
        ]
    )
