"""What an exported network needs of a client: its description, an image in, its answer as a Result."""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.images.normalize import Brightness, fixed_statistics, to_channels
from effdet_tf.model.detections import Detections
from effdet_tf.prediction.metadata import read_metadata
from effdet_tf.prediction.predictor import Predictor, missing_from
from effdet_tf.prediction.results import Result

_LONGEST = 200  # characters of a reason
_BEYOND = 4  # image sizes that a box may reach: that of a mask is larger than its cell
PART_SIGNATURE = "part"  # images with the statistics that they are normalised by


def checked_cells(
    found: Mapping[str, np.ndarray], config: Config, size: tuple[int, ...], where: str
) -> Detections:
    """The cells of an answer, once it is known to be one.

    Args:
        found: outputs by name, without the axis of the batch.
        config: of the network.
        size: height and width of the image, px.
        where: the answer comes from, for messages.

    Raises:
        UserError: when parts are missing, of other shapes or types, or hold what no network answers.
    """
    side, masked = config.model.mask.size, config.model.mask.enabled
    shapes: dict[str, tuple[int, ...]] = {"count": (), "boxes": (4,), "scores": (), "classes": ()}
    if masked:
        shapes |= {"masks": (side, side), "mask_boxes": (4,)}

    def require(holds: Any, what: str) -> None:
        if not holds:
            raise UserError(f"{where}: its answer is none of this network: {what}")

    arrays = {}
    for name, shape in shapes.items():
        require(name in found, f"{name} is missing")
        array = np.asarray(found[name])
        require(array.dtype.kind in "iuf", f"{name} are no numbers")
        require(name == "count" or array.ndim, f"{name} is a single number")
        if name != "count" and array.size:
            require(array.shape[1:] == shape, f"{name} have the shape {list(array.shape)}")
        # JSON keeps no shape of what is empty.
        arrays[name] = array if array.size or name == "count" else array.reshape(0, *shape)
    require(arrays["count"].ndim == 0, "count is no number")
    count = float(arrays["count"])
    rows = {len(array) for name, array in arrays.items() if name != "count"}
    require(
        len(rows) == 1 and 0 <= count <= min(rows) and count % 1 == 0, f"{count:g} cells in {min(rows)} rows"
    )
    cells = Detections.from_outputs(arrays)
    lines = [cells.boxes, cells.scores, *([] if cells.mask_boxes is None else [cells.mask_boxes])]
    require(all(np.isfinite(part).all() for part in lines), "numbers that are not finite")
    scores, classes = cells.scores, cells.classes
    require(((scores >= 0) & (scores <= 1)).all(), "scores that are not between 0 and 1")
    require((np.diff(scores) <= 0).all(), "scores that do not fall")
    known = (classes >= 0) & (classes < len(config.class_names)) & (classes % 1 == 0)
    require(known.all(), f"classes beyond the {len(config.class_names)} that it has")
    far = _BEYOND * max(size)
    for boxes in (cells.boxes, cells.mask_boxes):
        if boxes is not None:
            require((np.abs(boxes) <= far).all(), "boxes far outside of the image")
            require((boxes[:, 2:] >= boxes[:, :2]).all(), "boxes whose ends are before their beginnings")
    if cells.masks is not None:
        require(cells.masks.dtype == np.uint8 or not count, f"masks of {cells.masks.dtype}")
        cells = cells._replace(masks=cells.masks.astype(np.uint8))
    return cells._replace(classes=classes.astype(np.int32))


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

    def _detect(self, image: np.ndarray, part_of: Brightness | None, score: float = 0.0) -> Result:
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
        if not np.all(found.get("ok", True)):
            reason = " ".join(str(found.get("error", "it did not say why")).split())[:_LONGEST]
            raise UserError(f"the network refused the image, which {reason}")
        cells = checked_cells(found, self.config, image.shape[:2], self._where)
        return self._result(cells, image, missing_from(cells.scores, self.config.data.max_instances, score))
