"""The cells that a network finds in one input, in that input's pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Detections(NamedTuple):
    """Cells in pixels of the network's input: tensors inside a graph, numpy arrays outside."""

    boxes: Any  # float32 [N, 4] yxyx, input px
    scores: Any  # float32 [N], mask quality included
    classes: Any  # int32 [N]
    masks: Any | None  # [N, m, m] probability over mask_boxes: float32, once ranked uint8 times 255
    mask_boxes: Any | None  # float32 [N, 4] yxyx, input px
    count: Any | None = None  # int32 scalar, in a graph alone: rows from it on are padding

    @classmethod
    def from_outputs(cls, outputs: dict[str, np.ndarray]) -> Detections:
        """The real rows of a graph's outputs by name, as numpy arrays."""
        count = int(outputs["count"])
        return cls(*(outputs[name][:count] if name in outputs else None for name in cls._fields[:5]))

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """The cells of all parts, in their order."""
        columns = zip(*parts, strict=True)
        return cls(*(None if column[0] is None else np.concatenate(column) for column in columns))

    def take(self, index: np.ndarray) -> Detections:
        """The cells at these indices, or where a bool mask `[N]` is true."""
        return Detections(*(part if part is None else part[index] for part in self))

    def moved(self, start: np.ndarray) -> Detections:
        """The cells with `start [2]`, y x in pixels, added to their coordinates."""
        return self._with_boxes(lambda boxes: boxes + np.tile(start, 2).astype(np.float32))

    def scaled(self, size: np.ndarray, target: np.ndarray) -> Detections:
        """The cells of an image of `size [2]` px, in the pixels of one that is scaled to `target [2]` px."""
        if (size == target).all():
            return self
        edge = np.tile(target, 2).astype(np.float32)
        found = self._with_boxes(lambda boxes: boxes * (edge / np.tile(size, 2).astype(np.float32)))
        return found._replace(boxes=np.minimum(found.boxes, edge))  # rounding may lead beyond the edge

    def _with_boxes(self, change: Callable[[np.ndarray], np.ndarray]) -> Detections:
        mask_boxes = None if self.mask_boxes is None else change(self.mask_boxes)
        return self._replace(boxes=change(self.boxes), mask_boxes=mask_boxes)
