"""Random scale, crop, flip, turn and intensity of one image and its cells, in numpy alone.

The same crops as `training.augment` makes in TensorFlow, as a test holds; only the random numbers are those
of another generator. `augment` there explains the choices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from effdet_tf.config import AugmentConfig, DataConfig
from effdet_tf.geometry.resample import resample_bitmaps, resize
from effdet_tf.images.gray import LUMA
from effdet_tf.images.normalize import SIXTEEN_BIT_UNIT, fixed_statistics
from training.crop_params import CropParams
from training.looks import changes_looks, restyle

_HALF_COVERED = 127.5
_MIN_SIDE = 1.0  # px; a thinner rest of a cell holds no pixel centre for certain


def draw(
    seed: np.ndarray,
    size: np.ndarray,
    crop_size: tuple[int, int],
    config: AugmentConfig,
    fit: bool,
    zoom: float = 1.0,
) -> CropParams:
    """Draw one set of augmentation parameters.

    Args:
        seed: whole numbers `[2]`.
        size: int `[2]`, height and width of the source image, px.
        crop_size: height and width of the crop.
        config: what may change and how far.
        fit: the scale range is relative to the scale at which the image just fits into the crop.
        zoom: magnification that the drawn scale comes on top of.
    """
    uniform = np.random.default_rng([int(part) for part in seed]).random(8, np.float32)
    low, high = config.scale_range
    if config.short_sides:
        choice = min(int(uniform[0] * len(config.short_sides)), len(config.short_sides) - 1)
        scale = config.short_sides[choice] / size.min()
    elif fit:
        scale = (np.array(crop_size, np.float32) / size).min() * (low + uniform[0] * (high - low))
    else:
        scale = np.exp(np.log(low) + uniform[0] * (np.log(high) - np.log(low)))
    turns = int(uniform[3] * 4) if config.rot90 else 0
    if crop_size[0] != crop_size[1]:
        turns = turns // 2 * 2  # a quarter turn of an oblong crop has another shape
    mirror_y = config.flip and config.flip_vertical and uniform[4] < 0.5
    mirror_x = config.flip and uniform[5] < 0.5
    low, high = config.contrast
    return CropParams(
        scale=np.float32(scale * zoom),
        y=uniform[1],
        x=uniform[2],
        # Counter-clockwise turns as "transpose, then flip": 1 = (T, y), 2 = (y, x), 3 = (T, x).
        transpose=turns % 2 == 1,
        flip_y=bool((turns in (1, 2)) ^ mirror_y),
        flip_x=bool((turns >= 2) ^ mirror_x),
        gain=np.float32(low + uniform[6] * (high - low)),
        offset=np.float32((uniform[7] * 2 - 1) * config.brightness),
    )


def augment(
    example: dict[str, Any], seed: np.ndarray, config: AugmentConfig, data: DataConfig
) -> dict[str, Any]:
    """Return one random crop of an example; see `training.augment.augment`.

    Args:
        example: of `PackedSet.fetch`.
        seed: whole numbers `[2]`, decide everything.
        config: what may change and how far.
        data: crop size, channels, normalization and resize.

    Returns:
        `image [H, W, C]` float32 normalised, `boxes [K, 4]` float32 in crop pixels, `classes [K]` int32,
        `masks [K, m, m]` uint8, `scores [K]` float32, `ignored [R, 4]` float32, `scale [2]`
        float32, `image_id` int64.
    """
    crop_size, fit = np.array(data.crop_size), data.resize == "fit"
    size = np.array(example["image"].shape[:2])
    params = draw(seed, size, data.crop_size, config, fit, data.zoom)
    start, wanted = crop_window(size, params, crop_size, fit)
    scale = crop_size.astype(np.float32) / wanted.astype(np.float32)
    if fit:  # the part that the image fills is scaled on its own, to whole pixels
        part = np.minimum(wanted, size - start).astype(np.float32)
        scale = np.clip(np.rint(part * scale), 1, crop_size).astype(np.float32) / part
    image = crop_image(example, start, wanted, scale, params, data, looks(seed, config))
    cells = crop_cells(example, start, scale, crop_size, config.min_visible)
    return {
        **cells,
        "image": orient(image, params, (0, 1)),
        "boxes": orient_boxes(cells["boxes"], params, crop_size),
        "masks": orient(cells["masks"], params, (1, 2)),
        "ignored": orient_boxes(cells["ignored"], params, crop_size),
        "scale": scale[::-1] if params.transpose else scale,
        "image_id": example["image_id"],
    }


def looks(seed: np.ndarray, config: AugmentConfig) -> Callable[[np.ndarray], np.ndarray] | None:
    """What changes the looks of a crop, if anything does."""
    return (lambda part: restyle(part, seed, config)) if changes_looks(config) else None


def crop_window(
    size: np.ndarray, params: CropParams, crop_size: np.ndarray, top_left: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return where the crop begins in the source, and its size there: int `[2]` each, whole pixels."""
    wanted = np.maximum(np.rint(crop_size.astype(np.float32) / params.scale).astype(int), 1)
    room = size - wanted
    high = np.maximum(room, 0)
    low = np.zeros_like(room) if top_left else np.minimum(room, 0)
    position = np.array([params.y, params.x], np.float32) * (high - low + 1).astype(np.float32)
    return np.minimum(low + position.astype(int), high), wanted


def crop_image(
    example: dict[str, Any],
    start: np.ndarray,
    wanted: np.ndarray,
    scale: np.ndarray,
    params: CropParams,
    data: DataConfig,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Return the normalised crop: float32 `[H, W, C]`; 0 before brightness where there is no image.

    Args:
        example: of `augment`.
        start: int `[2]`, of the window in the source, px.
        wanted: int `[2]`, its size.
        scale: float32 `[2]`, crop pixels per source pixel.
        params: augmentation parameters.
        data: crop size, channels, normalization and resize.
        change: of the looks, before anything is resized.
    """
    size, crop_size = np.array(example["image"].shape[:2]), np.array(data.crop_size)
    first, last = np.maximum(start, 0), np.minimum(start + wanted, size)
    part = _with_channels(example["image"][first[0] : last[0], first[1] : last[1]], data.channels)
    if data.normalization != "fixed":
        mean, std, unit = example["mean"], example["std"], np.float32(1)
    else:
        mean, std = fixed_statistics(data)
        unit = SIXTEEN_BIT_UNIT if example["bit_depth"] == 16 else np.float32(1)
    gain = params.gain / std
    part = part * (gain * unit) + (params.offset - mean * gain)
    part = part if change is None else change(part)
    if data.resize == "fit":
        target = np.clip(np.rint((last - first).astype(np.float32) * scale).astype(int), 1, crop_size)
        return _pad(resize(part, target), np.zeros(2, int), crop_size - target, params.offset)
    return resize(_pad(part, first - start, start + wanted - last, params.offset), crop_size)


def crop_cells(
    example: dict[str, Any],
    start: np.ndarray,
    scale: np.ndarray,
    crop_size: np.ndarray,
    min_visible: float,
) -> dict[str, np.ndarray]:
    """Return `boxes`, `classes`, `masks` and `scores` of K cells in the crop, and `ignored [R, 4]`.

    Args:
        example: `boxes [N, 4]`, `classes [N]`, `masks [N, m, m]`, `iscrowd [N]`, `scores [N]`.
        start: int `[2]`, of the window in the source, px.
        scale: float32 `[2]`, crop pixels per source pixel.
        crop_size: int `[2]`.
        min_visible: share of the box area in [0, 1].
    """
    whole = (example["boxes"] - np.tile(start, 2).astype(np.float32)) * np.tile(scale, 2)
    clipped = np.clip(whole, 0, np.tile(crop_size, 2).astype(np.float32))
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = sides.prod(-1) >= np.float32(min_visible) * (whole[:, 2:] - whole[:, :2]).prod(-1)
    shown, cell = (sides >= _MIN_SIDE).all(-1), (example["iscrowd"] == 0) & visible
    index, ignored = np.flatnonzero(cell & shown), clipped[shown & ~cell]
    whole, boxes = whole[index], clipped[index]
    classes, masks, scores = (example[name][index] for name in ("classes", "masks", "scores"))
    cut = np.flatnonzero((whole != boxes).any(-1))
    if len(cut):
        bitmaps, outer, inner = masks[cut].astype(np.float32), whole[cut], boxes[cut]
        tight = tighten(resample_bitmaps(bitmaps, outer, inner, masks.shape[1]), inner)
        rest = resample_bitmaps(bitmaps, outer, tight, masks.shape[1])
        boxes[cut], masks[cut] = tight, np.rint(rest).astype(np.uint8)
    left = (boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE).all(-1)
    cells = {"boxes": boxes, "classes": classes, "masks": masks, "scores": scores}
    return {name: value[left] for name, value in cells.items()} | {"ignored": ignored}


def tighten(bitmaps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the boxes drawn in to where their bitmaps pass half coverage; of no extent where none does."""
    size = np.float32(bitmaps.shape[1])
    profiles = np.stack([bitmaps.max(2), bitmaps.max(1)], 1)  # [N, 2, m]
    low, high = _first_crossing(profiles), size - _first_crossing(profiles[..., ::-1])
    origin, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    tight = np.concatenate([origin + low / size * extent, origin + high / size * extent], -1)
    empty = profiles.max((1, 2)) < _HALF_COVERED
    return np.where(empty[:, None], np.concatenate([origin, origin], -1), tight)


def orient(array: np.ndarray, params: CropParams, axes: tuple[int, int]) -> np.ndarray:
    """Transpose and flip the height and width of an array, which are its `axes`; a view."""
    array = array.swapaxes(*axes) if params.transpose else array
    array = np.flip(array, axes[0]) if params.flip_y else array
    return np.flip(array, axes[1]) if params.flip_x else array


def orient_boxes(boxes: np.ndarray, params: CropParams, crop_size: np.ndarray) -> np.ndarray:
    """Transpose and flip boxes `[N, 4]` as `orient` does the crop."""
    boxes = boxes[:, [1, 0, 3, 2]] if params.transpose else boxes
    y1, x1, y2, x2 = boxes.T
    height, width = crop_size.astype(np.float32)
    if params.flip_y:
        y1, y2 = height - y2, height - y1
    if params.flip_x:
        x1, x2 = width - x2, width - x1
    return np.stack([y1, x1, y2, x2], 1)


def _first_crossing(profiles: np.ndarray) -> np.ndarray:
    """Return where `[N, 2, m]` profiles first pass half coverage, in bitmap cells from the edge; `[N, 2]`."""
    first = (profiles >= _HALF_COVERED).argmax(-1)
    previous = np.maximum(first - 1, 0)
    here = np.take_along_axis(profiles, first[..., None], -1)[..., 0]
    there = np.take_along_axis(profiles, previous[..., None], -1)[..., 0]
    step = here - there
    share = np.divide(_HALF_COVERED - there, step, out=np.zeros_like(step), where=step != 0)
    return np.where(first > 0, previous.astype(np.float32) + np.float32(0.5) + share, np.float32(0))


def _pad(image: np.ndarray, before: np.ndarray, after: np.ndarray, value: np.float32) -> np.ndarray:
    if not (before.any() or after.any()):
        return image
    room = [(int(b), int(a)) for b, a in zip(before, after, strict=True)]
    return np.pad(image, [*room, (0, 0)], constant_values=value)


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return float32 `[H, W, channels]`: gray repeated, or RGB as luma."""
    image = image.astype(np.float32)
    if image.shape[2] == channels:
        return image
    return np.repeat(image, channels, 2) if channels == 3 else (image @ LUMA)[..., None]
