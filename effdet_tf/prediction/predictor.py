"""What every trained network shares: images of any size in, their cells out, in tiles where they are large.

Memory beside the image itself and its cells is that of one tile. A network sees a tile as it would see that
part of the whole image: tiles start where its coarsest grid does, and are normalised as the whole image is.

A network reports so many cells of what it sees at once (`data.max_instances`). A part with as many is
predicted again in smaller tiles, so that dense images lose none.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import math
import os
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from effdet_tf.config import Config
from effdet_tf.images.content import EvenImage
from effdet_tf.images.normalize import Brightness, brightness, check_image, disturbance, even_image
from effdet_tf.images.read import read_image
from effdet_tf.model.detections import Detections
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.tiling import find_in_tiles

LARGE = 2048 * 2048  # pixels from which an image is predicted in tiles
TILE, OVERLAP = 896, 192  # px, side of a tile and what tiles share: cells up to this size come whole
DENSE_TILE, DENSE_OVERLAP = 512, 128  # likewise where there are more cells than the network reports at once


class Predictor(abc.ABC):
    """A trained network with everything that turns images into cells.

    A subclass knows one kind of network (a run, a SavedModel, a TFLite file, a server) and finds the cells of
    one array, in one piece.

    Attributes:
        config: of the network.
        class_names: by class id.
        category_ids: COCO ids by class id.
        per_class: whether NMS and merging keep classes apart.
    """

    def __init__(self, config: Config) -> None:
        """Take the classes from a configuration."""
        self.config = config
        self.class_names = config.class_names
        self.category_ids = config.category_ids
        self.per_class = not config.postprocess.class_agnostic
        self._told = False

    @abc.abstractmethod
    def _detect(self, image: np.ndarray, part_of: Brightness | None, score: float = 0.0) -> Result:
        """Find the cells of an image that `check_image` passed, in one piece.

        Args:
            image: `[H, W]` or `[H, W, C]`.
            part_of: of the larger image that this is a part of, which it is normalised by; None for a whole.
            score: cells below it are not wanted, and may come or not.
        """

    def predict(self, image: np.ndarray | str | os.PathLike[str], score: float | None = None) -> Result:
        """Find the cells of one image.

        Args:
            image: a file, or `[H, W]` or `[H, W, C]` pixels, uint8, uint16 or float; one in a file
                (numpy.memmap) is read part by part.
            score: cells with this score or more are given; None gives all. The same cells, sooner: masks are
                made for these alone.

        Returns:
            The cells, best first. All are those whose class score reaches `postprocess.score_threshold`; the
            score given is that times the quality of the mask, so it may be lower, and calibrated where the
            network is (`postprocess.calibration`). The result is truncated where one of the smallest tiles
            had as many cells as the network reports.

        Raises:
            UserError: for an unreadable file, an array that is no image, or one that the network refuses.
        """
        self._tell_of_least(score)
        image = read_image(image) if isinstance(image, (str, os.PathLike)) else image
        return self._finished(check_image(image), score)

    def _tell_of_least(self, score: float | None) -> None:
        least = self.config.postprocess.min_score
        if score is not None and score < least and not self._told:
            self._told = True
            logging.getLogger("effdet_tf").warning(
                "this network gives cells from score %g on (postprocess.min_score); weaker ones, from %g on, "
                "are missing: export it again with a lower --min-score",
                least,
                score,
            )

    def at_once(self, shape: tuple[int, ...]) -> int:
        """How many images of a shape `predict_batch` is best given at once."""
        return 1

    def predict_batch(self, images: Sequence[np.ndarray], score: float | None = None) -> list[Result]:
        """Find the cells of images: of each what `predict` gives, on a GPU within rounding, and sooner there.

        Args:
            images: arrays as for `predict`.
            score: as for `predict`.

        Raises:
            UserError: when one of them is no image, or the network refuses it.
        """
        self._tell_of_least(score)
        arrays = [check_image(image) for image in images]
        alike = {image.shape for image in arrays}
        if len(alike) != 1 or not 1 < len(arrays) <= self.at_once(alike.pop()):
            return [self.predict(image, score) for image in arrays]
        pairs = zip(arrays, self._detect_alike(arrays, score or 0.0), strict=True)
        return [self._finished(image, score, found) for image, found in pairs]

    def _detect_alike(self, images: Sequence[np.ndarray], score: float) -> Sequence[Result]:
        """What `_detect` gives of whole images of one shape, at most `at_once` of them."""
        return [self._detect(image, None, score) for image in images]

    def _finished(self, pixels: np.ndarray, score: float | None, found: Result | None = None) -> Result:
        """The cells of an image that `check_image` passed; `found` are those of one piece, if known."""
        disturbed = disturbance(pixels, self.config)
        result = dataclasses.replace(self._predict(pixels, score or 0.0, found), disturbed=disturbed)
        return result if score is None else result.filter(score)

    def _predict(self, pixels: np.ndarray, score: float, found: Result | None) -> Result:
        one_piece = self.config.data.resize == "fit"
        if one_piece or not is_large(pixels):
            result = self._detect(pixels, None, score) if found is None else found
            if one_piece or not result.truncated or max(pixels.shape[:2]) <= TILE:
                return result
        return self._predict_in_tiles(pixels, score)

    def _predict_in_tiles(self, image: np.ndarray, score: float = 0.0) -> Result:
        """The cells of all tiles; a bar on stderr shows the tiles where that is a terminal."""
        content = self.config.data.normalization == "content"
        shown, whole = even_image(image) if content else (image, brightness(image))
        found, truncated = self._tiled(shown, whole, TILE, OVERLAP, score, show=True)
        return self._result(found, image, truncated)

    def _tiled(
        self,
        image: np.ndarray | EvenImage,
        whole: Brightness,
        side: int,
        overlap: int,
        score: float,
        show: bool = False,
    ) -> tuple[Detections, bool]:
        """Cells of an image or a part of it, and whether some are missing."""

        def find(part: np.ndarray) -> tuple[Detections, bool]:
            result = self._detect(np.ascontiguousarray(part), whole, score)
            if result.truncated and max(part.shape[:2]) > DENSE_TILE:
                return self._tiled(part, whole, DENSE_TILE, DENSE_OVERLAP, score)
            return result.detections, result.truncated

        return find_in_tiles(
            image, (side, side), tile_unit(self.config), overlap, self.config, find, show=show
        )

    def _result(self, found: Detections, image: np.ndarray, truncated: bool) -> Result:
        """The cells of an image, in its pixels."""
        height, width = image.shape[:2]
        return Result(*found[:5], height, width, self.class_names, truncated)


def is_large(image: np.ndarray) -> bool:
    """Whether an image `[H, W]` or `[H, W, C]` is predicted in tiles."""
    return image.shape[0] * image.shape[1] > LARGE


def missing_from(scores: np.ndarray, limit: int, score: float) -> bool:
    """Whether cells of `score` and more may lack, where a network gave the best `limit` of any score.

    `scores [N]` fall.
    """
    return len(scores) >= limit and bool(scores[-1:].min(initial=1.0) >= score)


def tile_unit(config: Config) -> int:
    """Tiles start at multiples of this many px: there the magnified image meets the coarsest grid."""
    zoom = Fraction(config.data.zoom).limit_denominator(32)
    stride = 2**config.model.max_level * zoom.denominator
    return stride // math.gcd(zoom.numerator, stride)
