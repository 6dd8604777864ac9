"""What of an image shows cells: without borders, bars, saturated areas and hot pixels, and evenly lit.

Mean and deviation of all pixels are moved by whatever a microscope or its software adds, and cells vanish.
Here they are of the blocks that show cells alone, about a quadratic surface that follows the illumination.
One definition for training, prediction and exports, in numpy and in keras.ops (`xp`). The constants were
chosen on nine sets of real images: what is added is left out, and next to nothing of a clean image.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from effdet_tf.images.gray import to_gray

if TYPE_CHECKING:
    from effdet_tf.geometry.boxes import Tensor

_BAND = 2**20  # pixels that are looked at together
_SIDE = 8  # px, of a block; a multiple of it in images of more than `_BLOCKS` blocks a side
_BLOCKS = 256
_AREA = 2  # blocks on each side of one that have its very value: together an area of one value
_PLATEAU = 0.25  # of a block's pixels have one value: it shows a part of such an area
_STRIP, _STRIP_VOID = 0.6, 0.2  # of a row of blocks: beyond the limits, of what is not void, and void
_FADE = 6  # blocks over which an empty area may fade into the rest, each far from that
_STEPS = 50  # of the quantiles of the blocks' means
_GAP = 4  # steps: so many blocks may lie on the edge of an empty area
_EVEN = 0.15  # an empty area spreads by less than this share of its distance to the rest
_APART = 0.25  # of the pixels' range: from there on what is empty is told from cells by its pixels
_HOT = 8.0  # distance of a hot pixel from the usual ones, in usual ranges of a block
_MINIMUM = 0.02  # share of the blocks that must be left, or all are taken
_UNEVEN = 256  # px, shorter side from which an image may be lit unevenly: in a smaller one that may be cells
_TERMS = 6  # of the surface


class Blocks(NamedTuple):
    """Statistics of the square blocks of an image, float64 `[rows, columns]` each."""

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor
    at_low: Tensor  # share of the pixels that have the very value `low`, and `high`
    at_high: Tensor


class Content(NamedTuple):
    """What of an image shows cells, and what it is normalised by, in its own units."""

    keep: Tensor  # bool [rows, columns] blocks that the statistics are of
    void: Tensor  # bool [rows, columns] blocks that show nothing: border, bar, empty tile, saturated area
    edge: (
        Tensor  # bool [rows, columns] blocks near void ones: their pixels beyond limits 0 and 1 are void, too
    )
    spots: Tensor  # bool [rows, columns] blocks with hot or dead pixels: those beyond limits 2 and 3
    limits: Tensor  # float64 [4]
    surface: Tensor  # float64 [6] of the illumination: 1, y, x, yy, yx, xx, from -1 to 1 over the image
    std: Tensor  # float64, of the kept blocks about the surface; more than 0


def content_of(image: np.ndarray) -> Content:
    """Tell what of an image `[H, W]` or `[H, W, C]` shows cells, in bands: a large one takes no memory."""
    side = _block_side(image.shape[:2], np)
    rows = max(_BAND // image.shape[1] // side, 1) * side
    bands = [
        block_statistics(to_gray(np.asarray(image[top : top + rows])).astype(np.float64), np, side)
        for top in range(0, image.shape[0], rows)
    ]
    blocks = Blocks(*(np.concatenate(parts) for parts in zip(*bands, strict=True)))
    with np.errstate(invalid="ignore"):  # where nothing is left there are no quantiles
        return find_content(blocks, image.shape[:2])


def _block_side(shape: tuple[Any, Any], xp: ModuleType) -> Any:
    """Side of the blocks of an image, px."""
    return _SIDE * -(-xp.maximum(shape[0], shape[1]) // (_SIDE * _BLOCKS))


def block_statistics(gray: Tensor, xp: ModuleType = np, side: Any = None) -> Blocks:
    """Statistics of the blocks of an image, float64 `[H, W]`; beyond its end the edge is repeated."""
    side = _block_side(xp.shape(gray), xp) if side is None else side
    counts = []
    for axis in (0, 1):
        length = xp.shape(gray)[axis]
        counts.append(-(-length // side))
        gray = xp.take(gray, xp.minimum(xp.arange(counts[axis] * side), length - 1), axis=axis)
    blocks = xp.reshape(gray, (counts[0], side, counts[1], side))
    values = xp.reshape(xp.transpose(blocks, (0, 2, 1, 3)), (counts[0], counts[1], side * side))
    mean, variance, low, high = (getattr(xp, name)(values, axis=-1) for name in ("mean", "var", "min", "max"))
    at = (xp.mean(xp.where(values == limit[..., None], 1.0, 0.0), axis=-1) for limit in (low, high))
    return Blocks(mean, variance, low, high, *at)


def find_content(blocks: Blocks, shape: tuple[Any, Any], xp: ModuleType = np) -> Content:
    """Tell from its blocks what of an image of `shape`, height and width in px, shows cells."""
    mean, variance, low, high, at_low, at_high = blocks
    flat = low == high
    void = _grown(_highest(high, _AREA, xp) == -_highest(-low, _AREA, xp), _AREA, xp)
    rest = ~_grown(void, 1, xp)  # without the blocks on the edge
    empty = rest & _empty(mean, rest, xp)
    empty = empty & _grown(~_grown(~empty, 1, xp), 1, xp)
    void, rest = void | empty, rest & ~_grown(empty, 1, xp)

    away = _away(void, rest, xp) & ~flat
    inner, whole = _quantiles(mean, away, (50, 950), xp), _quantiles(mean, away, (5, 995), xp)
    reach = inner[1] - inner[0]
    # Bars and what is saturated: many pixels of one value, far from the rest.
    black = _runs(rest & (at_low >= _PLATEAU) & (low < inner[0] - reach), xp)
    white = _runs(rest & (at_high >= _PLATEAU) & (high > inner[1] + reach), xp)
    void = void | flat & (black | white)
    edge = _grown(void, _FADE, xp) | _grown(black | white, 1, xp)
    outside = (mean < whole[0]) | (mean > whole[1])
    faded = _grown(void | black | white, 1, xp)
    for _ in range(_FADE):
        faded = faded | _grown(faded, 1, xp) & outside
    rest = rest & ~faded

    lows, highs = _quantiles(low, rest, (50, 500), xp), _quantiles(high, rest, (500, 950), xp)
    reach = _HOT * (highs[0] - lows[1])  # in ranges of a usual block
    spots = _lone(high - mean, high - highs[0], variance, reach) | _lone(
        mean - low, lows[1] - low, variance, reach
    )
    gap = _APART * (highs[1] - lows[0])
    black, white = black | void & (mean < lows[0] - gap), white | void & (mean > highs[1] + gap)
    least = _beside(low, black, lows[0], -np.inf, xp)
    most = _beside(high, white, highs[1], np.inf, xp)
    beyond = (low < least) | (high > most)
    strip = _strips(void, beyond, xp)
    void, edge, rest = void | strip, edge | _grown(strip, 1, xp), rest & ~_grown(strip, 1, xp)
    keep = rest & ~(edge & beyond) & ~spots

    nothing = xp.mean(xp.where(keep, 1.0, 0.0)) < _MINIMUM
    keep, void, edge, spots = keep | nothing, *(mask & ~nothing for mask in (void, edge, spots))
    limits = xp.stack([least, most, lows[1] - reach, highs[0] + reach])
    return Content(keep, void, edge, spots, limits, *_surface(mean, variance, keep, shape, xp))


def even(
    values: Tensor,
    gray: Tensor,
    content: Content,
    shape: tuple[Any, Any],
    y: Tensor,
    x: Tensor,
    xp: ModuleType,
) -> Tensor:
    """Show a part of an image as the network sees it: evenly lit, and void at the image's mean level.

    Args:
        values: `[h, w, C]` float32, of the part.
        gray: `[h, w]` float32, likewise.
        content: of the whole image.
        shape: height, width of the whole, px.
        y: int `[h]` rows of the part in the whole.
        x: int `[w]` its columns.
        xp: numpy or keras.ops.

    Returns:
        `[h, w, C]` float32 in the image's units; `content.surface[0]` is its level.
    """
    side = _block_side(shape, xp)
    void, near, spots = (
        xp.take(xp.take(blocks, y // side, axis=0), x // side, axis=1)
        for blocks in (content.void, content.edge, content.spots)
    )
    limits = [_float(content.limits[k], xp, "float32") for k in range(4)]
    hidden = void | near & ((gray < limits[0]) | (gray > limits[1]))
    hidden = hidden | spots & ((gray < limits[2]) | (gray > limits[3]))
    rows, columns = ((2.0 * _float(at, xp) + 1.0) / _float(shape[k], xp) - 1.0 for k, at in enumerate((y, x)))
    terms = _terms(_float(rows, xp, "float32"), _float(columns, xp, "float32"), xp)
    surface = [_float(content.surface[k], xp, "float32") for k in range(_TERMS)]
    slope = functools.reduce(operator.add, [a * term for a, term in zip(surface[1:], terms[1:], strict=True)])
    return xp.where(hidden[..., None], surface[0], values - slope[..., None])


class EvenImage:
    """An image in which a window is cut as `even` shows it, float32 `[h, w, C]`; the rest is not touched."""

    def __init__(self, image: np.ndarray, content: Content) -> None:
        """Wrap an image `[H, W]` or `[H, W, C]`, C 1 or 3, and what of it shows cells."""
        self.shape, self._image, self._content = image.shape, image, content

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """Cut a window; without a step."""
        part = np.asarray(self._image[window])
        y, x = (np.arange(*cut.indices(n)) for cut, n in zip(window, self.shape[:2], strict=True))
        values = part.astype(np.float32).reshape(*part.shape[:2], -1)
        return even(values, to_gray(part), self._content, self.shape[:2], y, x, np)


def stretch_contrast(image: np.ndarray) -> np.ndarray:
    """Spread percentile 0.2 to 99.8 of what shows cells over 0-255, for the eye; a flat image is middle gray.

    Args:
        image: `[H, W]` or `[H, W, C]`, C 1 or 3, any real type.

    Returns:
        uint8 of the same shape.
    """
    side, kept = int(_block_side(image.shape[:2], np)), content_of(image).keep
    shown = kept.repeat(side, axis=0).repeat(side, axis=1)[: image.shape[0], : image.shape[1]]
    low, high = np.percentile(image[shown], (0.2, 99.8))
    if high <= low:
        return np.full(image.shape, 128, np.uint8)
    values = image - low
    values *= 255 / (high - low)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def describe_void(image: np.ndarray, content: Content) -> str:
    """Where an image shows no cells, its largest areas in words; empty where it shows some everywhere."""
    import cv2  # JAX trains without it

    side = int(_block_side(image.shape[:2], np))
    count, _, boxes, _ = cv2.connectedComponentsWithStats(content.void.astype(np.uint8), connectivity=4)
    order = 1 + np.argsort(-boxes[1:count, cv2.CC_STAT_AREA])
    limits = image.shape[0], image.shape[1]
    areas = []
    for x, y, width, height, _ in boxes[order[:3]].tolist():
        (top, bottom), (left, right) = (
            (start * side, min((start + length) * side, limit) - 1)
            for start, length, limit in zip((y, x), (height, width), limits, strict=True)
        )
        areas.append(f"rows {top}-{bottom}, columns {left}-{right}")
    more = f" and {count - 4} more" if count > 4 else ""
    return "; ".join(areas) + more


def _lone(off: Tensor, beyond: Tensor, variance: Tensor, reach: Tensor) -> Tensor:
    """Blocks with a pixel or a few far `beyond` the usual, `off` the mean, that make the variance."""
    one, few = off * off > 40 * variance, off * off > 9 * variance  # of 64: 1 makes 63, 6 make 9.7
    return ((beyond > reach) & one) | ((beyond > 4 * reach) & few)


def _strips(void: Tensor, beyond: Tensor, xp: ModuleType) -> Tensor:
    """Rows and columns of blocks, void in part, else mostly as bright or dark: bars and what is in them."""
    found = xp.zeros_like(void)
    for axis in (0, 1):
        empty, full, crossed = (
            xp.mean(xp.where(mask, 1.0, 0.0), axis=axis, keepdims=True)
            for mask in (void, ~void, beyond & ~void)
        )
        found = found | (empty > _STRIP_VOID) & (crossed > _STRIP * full)
    return found


def _away(void: Tensor, rest: Tensor, xp: ModuleType) -> Tensor:
    """The rest without what lies near void blocks, where that is most of it."""
    away = rest & ~_grown(void, _FADE, xp)
    return xp.where(2 * xp.sum(xp.where(away, 1, 0)) > xp.sum(xp.where(rest, 1, 0)), away, rest)


def _shrunk(mask: Tensor, reach: int, xp: ModuleType) -> Tensor:
    return ~_grown(~mask, reach, xp)


def _runs(mask: Tensor, xp: ModuleType) -> Tensor:
    """The masked blocks that follow each other, three or more, in a row or a column."""
    found = (_grown(~_grown(~mask, 1, xp, [axis]), 1, xp, [axis]) for axis in (0, 1))
    return functools.reduce(operator.or_, found)


def _highest(values: Tensor, reach: int, xp: ModuleType, axes: Sequence[int] = (0, 1)) -> Tensor:
    """The maximum of the values `[rows, columns]` within `reach` of each."""
    for axis in axes:
        length = xp.shape(values)[axis]
        room = [(reach, reach) if k == axis else (0, 0) for k in (0, 1)]
        padded = xp.pad(values, room, "constant", constant_values=-np.inf)
        moved = (
            padded[k : k + length] if axis == 0 else padded[:, k : k + length] for k in range(2 * reach + 1)
        )
        values = functools.reduce(xp.maximum, moved)
    return values


def _grown(mask: Tensor, reach: int, xp: ModuleType, axes: Sequence[int] = (0, 1)) -> Tensor:
    return _highest(xp.where(mask, 1.0, 0.0), reach, xp, axes) > 0.5


def _quantiles(values: Tensor, mask: Tensor, per_mille: Sequence[int], xp: ModuleType) -> Tensor:
    """Quantiles of the masked values, the lower of two; infinite where there are none."""
    ordered = xp.sort(xp.reshape(xp.where(mask, values, np.inf), (-1,)))
    last = xp.maximum(xp.sum(xp.where(mask, 1, 0)) - 1, 0)
    return xp.take(ordered, np.array(per_mille, np.int32) * last // 1000, axis=0)


def _mean(values: Tensor, mask: Tensor, xp: ModuleType) -> Tensor:
    """The mean of the masked values, 0 where there are none."""
    weight = xp.where(mask, np.float64(1), np.float64(0))
    return xp.sum(xp.where(mask, values, np.float64(0))) / xp.maximum(xp.sum(weight), 1.0)


def _beside(mean: Tensor, mask: Tensor, edge: Tensor, otherwise: float, xp: ModuleType) -> Tensor:
    return xp.where(xp.any(mask), 0.75 * _mean(mean, mask, xp) + 0.25 * edge, np.float64(otherwise))


def _empty(mean: Tensor, rest: Tensor, xp: ModuleType) -> Tensor:
    """Blocks beside a gap in the means that are far more alike than the gap is wide, as noise in the dark."""
    levels = _quantiles(mean, rest, [1000 * k // _STEPS for k in range(_STEPS + 1)], xp)
    gaps = levels[1 + _GAP : -1] - levels[1 : -1 - _GAP]
    gap = xp.max(gaps)
    below, above = (
        xp.min(xp.where(gaps == gap, levels[first : first + _STEPS - 1 - _GAP], np.inf))
        for first in (1, 1 + _GAP)
    )
    middle = (below + above) / 2
    dark, bright = rest & (mean < middle), rest & (mean > middle)
    # The rest is no wider than the gap: otherwise it is one image of many levels.
    dark_even = (below - levels[0] < _EVEN * gap) & (levels[-6] - above < gap)
    bright_even = (levels[-1] - above < _EVEN * gap) & (below - levels[5] < gap)
    darker = below - levels[0] <= levels[-1] - above  # of two that are even the more even one
    return (dark & dark_even & (darker | ~bright_even)) | (bright & bright_even & ~(darker & dark_even))


def _surface(
    mean: Tensor, variance: Tensor, keep: Tensor, shape: tuple[Any, Any], xp: ModuleType
) -> tuple[Tensor, Tensor]:
    """The illumination's surface over the kept blocks, and their deviation about it."""
    side = _block_side(shape, xp)
    y, x = (
        _float(side, xp) / _float(shape[k], xp) * (2.0 * xp.arange(xp.shape(mean)[k], dtype="float64") + 1.0)
        - 1.0
        for k in (0, 1)
    )
    terms = xp.reshape(xp.stack(_terms(y, x, xp), axis=-1), (-1, _TERMS))
    weights = xp.where(xp.reshape(keep, (-1, 1)), np.float64(1), np.float64(0))
    count, weighed = xp.sum(weights), terms * weights
    # The small diagonal: blocks in one line leave the surface open elsewhere.
    matrix = xp.matmul(xp.transpose(weighed), terms) + count * np.diag([0.0, *[1e-6] * (_TERMS - 1)])
    aims = xp.matmul(xp.transpose(weighed), xp.reshape(mean, (-1, 1)))
    bent = _solved(matrix, xp.reshape(aims, (-1,)), xp)
    level = _mean(mean, keep, xp) * np.eye(_TERMS)[0]
    surface = xp.where(xp.minimum(shape[0], shape[1]) < _UNEVEN, level, bent)
    off = mean - xp.reshape(xp.matmul(terms, xp.reshape(surface, (-1, 1))), xp.shape(mean))
    std = xp.sqrt(_mean(variance + off * off, keep, xp))
    return surface, xp.maximum(std, 1e-3 * xp.maximum(xp.abs(surface[0]), 1.0))


def _solved(matrix: Tensor, aims: Tensor, xp: ModuleType) -> Tensor:
    """Solve `[N, N]` equations, positive definite, in operations that every runtime has (Gauss-Jordan)."""
    table = xp.concatenate([matrix, aims[:, None]], axis=1)
    for k in range(_TERMS):
        row = table[k] / table[k, k]
        table = table - (table[:, k] - np.eye(_TERMS)[k])[:, None] * row[None, :]
    return table[:, _TERMS]


def _terms(y: Tensor, x: Tensor, xp: ModuleType) -> list[Tensor]:
    """The six terms of a quadratic surface at rows `y [R]` and columns `x [C]`, `[R, C]` each."""
    y, x = y[:, None] + 0.0 * x[None, :], 0.0 * y[:, None] + x[None, :]
    return [xp.ones_like(y), y, x, y * y, y * x, x * x]


def _float(value: Any, xp: ModuleType, dtype: str = "float64") -> Tensor:
    return np.asarray(value, dtype) if xp is np else xp.cast(value, dtype)
