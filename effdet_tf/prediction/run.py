"""Predictor: an image in, its cells out, in the pixels of the image."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from effdet_tf.config import Config, load_config
from effdet_tf.images.normalize import fixed_statistics
from effdet_tf.images.prepare import Brightness, normalize
from effdet_tf.images.read import read_image
from effdet_tf.model.network import Network, build_network
from effdet_tf.model.postprocess import Detections, detect, ranked
from effdet_tf.model.weights import assign_arrays, read_arrays
from effdet_tf.prediction.predictor import predict_any_size
from effdet_tf.prediction.results import Result
from effdet_tf.runs import config_file, weights_file


class Framing(NamedTuple):
    """How an image lies in the input of the network: scaled to `shown`, at the top left of `whole`."""

    size: Any  # int32 [2] height, width of the image, px
    shown: Any  # int32 [2] of its part of the input
    whole: Any  # int32 [2] of the input
    scaled: bool  # whether it is scaled at all

    @classmethod
    def of(cls, config: Config, stride: int, size: Any) -> Framing:
        """Framing of an image of int32 `size [2]`, by `data.resize` and `data.zoom`."""
        import tensorflow as tf

        from effdet_tf.images.resize import fit_scale, scaled_size, zoomed_size

        if config.data.resize == "fit":
            frame = config.data.crop_size
            return cls(size, scaled_size(size, fit_scale(size, frame), frame), tf.constant(frame), True)
        if config.data.zoom != 1.0:
            shown = zoomed_size(size, config.data.zoom)
            return cls(size, shown, shown + -shown % stride, True)
        return cls(size, size, size + -size % stride, False)

    def enter(self, image: Any) -> Any:
        """The input `[whole, C]` of a normalised `image [H, W, C]`."""
        from effdet_tf.images.resize import pad, resize

        image = resize(image, self.size, self.shown) if self.scaled else image
        return pad(image, self.shown, self.whole)

    def leave(self, found: Detections) -> Detections:
        """Cells in pixels of the input, in those of the image."""
        import tensorflow as tf

        if not self.scaled:
            return found
        height_width = tf.tile(tf.cast(self.size, tf.float32), [2])
        back = height_width / tf.tile(tf.cast(self.shown, tf.float32), [2])
        return found._replace(
            boxes=tf.minimum(found.boxes * back, height_width),  # rounding may lead beyond the edge
            mask_boxes=None if found.mask_boxes is None else found.mask_boxes * back,
        )


def find_cells(network: Network, config: Config, outputs: dict[str, Any], framing: Framing) -> Detections:
    """From the dense network's outputs for a batch of ONE image to its cells, ranked, in its own pixels."""
    whole, shown = framing.whole, framing.shown
    found = detect(config, network.mask_head, outputs, (whole[0], whole[1]), (shown[0], shown[1]))
    return framing.leave(ranked(found))


class Predictor:
    """A trained network with everything that turns images into cells.

    Attributes:
        config: of the run.
        class_names: by class id.
        category_ids: COCO ids by class id.
        per_class: whether classes are told apart: NMS works on each class of its own.
    """

    def __init__(self, network: Network, config: Config) -> None:
        """Wrap a network; its weights may change later, `predict` always uses the current ones.

        Raises:
            UserError: when the configured mean or standard deviation does not fit the channels.
        """
        import tensorflow as tf

        if config.data.normalization == "fixed":
            fixed_statistics(config.data)  # a wrong one must not come to light with the first image
        self.network = network
        self.config = config
        self.class_names = config.class_names
        self.category_ids = config.category_ids
        self.per_class = not config.postprocess.class_agnostic

        @tf.function(
            input_signature=[tf.TensorSpec((None, None, config.data.channels), tf.float32)], autograph=False
        )
        def run(image: tf.Tensor) -> tuple[tf.Tensor, ...]:
            framing = Framing.of(config, network.stride, tf.shape(image)[:2])
            outputs = network.dense(framing.enter(image)[None], training=False)
            found = find_cells(network, config, outputs, framing)
            return tuple(part[: found.count] for part in found[:5] if part is not None)

        self._run = run

    def predict(self, image: np.ndarray | str | os.PathLike[str], whole: Brightness | None = None) -> Result:
        """Find the cells of one image; a large one goes in tiles, see `large_images`.

        Args:
            image: a file, or `[H, W]` or `[H, W, C]` pixels, uint8, uint16 or float.
            whole: of the image that this is a part of.

        Returns:
            All cells whose class score reaches `postprocess.score_threshold`, best first; the
            score given is that times the quality of the mask, so it may be lower.

        Raises:
            UserError: for an unreadable file or an array that is no image.
        """
        pixels = read_image(image) if isinstance(image, (str, os.PathLike)) else np.asarray(image)
        return predict_any_size(self, pixels, whole, lambda: self._predict(pixels, whole))

    def _predict(self, pixels: np.ndarray, whole: Brightness | None) -> Result:
        parts = [part.numpy() for part in self._run(normalize(pixels, self.config, whole))]
        boxes, scores, classes = parts[:3]
        masks, mask_boxes = (parts[3], parts[4]) if len(parts) > 3 else (None, None)
        return Result(
            boxes=boxes,
            scores=scores,
            classes=classes,
            masks=masks,
            mask_boxes=mask_boxes,
            height=pixels.shape[0],
            width=pixels.shape[1],
            class_names=self.class_names,
            truncated=len(scores) >= self.config.data.max_instances,
        )


def load_run(run: str | os.PathLike[str], backbone: Any = None, settings: Iterable[str] = ()) -> Predictor:
    """Load a trained network from a run folder.

    Args:
        run: folder that `python -m training.main --out RUN` wrote; the best weights by validation
            AP are taken, or the last where nothing was validated.
        backbone: the Keras model that the network was built on, for a run with one of its own; its weights
            do not matter, the run's are taken.
        settings: changes of the run's configuration, `section.key=value` each; those of the network must not
            change the shape of a weight.

    Raises:
        UserError: when the folder holds no finished run, or needs a backbone that is missing or does not fit,
            and for a wrong setting.
    """
    folder = Path(run)
    config = load_config(config_file(folder)).override(settings)
    weights = weights_file(folder)
    network = build_network(config, backbone=backbone)
    assign_arrays(network, read_arrays(weights), str(weights))
    return Predictor(network, config)
