"""The pages of an image layer: an image, or the pages of a stack, read one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.images.normalize import check_image

if TYPE_CHECKING:
    from napari.layers import Image


@dataclass(frozen=True, eq=False)
class LayerPages:
    """The images of one layer, read one at a time: the data may be lazy and larger than the memory."""

    name: str  # of the layer
    data: Any  # `[..., H, W]`, with a last axis of 3 or 4 colours for RGB
    lead: tuple[int, ...]  # lengths of the axes before y and x, along which the pages lie; none of an image

    def __len__(self) -> int:
        """Number of pages; 1 for an image."""
        return math.prod(self.lead)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.data.shape[len(self.lead) :][:2]
        return int(height), int(width)

    def read(self, number: int) -> np.ndarray:
        """One page `[H, W]` or `[H, W, 3]`, in the layer's own type.

        Args:
            number: from 0, the last axis of pages counting first.

        Raises:
            UserError: when it is no image, or holds values that are not finite.
        """
        at = place_of(number, self.lead)
        try:
            return check_image(np.asarray(self.data[at if len(at) > 1 else at[0]] if at else self.data))
        except UserError as error:
            place = f"{self.name}, page {', '.join(map(str, at))}" if at else self.name
            raise UserError(f"{place}: {error}") from error


def place_of(number: int, lead: Sequence[int]) -> tuple[int, ...]:
    """Where a page lies along axes of these lengths."""
    return tuple(int(index) for index in np.unravel_index(number, lead)) if lead else ()


def pages_of(layer: Image) -> LayerPages:
    """The pages of an image layer.

    Args:
        layer: a napari image layer of two or more axes; of a pyramid the full resolution is taken.

    Raises:
        UserError: when it is no image.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    axes = len(data.shape) - bool(layer.rgb)
    if axes < 2 or 0 in data.shape:
        shape = " x ".join(map(str, data.shape))
        raise UserError(f"{layer.name}: has the shape {shape}, an image has at least two axes of some length")
    return LayerPages(str(layer.name), data, tuple(int(size) for size in data.shape[: axes - 2]))
