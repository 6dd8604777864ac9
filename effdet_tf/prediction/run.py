"""Trained networks of run folders, and how an image lies in the input of any network."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from effdet_tf.config import Config, load_config
from effdet_tf.geometry.boxes import Tensor
from effdet_tf.images.normalize import Brightness, fixed_statistics, normalize
from effdet_tf.model.detections import Detections
from effdet_tf.model.network import Network, build_network
from effdet_tf.model.postprocess import detect, ranked
from effdet_tf.model.weights import assign_arrays, read_arrays
from effdet_tf.prediction.predictor import Predictor
from effdet_tf.prediction.results import Result
from effdet_tf.runs import config_file, weights_file

if TYPE_CHECKING:
    import keras


_GPU_PIXELS = 2**23  # of the inputs of a batch, on a GPU


class Placement(NamedTuple):
    """How an image lies in the input of the network: scaled to `shown`, at the top left of `whole`."""

    size: Tensor  # int32 [2] height, width of the image, px
    shown: Tensor  # int32 [2] of its part of the input
    whole: Tensor  # int32 [2] of the input
    scaled: bool  # whether it is scaled at all

    @classmethod
    def of(cls, config: Config, stride: int, size: Tensor) -> Placement:
        """Placement of an image of int32 `size [2]`, by `data.resize` and `data.zoom`."""
        import tensorflow as tf

        from effdet_tf.images.resize import fit_scale, scaled_size, zoomed_size

        if config.data.resize == "fit":
            whole = config.data.crop_size
            return cls(size, scaled_size(size, fit_scale(size, whole), whole), tf.constant(whole), True)
        if config.data.zoom != 1.0:
            shown = zoomed_size(size, config.data.zoom)
            return cls(size, shown, shown + -shown % stride, True)
        return cls(size, size, size + -size % stride, False)

    def enter(self, image: Tensor) -> Tensor:
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


def find_cells(
    network: Network,
    config: Config,
    outputs: dict[str, Any],
    placement: Placement,
    score: Tensor | float = 0.0,
) -> Detections:
    """From the dense network's outputs for a batch of ONE image to its cells, ranked, in its own pixels."""
    whole, shown = placement.whole, placement.shown
    found = detect(config, network.mask_head, outputs, (whole[0], whole[1]), (shown[0], shown[1]), score)
    return placement.leave(ranked(found))


class RunPredictor(Predictor):
    """A trained network in Keras."""

    def __init__(self, network: Network, config: Config) -> None:
        """Wrap a network; its weights may change later, `predict` always uses the current ones.

        Raises:
            UserError: when the configured mean or standard deviation does not fit the channels.
        """
        import tensorflow as tf

        if config.data.normalization == "fixed":
            fixed_statistics(config.data)  # a wrong one fails early, not with the first image
        super().__init__(config)
        self.network = network

        @tf.function(
            input_signature=[
                tf.TensorSpec((None, None, config.data.channels), tf.float32),
                tf.TensorSpec((), tf.float32),
            ],
            autograph=False,
        )
        def run(image: tf.Tensor, score: tf.Tensor) -> dict[str, tf.Tensor]:
            placement = Placement.of(config, network.stride, tf.shape(image)[:2])
            outputs = network.dense(placement.enter(image)[None], training=False)
            found = find_cells(network, config, outputs, placement, score)
            return {name: part for name, part in found._asdict().items() if part is not None}

        self._run = run
        self._on_gpu = bool(tf.config.get_visible_devices("GPU"))
        self._dense = tf.function(
            lambda images: network.dense(images, training=False), autograph=False, reduce_retracing=True
        )

        @tf.function(autograph=False, reduce_retracing=True)
        def cells(outputs: dict[str, tf.Tensor], size: tf.Tensor, score: tf.Tensor) -> dict[str, tf.Tensor]:
            found = find_cells(network, config, outputs, Placement.of(config, network.stride, size), score)
            return {name: part for name, part in found._asdict().items() if part is not None}

        self._cells = cells

    def at_once(self, shape: tuple[int, ...]) -> int:
        """Several on a GPU, as many as its memory surely takes; one on a CPU, which gains nothing."""
        pixels = math.prod(shape[:2]) * self.config.data.zoom**2
        return max(1, int(_GPU_PIXELS // max(pixels, 1))) if self._on_gpu else 1

    def _detect_alike(self, images: Sequence[np.ndarray], score: float) -> Sequence[Result]:
        import tensorflow as tf

        values = np.stack([normalize(image, self.config, None) for image in images])
        placement = Placement.of(self.config, self.network.stride, tf.constant(values.shape[1:3]))
        outputs = self._dense(tf.map_fn(placement.enter, values))
        results = []
        for number, image in enumerate(images):
            one = {name: part[number : number + 1] for name, part in outputs.items()}
            cells = self._cells(one, placement.size, tf.constant(score, tf.float32))
            results.append(self._of_outputs(cells, image))
        return results

    def _detect(self, image: np.ndarray, part_of: Brightness | None, score: float = 0.0) -> Result:
        return self._of_outputs(self._run(normalize(image, self.config, part_of), np.float32(score)), image)

    def _of_outputs(self, outputs: dict[str, Any], image: np.ndarray) -> Result:
        found = Detections.from_outputs({name: part.numpy() for name, part in outputs.items()})
        return self._result(found, image, len(found.scores) >= self.config.data.max_instances)


def load_run(
    run: str | os.PathLike[str], backbone: keras.Model | None = None, settings: Iterable[str] = ()
) -> RunPredictor:
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
    assign_arrays(network, read_arrays(weights, network=network), str(weights))
    return RunPredictor(network, config)
