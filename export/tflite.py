"""A run as one TFLite file: the network with decoding, NMS and masks, of built-in operators alone."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert import ConverterError

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.geometry.resample import resize
from effdet_tf.images.normalize import normalize
from effdet_tf.model.detections import Detections
from effdet_tf.model.network import Network
from effdet_tf.model.postprocess import detect, ranked
from effdet_tf.prediction.fixed_size import FixedSizePredictor, fitted_size, padded, zoomed_size
from effdet_tf.prediction.metadata import METADATA_FILE, describe
from effdet_tf.prediction.run import RunPredictor
from export.flatbuffer_merge import custom_operators, merge

LABELS_FILE = "labels.txt"
# Beginnings of layers' names: where the body starts, behind the first convolutions, and where the heads do.
_BODY = ("block4_", "mask_")
_HEADS = ("class_", "box_")

Tensors = dict[str, Any]


def convert(
    predictor: RunPredictor,
    size: tuple[int, int],
    precision: str,
    calibration: Iterable[np.ndarray] = (),
    float_heads: bool = False,
) -> bytes:
    """Convert a network with everything after it.

    The file has the signature `serving_default`: `image` float32 `[1, H, W, C]`, normalised, and `frame`
    int32 `[2]`, height and width of the part of it that is image, at the top left -> `boxes`, `scores`,
    `classes`, `masks`, `mask_boxes` and `count` as `model.postprocess.ranked` gives them, in pixels of
    the input.

    Args:
        predictor: the network and its configuration.
        size: height, width in pixels of images that are predicted in one piece; the input is that, magnified
            by `data.zoom` and rounded up to the network's stride. With `data.resize=fit` it is
            `data.crop_size`.
        precision: float16 halves the weights between the first blocks and the class and box heads; int8 also
            computes the network in whole numbers. Decoding, NMS and masks are float32 in every file.
        calibration: for int8: images as read, some 20 of the kind that will be predicted.
        float_heads: for int8: keep the class and box heads in float32.

    Returns:
        The file's content.

    Raises:
        UserError: for a wrong size, int8 without images, or a network that does not convert.
    """
    size = input_size(predictor, size)
    network, config = predictor.network, predictor.config
    images = list(calibration) if precision == "int8" else []
    if precision == "int8" and not images:
        raise UserError("int8 needs images to calibrate on: give some 20 of the kind that will be predicted")
    image = tf.TensorSpec((1, *size, config.data.channels), tf.float32)
    shown = tf.TensorSpec((2,), tf.int32)

    parts = split(network.dense, precision, float_heads)
    last = parts.pop()[0] if parts[-1][1] == "float32" else dict

    def rest(frame: tf.Tensor, **tensors: tf.Tensor) -> Tensors:
        return _cells(predictor, last(**tensors), image.shape[1:3], frame)

    models, inputs = [], {"image": image}
    with _explained(precision), _quiet():
        for function, own in parts:
            part = _Part(network, function, inputs)
            models.append(part.convert(own, ({"image": _fitted(image, config, size)} for image in images)))
            inputs = part.outputs
        models.append(_Part(network, rest, {"frame": shown, **inputs}).convert("float32"))
        model = functools.reduce(merge, models)
    foreign = custom_operators(model)
    if foreign:
        raise UserError(f"TFLite has no builtin for what this network needs: {', '.join(foreign)}")
    return _with_metadata(model, config, precision, size)


def input_size(predictor: RunPredictor, size: tuple[int, int]) -> tuple[int, int]:
    """Height, width of the input for images of a size, px.

    Raises:
        UserError: when there can be no such input.
    """
    data, stride = predictor.config.data, predictor.network.stride
    if min(size) < 1:
        raise UserError(f"size {size[0]}x{size[1]}: height and width must be 1 or more")
    if data.resize == "fit":
        if tuple(size) != tuple(data.crop_size):
            fixed = f"{'x'.join(map(str, data.crop_size))} (data.crop_size)"
            given = f"size {size[0]}x{size[1]}"
            raise UserError(f"{given}: this network scales every image to {fixed}; leave the size out")
        return int(size[0]), int(size[1])
    height, width = (int(side) for side in zoomed_size(np.array(size), data.zoom))
    return height + -height % stride, width + -width % stride


def keras_reference(predictor: RunPredictor, size: tuple[int, int]) -> FixedSizePredictor:
    """The Keras network with the input and the tiles of its TFLite file: what that has to equal.

    Raises:
        UserError: for a wrong size.
    """
    height, width = input_size(predictor, size)
    network, config = predictor.network, predictor.config
    image = tf.TensorSpec((height, width, config.data.channels), tf.float32)
    signature = [image, tf.TensorSpec((2,), tf.int32)]

    @tf.function(input_signature=signature, autograph=False)
    def run(image: tf.Tensor, shown: tf.Tensor) -> Tensors:
        return _cells(predictor, network.dense(image[None], training=False), (height, width), shown)

    def find(image: np.ndarray, shown: tuple[int, int]) -> Detections:
        outputs = run(image, np.array(shown, np.int32))
        return Detections.from_outputs({name: part.numpy() for name, part in outputs.items()})

    return FixedSizePredictor(config, (height, width), find)


def split(
    dense: keras.Model, precision: str, float_heads: bool = False
) -> list[tuple[Callable[..., Tensors], str]]:
    """Cut the dense network into parts that run one after another, each with the precision of its weights.

    Args:
        dense: the network of a configuration, without decoding.
        precision: float32, float16 or int8, of most weights.
        float_heads: for int8: keep the class and box heads in float32. For float16 they always are, with the
            first convolutions: the few weights of which rounding turns most choices between near-equal boxes.

    Returns:
        Tensors by name -> those that the next part takes, and the precision, of each part. The first takes
        `image`, the last gives the outputs of the dense network.
    """
    cuts, precisions = [], [precision]
    if precision == "float16" and any(layer.name.startswith(_BODY) for layer in dense.layers):
        cuts, precisions = [_BODY], ["float32", precision]
    if precision == "float16" or float_heads:
        cuts, precisions = [*cuts, _HEADS], [*precisions, "float32"]
    if not cuts:
        return [(lambda image: dense(image, training=False), precision)]
    part: dict[int, int] = {}  # of a tensor, by its id
    borders: list[dict[int, Any]] = [{} for _ in cuts]  # tensors that go from each part to the next
    for depth in sorted(dense._nodes_by_depth, reverse=True):
        for node in dense._nodes_by_depth[depth]:
            begun = [k for k, names in enumerate(cuts, 1) if node.operation.name.startswith(names)]
            number = max([0, *begun, *(part[id(tensor)] for tensor in node.input_tensors)])
            part.update((id(tensor), number) for tensor in node.outputs)
            for tensor in node.input_tensors:
                for border in borders[part[id(tensor)] : number]:
                    border[id(tensor)] = tensor
    for tensor in dense.output.values():
        for border in borders[part[id(tensor)] :]:
            border[id(tensor)] = tensor
    names = {key: f"feature_{k:02d}" for k, key in enumerate(dict.fromkeys(itertools.chain(*borders)))}
    names |= {id(tensor): name for name, tensor in dense.output.items()}
    named = [{names[key]: tensor for key, tensor in border.items()} for border in borders]
    ends = [{"image": dense.input}, *named, dict(dense.output)]
    parts = [_between(before, after) for before, after in itertools.pairwise(ends)]
    return list(zip(parts, precisions, strict=True))


def _between(before: dict[str, Any], after: dict[str, Any]) -> Callable[..., Tensors]:
    """The part of a network that makes some of its tensors from others; those in both are handed on."""
    made = {name: tensor for name, tensor in after.items() if name not in before}
    model = keras.Model(list(before.values()), made)

    def function(**tensors: tf.Tensor) -> Tensors:
        handed_on = {name: tensors[name] for name in before if name in after}
        return {**handed_on, **model([tensors[name] for name in before], training=False)}

    return function


def _cells(predictor: RunPredictor, outputs: Tensors, whole: Sequence[int], shown: tf.Tensor) -> Tensors:
    """Cells by name, ranked, from the outputs of the dense network for one input."""
    head = predictor.network.mask_head
    found = ranked(detect(predictor.config, head, outputs, tuple(whole), (shown[0], shown[1])))
    return {name: part for name, part in found._asdict().items() if part is not None}


def _fitted(image: np.ndarray, config: Config, size: tuple[int, int]) -> np.ndarray:
    """An image to calibrate on as the network sees it, `[1, H, W, C]`: of a larger one the middle."""
    values = normalize(image, config)
    own, fit = np.array(values.shape[:2]), config.data.resize == "fit"
    values = resize(values, fitted_size(own, size) if fit else zoomed_size(own, config.data.zoom))
    top, left = (max(0, have - room) // 2 for have, room in zip(values.shape, size, strict=False))
    return padded(values[top:, left:], size)[None]


class _Part(tf.Module):
    """A function of tensors by name, to be converted; it holds the weights, which the converter looks for."""

    def __init__(
        self, network: Network, function: Callable[..., Tensors], inputs: dict[str, tf.TensorSpec]
    ) -> None:
        super().__init__()
        self.weights = [variable.value for variable in network.variables]
        self.function = tf.function(function, autograph=False)
        specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()}
        self.concrete = self.function.get_concrete_function(**specs)

    @property
    def outputs(self) -> dict[str, tf.TensorSpec]:
        """By name."""
        outputs = self.concrete.structured_outputs.items()
        return {name: tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in outputs}

    def convert(self, precision: str, calibration: Iterable[dict[str, np.ndarray]] = ()) -> bytes:
        """The function as a TFLite model."""
        converter = tf.lite.TFLiteConverter.from_concrete_functions([self.concrete], self)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.representative_dataset = lambda: calibration
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return converter.convert()


def _with_metadata(model: bytes, config: Config, precision: str, size: tuple[int, int]) -> bytes:
    """Append what the model says of itself as a zip, as TFLite's associated files are: it stays valid."""
    files = {
        METADATA_FILE: json.dumps(describe(config, precision, size), indent=2) + "\n",
        LABELS_FILE: "".join(f"{name}\n" for name in config.class_names),
    }
    buffer = io.BytesIO(model)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # without the time: equal models, equal files
    return buffer.getvalue()


@contextlib.contextmanager
def _explained(precision: str) -> Iterator[None]:
    """Turn the converter's failures into the user's error."""
    try:
        yield
    except (ConverterError, tf.errors.OpError, RuntimeError, ValueError, TypeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
        raise UserError(f"this network does not convert to TFLite {precision}: {reason[:300]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the block writes to stdout and stderr, C++ included, and show it if the block fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    own = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as held:
        try:
            for number in (1, 2):
                os.dup2(held.fileno(), number)
            try:
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, copy in zip((1, 2), own, strict=True):
                    os.dup2(copy, number)
                    os.close(copy)
        except Exception:
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
