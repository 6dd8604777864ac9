"""The cells of a SavedModel that `python -m export.main` wrote, through its public signatures alone."""

from __future__ import annotations

import os

import numpy as np

from effdet_tf.data.image_io import encode_png, read_image
from effdet_tf.data.prepare import to_channels
from effdet_tf.errors import UserError
from effdet_tf.metadata import read_metadata
from effdet_tf.results import Result


class SavedModelPredictor:
    """An exported network, fed as a client would feed it: files and integers go in as PNG.

    Attributes:
        config: that it was exported with.
        class_names: by class id.
        category_ids: COCO ids by class id.
        per_class: whether classes are told apart.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Load one version.

        Raises:
            UserError: when the folder holds no SavedModel of ours.
        """
        import tensorflow as tf

        try:
            self._model = tf.saved_model.load(os.fspath(folder))
        except (OSError, ValueError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder}: not a readable SavedModel ({reason}); export it again") from None
        self._signatures = self._model.signatures
        if "info" not in self._signatures:
            raise UserError(f"{folder}: a SavedModel of another program; export one with export.main")
        text = self._signatures["info"](query=tf.constant([""]))["metadata"].numpy()[0]
        _, self.config = read_metadata(text, os.fspath(folder))
        self.class_names = self.config.class_names
        self.category_ids = self.config.category_ids
        self.per_class = not self.config.postprocess.class_agnostic

    def predict(self, image: np.ndarray | str | os.PathLike[str]) -> Result:
        """Find the cells of one image.

        Args:
            image: a file, or `[H, W]` or `[H, W, C]` pixels, uint8, uint16 or float.

        Returns:
            All cells from the score threshold on, best first.

        Raises:
            UserError: for an image that the network refuses; the message is its own.
        """
        import tensorflow as tf

        pixels = read_image(image) if isinstance(image, (str, os.PathLike)) else np.asarray(image)
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else "the image"
        if pixels.dtype in (np.uint8, np.uint16):
            found = self._signatures["serving_default"](image_bytes=tf.constant([encode_png(pixels)]))
            if not found["ok"].numpy()[0]:
                raise UserError(f"{name}: {found['error'].numpy()[0].decode()}")
        else:
            images = to_channels(pixels, self.config)[None]
            found = self._signatures["tensor"](images=tf.constant(images))
        cells = {key: value.numpy()[0] for key, value in found.items()}
        return Result(
            boxes=cells["boxes"],
            scores=cells["scores"],
            classes=cells["classes"],
            masks=cells.get("masks"),
            mask_boxes=cells.get("mask_boxes"),
            height=pixels.shape[0],
            width=pixels.shape[1],
            class_names=self.class_names,
            truncated=len(cells["scores"]) >= self.config.data.max_instances,
        )
