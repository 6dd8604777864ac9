"""What predictors of tests share that have a way of their own to find cells."""

from __future__ import annotations

from typing import Any

from effdet_tf.prediction.results import Result
from effdet_tf.presets import preset


class Finder:
    """`Predictor`, as far as commands ask it, around `find(image)`, which a test writes."""

    find: Any
    config: Any = preset("cells-lite0")

    def at_once(self, shape: tuple[int, ...]) -> int:
        return 1

    def predict(self, image: Any, score: float | None = None) -> Result:
        found = self.find(image)
        return found if score is None else found.filter(score)
