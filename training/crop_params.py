"""The augmentation parameters of one crop, for the crops of TensorFlow and of numpy."""

from __future__ import annotations

from typing import Any, NamedTuple


class CropParams(NamedTuple):
    """Augmentation parameters of one crop: scalars, tensors or of numpy.

    Attributes:
        scale: float32, crop pixels per source pixel.
        y: float32 in [0, 1], position of the crop within its range.
        x: likewise.
        transpose: bool, swap the axes (before the flips).
        flip_y: bool, mirror top and bottom.
        flip_x: bool, mirror left and right.
        gain: float32, contrast factor on the normalised image.
        offset: float32, brightness added after that.
    """

    scale: Any
    y: Any
    x: Any
    transpose: Any
    flip_y: Any
    flip_x: Any
    gain: Any
    offset: Any
