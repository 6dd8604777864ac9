"""Scales images so that their cells have the size that a network knows, and brings its answer back.

What is known of the cells' size counts in this order: what the user says of it, the size of a pixel where
the network's own is known, and what the network itself sees of an image that is made smaller.

`benchmarks/size.md` has what each of it gains and costs, and where the constants come from.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import MAX_PIXELS
from effdet_tf.images.normalize import check_image
from effdet_tf.prediction.augmented import View
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.trust import UNLIKE, judge

if TYPE_CHECKING:
    from effdet_tf.config import Config
    from effdet_tf.prediction.predictor import Predictor

LIMITS = (0.25, 4.0)  # an image is made so much smaller and larger at most
LOOK = 0.25  # scale of the look that tells whether cells are too large to be seen whole
_SHORTEST = 64  # px, shorter side of the smallest image that is looked at so
# The look counts when it sees so many times as much of the image under cells, or is so many times as sure of
# them, and sees so many.
_MORE, _SURER, _FEWEST = 2.0, 1.25, 5
# Nearer to 1 an image stays as it is: training varies the size by as much. And the steps between scales that
# are chosen by a look, so that images of a kind get the same one.
_STEP = 2**0.5


@dataclass(frozen=True)
class Sizing:
    """What the user says of the size of cells in images.

    Attributes:
        enabled: False leaves every image as it is.
        cell_size: usual diameter of a cell, px; None: not told.
        um_per_px: side of a pixel in micrometres, in place of what a file says; None: the file's.
    """

    enabled: bool = True
    cell_size: float | None = None
    um_per_px: float | None = None

    def __post_init__(self) -> None:
        """Raise a UserError for sizes that are none."""
        for name, value in (("cell_size", self.cell_size), ("um_per_px", self.um_per_px)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} {value}: give a number above 0")
        if self.cell_size is not None and not self.enabled:
            raise UserError("a cell size has no use where images are not scaled: leave out one of the two")


AS_THEY_ARE = Sizing(enabled=False)


class Scale(NamedTuple):
    """How much an image is scaled for the network, and why."""

    factor: float
    reason: str


AS_IT_IS = Scale(1.0, "")


def check_sizing(config: Config, sizing: Sizing) -> None:
    """Refuse a size of cells that a network has no use for, before the first image.

    Raises:
        UserError: when it scales images itself, or does not say what it knows.
    """
    if sizing.cell_size is None:
        return
    if config.data.resize == "fit":
        raise UserError(
            "a cell size has no use for this network: it scales every image to its input (data.resize=fit)"
        )
    if not config.data.cell_size:
        raise UserError(
            "this network does not say what size of cells it knows; write data.cell_size into its run's "
            "config.yaml (diameters at 5, 50 and 95 % of the training cells, px), and export it again"
        )


def stated_scale(config: Config, sizing: Sizing, um_per_px: float | None = None) -> Scale | None:
    """The scale that is known without a look at the image; None: it is not.

    Args:
        config: of the network, `data.cell_size`, `data.um_per_px` and `data.resize`.
        sizing: what the user says.
        um_per_px: side of a pixel in micrometres, as the file says.

    Raises:
        UserError: as `check_sizing`.
    """
    check_sizing(config, sizing)
    data = config.data
    if not sizing.enabled or data.resize == "fit":
        return AS_IT_IS
    if sizing.cell_size is not None:
        low, usual, high = data.cell_size
        if low <= sizing.cell_size <= high:  # known as they are, and better so (benchmarks/size.md)
            return AS_IT_IS
        return _scale(usual / sizing.cell_size, f"cells of {sizing.cell_size:g} px were said")
    side = sizing.um_per_px or um_per_px
    if side and data.um_per_px:
        what = f"its pixels are of {side:g} um, those that the network knows of {data.um_per_px:g} um"
        return _scale(side / data.um_per_px, what)
    return None if data.cell_size else AS_IT_IS


def _scale(factor: float, reason: str) -> Scale:
    """A scale within the limits; none where the network knows the size well enough as it is."""
    near = 1 / _STEP < factor < _STEP
    return AS_IT_IS if near else Scale(min(max(factor, LIMITS[0]), LIMITS[1]), reason)


def scale_words(result: Result) -> str:
    """That an image was scaled, and why, for a person; empty where it was not."""
    if result.scale == 1:
        return ""
    return f"scaled {result.scale:.3g} times for the network: {result.scale_reason}"


def warnings_of(result: Result) -> list[str]:
    """What a person must know of a result before using it."""
    limit = "more cells than the network reports at once (data.max_instances); weaker ones are missing"
    strange = result.trust is not None and result.trust.unlike
    told = limit if result.truncated else "", result.disturbed, f"the image is {UNLIKE}" if strange else ""
    return [words for words in told if words]


def predict_sized(
    predictor: Predictor,
    image: np.ndarray,
    score: float | None = None,
    sizing: Sizing = AS_THEY_ARE,
    um_per_px: float | None = None,
    found: Result | None = None,
) -> Result:
    """Find the cells of one image, scaled to what the network knows.

    Args:
        predictor: finds the cells of an image as it is.
        image: `[H, W]` or `[H, W, C]`, as for `Predictor.predict`.
        score: likewise.
        sizing: what the user says of the size of cells.
        um_per_px: side of a pixel in micrometres, as the file says.
        found: what `predict(image, score)` gave, if known.

    Returns:
        The cells, in the pixels of the image; `scale` and `scale_reason` tell what was done, `trust` what to
        expect, where score is None or the network's own.

    Raises:
        UserError: as `Predictor.predict` and `check_sizing`.
    """
    image = check_image(image)
    known = stated_scale(predictor.config, sizing, um_per_px) if sizing.enabled else AS_IT_IS
    own = predictor.config.postprocess.report_score
    if known == AS_IT_IS:
        result = predictor.predict(image, score) if found is None else found
    elif known is not None:
        result = _predict_at(predictor, image, score, known)
    else:
        # Cells that are not wanted tell of the size, too.
        lower = None if score is None else min(score, own)
        if found is None or lower != score:
            found = predictor.predict(image, lower)
        result = _looked_at(predictor, image, lower, found)
        result = result if score is None else result.filter(score)
    if score not in (None, own) or not predictor.config.trust.f1:
        return result
    seen = image if result.scale == 1 else _view(result.scale).enter(image)
    return dataclasses.replace(result, trust=judge(predictor.config, seen, result.scores))


def _predict_at(predictor: Predictor, image: np.ndarray, score: float | None, scale: Scale) -> Result:
    """The cells of an image that is scaled, in its own pixels."""
    height, width = image.shape[:2]
    factor = min(scale.factor, math.sqrt(MAX_PIXELS / (height * width)))
    view = _view(factor)
    result = view.leave(predictor.predict(view.enter(image), score), height, width)
    return dataclasses.replace(result, scale=factor, scale_reason=scale.reason)


def _view(scale: float) -> View:
    return View(scale, False, False, False)


def _looked_at(predictor: Predictor, image: np.ndarray, score: float | None, found: Result) -> Result:
    """The cells of an image, of which `found` is known: as it is, or smaller where that shows far more.

    Cells that are far too large are outlined in pieces, or not at all. Where they are as the network knows
    them they vanish when the image is made smaller, so a small copy that shows more of them, or shows them
    more surely, says that they were not.
    """
    if min(image.shape[:2]) * LOOK < _SHORTEST:
        return found
    own, usual = predictor.config.postprocess.report_score, predictor.config.data.cell_size[1]
    look = _predict_at(predictor, image, score, Scale(LOOK, ""))
    sights = (_seen(one.filter(own), predictor.config) for one in (look, found))
    (seen, area, sure), (_, plain_area, plain_sure) = sights
    pays = area >= _MORE * plain_area or sure >= _SURER * plain_sure
    if len(seen) < _FEWEST or not pays:
        return found
    size = float(np.median(seen))
    reason = f"its cells look to be of about {size:.0f} px, the network knows {usual:g} px best"
    steps = round(math.log(usual / size / LOOK, _STEP))
    if steps <= 0:
        return dataclasses.replace(look, scale_reason=reason)
    factor = min(LOOK * _STEP**steps, 1.0)
    return found if factor == 1 else _predict_at(predictor, image, score, Scale(factor, reason))


def _seen(result: Result, config: Config) -> tuple[np.ndarray, float, float]:
    """Diameters of the cells, px, their area, each times its score, and mean score; as the network scores."""
    scores, sides = config.postprocess.uncalibrated(result.scores), result.boxes[:, 2:] - result.boxes[:, :2]
    area = sides.prod(axis=1)
    return np.sqrt(area), float((area * scores).sum()), float(scores.mean()) if len(scores) else 0.0
