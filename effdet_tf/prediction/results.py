"""What the network found in one image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import paste_bitmap, resolve_overlaps
from effdet_tf.geometry.rle import Patch, patch_to_rle
from effdet_tf.model.detections import Detections
from effdet_tf.prediction.trust import Trust


@dataclass(frozen=True, eq=False)
class Result:
    """The cells of one image, best score first, in the pixels of that image.

    Attributes:
        boxes: float32 `[N, 4]`, y0 x0 y1 x1 in pixels, y1 and x1 exclusive.
        scores: float32 `[N]`, 0 to 1, falling.
        classes: int32 `[N]`, index into `class_names`.
        masks: uint8 `[N, m, m]`, probability times 255 over `mask_boxes`; None for a network without masks.
        mask_boxes: float32 `[N, 4]`, the box that each bitmap covers; it may be a little larger than the
            box; None without masks.
        height: image height in pixels.
        width: image width in pixels.
        class_names: name of each class.
        truncated: whether the network found as many cells as it may report, so that weaker ones are missing.
        disturbed: what of the image moves the values that it is normalised by, in words; empty: nothing.
        scale: the image was scaled by this for the network, see `effdet_tf.prediction.sizing`.
        scale_reason: why, in words; empty where it was not.
        trust: what to expect of these cells; None where the network does not say, or other cells were asked
            for than those of its own score.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None
    mask_boxes: np.ndarray | None
    height: int
    width: int
    class_names: tuple[str, ...]
    truncated: bool = False
    disturbed: str = ""
    scale: float = 1.0
    scale_reason: str = ""
    trust: Trust | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError when a shape, the order or a class is wrong."""
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.classes.shape != (count,) or self.scores.shape != (count,):
            shapes = f"boxes {self.boxes.shape}, scores {self.scores.shape}, classes {self.classes.shape}"
            raise ValueError(f"{shapes} do not match")
        if (self.masks is None) != (self.mask_boxes is None):
            raise ValueError("masks and mask_boxes go together: give both or neither")
        if self.masks is not None and self.mask_boxes is not None:
            square = self.masks.ndim == 3 and self.masks.shape[1] == self.masks.shape[2]
            if not square or len(self.masks) != count or self.mask_boxes.shape != (count, 4):
                shapes = f"masks {self.masks.shape}, mask_boxes {self.mask_boxes.shape}"
                raise ValueError(f"{shapes} do not match {count} scores")
        if (np.diff(self.scores) > 0).any():
            raise ValueError("scores must fall: sort the cells by score before making a Result")
        if count and not (0 <= self.classes.min() and self.classes.max() < len(self.class_names)):
            raise ValueError(
                f"classes {self.classes.min()} to {self.classes.max()}, but {len(self.class_names)} names"
            )

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.scores)

    @property
    def detections(self) -> Detections:
        """The arrays alone."""
        return Detections(self.boxes, self.scores, self.classes, self.masks, self.mask_boxes)

    def take(self, indices: Sequence[int] | np.ndarray) -> Result:
        """Keep some cells.

        Args:
            indices: rising indices, or a bool mask `[N]`.

        Returns:
            A result with those cells alone.
        """
        index = np.asarray(indices)
        if index.dtype != bool:
            index = index.astype(np.intp)  # an empty list comes as float
        if np.array_equal(index, np.ones(len(self), bool) if index.dtype == bool else np.arange(len(self))):
            return self  # a large image's masks are not copied for nothing
        return replace(self, **dict(zip(Detections._fields, self.detections.take(index)[:5], strict=False)))

    def filter(self, min_score: float) -> Result:
        """Keep the cells with a score of `min_score` or more; what is expected of others goes."""
        kept = self.take(self.scores >= min_score)
        other = self.trust is not None and not math.isclose(self.trust.score, min_score, abs_tol=1e-6)
        return replace(kept, trust=None) if other else kept

    def patches(self, threshold: float = 0.5) -> list[Patch | None]:
        """The mask of each cell in the image's pixels.

        Args:
            threshold: a pixel belongs to the cell when its probability is above this.

        Returns:
            N patches; None for a cell without any such pixel.

        Raises:
            UserError: when the network has no mask head.
        """
        return list(self._patches(threshold))

    def _patches(self, threshold: float = 0.5) -> Iterator[Patch | None]:
        """The patches one by one: a large image has hundreds of thousands."""
        if self.masks is None or self.mask_boxes is None:
            raise UserError(
                "this model has no mask head, so there are boxes only; "
                "use boxes, scores and classes, or train a preset with masks"
            )
        for bitmap, box in zip(self.masks, self.mask_boxes, strict=True):
            yield paste_bitmap(bitmap, box, self.height, self.width, threshold)

    def label_image(self, min_visible: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """One number per cell, no pixel in two cells: where cells overlap, the higher score has the pixel.

        A cell that keeps less than `min_visible` of its mask is left out.

        Args:
            min_visible: share of its mask that a cell must keep.

        Returns:
            Labels int32 `[height, width]` with 0 for background, and kept int64 `[K]`: label k + 1 is cell
            `kept[k]`.

        Raises:
            UserError: when the network has no mask head.
        """
        return self.paint(np.zeros((self.height, self.width), np.int32), min_visible)

    def paint(self, labels: np.ndarray, min_visible: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """`label_image` on integers `[height, width]` that are all 0: memory of any kind, a file's too."""
        kept = resolve_overlaps(self._patches(), labels, min_visible)
        return labels, np.asarray(kept, np.int64)

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """All of `coco_entries`."""
        return list(self.coco_entries(image_id, category_ids))

    def coco_entries(self, image_id: int, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
        """COCO result entries, overlaps kept, made one by one.

        Args:
            image_id: the image's id in the annotation file.
            category_ids: COCO category id of each class.

        Yields:
            One `{image_id, category_id, score, bbox, segmentation}` per cell, best first: bbox is x y w h in
            pixels, segmentation a compressed RLE (absent without mask head, background alone if empty).
        """
        empty = Patch(0, 0, np.zeros((1, 1), bool))
        patches = self._patches() if self.masks is not None else repeat(None, len(self))
        cells = zip(self.boxes, self.scores, self.classes, patches, strict=True)
        for box, score, class_index, patch in cells:
            y0, x0, y1, x1 = (round(float(edge), 3) for edge in box)
            entry: dict[str, Any] = {
                "image_id": image_id,
                "category_id": int(category_ids[class_index]),
                "score": round(float(score), 6),
                "bbox": [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)],
            }
            if self.masks is not None:
                entry["segmentation"] = patch_to_rle(patch or empty, self.height, self.width)
            yield entry
