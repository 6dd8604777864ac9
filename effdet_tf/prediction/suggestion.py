"""Which parts of images to annotate next: where the network is unsure, and which stand for many others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from effdet_tf.images.gray import to_gray
from effdet_tf.prediction.likeness import look
from effdet_tf.prediction.results import Result

Place = tuple[int, int, int, int]

_MOST = 4000  # parts that are compared: those in most doubt, of which half may be annotated ones
_UNSEEN = 0.5  # worth of a part with usual texture in which nothing is seen; doubts of the mean part add 1
_FINE, _COARSE = 1.0, 4.0  # deviations of the two blurs, px, whose difference is texture
_WHOLE = 1.25  # an image up to so many times the side of a part is one part, or a strip of parts
_SAME = 0.3  # share of a part: where another one shows more of it, that one is enough


class Part(NamedTuple):
    """A part of an image, and what annotating it would teach."""

    place: Place  # y0, x0, y1, x1 in pixels, the last two exclusive
    look: np.ndarray  # float64 `[15]`, as of `likeness`
    doubt: float  # sum over the cells that the network sees there, weak ones too, of `doubts`
    texture: float  # contrast of its details, relative to the whole image: low where there is nothing


def doubts(scores: np.ndarray) -> np.ndarray:
    """How unsure a network is of cells, by their probabilities `[N]`: 0 sure, 1 at one half."""
    return 4 * scores * (1 - scores)


def places(height: int, width: int, side: int) -> list[Place]:
    """Parts of `side` px that cover an image, neighbours sharing up to half of it."""
    return [
        (top, left, bottom, right)
        for top, bottom in _spans(height, side)
        for left, right in _spans(width, side)
    ]


def _spans(size: int, side: int) -> list[tuple[int, int]]:
    if size <= _WHOLE * side:
        return [(0, size)]
    count = -(-(size - side) * 2 // side) + 1
    return [(int(start), int(start) + side) for start in np.linspace(0, size - side, count)]


def inside(result: Result, place: Place) -> np.ndarray:
    """Numbers of the cells whose middle lies in a place, rising."""
    y, x = (result.boxes[:, :2] + result.boxes[:, 2:]).T / 2
    top, left, bottom, right = place
    return np.flatnonzero((y >= top) & (y < bottom) & (x >= left) & (x < right))


def parts_of(image: np.ndarray, result: Result, side: int) -> list[Part]:
    """The parts of an image, of whose cells the network gave all that it sees.

    Args:
        image: `[H, W]` or `[H, W, C]`, as the network took it.
        result: what it found, of any score.
        side: of a part, px.
    """
    unsure = doubts(result.scores.astype(np.float64))
    found = []
    for place in places(image.shape[0], image.shape[1], side):
        top, left, bottom, right = place
        pixels = np.ascontiguousarray(image[top:bottom, left:right])
        doubt = float(unsure[inside(result, place)].sum())
        found.append(Part(place, look(pixels), doubt, _contrast(pixels)))
    usual = max(float(np.sqrt(np.mean([part.texture**2 for part in found]))), 1e-6)
    return [part._replace(texture=part.texture / usual) for part in found]


def _contrast(pixels: np.ndarray) -> float:
    """Deviation of the details of a part, in the units of its pixels."""
    gray = to_gray(pixels).astype(np.float32)
    return float((cv2.GaussianBlur(gray, (0, 0), _FINE) - cv2.GaussianBlur(gray, (0, 0), _COARSE)).std())


def choose(
    parts: Sequence[Part], images: Sequence[object], count: int, done: Sequence[bool] | None = None
) -> list[int]:
    """The parts to annotate, the most useful first.

    Each next one is worth most by itself and brings all parts, those in doubt above all, closest to one that
    is annotated: greedy facility location (Wei, Iyer and Bilmes 2015, "Submodularity in data subset
    selection and active learning"), in the numbers of `likeness` in units of their deviation.

    Args:
        parts: of all images.
        images: what tells the image of each.
        count: of parts to choose; no more than there are, less those that overlap a chosen one.
        done: which of them are annotated already; None: none.

    Returns:
        Indices into `parts`.
    """
    annotated = np.zeros(len(parts), bool) if done is None else np.asarray(done, bool)
    doubt = np.array([part.doubt for part in parts], np.float64)
    order = np.argsort(-doubt, kind="stable")
    covering = order[annotated[order]][: _MOST // 2]
    compared = np.sort(np.concatenate([covering, order[~annotated[order]][: _MOST - len(covering)]]))
    if not len(compared):
        return []
    looks = np.array([parts[k].look for k in compared])
    looks = (looks - looks.mean(0)) / np.maximum(looks.std(0), 1e-6)
    squares = (looks * looks).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * looks @ looks.T, 0))
    worth = np.sqrt(doubt[compared] / max(doubt[compared].mean(), 1e-9))
    worth += _UNSEEN * np.minimum([parts[k].texture for k in compared], 1)
    free = ~annotated[compared]
    furthest = float(apart.max()) + 1
    nearest = np.min(apart[:, ~free], axis=1, initial=furthest)  # of each, to what is annotated
    chosen: list[int] = []
    while len(chosen) < count and free.any():
        gain = worth * (worth[:, None] * np.maximum(nearest[:, None] - apart, 0)).sum(0)
        best = int(np.argmax(np.where(free, gain, -1.0)))
        chosen.append(int(compared[best]))
        nearest = np.minimum(nearest, apart[:, best])
        for other in np.flatnonzero(free):
            one, two = compared[best], compared[other]
            if images[one] == images[two] and shown(parts[two].place, parts[one].place):
                free[other] = False
    return chosen


def shown(a: Place, b: Place) -> bool:
    """Whether place `b` shows so much of place `a` of the same image that annotating `b` is enough."""
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(height, 0) * max(width, 0) > _SAME * (a[2] - a[0]) * (a[3] - a[1])
