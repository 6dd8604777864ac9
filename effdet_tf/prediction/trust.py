"""How good a result is likely to be, said without any annotation: counts, quality, and whether it applies.

All of it comes of the scores of the cells that are reported and of the image's pixels, so it is the same for
runs and exports. `docs/trust.md` explains it, `benchmarks/trust.md` has how often it holds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from effdet_tf.config import Config
from effdet_tf.prediction.likeness import strangeness

UNLIKE = "unlike what the network was trained on: look at the outlines before you use the numbers"
COUNT_SPREAD = 0.15  # deviation of the log of a count that stays however many cells there are
_FURTHEST = 3.0  # log of how far a number of cells may be off: lines end nowhere, but images do
_NEAR_0, _NEAR_1 = 0.02, 0.98


class Trust(NamedTuple):
    """What to expect of the cells that were found in an image."""

    score: float  # it is of the cells of this score and more
    f1: float | None  # expected F1 at IoU .5; None where no cell was found: nothing tells of it then
    least: int | None  # the number of cells that are there is at least this, at 90 %; None likewise
    most: int | None  # and at most this
    unlike: bool | None  # the image is like none of the training images; None: those are not known

    @property
    def words(self) -> str:
        """The same for a person."""
        if self.f1 is None:
            return "no cell found, which tells nothing of how many there are"
        return f"{self.least} to {self.most} cells at 90 %, expected F1 {self.f1:.2f}"


def judge(config: Config, image: np.ndarray, scores: np.ndarray) -> Trust | None:
    """What to expect of the cells of an image.

    Args:
        config: of the network; without `trust` nothing is said.
        image: as the network saw it, `[H, W]` or `[H, W, C]`.
        scores: `[N]` of its cells; those of `postprocess.report_score` and more count.
    """
    if not config.trust.f1 or not config.trust.count:
        return None
    least = config.postprocess.report_score
    scores = scores[scores >= least]
    known, found = config.trust.known, len(scores)
    unlike = strangeness(image, known) > 1 if known else None
    if not found:
        return Trust(least, None, None, None, unlike)
    mean, (offset, slope) = float(scores.mean()), config.trust.f1
    f1 = 1 / (1 + math.exp(-(offset + slope * float(log_odds(mean)))))
    count, spread = config.trust.count, float(count_spread(found))
    ends = sorted((count[k] + count[k + 1] * (1 - mean)) * spread for k in (0, 2))
    low, high = ((found + 0.5) * math.exp(min(max(end, -_FURTHEST), _FURTHEST)) - 0.5 for end in ends)
    # What was found lies within: networks that were off to one side elsewhere may be right here.
    return Trust(least, f1, max(min(math.floor(low), found), 0), max(math.ceil(high), found), unlike)


def log_odds(probability: np.ndarray | float) -> np.ndarray:
    """Of a probability, no further out than those of .02 and .98."""
    inside = np.clip(np.asarray(probability, np.float64), _NEAR_0, _NEAR_1)
    return np.log(inside / (1 - inside))


def count_spread(found: np.ndarray | float) -> np.ndarray:
    """How far the log of a number of cells may be off, relative to other numbers: few are less sure."""
    return np.sqrt(COUNT_SPREAD**2 + 1 / (np.asarray(found, np.float64) + 1.0))
