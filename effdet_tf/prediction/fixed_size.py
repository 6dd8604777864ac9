"""Networks with an input of one size, on images of any.

Pure numpy: a network that runs without TensorFlow is served without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from effdet_tf.config import Config
from effdet_tf.geometry.resample import resize
from effdet_tf.images.prepare import Brightness, normalize
from effdet_tf.images.read import read_image
from effdet_tf.prediction.predictor import predict_any_size
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.tiling import Found, Merger, make_tiles

# (image float32 [height, width, C] of the frame, normalised, 0 beyond what is shown; height and width of what
# is shown, at the top left) -> cells, best first, in pixels of the frame
Run = Callable[[np.ndarray, tuple[int, int]], Found]


class FramedPredictor:
    """Images of any size through a network whose input has one size.

    An image that fits into the input is predicted in one piece, a larger one in tiles that overlap; with
    `data.resize=fit` it is scaled to the input instead. Cells larger than what tiles share (`OVERLAP`) may
    come in the part that one tile sees.

    Attributes:
        config: of the network.
        class_names: by class id.
        category_ids: COCO ids by class id.
        per_class: whether classes are told apart: doubles are sought within a class.
        frame: height, width of the input, px.
    """

    def __init__(self, config: Config, frame: tuple[int, int], run: Run) -> None:
        """Wrap a network.

        Args:
            config: what it was made with.
            frame: height, width of its input, px.
            run: the network itself.
        """
        self.config = config
        self.class_names = config.class_names
        self.category_ids = config.category_ids
        self.per_class = not config.postprocess.class_agnostic
        self.frame = frame
        self._run = run

    def predict(self, image: np.ndarray | str | os.PathLike[str], whole: Brightness | None = None) -> Result:
        """Find the cells of one image.

        Args:
            image: a file, or `[H, W]` or `[H, W, C]` pixels, uint8, uint16 or float.
            whole: of the image that this is a part of.

        Returns:
            The cells that the network gives, best first, `data.max_instances` at most; of a large image as
            many from each of its tiles, see `large_images`.

        Raises:
            UserError: for an unreadable file or an array that is no image.
        """
        pixels = read_image(image) if isinstance(image, (str, os.PathLike)) else np.asarray(image)
        return predict_any_size(self, pixels, whole, lambda: self._predict(pixels, whole))

    def _predict(self, pixels: np.ndarray, whole: Brightness | None) -> Result:
        values = normalize(pixels, self.config, whole)
        found, full = self._fitted(values) if self.config.data.resize == "fit" else self._zoomed(values)
        limit = self.config.data.max_instances
        return Result(
            *found.take(np.arange(len(found.scores)) < limit),
            height=pixels.shape[0],
            width=pixels.shape[1],
            class_names=self.class_names,
            truncated=full or len(found.scores) >= limit,
        )

    def _fitted(self, values: np.ndarray) -> tuple[Found, bool]:
        """Cells of an image that is scaled to the frame."""
        size = np.array(values.shape[:2])
        shown = fitted_size(size, self.frame)
        found = self._run(framed(resize(values, shown), self.frame), (int(shown[0]), int(shown[1])))
        return found.scaled(shown, size), False

    def _zoomed(self, values: np.ndarray) -> tuple[Found, bool]:
        """Cells of an image at the scale of the network, and whether a tile gave as many as it may."""
        size = np.array(values.shape[:2])
        shown = zoomed_size(size, self.config.data.zoom)
        found, full = self._tiled(resize(values, shown))
        return found.scaled(shown, size), full

    def _tiled(self, values: np.ndarray) -> tuple[Found, bool]:
        """Cells of an image of any size, and whether a tile gave as many as it may."""
        limit = self.config.data.max_instances
        tiles = make_tiles(values.shape[:2], self.frame, 2**self.config.model.max_level)
        merger, full = Merger(tiles, self.frame, self.config, limit), False
        for number, tile in enumerate(tiles):
            (y, x), (height, width) = tile.start, self.frame
            part = values[y : y + height, x : x + width]
            found = self._run(framed(part, self.frame), part.shape[:2])
            if len(tiles) == 1:
                return found, False
            full |= len(found.scores) >= limit
            merger.add(number, found)
        return merger.merged(), full


def framed(image: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """Put `image [h, w, C]` at the top left of a frame, 0 beyond it; what does not fit is cut off."""
    part = image[: frame[0], : frame[1]]
    return np.pad(part, ((0, frame[0] - part.shape[0]), (0, frame[1] - part.shape[1]), (0, 0)))


def fitted_size(size: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """Size int `[2]` at which an image of `size [2]` just fits into a frame: as `data.resize` has it."""
    scale = (np.asarray(frame, np.float32) / size.astype(np.float32)).min()
    return np.clip(np.round(size.astype(np.float32) * scale).astype(int), 1, frame)


def zoomed_size(size: np.ndarray, zoom: float) -> np.ndarray:
    """Size int `[2]` of an image of `size [2]` that is magnified by `zoom`, in whole pixels: at least 1."""
    return np.maximum(np.round(size.astype(np.float32) * np.float32(zoom)).astype(int), 1)
