"""Networks that draw discs: they take no time, and their cells overlap and hide each other."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.prediction.network_process import read_one
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.trust import Trust
from tests.predictors import Finder


def make_result(seed: int, height: int, width: int, count: int = 60, masks: bool = True) -> Result:
    """Overlapping discs with falling scores, some alike; many hide a worse one by more than half."""
    random = np.random.default_rng(seed)
    scores = np.sort(np.round(random.uniform(0.05, 1, count), 2).astype(np.float32))[::-1]
    y, x, r = random.uniform(0, height, count), random.uniform(0, width, count), random.uniform(2, 9, count)
    edges = np.stack([y - r, x - r, y + r, x + r], 1).astype(np.float32)
    boxes = np.clip(edges, 0, np.float32([height, width, height, width]))
    grid = np.arange(28) - 13.5
    disc = np.where(np.hypot(grid[:, None], grid[None]) < 13, 255, 0).astype(np.uint8)
    return Result(
        boxes=boxes,
        scores=scores,
        classes=random.integers(0, 2, count).astype(np.int32),
        masks=np.repeat(disc[None], count, 0) if masks else None,
        mask_boxes=edges if masks else None,
        height=height,
        width=width,
        class_names=("round", "long"),
    )


class Discs(Finder):
    """A stand-in for a network; counts how many ask it at once, and refuses flat images."""

    class_names = ("round", "long")
    category_ids = (3, 7)
    asked = most = 0

    def __init__(self, seed: int, masks: bool = True) -> None:
        self.seed, self.masks = seed, masks
        self.config = Config().replace(postprocess__report_score=0.5)
        self.gate = threading.Event()
        self.gate.set()

    read = staticmethod(read_one)

    def close(self) -> None:
        """The network of the web app is a process of its own, which is ended; this one is not."""

    def predict(
        self, image: np.ndarray, score: float | None = None, um_per_px: float | None = None
    ) -> Result:
        """As `Predictor` and `ApartPredictor`; images of 17 rows are told as scaled, of 18 as strange."""
        found = super().predict(image, score)
        scaled = image.shape[0] == 17
        if image.shape[0] == 18:
            found = replace(found, trust=Trust(0.5, 0.71, 20, 40, True))
        return replace(found, scale=0.5, scale_reason="of 17 rows") if scaled else found

    def find(self, image: np.ndarray) -> Result:
        Discs.asked += 1
        Discs.most = max(Discs.most, Discs.asked)
        try:
            self.gate.wait(20)
            if image.min() == image.max():
                raise UserError("this image is flat; give one with cells")
            if image.shape[0] == 13:
                raise RuntimeError("thirteen\nrows")
            return make_result(self.seed + int(image.sum()) % 1000, *image.shape[:2], masks=self.masks)
        finally:
            Discs.asked -= 1
