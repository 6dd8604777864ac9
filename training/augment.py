"""Random scale, crop, flip, turn and intensity of one image and its cells, in TensorFlow operations.

All augmentation parameters come from one explicit seed per example: the same (seed, epoch, position) gives
the same crop.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
from keras import ops

from effdet_tf.config import AugmentConfig, DataConfig
from effdet_tf.geometry.resample import resample_bitmaps
from effdet_tf.images.gray import LUMA
from effdet_tf.images.normalize import SIXTEEN_BIT_UNIT, fixed_statistics
from effdet_tf.images.resize import fit_scale, pad, resize, scaled_size
from training.crop_params import CropParams
from training.looks import changes_looks, restyle

_HALF_COVERED = 127.5
_MIN_SIDE = 1.0  # px; a thinner rest of a cell holds no pixel centre for certain


def draw(
    seed: tf.Tensor,
    short_side: tf.Tensor,
    crop_size: tuple[int, int],
    config: AugmentConfig,
    fitting: tf.Tensor | None = None,
    zoom: float = 1.0,
) -> CropParams:
    """Draw one set of augmentation parameters.

    With a scale range the scale is log-uniform, so half and double are equally likely, but uniform where it
    is relative to the fitted image.

    Args:
        seed: int32 `[2]`.
        short_side: scalar float32, the shorter side of the source image in pixels.
        crop_size: height and width of the crop.
        config: what may change and how far.
        fitting: scalar float32, the scale at which the image just fits into the crop, where the scale range
            is relative to that (`data.resize=fit`).
        zoom: magnification that the drawn scale comes on top of.
    """
    uniform = tf.random.stateless_uniform([9], seed)
    if config.short_sides:
        count = len(config.short_sides)
        choice = tf.minimum(tf.cast(uniform[0] * count, tf.int32), count - 1)
        scale = tf.constant(config.short_sides, tf.float32)[choice] / short_side
    elif fitting is not None:
        low, high = config.scale_range
        scale = fitting * (low + uniform[0] * (high - low))
    else:
        low, high = tf.math.log(float(config.scale_range[0])), tf.math.log(float(config.scale_range[1]))
        scale = tf.exp(low + uniform[0] * (high - low))
    no = tf.constant(False)
    turns = tf.cast(uniform[3] * 4.0, tf.int32) if config.rot90 else tf.constant(0)
    if crop_size[0] != crop_size[1]:
        turns = turns // 2 * 2  # a quarter turn of an oblong crop has another shape
    odd = tf.equal(turns % 2, 1)
    # Counter-clockwise turns as "transpose, then flip": 1 = (T, y), 2 = (y, x), 3 = (T, x).
    flip_y = tf.logical_or(tf.equal(turns, 1), tf.equal(turns, 2))
    flip_x = turns >= 2
    mirror_y = uniform[4] < 0.5 if config.flip and config.flip_vertical else no
    mirror_x = uniform[5] < 0.5 if config.flip else no
    low, high = config.contrast
    return CropParams(
        scale=scale * zoom,
        y=uniform[1],
        x=uniform[2],
        transpose=odd,
        flip_y=tf.math.logical_xor(flip_y, mirror_y),
        flip_x=tf.math.logical_xor(flip_x, mirror_x),
        gain=low + uniform[6] * (high - low),
        offset=(uniform[7] * 2.0 - 1.0) * config.brightness,
    )


def augment(
    example: dict[str, tf.Tensor], seed: tf.Tensor, config: AugmentConfig, data: DataConfig
) -> dict[str, tf.Tensor]:
    """Return one random crop of an example.

    Args:
        example: what `record.parse` returns; the image may have any number dtype.
        seed: int32 `[2]`, decides everything.
        config: what may change and how far.
        data: crop size, channels, normalization and resize.

    Returns:
        `image [H, W, C]` float32 normalised, `boxes [K, 4]` float32 in crop pixels, `classes [K]` int32,
        `masks [K, m, m]` uint8, `scores [K]` float32, `ignored [R, 4]` float32, `scale [2]` float32 (crop
        pixels per source pixel, y and x, after a transpose: of the crop's own axes), `image_id` int64. K
        counts the cells that are left.
    """
    crop_size, fit = data.crop_size, data.resize == "fit"
    size = tf.shape(example["image"])[:2]
    fitting = fit_scale(size, crop_size) if fit else None
    params = draw(seed, tf.cast(tf.reduce_min(size), tf.float32), crop_size, config, fitting, data.zoom)
    window = crop_window(size, params, crop_size, fit)
    scale = tf.constant(crop_size, tf.float32) / tf.cast(window[2:], tf.float32)
    if fit:  # the part that the image fills is scaled on its own, to whole pixels
        part = tf.minimum(window[2:], size - window[:2])
        scale = tf.cast(scaled_size(part, scale, crop_size), tf.float32) / tf.cast(part, tf.float32)
    image = crop_image(example, window, scale, params, data, looks(seed, config))
    keep = tf.equal(example["iscrowd"], 0)
    cells = crop_cells(example, keep, window, scale, crop_size, config.min_visible)
    return {
        **cells,
        "image": tf.ensure_shape(orient(image, params, (0, 1)), [*crop_size, data.channels]),
        "boxes": orient_boxes(cells["boxes"], params, crop_size),
        "masks": orient(cells["masks"], params, (1, 2)),
        "ignored": orient_boxes(cells["ignored"], params, crop_size),
        "scale": tf.where(params.transpose, scale[::-1], scale),
        "image_id": example["image_id"],
    }


def looks(seed: tf.Tensor, config: AugmentConfig) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """What changes the looks of a crop, if anything does: numpy's own code, so that both train alike."""
    if not changes_looks(config):
        return None

    def change(part: tf.Tensor) -> tf.Tensor:
        changed = tf.numpy_function(
            lambda image, key: restyle(image, key, config), [part, seed], tf.float32, False
        )
        return tf.ensure_shape(changed, part.shape)

    return change


def crop_window(
    size: tf.Tensor, params: CropParams, crop_size: tuple[int, int], top_left: bool = False
) -> tf.Tensor:
    """Return the source window of a crop: int32 `[4]` (y, x, height, width), whole source pixels.

    Cropping in the source and resizing after that costs what the crop costs, not what the scaled image
    would. The window leaves the image only along an axis on which the image is too small to fill it; the
    image lies anywhere in it then, or at its top left, as in prediction, where `top_left` asks for that.
    """
    wanted = tf.cast(tf.round(tf.constant(crop_size, tf.float32) / params.scale), tf.int32)
    wanted = tf.maximum(wanted, 1)
    room = size - wanted
    high = tf.maximum(room, 0)
    low = tf.zeros_like(room) if top_left else tf.minimum(room, 0)
    position = tf.stack([params.y, params.x]) * tf.cast(high - low + 1, tf.float32)
    start = tf.minimum(low + tf.cast(position, tf.int32), high)
    return tf.concat([start, wanted], 0)


def crop_image(
    example: dict[str, tf.Tensor],
    window: tf.Tensor,
    scale: tf.Tensor,
    params: CropParams,
    data: DataConfig,
    change: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor:
    """Return the normalised crop: float32 `[H, W, C]`; 0 before brightness where there is no image.

    Args:
        example: of `augment`.
        window: int32 `[4]`, source window (y, x, height, width).
        scale: float32 `[2]`, crop pixels per source pixel.
        params: augmentation parameters.
        data: crop size, channels, normalization and resize.
        change: of the looks, before anything is resized.
    """
    image = example["image"]
    size = tf.shape(image)[:2]
    start = tf.maximum(window[:2], 0)
    stop = tf.minimum(window[:2] + window[2:], size)
    part = tf.cast(image[start[0] : stop[0], start[1] : stop[1]], tf.float32)
    part = _with_channels(part, data.channels)
    if data.normalization != "fixed":
        mean, std, unit = example["mean"], example["std"], tf.constant(1.0)
    else:
        mean, std = fixed_statistics(data)
        unit = tf.where(tf.equal(example["bit_depth"], 16), SIXTEEN_BIT_UNIT, 1.0)
    gain = params.gain / std
    part = part * (gain * unit) + (params.offset - mean * gain)
    part = part if change is None else change(part)
    if data.resize == "fit":
        target = scaled_size(stop - start, scale, data.crop_size)
        return pad(resize(part, stop - start, target), target, data.crop_size, params.offset)
    before, after = start - window[:2], window[:2] + window[2:] - stop
    if_small = tf.reduce_any(before + after > 0)
    paddings = tf.stack(
        [tf.stack([before[0], after[0]]), tf.stack([before[1], after[1]]), tf.zeros(2, tf.int32)]
    )
    part = tf.cond(if_small, lambda: tf.pad(part, paddings, constant_values=params.offset), lambda: part)
    return resize(part, window[2:], data.crop_size)


def crop_cells(
    example: dict[str, tf.Tensor],
    keep: tf.Tensor,
    window: tf.Tensor,
    scale: tf.Tensor,
    crop_size: tuple[int, int],
    min_visible: float,
) -> dict[str, tf.Tensor]:
    """Return boxes, classes, masks and scores of the cells that the crop shows, and the regions to ignore.

    A cell that the crop cuts gets its mask resampled to the rest of its box, and the box drawn tight
    around that mask; one with less than `min_visible` of its box area, or without mask, is left out.
    What is left of the former is `ignored [R, 4]`, as crowds are: too little to be a cell, and no background.

    Args:
        example: `boxes [N, 4]`, `classes [N]`, `masks [N, m, m]`, `scores [N]`.
        keep: bool `[N]`.
        window: int32 `[4]`, source window (y, x, height, width).
        scale: float32 `[2]`, crop pixels per source pixel.
        crop_size: height and width of the crop.
        min_visible: share of the box area in [0, 1].
    """
    start = tf.cast(window[:2], tf.float32)
    whole = (example["boxes"] - tf.tile(start, [2])) * tf.tile(scale, [2])
    clipped = tf.clip_by_value(whole, 0.0, tf.constant([*crop_size, *crop_size], tf.float32))
    sides = clipped[:, 2:] - clipped[:, :2]
    full_area = tf.reduce_prod(whole[:, 2:] - whole[:, :2], -1)
    visible = tf.reduce_prod(sides, -1) >= min_visible * full_area
    shown = tf.reduce_all(sides >= _MIN_SIDE, -1)
    ignored = tf.boolean_mask(clipped, shown & ~(keep & visible))
    index = tf.where(keep & visible & shown)[:, 0]
    whole, clipped = tf.gather(whole, index), tf.gather(clipped, index)
    masks, classes, scores = (tf.gather(example[name], index) for name in ("masks", "classes", "scores"))
    cut = tf.where(tf.reduce_any(whole != clipped, -1))

    def with_cut_cells() -> tuple[tf.Tensor, tf.Tensor]:
        bitmaps = tf.cast(tf.gather_nd(masks, cut), tf.float32)
        outer, inner = tf.gather_nd(whole, cut), tf.gather_nd(clipped, cut)
        size = bitmaps.shape[1]
        tight = tighten(resample_bitmaps(bitmaps, outer, inner, size, ops), inner)
        rest = tf.cast(tf.round(resample_bitmaps(bitmaps, outer, tight, size, ops)), tf.uint8)
        return tf.tensor_scatter_nd_update(clipped, cut, tight), tf.tensor_scatter_nd_update(masks, cut, rest)

    boxes, masks = tf.cond(tf.size(cut) > 0, with_cut_cells, lambda: (clipped, masks))
    left = tf.reduce_all(boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE, -1)
    return {
        "boxes": tf.boolean_mask(boxes, left),
        "classes": tf.boolean_mask(classes, left),
        "masks": tf.boolean_mask(masks, left),
        "scores": tf.boolean_mask(scores, left),
        "ignored": ignored,
    }


def tighten(bitmaps: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Shrink boxes to where their bitmaps pass half coverage, between bitmap cells too.

    Args:
        bitmaps: float32 `[N, m, m]`, 0-255.
        boxes: float32 `[N, 4]` yxyx.

    Returns:
        float32 `[N, 4]`; a box whose bitmap is nowhere half covered has no extent.
    """
    size = tf.cast(tf.shape(bitmaps)[1], tf.float32)
    profiles = tf.stack([tf.reduce_max(bitmaps, 2), tf.reduce_max(bitmaps, 1)], 1)  # [N, 2, m]
    low = _first_crossing(profiles)
    high = size - _first_crossing(profiles[..., ::-1])
    origin, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    tight = tf.concat([origin + low / size * extent, origin + high / size * extent], -1)
    empty = tf.reduce_max(profiles, [1, 2]) < _HALF_COVERED
    return tf.where(empty[:, None], tf.concat([origin, origin], -1), tight)


def orient(array: tf.Tensor, params: CropParams, axes: tuple[int, int]) -> tf.Tensor:
    """Transpose and flip the height and width of an array of three axes, which are its `axes`."""
    order = (1, 0, 2) if axes == (0, 1) else (0, 2, 1)
    array = tf.cond(params.transpose, lambda: tf.transpose(array, order), lambda: array)
    array = tf.cond(params.flip_y, lambda: tf.reverse(array, axes[:1]), lambda: array)
    return tf.cond(params.flip_x, lambda: tf.reverse(array, axes[1:]), lambda: array)


def orient_boxes(boxes: tf.Tensor, params: CropParams, crop_size: tuple[int, int]) -> tf.Tensor:
    """Transpose and flip boxes `[N, 4]` as `orient` does the crop."""
    boxes = tf.where(params.transpose, tf.gather(boxes, [1, 0, 3, 2], axis=1), boxes)
    y1, x1, y2, x2 = tf.unstack(boxes, axis=1)
    y1, y2 = tf.where(params.flip_y, crop_size[0] - y2, y1), tf.where(params.flip_y, crop_size[0] - y1, y2)
    x1, x2 = tf.where(params.flip_x, crop_size[1] - x2, x1), tf.where(params.flip_x, crop_size[1] - x1, x2)
    return tf.stack([y1, x1, y2, x2], 1)


def _first_crossing(profiles: tf.Tensor) -> tf.Tensor:
    """Return where `[N, 2, m]` profiles first pass half coverage, in bitmap cells from the edge; `[N, 2]`."""
    first = tf.argmax(profiles >= _HALF_COVERED, -1, output_type=tf.int32)
    previous = tf.maximum(first - 1, 0)
    here = tf.gather(profiles, first, batch_dims=2)
    there = tf.gather(profiles, previous, batch_dims=2)
    between = tf.cast(previous, tf.float32) + 0.5 + tf.math.divide_no_nan(_HALF_COVERED - there, here - there)
    return tf.where(first > 0, between, 0.0)


def _with_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Return `[H, W, channels]`: gray repeated, or RGB as luma."""
    found = tf.shape(image)[-1]
    if channels == 3:
        return tf.cond(tf.equal(found, 1), lambda: tf.repeat(image, 3, -1), lambda: image)
    return tf.cond(tf.equal(found, 1), lambda: image, lambda: tf.reduce_sum(image * LUMA, -1, keepdims=True))
