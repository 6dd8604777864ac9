"""What the tests of the web app share: networks that draw discs, images."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from effdet_tf.images.read import encode_png
from effdet_tf.prediction.sizing import Sizing
from tests.webapp.discs import Discs


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The web app's networks, with discs in place of the real ones; `loaded` has those that were opened."""
    from effdet_tf.webapp import networks as module

    loaded: dict[str, Discs] = {}

    def load(path: Path, seconds: float, sizing: Sizing) -> Discs:
        loaded[path.name] = Discs(len(path.name), masks=path.name != "boxes")
        return loaded[path.name]

    monkeypatch.setattr(module, "ApartPredictor", load)
    found = module.Networks("cells")
    found.loaded = loaded
    return found


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(900, 4000, (70, 90)).astype(np.uint16)


@pytest.fixture(scope="session")
def images(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of three kinds, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("plate")
    (folder / "gray.png").write_bytes(encode_png((pixels // 16).astype(np.uint8)))
    tifffile.imwrite(folder / "deep é.tif", pixels, imagej=True, resolution=(2, 2), metadata={"unit": "um"})
    (folder / "sub").mkdir()
    tifffile.imwrite(
        folder / "sub" / "x_B2_1_00d04h00m.tif",
        np.repeat(pixels[..., None], 3, -1).astype(np.float32),
        photometric="rgb",
    )
    return folder


@pytest.fixture
def wait() -> Callable[..., None]:
    """`wait(condition)` until it holds, or fails."""

    def until(condition: Callable[[], Any], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    return until
