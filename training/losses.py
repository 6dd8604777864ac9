"""The loss terms as pure functions, and their sum over a batch.

Each returns sums, not means: the trainer divides by the number of positives over ALL replicas.
"""

from __future__ import annotations

import numpy as np
from keras import ops

from effdet_tf.config import Config
from effdet_tf.geometry import boxes as box_ops
from effdet_tf.geometry.boxes import Tensor
from effdet_tf.model import anchors as anchor_ops
from effdet_tf.model.mask_head import MaskHead
from training.assignment import Assignment, Predictions, State, assign, leave_out
from training.mask_targets import mask_targets, sample_instances


def sigmoid_cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    """Binary cross-entropy from logits, elementwise, without overflow."""
    return ops.maximum(logits, 0.0) - logits * labels + ops.softplus(-ops.abs(logits))


def focal(labels: Tensor, logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017), elementwise: float32 labels `[...]`, 0 or 1, logits `[...]`.

    `alpha` is the weight of the ones, 1 - alpha that of the zeros; `gamma` is the exponent of the error.
    """
    probability = ops.sigmoid(logits)
    error = labels * (1 - probability) + (1 - labels) * probability
    weight = labels * alpha + (1 - labels) * (1 - alpha)
    return weight * error**gamma * sigmoid_cross_entropy(labels, logits)


def quality_focal(labels: Tensor, logits: Tensor, gamma: float) -> Tensor:
    """Quality focal loss (Li et al., NeurIPS 2020), elementwise; `gamma` is the exponent of the error.

    Labels `[...]` float32, 0 to 1, are the IoU of the predicted box, 0 for the background; logits `[...]`.
    """
    return ops.abs(labels - ops.sigmoid(logits)) ** gamma * sigmoid_cross_entropy(labels, logits)


def huber(targets: Tensor, values: Tensor, delta: float) -> Tensor:
    """Huber loss, elementwise: quadratic within `delta`, linear outside."""
    error = ops.abs(targets - values)
    inner = ops.minimum(error, delta)
    return 0.5 * inner**2 + delta * (error - inner)


def dice(labels: Tensor, probability: Tensor) -> Tensor:
    """1 - Dice of bitmaps (Milletari et al., 2016): `[..., m, m]` to `[...]`."""
    overlap = ops.sum(labels * probability, axis=(-2, -1))
    total = ops.sum(labels**2, axis=(-2, -1)) + ops.sum(probability**2, axis=(-2, -1))
    return 1 - (2 * overlap + 1.0) / (total + 1.0)


def _box_loss(config: Config, predicted: Tensor, deltas: Tensor, anchors: Tensor, cells: Tensor) -> Tensor:
    """Box loss of every anchor with its cell, `[B, A]`."""
    if config.loss.box_loss == "giou":
        return 1 - box_ops.giou(predicted, cells)
    if config.loss.box_loss == "ciou":
        return 1 - box_ops.ciou(predicted, cells)
    # The reference divides the sum over four coordinates by 4 x positives.
    wanted = box_ops.encode(cells, anchors, config.anchors.code)
    return ops.mean(huber(wanted, deltas, config.loss.huber_delta), axis=-1)


def _mask_term(
    config: Config,
    head: MaskHead,
    outputs: dict[str, Tensor],
    batch: dict[str, Tensor],
    assignment: Assignment,
    step: Tensor,
    first: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Summed mask loss of the sampled instances, and the sum of their weights."""
    cells = ops.shape(batch["boxes"])[1]
    index, weight = sample_instances(assignment, cells, config.model.mask.samples, step, first)
    cell = ops.take_along_axis(assignment.matched, index, axis=1)
    weight = weight * ops.take_along_axis(ops.cast(batch["scores"], "float32"), cell, axis=1)
    boxes = ops.take_along_axis(batch["boxes"], cell[..., None], axis=1)
    bitmaps = ops.take_along_axis(batch["masks"], cell[..., None, None], axis=1)
    location = index // config.anchors.per_location
    embeddings = ops.take_along_axis(outputs["codes"], location[..., None], axis=1)
    crops = head.crop_boxes(jitter(boxes, index, step))
    logits = head(outputs["mask_feature"], embeddings, crops)
    labels = mask_targets(bitmaps, boxes, crops, config.model.mask.size)
    term = ops.mean(sigmoid_cross_entropy(labels, logits), axis=(-2, -1))
    if config.loss.mask_dice:
        term = term + config.loss.mask_dice * dice(labels, ops.sigmoid(logits))
    return ops.sum(term * weight), ops.sum(weight)


def jitter(boxes: Tensor, index: Tensor, step: Tensor, amount: float = 0.1) -> Tensor:
    """Move box sides by up to `amount` of the box, since predicted boxes are never exact.

    Args:
        boxes: `[B, K, 4]` yxyx, px.
        index: `[B, K]` int32, the source of the pseudo-random numbers together with `step`.
        step: int32 scalar.
        amount: largest move, share of the side.
    """
    _, _, h, w = box_ops.to_center(boxes)
    # Fractions of the square roots of primes: sides and instances then move independently.
    along = np.array([0.4142136, 0.7320508, 0.2360680, 0.6457513], np.float32)
    over = np.array([0.3166248, 0.6055513, 0.1231056, 0.3588989], np.float32)
    moves = ops.cast(index % 9973, "float32")[..., None] * along + ops.cast(step % 9973, "float32") * over
    moves = (moves - ops.floor(moves)) * 2 - 1
    return boxes + moves * amount * ops.stack([h, w, h, w], axis=-1)


def detection_losses(
    config: Config,
    head: MaskHead | None,
    outputs: dict[str, Tensor],
    batch: dict[str, Tensor],
    step: Tensor,
    first: int | Tensor = 0,
) -> dict[str, Tensor]:
    """Sum every loss term over a batch.

    Args:
        config: everything.
        head: the mask head, or None.
        outputs: of the dense network.
        batch: `image` `[B, H, W, C]`, `boxes` `[B, M, 4]`, `classes` `[B, M]` (-1 = padding),
            `masks` `[B, M, m, m]` uint8, `ignored` `[B, R, 4]`, where nothing is background, and `scores`
            `[B, M]`, how sure each label is: a cell counts that much, and the score that is taught is lower
            by it.
        step: int32 scalar; varies what is sampled.
        first: place of the first image in the whole batch, where several devices share it.

    Returns:
        float32 scalars: sums `class`, `box`, `mask`, and the counts `positives` and `instances` (the sums of
        their weights, where they are weighted) to divide them by.
    """
    model = config.model
    size = height, width = ops.shape(batch["image"])[1:3]
    cells, classes = ops.cast(batch["boxes"], "float32"), ops.cast(batch["classes"], "int32")
    levels = (model.min_level, model.max_level)
    anchors = ops.concatenate(anchor_ops.grid(height, width, config.anchors, *levels), axis=0)[None]
    deltas, logits = (ops.cast(outputs[name], "float32") for name in ("box_deltas", "class_logits"))
    boxes = box_ops.decode(deltas, anchors, config.anchors.code)
    predictions = None
    if config.assign.method == "task_aligned":
        predictions = Predictions(ops.stop_gradient(boxes), ops.stop_gradient(ops.sigmoid(logits)), classes)
    rules = (config.anchors, config.assign, *levels, config.data.max_instances)
    assignment = assign(cells, classes >= 0, size, *rules, predictions=predictions)
    positive = assignment.state == int(State.POSITIVE)
    matched_boxes = ops.take_along_axis(cells, assignment.matched[..., None], axis=1)
    matched_classes = ops.take_along_axis(classes, assignment.matched, axis=1)

    weight, quality = _weight_and_quality(assignment, boxes, matched_boxes, batch)
    # Where there is no cell the loss may be anything, infinite too: it is left out, not multiplied by 0.
    box_loss = ops.where(positive, _box_loss(config, boxes, deltas, anchors, matched_boxes), 0.0)

    class_loss = _class_loss(config, logits, ops.where(positive, matched_classes, -1), quality)
    state = leave_out(assignment.state, ops.cast(batch["ignored"], "float32"), size, config.anchors, *levels)
    counted = ops.cast(state != int(State.IGNORE), "float32")
    result = {
        "class": ops.sum(class_loss * counted[..., None]),
        "box": ops.sum(box_loss * weight),
        "positives": ops.sum(weight),
    }
    if head is None:
        return result | {"mask": ops.zeros(()), "instances": ops.zeros(())}
    mask, instances = _mask_term(config, head, outputs, batch, assignment, step, first)
    return result | {"mask": mask, "instances": instances}


def _weight_and_quality(
    assignment: Assignment, boxes: Tensor, matched_boxes: Tensor, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """How much each anchor's box counts, and the score that is taught there, `[B, A]` each."""
    if assignment.alignment is not None:
        weight = quality = assignment.alignment
    else:
        positive = assignment.state == int(State.POSITIVE)
        weight = ops.cast(positive, "float32")
        quality = ops.stop_gradient(ops.where(positive, box_ops.iou(boxes, matched_boxes), 0.0))
    sure = ops.take_along_axis(ops.cast(batch["scores"], "float32"), assignment.matched, axis=1)
    return weight * sure, quality * sure


def _class_loss(config: Config, logits: Tensor, matched_classes: Tensor, quality: Tensor) -> Tensor:
    """Loss of each anchor and class `[B, A, K]`; a matched class of -1 is background."""
    one_hot = ops.one_hot(matched_classes, len(config.class_names), dtype="float32")
    if config.loss.class_loss == "quality_focal":
        return quality_focal(one_hot * quality[..., None], logits, config.loss.gamma)
    return focal(one_hot, logits, config.loss.alpha, config.loss.gamma)


def combine(
    config: Config, sums: dict[str, Tensor], positives: Tensor, instances: Tensor
) -> dict[str, Tensor]:
    """`class`, `box` and `mask` divided by the GLOBAL counts, and their weighted `total`.

    Args:
        config: loss weights.
        sums: of `detection_losses`, on this replica.
        positives: over all replicas; 0 is taken as 1.
        instances: likewise.
    """
    counts = {"class": positives, "box": positives, "mask": instances}
    terms = {name: sums[name] / ops.maximum(count, 1.0) for name, count in counts.items()}
    classes, boxes, masks = (getattr(config.loss, f"{name}_weight") * terms[name] for name in counts)
    return terms | {"total": classes + boxes + masks}
