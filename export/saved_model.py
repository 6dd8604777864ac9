"""A trained network as a SavedModel that does everything from the file's bytes to the cells.

Signatures (N = maximum number of cells of an image in the batch; rows from `count` on are 0; boxes are yxyx
in pixels):

- serving_default: image_bytes string [B] -> boxes [B, N, 4], scores [B, N] best first, classes [B, N], masks
  uint8 [B, N, m, m] probability times 255 over mask_boxes [B, N, 4] (without a mask head there are neither),
  count, height, width int32 [B], ok bool [B], error string [B], empty when ok
- label_map: image_bytes string [B] -> labels int32 [B, H, W] of the largest image, 0 outside; count, height,
  width, ok, error (absent without a mask head)
- tensor: images float32 [B, H, W, C], raw pixels -> boxes, scores, classes, masks, mask_boxes, count
- part: images as of tensor, parts of larger ones; mean and std float32 [B, 1 or C] of the whole images, in
  the same units -> as tensor; absent from older exports
- network: images float32 [B, H, W, C], normalised -> the dense network's raw outputs, for other runtimes
- info: query string [B], any text -> metadata string [B], the JSON of `effdet_tf.prediction.metadata`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write, write_json
from effdet_tf.model.detections import Detections
from effdet_tf.model.network import Network
from effdet_tf.prediction.exported import PART_SIGNATURE
from effdet_tf.prediction.metadata import METADATA_FILE, describe
from effdet_tf.prediction.run import Placement, RunPredictor, find_cells
from effdet_tf.runs import CARD_FILE, CONFIG_FILE
from export import warmup
from export.decode_image import decode, normalize, read_header
from export.label_map import label_map
from export.model_card import model_card

MAX_PIXELS = 2048 * 2048
LABELS_FILE = "labels.txt"
# Label images of one batch are padded to the largest height and width: together at most this many times
# `max_pixels`, so that a column and a row of pixels cannot ask for a gigantic one.
_CANVAS = 4
_AT_ONCE = 4  # images of a batch that are worked on side by side: bounds the memory
_OTHER_SIZE = "does not fit the canvas of its batch: send it on its own"
_ABOUT = {name: tf.TensorSpec((), tf.int32) for name in ("height", "width")}
_ABOUT |= {"ok": tf.TensorSpec((), tf.bool), "error": tf.TensorSpec((), tf.string)}


class ServedNetwork:
    """The network as functions that become signatures.

    Attributes:
        functions: tf.function by the name of its signature.
        description: of the network, ready for JSON.
        module: holds the weights, once: with the Keras model in it they would be stored twice.
    """

    def __init__(self, network: Network, config: Config, max_pixels: int) -> None:
        """Trace nothing yet; `max_pixels` is the largest height x width that is decoded."""
        self.module = tf.Module()
        self.module.weights = [variable.value for variable in network.variables]
        self._network, self._config, self._max_pixels = network, config, max_pixels
        self._masked = network.mask_head is not None
        batch = tf.TensorSpec((None, None, None, config.data.channels), tf.float32)
        files = tf.TensorSpec((None,), tf.string)

        def function(method: Callable[..., Any], *specs: tf.TensorSpec) -> Any:
            return tf.function(method, input_signature=specs, autograph=False)

        self.network = function(self._dense, batch)
        self.functions = {
            "serving_default": function(self._serving_default, files),
            "tensor": function(self._tensor, batch),
            PART_SIGNATURE: function(self._part, batch, *2 * [tf.TensorSpec((None, None), tf.float32)]),
            "network": self.network,
            "info": function(self._info, files),
        }
        if self._masked:
            self.functions["label_map"] = function(self._label_map, files)
        self.description = describe(config, "float32", signatures=list(self.functions))

    def _dense(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._network.dense(_not_empty(images), training=False)
        return {name: value[: tf.shape(images)[0]] for name, value in outputs.items()}

    def _cells(self, image: tf.Tensor) -> Detections:
        placement = Placement.of(self._config, self._network.stride, tf.shape(image)[:2])
        outputs = self._dense(placement.enter(image)[None])
        return find_cells(self._network, self._config, outputs, placement)

    def _of_file(self, data: tf.Tensor) -> tuple[Detections, dict[str, tf.Tensor]]:
        """Cells of one encoded image, none where it is refused, and what there is to say of it."""
        side, masked = self._config.model.mask.size, self._masked

        def nothing() -> Detections:
            boxes = tf.zeros((0, 4))
            masks = tf.zeros((0, side, side), tf.uint8) if masked else None
            classes, count = tf.zeros((0,), tf.int32), tf.constant(0)
            return Detections(boxes, boxes[:, 0], classes, masks, boxes if masked else None, count)

        header = read_header(data, self._max_pixels)
        image, error = decode(data, header)
        ok = tf.equal(error, "")
        image = normalize(image, header.deep, self._config)
        found = tf.cond(ok, lambda: self._cells(image), nothing)
        height, width = (tf.where(ok, side, 0) for side in (header.height, header.width))
        return found, {"height": height, "width": width, "ok": ok, "error": error}

    def _weights_read(self) -> keras.StatelessScope:
        """For a loop over images: its turns run side by side only where none of them reads a variable."""
        return keras.StatelessScope([(one, tf.identity(one.value)) for one in self._network.variables])

    def _rows_spec(self) -> dict[str, tf.TensorSpec]:
        limit, side = self._config.data.max_instances, self._config.model.mask.size
        spec = {
            "boxes": tf.TensorSpec((limit, 4), tf.float32),
            "scores": tf.TensorSpec((limit,), tf.float32),
            "classes": tf.TensorSpec((limit,), tf.int32),
        }
        if self._masked:
            spec["masks"] = tf.TensorSpec((limit, side, side), tf.uint8)
            spec["mask_boxes"] = tf.TensorSpec((limit, 4), tf.float32)
        return spec | {"count": tf.TensorSpec((), tf.int32)}

    def _rows(self, found: Detections) -> dict[str, tf.Tensor]:
        """Cells of one image in shapes that all images share."""
        limit = self._config.data.max_instances

        def fill(part: tf.Tensor) -> tf.Tensor:
            part = part[:limit]
            room = [[0, limit - tf.shape(part)[0]]] + [[0, 0]] * (len(part.shape) - 1)
            return tf.ensure_shape(tf.pad(part, room), (limit, *part.shape[1:]))

        parts = {name: part for name, part in found._asdict().items() if part is not None}
        return {name: part if name == "count" else fill(part) for name, part in parts.items()}

    def _trim(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Cut the rows of a batch to the largest number of cells that one of its images has."""
        largest = tf.reduce_max(tf.concat([batch["count"], [0]], 0))
        rows = self._rows_spec().keys() - {"count"}
        return {name: part[:, :largest] if name in rows else part for name, part in batch.items()}

    def _serving_default(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        def one(data: tf.Tensor) -> dict[str, tf.Tensor]:
            found, about = self._of_file(data)
            return self._rows(found) | about

        spec = self._rows_spec() | _ABOUT  # one by one: images differ in size
        with self._weights_read():
            batch = tf.map_fn(one, image_bytes, fn_output_signature=spec, parallel_iterations=_AT_ONCE)
        return self._trim(batch)

    def _tensor(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        filled = _not_empty(images)
        normalised = tf.map_fn(lambda image: normalize(image, False, self._config), filled)
        return self._of_normalised(images, normalised)

    def _part(self, images: tf.Tensor, mean: tf.Tensor, std: tf.Tensor) -> dict[str, tf.Tensor]:
        filled, mean, std = (_not_empty(part) for part in (images, mean, std))
        normalised = (filled - mean[:, None, None]) / tf.maximum(std, 1e-30)[:, None, None]
        return self._of_normalised(images, normalised)

    def _of_normalised(self, images: tf.Tensor, normalised: tf.Tensor) -> dict[str, tf.Tensor]:
        """Cells of `images`, of which there may be none; `normalised` are they, or one blank image."""
        placement = Placement.of(self._config, self._network.stride, tf.shape(images)[1:3])
        inputs = tf.map_fn(placement.enter, normalised)

        def one(outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            single = {name: value[None] for name, value in outputs.items()}
            return self._rows(find_cells(self._network, self._config, single, placement))

        spec = self._rows_spec()
        outputs = self.network(inputs)
        with self._weights_read():
            batch = tf.map_fn(one, outputs, fn_output_signature=spec, parallel_iterations=_AT_ONCE)
        return self._trim({name: part[: tf.shape(images)[0]] for name, part in batch.items()})

    def _label_map(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        filled = _not_empty(image_bytes)
        fits, canvas = _common_canvas(filled, self._max_pixels)

        def one(part: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
            data, fitting = part
            found, about = self._of_file(tf.where(fitting, data, b""))
            height, width = about["height"], about["width"]
            labels, count = label_map(found, height, width, self._config.postprocess.report_score)
            labels = tf.pad(labels, [[0, canvas[0] - height], [0, canvas[1] - width]])
            error = tf.where(fitting, about["error"], _OTHER_SIZE)
            return about | {"error": error, "labels": labels, "count": count}

        spec = {"labels": tf.TensorSpec((None, None), tf.int32), "count": tf.TensorSpec((), tf.int32)}
        spec |= _ABOUT
        with self._weights_read():
            batch = tf.map_fn(one, (filled, fits), fn_output_signature=spec, parallel_iterations=_AT_ONCE)
        return {name: part[: tf.shape(image_bytes)[0]] for name, part in batch.items()}

    def _info(self, query: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"metadata": tf.fill(tf.shape(query), json.dumps(self.description))}


def _not_empty(batch: tf.Tensor) -> tf.Tensor:
    """The batch, or one blank example in place of none: loops and convolutions fail on an empty batch."""
    room = tf.cast(tf.equal(tf.shape(batch)[:1], 0), tf.int32)
    blank = tf.constant("") if batch.dtype == tf.string else tf.constant(0, batch.dtype)
    return tf.concat([batch, tf.fill(tf.concat([room, tf.shape(batch)[1:]], 0), blank)], 0)


def _common_canvas(image_bytes: tf.Tensor, max_pixels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Which images of a batch fit one canvas, bool `[B]`, and its int32 height and width `[2]`."""

    def size(data: tf.Tensor) -> tf.Tensor:
        header = read_header(data, max_pixels)
        return tf.stack([header.height, header.width])

    sizes = tf.map_fn(size, image_bytes, fn_output_signature=tf.TensorSpec((2,), tf.int32))

    def grow(state: tuple[tf.Tensor, tf.Tensor], size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        grown = tf.maximum(state[1], size)
        fits = tf.reduce_prod(tf.cast(grown, tf.int64)) <= _CANVAS * max_pixels
        return fits, tf.where(fits, grown, state[1])

    fits, canvases = tf.scan(grow, sizes, initializer=(tf.constant(True), tf.zeros(2, tf.int32)))
    return fits, tf.reduce_max(tf.concat([canvases, tf.zeros((1, 2), tf.int32)], 0), axis=0)


def write_saved_model(
    predictor: RunPredictor,
    folder: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    licence: str = "",
    run: Path | None = None,
) -> None:
    """Write one version: graph, weights, and beside them what TensorFlow Serving and people need to know.

    Args:
        predictor: the network.
        folder: of the version; made here.
        max_pixels: largest height x width of an encoded image that is decoded; larger ones are refused.
        licence: of the weights, for the model card.
        run: that the network came from, for its figures.
    """
    config = predictor.config
    served = ServedNetwork(predictor.network, config, max_pixels)
    signatures = {name: function.get_concrete_function() for name, function in served.functions.items()}
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(served.module, str(folder), signatures, options)
    extra = folder / "assets.extra"
    extra.mkdir()
    write_json(extra / METADATA_FILE, served.description)
    config.save(extra / CONFIG_FILE)
    labels = "".join(f"{name}\n" for name in config.class_names)
    for name, text in ((LABELS_FILE, labels), (CARD_FILE, model_card(config, licence, run))):
        with atomic_write(extra / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    try:
        warmup.write_warmup(folder, config.data.crop_size)
    except UserError as error:  # of a package that only the warm-up takes
        told = f"the SavedModel has no warm-up requests, so its first answer will be slow: {error}"
        print(f"warning: {told}", file=sys.stderr)
