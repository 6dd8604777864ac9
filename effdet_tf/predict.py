"""Predictor: an image in, its cells out, in the pixels of the image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from effdet_tf.config import Config, load_config
from effdet_tf.data.image_io import image_statistics, read_image, to_gray
from effdet_tf.errors import UserError
from effdet_tf.model.efficientdet import Network, build_network
from effdet_tf.model.weights import assign_arrays, read_arrays
from effdet_tf.postprocess import detect
from effdet_tf.results import Result

CONFIG_FILE = "config.yaml"
BEST_FILE = "best.npz"
LAST_FILE = "last.npz"


def normalize(image: np.ndarray, config: Config) -> np.ndarray:
    """Turn an image into what the network was trained on.

    Args:
        image: `[H, W]` or `[H, W, C]`, uint8, uint16 or float.
        config: `data.normalization`, `data.channels`.

    Returns:
        `[H, W, channels]` float32: (x - mean) / std, with the mean and standard deviation of the
        whole image ("image": bit depth and gain do not matter) or the configured ones ("fixed").

    Raises:
        UserError: for an array that is no image, or holds values that are not finite.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise UserError(f"an image is [H, W] or [H, W, 1|3|4], this array is {list(image.shape)}")
    if image.dtype.kind not in "biuf":
        raise UserError(f"an image holds integer or floating-point pixels, this array {image.dtype}")
    if image.ndim == 3:
        image = image[..., :3]  # without alpha
    gray = to_gray(image)
    if not np.isfinite(gray).all():
        raise UserError("the image holds values that are not finite; replace them before predicting")
    mean, std = (
        image_statistics(gray)
        if config.data.normalization == "image"
        else (config.data.mean, config.data.std)
    )
    if config.data.channels == 3 and image.ndim == 3 and image.shape[2] == 3:
        values = image.astype(np.float32)
    else:
        values = np.repeat(gray[..., None], config.data.channels, axis=-1)
    return (values - np.float32(mean)) / np.float32(std)


class Predictor:
    """A trained network with everything that turns images into cells.

    Attributes:
        config: of the run.
        class_names: by class id.
        category_ids: COCO ids by class id.
    """

    def __init__(self, network: Network, config: Config) -> None:
        """Wrap a network; its weights may change later, `predict` always uses the current ones."""
        import tensorflow as tf

        self.network = network
        self.config = config
        self.class_names = config.class_names
        self.category_ids = config.category_ids
        stride = network.stride

        @tf.function(
            input_signature=[tf.TensorSpec((None, None, config.data.channels), tf.float32)], autograph=False
        )
        def run(image: tf.Tensor) -> tuple[tf.Tensor, ...]:
            height, width = tf.shape(image)[0], tf.shape(image)[1]
            padded = tf.pad(image, [[0, -height % stride], [0, -width % stride], [0, 0]])
            outputs = network.dense(padded[None], training=False)
            size = tf.shape(padded)
            found = detect(config, network.mask_head, outputs, (size[0], size[1]), (height, width))
            return tuple(part[: found.count] for part in found[:5] if part is not None)

        self._run = run

    def predict(self, image: np.ndarray | str | os.PathLike[str]) -> Result:
        """Find the cells of one image.

        Args:
            image: a file, or `[H, W]` or `[H, W, C]` pixels, uint8, uint16 or float.

        Returns:
            All cells whose class score reaches `postprocess.score_threshold`, best first; the
            score given is that times the quality of the mask, so it may be lower.

        Raises:
            UserError: for an unreadable file or an array that is no image.
        """
        pixels = read_image(image) if isinstance(image, (str, os.PathLike)) else np.asarray(image)
        parts = [part.numpy() for part in self._run(normalize(pixels, self.config))]
        boxes, scores, classes = parts[:3]
        masks, mask_boxes = (parts[3], parts[4]) if len(parts) > 3 else (None, None)
        order = np.argsort(-scores, kind="stable")
        return Result(
            boxes=boxes[order],
            scores=scores[order],
            classes=classes[order].astype(np.int32),
            masks=None if masks is None else np.round(masks[order] * 255).astype(np.uint8),
            mask_boxes=None if mask_boxes is None else mask_boxes[order],
            height=pixels.shape[0],
            width=pixels.shape[1],
            class_names=self.class_names,
            truncated=len(order) >= self.config.data.max_instances,
        )


def load(run: str | os.PathLike[str]) -> Predictor:
    """Load a trained network from a run folder.

    Args:
        run: folder that `python -m training.main --out RUN` wrote; the best weights by validation
            AP are taken, or the last where nothing was validated.

    Raises:
        UserError: when the folder holds no finished run.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such run folder; train one with `python -m training.main --out {folder}`"
        )
    config = load_config(folder / CONFIG_FILE)
    weights = weights_file(folder)
    network = build_network(config)
    assign_arrays(network, read_arrays(weights), str(weights))
    return Predictor(network, config)


def weights_file(folder: Path) -> Path:
    """The weights to use of a run folder: the best by validation AP, else the last.

    Raises:
        UserError: when there are none yet.
    """
    for name in (BEST_FILE, LAST_FILE):
        if (folder / name).exists():
            return folder / name
    raise UserError(
        f"{folder}: holds no weights yet ({BEST_FILE} or {LAST_FILE}); let its training save once"
    )
