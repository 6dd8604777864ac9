"""The augmentation parameters of one crop, for the crops of TensorFlow and of numpy."""

from __future__ import annotations

from typing import Any, NamedTuple


class CropParams(NamedTuple):
    """Augmentation parameters of one crop: scalars, tensors or of numpy."""

    scale: Any  # float32, crop pixels per source pixel
    y: Any  # float32 in [0, 1], position of the crop within its range
    x: Any  # likewise
    transpose: Any  # bool, swap the axes (before the flips)
    flip_y: Any  # bool, mirror top and bottom
    flip_x: Any  # bool, mirror left and right
    gain: Any  # float32, contrast factor on the normalised image
    offset: Any  # float32, brightness added after that
