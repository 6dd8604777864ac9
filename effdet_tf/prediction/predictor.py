"""Images of any size through any predictor: in tiles, with the brightness of the whole image.

Memory beside the image itself and its cells is that of one tile. A network sees a tile as it would see that
part of the whole image: tiles start where its coarsest grid does, and are normalised as the whole image is.

A network reports so many cells of what it sees at once (`data.max_instances`). A part with as many is
predicted again in smaller tiles, so that dense images lose none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from effdet_tf.config import Config
from effdet_tf.images.prepare import Brightness, brightness, check_image
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.tiling import Found, Merger, make_tiles

LARGE = 2048 * 2048  # pixels from which an image is predicted in tiles
TILE, OVERLAP = 896, 192  # px, side of a tile and what tiles share: cells up to this size come whole
DENSE_TILE, DENSE_OVERLAP = 512, 128  # likewise where there are more cells than the network reports at once


class PartPredictor(Protocol):
    """What predicts a part of an image as that part of the whole.

    Attributes:
        config: of the network.
        class_names: by class id.
    """

    config: Config
    class_names: Any

    def predict(self, image: np.ndarray, whole: Brightness | None = None) -> Result:
        """Find the cells of a part `[H, W, C]` of an image of this brightness."""
        ...


def predict_any_size(
    predictor: PartPredictor, image: np.ndarray, part_of: Brightness | None, once: Callable[[], Result]
) -> Result:
    """Find the cells of an image, in tiles where it is large or holds more cells than the network reports.

    Networks for which images are scaled to their input take any whole.

    Args:
        predictor: of the parts.
        image: `[H, W]` or `[H, W, C]`; one in a file (numpy.memmap) is read part by part.
        part_of: brightness of the image that this is a tile of, which is predicted as it is; else None.
        once: predicts the image in one piece.

    Raises:
        UserError: for an array that is no image.
    """
    if part_of is not None or image.ndim < 2 or predictor.config.data.resize == "fit":
        return once()
    if image.shape[0] * image.shape[1] <= LARGE:
        result = once()
        if not (result.truncated and max(image.shape[:2]) > TILE):
            return result
    return predict_in_tiles(predictor, image)


def predict_in_tiles(predictor: PartPredictor, image: np.ndarray) -> Result:
    """Find the cells of a large image; a bar on stderr shows the tiles where that is a terminal.

    Args:
        predictor: of the parts.
        image: as `predict_any_size` takes it.

    Returns:
        The cells of all tiles, best first; truncated where one of the smallest tiles had as many as the
        network reports.

    Raises:
        UserError: for an array that is no image.
    """
    image = check_image(image)
    found, truncated = _tiled(predictor, image, brightness(image), TILE, OVERLAP, show=True)
    size = (image.shape[0], image.shape[1])
    return Result(*found, *size, class_names=tuple(predictor.class_names), truncated=truncated)


def _tiled(
    predictor: PartPredictor, image: np.ndarray, whole: Brightness, side: int, overlap: int, show: bool
) -> tuple[Found, bool]:
    """Cells of an image or a part of it, and whether some are missing."""
    frame = (side, side)
    tiles = make_tiles((image.shape[0], image.shape[1]), frame, tile_unit(predictor.config), overlap)
    merger, truncated = Merger(tiles, frame, predictor.config, None), False
    hidden = None if show else True  # None: no bar in a log file
    for number, tile in enumerate(tqdm(tiles, "tiles", unit="tile", leave=False, disable=hidden)):
        y, x = tile.start
        part = np.ascontiguousarray(image[y : y + side, x : x + side])
        result = predictor.predict(part, whole)
        if result.truncated and max(part.shape[:2]) > DENSE_TILE:
            found, full = _tiled(predictor, part, whole, DENSE_TILE, DENSE_OVERLAP, show=False)
        else:
            found = Found(result.boxes, result.scores, result.classes, result.masks, result.mask_boxes)
            full = result.truncated
        truncated |= full
        merger.add(number, found)
    return merger.merged(), truncated


def tile_unit(config: Config) -> int:
    """Tiles start at multiples of this many px: there the magnified image meets the coarsest grid."""
    zoom = Fraction(config.data.zoom).limit_denominator(32)
    stride = 2**config.model.max_level * zoom.denominator
    return stride // math.gcd(zoom.numerator, stride)
