"""The cells of a SavedModel that `python -m export.main` wrote, through its public signatures alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.images.normalize import to_channels
from effdet_tf.images.read import encode_png
from effdet_tf.prediction.exported import PART_SIGNATURE, ExportedPredictor
from effdet_tf.prediction.metadata import METADATA_FILE
from effdet_tf.prediction.model_check import check_saved_model


class SavedModelPredictor(ExportedPredictor):
    """An exported network, fed as a client would feed it: 8 and 16-bit pixels go in as PNG."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Load one version, once it is known that it does no more than compute.

        Raises:
            UserError: when the folder holds no SavedModel of ours.
        """
        import tensorflow as tf

        about = Path(folder) / "assets.extra" / METADATA_FILE
        try:
            text = about.read_bytes()
        except OSError as error:
            told = f"holds no {about.name}: a SavedModel of another program, or one without assets.extra"
            raise UserError(
                f"{folder}: {told}; nothing of it was run; export one with export.main"
            ) from error
        super().__init__(text, os.fspath(folder))
        check_saved_model(Path(folder))
        try:
            self._model = tf.saved_model.load(os.fspath(folder))
        except (OSError, ValueError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder}: not a readable SavedModel ({reason}); export it again") from None
        self._signatures = self._model.signatures
        missing = {"serving_default", "tensor"} - set(self._signatures)
        if missing:
            raise UserError(f"{folder}: lacks the signature {min(missing)}; export it again")

    def _ask(self, image: np.ndarray) -> dict[str, np.ndarray]:
        if image.dtype in (np.uint8, np.uint16):
            return self._run("serving_default", image_bytes=np.array(encode_png(image), object))
        return self._run("tensor", images=to_channels(image, self.config))

    def _ask_part(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._run(PART_SIGNATURE, **inputs)

    def _run(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        import tensorflow as tf

        batch = {name: tf.constant(value[None]) for name, value in inputs.items()}
        cells = {name: value.numpy()[0] for name, value in self._signatures[signature](**batch).items()}
        return cells | ({"error": cells["error"].decode()} if "error" in cells else {})
