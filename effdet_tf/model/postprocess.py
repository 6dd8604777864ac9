"""From raw network outputs to cells: decode, top-k, NMS, masks and their scoring.

The one implementation behind Keras, SavedModel and TFLite. Everything is keras.ops but for NMS,
`NonMaxSuppressionV5`, and the loop over chunks of instances, which are of `kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from effdet_tf.config import Config
from effdet_tf.geometry import boxes as box_ops
from effdet_tf.geometry.boxes import Tensor
from effdet_tf.model import anchors as anchor_ops
from effdet_tf.model.detections import Detections
from effdet_tf.model.mask_head import MaskHead

MASK_CHUNK = 128  # instances that are worked on at once: bounds the memory
_ROUNDING = 1e-6  # of a score: none that is wanted may be lost by it


class Candidates(NamedTuple):
    """The most promising anchors of one image, best first."""

    boxes: Tensor  # [k, 4] yxyx, input px, clipped to the image
    scores: Tensor  # [k] float32
    classes: Tensor  # [k] int32
    anchors: Tensor  # [k] int32 index of the anchor


def between(values: float | Tensor, known: Sequence[float], wanted: Sequence[float]) -> Tensor:
    """The lines between the points (known, wanted), both rising, at `values` of any shape: `numpy.interp`."""
    x, y = np.array(known, np.float32), np.array(wanted, np.float32)
    beyond = ops.expand_dims(ops.cast(values, "float32"), -1) - x[:-1]
    inside = ops.minimum(ops.maximum(beyond, 0.0), np.diff(x))
    return ops.minimum(y[0] + ops.sum(inside * (np.diff(y) / np.diff(x)), axis=-1), y[-1])  # rounding


def _as_given(config: Config, score: float | Tensor) -> float | Tensor:
    """The score as the network gives it of one that is reported."""
    if not config.postprocess.calibration:
        return score
    given, reported = zip(*config.postprocess.calibration, strict=True)
    return between(score, reported, given) - _ROUNDING


def _reported(config: Config, scores: Tensor) -> Tensor:
    """The scores that are reported of those that the network gives."""
    if not config.postprocess.calibration:
        return scores
    return between(scores, *zip(*config.postprocess.calibration, strict=True))


def select(
    config: Config,
    logits: Tensor,
    deltas: Tensor,
    input_size: Sequence[int | Tensor],
    image_size: Sequence[int | Tensor],
) -> Candidates:
    """Decode the best anchors of one image.

    Args:
        config: anchors, levels and `postprocess.top_k`.
        logits: `[A, K]` class logits.
        deltas: `[A, 4]` box encoding.
        input_size: height, width of the network's input, px.
        image_size: height, width of the image inside the input, px; boxes are clipped to it.

    Returns:
        At most top_k candidates, best first; a box outside the image gets the score -1. With
        class-agnostic NMS an anchor stands for its best class, else for each class on its own.
    """
    model = config.model
    logits = ops.cast(logits, "float32")
    classes_count = len(config.class_names)
    best_class = config.postprocess.class_agnostic or classes_count == 1
    flat = ops.max(logits, axis=-1) if best_class else ops.reshape(logits, (-1,))
    size = flat.shape[0] if isinstance(flat.shape[0], int) else ops.shape(flat)[0]
    best, index = ops.top_k(flat, ops.minimum(config.postprocess.top_k, size))
    best, index = ops.sigmoid(best), ops.cast(index, "int32")
    if best_class:
        # top_k in place of argmax, which Keras builds of operators that no TFLite builtin exists for
        anchor = index
        chosen = ops.cast(ops.top_k(ops.take(logits, anchor, axis=0), 1)[1][:, 0], "int32")
    else:
        anchor, chosen = index // classes_count, index % classes_count
    height, width = input_size
    anchors = anchor_ops.at(anchor, height, width, config.anchors, model.min_level, model.max_level)
    deltas = ops.cast(ops.take(deltas, anchor, axis=0), "float32")
    boxes = box_ops.decode(deltas, anchors, config.anchors.code)
    height, width = ops.cast(image_size[0], "float32"), ops.cast(image_size[1], "float32")
    boxes = ops.clip(boxes, 0.0, ops.stack([height, width, height, width]))
    # What lies in the padding beside the image is no cell and must not take the place of one.
    best = ops.where(box_ops.area(boxes) > 0, best, -1.0)
    return Candidates(boxes, best, chosen, anchor)


def suppress(
    config: Config, candidates: Candidates, score: float | Tensor = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy non-maximum suppression, hard or soft, of the candidates of one image.

    Candidates below `score`, or what the configuration asks, are left out: as none of them suppresses a
    better one, the others come out the same.

    Returns:
        Indices int32 `[max_instances]`, best first, padded with 0; their scores, which soft suppression has
        lowered; and how many of them count.
    """
    from effdet_tf.model import kernels

    boxes = candidates.boxes
    if not config.postprocess.class_agnostic:
        # Boxes of different classes are moved apart, so that they never meet.
        span = ops.max(boxes) + 1.0
        boxes = boxes + ops.cast(candidates.classes, "float32")[:, None] * span
    soft = config.postprocess.nms == "soft"
    least = ops.maximum(config.postprocess.score_threshold, _as_given(config, config.postprocess.min_score))
    return kernels.non_max_suppression(
        boxes,
        candidates.scores,
        config.data.max_instances,
        iou=1.0 if soft else config.postprocess.nms_iou,
        score=ops.maximum(least, _as_given(config, score)),
        sigma=config.postprocess.soft_nms_sigma if soft else 0.0,
    )


def vote(config: Config, candidates: Candidates, boxes: Tensor, classes: Tensor) -> Tensor:
    """Move kept boxes to the mean of what suppression threw away around them, weighted by score.

    Box voting (Gidaris and Komodakis, ICCV 2015): a cell has dozens of candidates, whose errors differ.

    Chunk by chunk from the top of the image to its bottom, boxes are compared with the candidates of their
    band of rows alone: centres more than (1 / t - 1) / 2 of a box's height apart reach no IoU of t.

    Args:
        config: `postprocess.vote_iou`, the IoU from which a candidate has a vote.
        candidates: of one image; those below `postprocess.score_threshold` have none.
        boxes: `[K, 4]` the kept ones, K a multiple of `MASK_CHUNK`.
        classes: `[K]` int32 of them; where classes compete apart, they vote apart.

    Returns:
        `[K, 4]`.
    """
    from effdet_tf.model import kernels

    options = config.postprocess
    # Sorted, but for those outside the image, which `select` has lowered to -1 where they stood.
    rank = ops.arange(1, ops.shape(candidates.scores)[0] + 1, dtype="int32")
    # One at least, which changes no cell: TFLite multiplies no matrix without rows.
    voters = ops.max(ops.where(candidates.scores >= options.score_threshold, rank, 1))
    down = ops.argsort(box_ops.to_center(candidates.boxes[:voters])[0])
    others, scores, kinds = (ops.take(part, down, axis=0) for part in candidates[:3])
    rows = box_ops.to_center(others)[0]

    def mean(part: tuple[Tensor, Tensor]) -> Tensor:
        own, kind = part
        y, _, height, _ = box_ops.to_center(own)
        reach = (1 / options.vote_iou - 1) / 2 * height + 1.0  # 1 px for what is rounded
        first = ops.sum(ops.cast(rows < ops.min(y - reach), "int32"))
        end = ops.sum(ops.cast(rows <= ops.max(y + reach), "int32"))
        band = others[first:end]
        near = box_ops.iou(own[:, None], band[None]) >= options.vote_iou
        if not options.class_agnostic:
            near = near & (kind[:, None] == kinds[None, first:end])
        weight = ops.where(near, scores[None, first:end], 0.0)  # [MASK_CHUNK, voters of the band]
        total = ops.sum(weight, axis=-1, keepdims=True)
        return ops.where(total > 0, ops.matmul(weight, band) / ops.maximum(total, 1e-9), own)

    order = ops.argsort(box_ops.to_center(boxes)[0])
    chunks = ((-1, MASK_CHUNK, 4), boxes), ((-1, MASK_CHUNK), classes)
    parts = tuple(ops.reshape(ops.take(values, order, axis=0), shape) for shape, values in chunks)
    moved = ops.reshape(kernels.one_by_one(mean, parts, (MASK_CHUNK, 4)), (-1, 4))
    return ops.take(moved, ops.argsort(order), axis=0)


def mask_quality(probability: Tensor, sure: float = 0.5) -> Tensor:
    """Mean probability inside each mask (as in SOLOv2): `[K, m, m]` to `[K]`, 0 for an empty mask.

    Pixels count in full from `sure` (`postprocess.mask_sure`) on, and less towards .5.
    """
    if sure > 0.5:
        inside = ops.clip((probability - 0.5) / (sure - 0.5), 0.0, 1.0)
    else:
        inside = ops.cast(probability > 0.5, "float32")
    return ops.sum(probability * inside, axis=(-2, -1)) / ops.maximum(ops.sum(inside, axis=(-2, -1)), 1.0)


def _masks(head: MaskHead, feature: Tensor, embeddings: Tensor, boxes: Tensor) -> Tensor:
    """Mask probabilities `[K, m, m]`, chunk by chunk; K is a multiple of `MASK_CHUNK`."""
    from effdet_tf.model import kernels

    embeddings = ops.reshape(embeddings, (-1, MASK_CHUNK, embeddings.shape[-1]))
    parts = (embeddings, ops.reshape(boxes, (-1, MASK_CHUNK, 4)))
    size = head.config.size

    def probabilities(part: tuple[Tensor, Tensor]) -> Tensor:
        return ops.sigmoid(head(feature, part[0][None], part[1][None]))[0]

    return ops.reshape(kernels.one_by_one(probabilities, parts, (MASK_CHUNK, size, size)), (-1, size, size))


def detect(
    config: Config,
    head: MaskHead | None,
    outputs: dict[str, Tensor],
    input_size: Sequence[int | Tensor],
    image_size: Sequence[int | Tensor],
    score: float | Tensor = 0.0,
) -> Detections:
    """Find the cells of one image.

    Args:
        config: everything.
        head: the mask head, or None.
        outputs: of the dense network for a batch of ONE image.
        input_size: height, width of the network's input, px.
        image_size: height, width of the image inside the input, px.
        score: reported score below which no cell is wanted, beside what `postprocess` asks. Masks only lower
            a score, so no cell is left out that would have reached it.

    Returns:
        `Detections`, padded to whole chunks of `MASK_CHUNK` (at least one: convolutions over an
        empty batch crash under oneDNN); sorted by score before the mask quality comes in. Scores are
        calibrated, where the configuration knows how.
    """
    candidates = select(config, outputs["class_logits"][0], outputs["box_deltas"][0], input_size, image_size)
    chosen, scores, count = suppress(config, candidates, score)
    chunks = ops.maximum((count + MASK_CHUNK - 1) // MASK_CHUNK, 1)
    room = -config.data.max_instances % MASK_CHUNK
    chosen, scores = (ops.pad(part, ((0, room),))[: chunks * MASK_CHUNK] for part in (chosen, scores))
    boxes = ops.take(candidates.boxes, chosen, axis=0)
    classes = ops.take(candidates.classes, chosen)
    if config.postprocess.vote_iou:
        boxes = vote(config, candidates, boxes, classes)
    if head is None:
        return Detections(boxes, _reported(config, scores), classes, None, None, count)
    location = ops.take(candidates.anchors, chosen) // config.anchors.per_location
    crops = head.crop_boxes(boxes)
    masks = _masks(head, outputs["mask_feature"], ops.take(outputs["codes"][0], location, axis=0), crops)
    if config.postprocess.mask_scoring:
        scores = scores * mask_quality(masks, config.postprocess.mask_sure)
    return Detections(boxes, _reported(config, scores), classes, masks, crops, count)


def ranked(found: Detections) -> Detections:
    """Sort the cells of `detect` by their final score, and make masks 8 bit: so they leave every graph.

    Equal scores keep their order. Masks are uint8, probability times 255. Rows from `count` on are 0.
    """
    real = ops.arange(ops.shape(found.scores)[0], dtype="int32") < found.count
    order = ops.argsort(ops.where(real, -found.scores, 1.0))

    def sort(values: Tensor) -> Tensor:
        kept = ops.cast(ops.reshape(real, (-1,) + (1,) * (len(values.shape) - 1)), values.dtype)
        return ops.take(values, order, axis=0) * kept

    masks = found.masks
    if masks is not None:
        masks = ops.take(ops.cast(ops.round(masks * 255.0), "uint8"), order, axis=0)
    boxes, scores, classes = map(sort, found[:3])
    mask_boxes = None if found.mask_boxes is None else sort(found.mask_boxes)
    return Detections(boxes, scores, classes, masks, mask_boxes, found.count)
