"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotated images, or a skip that says how to name it."""
    folder = os.environ.get("EFFDET_REAL_DATA")
    if not folder:
        pytest.skip("EFFDET_REAL_DATA is unset: no real images to test on")
    return Path(folder)
