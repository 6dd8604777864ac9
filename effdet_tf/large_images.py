"""Images of any size through any predictor: in tiles, with the brightness of the whole image.

Memory beside the image itself and its cells is that of one tile. A network sees a tile as it would see that
part of the whole image: tiles start where its coarsest grid does, and are normalised as the whole image is.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from effdet_tf.config import Config
from effdet_tf.data.prepare import Brightness, brightness, check_image
from effdet_tf.results import Result
from effdet_tf.tiling import Found, Merger, make_tiles

LARGE = 2048 * 2048  # pixels from which an image is predicted in tiles
TILE = 1536  # px, side of a tile
OVERLAP = 192  # px that tiles share at least: cells up to this size come whole


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


def is_large(image: np.ndarray, config: Config) -> bool:
    """Whether an image goes in tiles; networks for which images are scaled to their input take any whole."""
    return config.data.resize != "fit" and image.ndim > 1 and image.shape[0] * image.shape[1] > LARGE


def predict_in_tiles(predictor: PartPredictor, image: np.ndarray) -> Result:
    """Find the cells of a large image.

    A bar on stderr shows the tiles where that is a terminal.

    Args:
        predictor: of the parts.
        image: `[H, W]` or `[H, W, C]`; one in a file (numpy.memmap) is read part by part.

    Returns:
        The cells of all tiles, best first; truncated where one had as many as the network may report.

    Raises:
        UserError: for an array that is no image.
    """
    image = check_image(image)
    config = predictor.config
    whole = brightness(image)
    size, frame = (image.shape[0], image.shape[1]), (TILE, TILE)
    tiles = make_tiles(size, frame, tile_unit(config), OVERLAP)
    merger, truncated = Merger(tiles, frame, config, None), False
    # disable=None: no bar in a log file
    for number, tile in enumerate(tqdm(tiles, "tiles", unit="tile", leave=False, disable=None)):
        y, x = tile.start
        found = predictor.predict(np.ascontiguousarray(image[y : y + TILE, x : x + TILE]), whole)
        truncated |= found.truncated
        merger.add(number, Found(found.boxes, found.scores, found.classes, found.masks, found.mask_boxes))
    return Result(
        *merger.merged(),
        height=size[0],
        width=size[1],
        class_names=tuple(predictor.class_names),
        truncated=truncated,
    )


def tile_unit(config: Config) -> int:
    """Tiles start at multiples of this many px: there the magnified image meets the coarsest grid."""
    zoom = Fraction(config.data.zoom).limit_denominator(32)
    stride = 2**config.model.max_level * zoom.denominator
    return stride // math.gcd(zoom.numerator, stride)
