"""What an exported network needs of a client: its description, an image in, its answer as a Result."""

from __future__ import annotations

import abc
import os

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.images.prepare import Brightness, check_image
from effdet_tf.images.read import read_image
from effdet_tf.prediction.metadata import read_metadata
from effdet_tf.prediction.predictor import predict_any_size
from effdet_tf.prediction.results import Result


class ServedPredictor(abc.ABC):
    """An exported network, asked through its signatures; how it is reached is a subclass's `_ask`.

    Attributes:
        config: that it was exported with.
        class_names: by class id.
        category_ids: COCO ids by class id.
        per_class: whether classes are told apart.
    """

    def __init__(self, metadata: str | bytes, where: str) -> None:
        """Read what the signature `info` says; `where` it comes from is for messages.

        Raises:
            UserError: when it is no description of ours.
        """
        _, self.config = read_metadata(metadata, where)
        self.class_names = self.config.class_names
        self.category_ids = self.config.category_ids
        self.per_class = not self.config.postprocess.class_agnostic

    @abc.abstractmethod
    def _ask(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The answer for one image that `check_image` passed, without the axis of the batch."""

    def predict(self, image: np.ndarray | str | os.PathLike[str], whole: Brightness | None = None) -> Result:
        """Find the cells of one image; a large one goes in tiles, see `large_images`.

        Args:
            image: a file, or `[H, W]` or `[H, W, C]` pixels, uint8, uint16 or float.
            whole: marks a tile of a larger image. The exported network normalises it by itself: its
                signatures take no brightness.

        Returns:
            All cells from the score threshold on, best first.

        Raises:
            UserError: for an image that cannot be read or that the network refuses.
        """
        pixels = read_image(image) if isinstance(image, (str, os.PathLike)) else np.asarray(image)
        return predict_any_size(self, pixels, whole, lambda: self._predict(pixels))

    def _predict(self, pixels: np.ndarray) -> Result:
        found = self._ask(check_image(pixels))
        if not found.get("ok", True):
            raise UserError(f"the network refused the image, which {found['error']}")
        count, side = int(found["count"]), self.config.model.mask.size
        masked = self.config.model.mask.enabled
        return Result(
            boxes=found["boxes"].reshape(-1, 4)[:count],  # JSON keeps no shape of what is empty
            scores=found["scores"][:count],
            classes=found["classes"][:count],
            masks=found["masks"].reshape(-1, side, side)[:count] if masked else None,
            mask_boxes=found["mask_boxes"].reshape(-1, 4)[:count] if masked else None,
            height=pixels.shape[0],
            width=pixels.shape[1],
            class_names=self.class_names,
            truncated=count >= self.config.data.max_instances,
        )
