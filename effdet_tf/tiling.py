"""Networks with an input of one size, on images of any: overlapping tiles, no seams, no doubles.

Pure numpy: a network that runs without TensorFlow is served without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from effdet_tf.config import Config
from effdet_tf.data.image_io import read_image
from effdet_tf.data.numpy_resize import resize
from effdet_tf.data.prepare import normalize
from effdet_tf.results import Result

OVERLAP = 128  # px that neighbouring tiles share at least, or a quarter of a small frame
_TOUCH = 4  # px: the box of a cell that is cut by a tile's border ends this near to it
_SEEN = 4  # tiles that may see the same cell


class Found(NamedTuple):
    """The cells of one input or image, in its pixels."""

    boxes: np.ndarray  # float32 [N, 4] yxyx
    scores: np.ndarray  # float32 [N]
    classes: np.ndarray  # int32 [N]
    masks: np.ndarray | None  # uint8 [N, m, m] probability times 255 over mask_boxes
    mask_boxes: np.ndarray | None  # float32 [N, 4] yxyx

    def take(self, index: np.ndarray) -> Found:
        """The cells at these indices, or where a mask `[N]` is true."""
        return Found(*(part if part is None else part[index] for part in self))

    def moved(self, start: np.ndarray) -> Found:
        """The cells with `start [2]`, y x in pixels, added to their places."""
        shift = np.tile(start, 2).astype(np.float32)
        mask_boxes = None if self.mask_boxes is None else self.mask_boxes + shift
        return self._replace(boxes=self.boxes + shift, mask_boxes=mask_boxes)

    def scaled(self, size: np.ndarray, target: np.ndarray) -> Found:
        """The cells of an image of `size [2]` px, in the pixels of one that is scaled to `target [2]` px."""
        if (size == target).all():
            return self
        whole = np.tile(target, 2).astype(np.float32)
        factor = whole / np.tile(size, 2).astype(np.float32)
        boxes = np.minimum(self.boxes * factor, whole)  # rounding may lead beyond the edge
        mask_boxes = None if self.mask_boxes is None else self.mask_boxes * factor
        return self._replace(boxes=boxes, mask_boxes=mask_boxes)


class Tile(NamedTuple):
    """A part of an image as large as the frame; the last ones may reach beyond the image."""

    start: np.ndarray  # int [2] y x of its first pixel
    borders: np.ndarray  # float [low and high, y and x]; infinite where no tile follows
    core: np.ndarray  # likewise: half way into what it shares with its neighbours


class _Pool(NamedTuple):
    """Cells of all tiles so far."""

    found: Found
    tile: np.ndarray  # int [N]
    owned: np.ndarray  # bool [N] its centre lies in the tile's core
    cut: np.ndarray  # bool [N] it ends at a border to another tile

    def take(self, index: np.ndarray) -> _Pool:
        return _Pool(self.found.take(index), *(part[index] for part in self[1:]))

    def plus(self, other: _Pool) -> _Pool:
        parts = zip(self.found, other.found, strict=True)
        found = Found(*(None if a is None else np.concatenate([a, b]) for a, b in parts))
        return _Pool(found, *(np.concatenate(pair) for pair in zip(self[1:], other[1:], strict=True)))


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

    def predict(self, image: np.ndarray | str | os.PathLike[str]) -> Result:
        """Find the cells of one image.

        Args:
            image: a file, or `[H, W]` or `[H, W, C]` pixels, uint8, uint16 or float.

        Returns:
            The cells that the network gives, best first, `data.max_instances` at most.

        Raises:
            UserError: for an unreadable file or an array that is no image.
        """
        pixels = read_image(image) if isinstance(image, (str, os.PathLike)) else np.asarray(image)
        values = normalize(pixels, self.config)
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
        full = False
        pool: _Pool | None = None
        for number, tile in enumerate(tiles):
            (y, x), (height, width) = tile.start, self.frame
            part = values[y : y + height, x : x + width]
            found = self._run(framed(part, self.frame), part.shape[:2])
            if len(tiles) == 1:
                return found, False
            full |= len(found.scores) >= limit
            own = _kept(found.moved(tile.start), tile, number)
            pool = own if pool is None else pool.plus(own)
            if len(pool.tile) > _SEEN * limit:  # enough for any result: memory stays bounded
                pool = pool.take(np.argsort(-pool.found.scores, kind="stable")[: _SEEN * limit])
        return _without_doubles(pool, tiles, self.frame, self.config), full


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


def make_tiles(size: tuple[int, int], frame: tuple[int, int], stride: int) -> list[Tile]:
    """Cover an image with tiles.

    Where the frame leaves the choice, tiles start at multiples of the network's coarsest stride, so that
    every location of every level lies where it would lie in the whole image; the last one then reaches up to
    a stride beyond the image, as the whole image would be padded.

    Args:
        size: height, width of the image, px.
        frame: of a tile, px.
        stride: of the coarsest level, px.

    Returns:
        The tiles, row by row; one alone for an image that fits into the frame.
    """
    rows, columns = (_spans(*axis, stride) for axis in zip(size, frame, strict=True))
    return [
        Tile(*(np.stack([row[k], column[k]], axis=-1) for k in range(3)))
        for row in rows
        for column in columns
    ]


def _spans(size: int, frame: int, stride: int) -> list[tuple[int, tuple[float, float], tuple[float, float]]]:
    """Start, borders and core of the tiles along one axis."""
    step = frame - min(OVERLAP, frame // 4)
    unit = stride if step >= stride and frame % stride == 0 else 1
    step -= step % unit
    last = max(size + -size % unit - frame, 0)
    count = -(-last // step)
    starts = [last // unit * k // count * unit for k in range(count)] + [last]
    middles = [(start + frame + after) / 2 for start, after in zip(starts, starts[1:], strict=False)]
    lows, highs = [-np.inf, *middles], [*middles, np.inf]
    return [
        (
            start,
            (start if k else -np.inf, start + frame if k < count else np.inf),
            (lows[k], highs[k]),
        )
        for k, start in enumerate(starts)
    ]


def _kept(found: Found, tile: Tile, number: int) -> _Pool:
    """The cells that a tile answers for.

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


def _without_doubles(pool: _Pool, tiles: list[Tile], frame: tuple[int, int], config: Config) -> Found:
    """The cells, best first, without those that another tile has found too."""
    # A cell that two tiles claim is that of the tile in whose core it lies, else the better one.
    order = np.lexsort((-pool.found.scores, ~pool.owned))
    pool = pool.take(order)
    removed = np.zeros(len(order), bool)
    doubles = _doubles(pool, tiles, frame, config)
    for index in sorted(doubles):
        if not removed[index]:
            removed[[other for other in doubles[index] if other > index]] = True
    found = pool.found.take(~removed)
    return found.take(np.argsort(-found.scores, kind="stable"))


def _doubles(pool: _Pool, tiles: list[Tile], frame: tuple[int, int], config: Config) -> dict[int, list[int]]:
    """For each cell that has some, the cells of other tiles that are the same one."""
    found: dict[int, list[int]] = {}
    boxes = pool.found.boxes
    for number, tile in enumerate(tiles):
        inside = (boxes[:, 2:] > tile.start) & (boxes[:, :2] < tile.start + np.array(frame))
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
