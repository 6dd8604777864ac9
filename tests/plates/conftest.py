"""Plates of small images, and a predictor that finds every bright square in them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("apache_beam", reason="the extra `plates` is not installed")

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.prediction.results import Result
from tests.predictors import Finder


class Squares(Finder):
    """Finds the bright squares of an image as cells, score .9; refuses an image of 7 rows."""

    config = Config()
    class_names = ("cell",)
    category_ids = (1,)

    def __init__(self) -> None:
        self.seen = 0

    def find(self, image: np.ndarray) -> Result:
        self.seen += 1
        height, width = image.shape[:2]
        if height == 7:
            raise UserError("an image of 7 rows")
        _, _, stats, _ = cv2.connectedComponentsWithStats((image[..., 0] > 100).astype(np.uint8))
        found = [(x, y, w, h) for x, y, w, h, _ in stats[1:]]
        boxes = np.array([(y, x, y + h, x + w) for x, y, w, h in found], np.float32).reshape(-1, 4)
        return Result(
            height=height,
            width=width,
            boxes=boxes,
            scores=np.full(len(found), 0.9, np.float32),
            classes=np.zeros(len(found), np.int32),
            class_names=self.class_names,
            masks=np.full((len(found), 8, 8), 255, np.uint8),
            mask_boxes=boxes,
        )


def _squares(count: int) -> np.ndarray:
    """uint8 `[40, 60]` with `count` squares of 4 x 4 px."""
    image = np.zeros((40, 60), np.uint8)
    for k in range(count):
        y, x = divmod(k, 10)
        image[6 * y + 1 : 6 * y + 5, 6 * x + 1 : 6 * x + 5] = 200
    return image


def _write_image(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def squares():
    """`squares(count)`: an image."""
    return _squares


@pytest.fixture
def write_image():
    """`write_image(path, image)`; makes the folder, too."""
    return _write_image


@pytest.fixture
def predictor() -> Squares:
    return Squares()
