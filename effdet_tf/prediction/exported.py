"""What an exported network needs of a client: its description, an image in, its answer as a Result."""

from __future__ import annotations

import abc
import logging

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.images.normalize import Brightness, fixed_statistics, to_channels
from effdet_tf.model.detections import Detections
from effdet_tf.prediction.metadata import read_metadata
from effdet_tf.prediction.predictor import Predictor
from effdet_tf.prediction.results import Result

PART_SIGNATURE = "part"  # images with the statistics that they are normalised by


class ExportedPredictor(Predictor):
    """An exported network, asked through its signatures; how it is reached is up to a subclass."""

    def __init__(self, metadata: str | bytes, where: str) -> None:
        """Read what the signature `info` says; `where` it comes from is for messages.

        Raises:
            UserError: when it is no description of ours.
        """
        about, config = read_metadata(metadata, where)
        super().__init__(config)
        self._where = where
        self._takes_parts = PART_SIGNATURE in about.get("signatures", ())
        self._warned = False

    @abc.abstractmethod
    def _ask(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The answer for one image that `check_image` passed, without the axis of the batch."""

    @abc.abstractmethod
    def _ask_part(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The answer of the signature `part` for its inputs, all without the axis of the batch."""

    def _detect(self, image: np.ndarray, part_of: Brightness | None) -> Result:
        by_image = self.config.data.normalization != "fixed"
        if part_of is not None and self._takes_parts:
            mean, std = part_of[:2] if by_image else fixed_statistics(self.config.data)
            found = self._ask_part(
                {
                    "images": to_channels(image, self.config, part_of),
                    "mean": np.atleast_1d(np.float32(mean)),
                    "std": np.atleast_1d(np.float32(std)),
                }
            )
        else:
            by_itself = by_image or image.dtype.kind == "f"  # fixed statistics fit every tile of integers
            if part_of is not None and by_itself and not self._warned:
                self._warned = True
                logging.getLogger("effdet_tf").warning(
                    "%s: an older export: each tile of a large image is normalised by itself; "
                    "export it again for the cells of the run",
                    self._where,
                )
            found = self._ask(image)
        if not found.get("ok", True):
            raise UserError(f"the network refused the image, which {found['error']}")
        side, masked = self.config.model.mask.size, self.config.model.mask.enabled
        shapes = {"boxes": (-1, 4), "scores": (-1,), "classes": (-1,), "count": ()}
        if masked:
            shapes |= {"masks": (-1, side, side), "mask_boxes": (-1, 4)}
        # JSON keeps no shape of what is empty.
        cells = Detections.from_outputs({name: found[name].reshape(shape) for name, shape in shapes.items()})
        return self._result(cells, image, len(cells.scores) >= self.config.data.max_instances)
