"""Networks with an input of one size, on images of any.

Pure numpy: a network that runs without TensorFlow is served without it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from effdet_tf.config import Config
from effdet_tf.geometry.resample import resize
from effdet_tf.images.normalize import Brightness, normalize
from effdet_tf.model.detections import Detections
from effdet_tf.prediction.predictor import DENSE_OVERLAP, Predictor, missing_from
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.tiling import find_in_tiles

# (image float32 [height, width, C] of the input size, normalised, 0 beyond what is image; height and width of
# the image, at the top left) -> cells, best first, in pixels of the input
Run = Callable[[np.ndarray, tuple[int, int]], Detections]


class FixedSizePredictor(Predictor):
    """Images of any size through a network whose input has one size.

    An image that fits into the input is predicted in one piece, a larger one in tiles that overlap; with
    `data.resize=fit` it is scaled to the input instead. Cells larger than what tiles share (`DENSE_OVERLAP`)
    may come in the part that one tile sees.

    Attributes:
        input_size: height, width of the input, px.
    """

    def __init__(self, config: Config, input_size: tuple[int, int], run: Run) -> None:
        """Wrap a network: what it was made with, height and width of its input in px, and itself."""
        super().__init__(config)
        self.input_size = input_size
        self._run = run

    def _detect(self, image: np.ndarray, part_of: Brightness | None, score: float = 0.0) -> Result:
        values = normalize(image, self.config, part_of)
        size = np.array(values.shape[:2])
        fit, limit = self.config.data.resize == "fit", self.config.data.max_instances
        shown = fitted_size(size, self.input_size) if fit else zoomed_size(size, self.config.data.zoom)

        def find(part: np.ndarray) -> tuple[Detections, bool]:
            found = self._run(padded(part, self.input_size), part.shape[:2])
            return found, missing_from(found.scores, limit, score)

        stride = 2**self.config.model.max_level
        found, missing = find_in_tiles(
            resize(values, shown), self.input_size, stride, DENSE_OVERLAP, self.config, find, limit
        )
        found = found.scaled(shown, size).take(np.arange(len(found.scores)) < limit)
        return self._result(found, image, missing or missing_from(found.scores, limit, score))


def padded(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Put `image [h, w, C]` at the top left of an input of `size`, 0 beyond it; what does not fit is cut."""
    part = image[: size[0], : size[1]]
    return np.pad(part, ((0, size[0] - part.shape[0]), (0, size[1] - part.shape[1]), (0, 0)))


def fitted_size(size: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
    """Size int `[2]` at which an image of `size [2]` just fits into the input: as `images.resize` has it."""
    scale = (np.asarray(input_size, np.float32) / size.astype(np.float32)).min()
    return np.clip(np.round(size.astype(np.float32) * scale).astype(int), 1, input_size)


def zoomed_size(size: np.ndarray, zoom: float) -> np.ndarray:
    """Size int `[2]` of an image of `size [2]` that is magnified by `zoom`, in whole pixels: at least 1."""
    return np.maximum(np.round(size.astype(np.float32) * np.float32(zoom)).astype(int), 1)
