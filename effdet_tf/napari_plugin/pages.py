"""The pages of an image layer: an image, or the pages of a stack, read one at a time."""

from __future__ import annotations

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
    data: Any  # `[H, W]`, or `[T, H, W]` for a stack, each with a last axis of 3 or 4 colours for RGB
    stack: bool  # whether the first axis counts pages

    def __len__(self) -> int:
        """Number of pages; 1 for an image."""
        return int(self.data.shape[0]) if self.stack else 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.data.shape[self.stack :][:2]
        return int(height), int(width)

    def read(self, number: int) -> np.ndarray:
        """One page `[H, W]` or `[H, W, 3]`, in the layer's own type.

        Args:
            number: from 0.

        Raises:
            UserError: when it is no image, or holds values that are not finite.
        """
        try:
            return check_image(np.asarray(self.data[number] if self.stack else self.data))
        except UserError as error:
            place = f"{self.name}, page {number}" if self.stack else self.name
            raise UserError(f"{place}: {error}") from error


def pages_of(layer: Image) -> LayerPages:
    """The pages of an image layer.

    Args:
        layer: a napari image layer; of a pyramid the full resolution is taken.

    Raises:
        UserError: when it is neither an image nor a stack of them.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    axes = len(data.shape) - bool(layer.rgb)
    if axes not in (2, 3):
        shape = " x ".join(map(str, data.shape))
        raise UserError(
            f"{layer.name}: has {axes} axes ({shape}), an image has 2 and a stack of them 3; "
            "split the others into layers first"
        )
    return LayerPages(str(layer.name), data, axes == 3)
