"""Overlapping tiles over an image of any size, and their cells merged: no seams, no duplicates.

Pure numpy: a network that runs without TensorFlow is served without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from effdet_tf.config import Config
from effdet_tf.images.content import EvenImage
from effdet_tf.model.detections import Detections

_TOUCH = 4  # px: the box of a cell that is cut by a tile's border ends this near to it
_SEEN = 4  # tiles that may see the same cell


class Tile(NamedTuple):
    """A part of an image, all of one size; the last ones may reach beyond the image."""

    start: np.ndarray  # int [2] y x of its first pixel
    borders: np.ndarray  # float [low and high, y and x]; infinite where no tile follows
    core: np.ndarray  # likewise: half way into what it shares with its neighbours


class _Pool(NamedTuple):
    """Cells of all tiles so far."""

    found: Detections
    tile: np.ndarray  # int [N]
    owned: np.ndarray  # bool [N] its centre lies in the tile's core
    cut: np.ndarray  # bool [N] it ends at a border to another tile

    def take(self, index: np.ndarray) -> _Pool:
        return _Pool(self.found.take(index), *(part[index] for part in self[1:]))

    @classmethod
    def joined(cls, pools: Sequence[_Pool]) -> _Pool:
        found = Detections.joined([pool.found for pool in pools])
        return cls(found, *(np.concatenate(part) for part in list(zip(*pools, strict=True))[1:]))


def find_in_tiles(
    image: np.ndarray | EvenImage,
    size: tuple[int, int],
    unit: int,
    overlap: int,
    config: Config,
    find: Callable[[np.ndarray], tuple[Detections, bool]],
    limit: int | None = None,
    show: bool = False,
) -> tuple[Detections, bool]:
    """Find the cells of an image tile by tile.

    Args:
        image: `[H, W]` or `[H, W, C]`.
        size: height, width of a tile, px.
        unit: tiles start at multiples of it, px, where `size` leaves the choice.
        overlap: what tiles share, px.
        config: `postprocess`.
        find: the cells of a part of the image, in the pixels of the part, and whether some are missing.
        limit: as `Merger` takes it.
        show: a bar on stderr, where that is a terminal.

    Returns:
        The cells, best first, in pixels of the image, and whether some are missing in a tile.
    """
    tiles = make_tiles((image.shape[0], image.shape[1]), size, unit, overlap)
    merger, truncated = Merger(tiles, size, config, limit), False
    hidden = None if show else True  # None: no bar in a log file
    for number, tile in enumerate(tqdm(tiles, "tiles", unit="tile", leave=False, disable=hidden)):
        (y, x), (height, width) = tile.start, size
        found, missing = find(image[y : y + height, x : x + width])
        if len(tiles) == 1:
            return found, missing
        truncated |= missing
        merger.add(number, found)
    return merger.merged(), truncated


class Merger:
    """Collects the cells of tiles."""

    def __init__(
        self, tiles: Sequence[Tile], size: tuple[int, int], config: Config, limit: int | None
    ) -> None:
        """Begin with tiles of `make_tiles` and their height and width, px.

        About `limit` cells are asked for in the end, so weaker ones are forgotten on the way; None for all.
        """
        self._tiles, self._size, self._config = tiles, size, config
        self._limit = None if limit is None else _SEEN * limit  # enough for any result: memory stays bounded
        self._pools: list[_Pool] = []
        self._count = 0

    def add(self, number: int, found: Detections) -> None:
        """Add the cells of the tile of this number, in its own pixels."""
        tile = self._tiles[number]
        pool = _kept(found.moved(tile.start), tile, number)
        self._pools.append(pool)
        self._count += len(pool.tile)
        if self._limit is not None and self._count > self._limit:
            whole = _Pool.joined(self._pools)
            whole = whole.take(np.argsort(-whole.found.scores, kind="stable")[: self._limit])
            self._pools, self._count = [whole], len(whole.tile)

    def merged(self) -> Detections:
        """The cells of the image, in its pixels, best first."""
        pool, self._pools = _Pool.joined(self._pools), []
        # Masks are most of the memory: they are copied once.
        boxes = pool._replace(found=pool.found._replace(masks=None))
        return pool.found.take(_without_duplicates(boxes, self._tiles, self._size, self._config))


def make_tiles(size: tuple[int, int], tile_size: tuple[int, int], unit: int, overlap: int) -> list[Tile]:
    """Cover an image with tiles.

    Where their size leaves the choice, tiles start at multiples of the network's coarsest stride, so that
    every location of every level lies where it would lie in the whole image; the last one then reaches up to
    a stride beyond the image, as the whole image would be padded.

    Args:
        size: height, width of the image, px.
        tile_size: of a tile, px.
        unit: stride of the coarsest level, px.
        overlap: px that neighbouring tiles share at least, or a quarter of a smaller tile.

    Returns:
        The tiles, row by row; one alone for an image that fits into a tile.
    """
    rows, columns = (_spans(*axis, unit, overlap) for axis in zip(size, tile_size, strict=True))
    pairs: Iterator[tuple[Any, Any]] = itertools.product(rows, columns)
    return [Tile(*(np.stack(pair, axis=-1) for pair in zip(*spans, strict=True))) for spans in pairs]


def _spans(
    size: int, side: int, stride: int, overlap: int
) -> list[tuple[int, tuple[float, float], tuple[float, float]]]:
    """Start, borders and core of the tiles along one axis."""
    step = side - min(overlap, side // 4)
    unit = stride if step >= stride and side % stride == 0 else 1
    step -= step % unit
    last = max(size + -size % unit - side, 0)
    count = -(-last // step)
    starts = [last // unit * k // count * unit for k in range(count)] + [last]
    middles = [(start + side + after) / 2 for start, after in zip(starts, starts[1:], strict=False)]
    lows, highs = [-np.inf, *middles], [*middles, np.inf]
    spans = []
    for k, start in enumerate(starts):
        borders = (start if k else -np.inf, start + side if k < count else np.inf)
        spans.append((start, borders, (lows[k], highs[k])))
    return spans


def _kept(found: Detections, tile: Tile, number: int) -> _Pool:
    """The cells that a tile keeps.

    Those are the cells whose centre lies in its core: no cell up to the size of the overlap is cut there. As
    two tiles may see a cell's centre a little differently, one near the core stays too, if it is whole.
    """
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    centre = (low + high) / 2
    beyond = np.maximum(tile.core[0] - centre, centre - tile.core[1])
    touches = (low <= tile.borders[0] + _TOUCH) | (high >= tile.borders[1] - _TOUCH)
    # Two boxes with an IoU of .5 are apart by a third of their side at most.
    near = (beyond <= np.where(touches, 0, (high - low) / 3)).all(1)
    pool = _Pool(found, np.full(len(near), number), (beyond <= 0).all(1), touches.any(1))
    return pool.take(near)


def _without_duplicates(
    pool: _Pool, tiles: Sequence[Tile], size: tuple[int, int], config: Config
) -> np.ndarray:
    """Indices of the cells, best first, without those that another tile has found too."""
    # A cell that two tiles claim is that of the tile in whose core it lies, else the better one.
    order = np.lexsort((-pool.found.scores, ~pool.owned))
    removed = np.zeros(len(order), bool)
    duplicates = _duplicates(pool.take(order), tiles, size, config)
    for index in sorted(duplicates):
        if not removed[index]:
            removed[[other for other in duplicates[index] if other > index]] = True
    kept = order[~removed]
    return kept[np.argsort(-pool.found.scores[kept], kind="stable")]


def _duplicates(
    pool: _Pool, tiles: Sequence[Tile], size: tuple[int, int], config: Config
) -> dict[int, list[int]]:
    """For each cell that has some, the cells of other tiles that are the same one."""
    found: dict[int, list[int]] = {}
    boxes = pool.found.boxes
    for number, tile in enumerate(tiles):
        inside = (boxes[:, 2:] > tile.start) & (boxes[:, :2] < tile.start + np.array(size))
        own = np.flatnonzero(pool.tile == number)
        other = np.flatnonzero((pool.tile < number) & inside.all(1))
        if not len(own) or not len(other):
            continue
        for row, column in np.argwhere(_same(pool, own, other, config)):
            found.setdefault(own[row], []).append(other[column])
            found.setdefault(other[column], []).append(own[row])
    return found


def _same(pool: _Pool, own: np.ndarray, other: np.ndarray, config: Config) -> np.ndarray:
    """Which of the cells `own` are which of the cells `other`: bool `[len(own), len(other)]`."""
    a, b = pool.found.boxes[own, None], pool.found.boxes[None, other]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0).prod(-1)
    area_a, area_b = (np.maximum(box[..., 2:] - box[..., :2], 0).prod(-1) for box in (a, b))
    same = shared > config.postprocess.nms_iou * (area_a + area_b - shared)
    # Parts of a cell that is larger than the overlap share little of their union.
    parts = pool.cut[own, None] & pool.cut[None, other]
    same |= parts & (shared > 0.5 * np.minimum(area_a, area_b))
    if not config.postprocess.class_agnostic:
        same &= pool.found.classes[own, None] == pool.found.classes[None, other]
    return same
