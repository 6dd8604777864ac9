from __future__ import annotations

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from effdet_tf.geometry.boxes import encode
from effdet_tf.model.anchors import grid
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import named_variables
from effdet_tf.presets import preset
from training.assignment import State, assign
from training.losses import (
    combine,
    detection_losses,
    dice,
    focal,
    huber,
    jitter,
    quality_focal,
    sigmoid_cross_entropy,
)
from training.trainer import make_step
from training.vectors import Vectors

SIZE = 64


def value(tensor):
    return float(ops.convert_to_numpy(tensor))


def f32(*values):
    return np.array(values, np.float32)


def test_cross_entropy_by_hand_and_without_overflow():
    assert value(sigmoid_cross_entropy(1.0, f32(0)[0])) == pytest.approx(math.log(2), rel=1e-6)
    found = ops.convert_to_numpy(sigmoid_cross_entropy(f32(1, 0, 1, 0), f32(1000, 1000, -1000, -1000)))
    assert found.tolist() == [0, 1000, 1000, 0]


@pytest.mark.parametrize(
    ("label", "logit", "expected"),
    [
        # p = 1/2: .25 * .5**1.5 * ln 2 = .0612643
        (1.0, 0.0, 0.0612661),
        # The background counts three times as much: .75 * .5**1.5 * ln 2
        (0.0, 0.0, 0.1837984),
        # p = 3/4 at logit ln 3: .25 * .25**1.5 * -ln(.75) = .25 * .125 * .2876821
        (1.0, math.log(3), 0.00899006),
        # The same logit where nothing is: .75 * .75**1.5 * -ln(.25) = .75 * .6495191 * 1.3862944
        (0.0, math.log(3), 0.6753185),
    ],
)
def test_focal_by_hand(label, logit, expected):
    assert value(focal(f32(label), f32(logit), 0.25, 1.5)[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("label", "logit", "expected"),
    [
        # |1 - .5|**2 * ln 2
        (1.0, 0.0, 0.1732868),
        # A half-good box at probability one half is right: no loss.
        (0.5, 0.0, 0.0),
        # |.25 - .75|**2 * (-.25 ln .75 - .75 ln .25) = .25 * (.0719205 + 1.0397208)
        (0.25, math.log(3), 0.2779103),
        (0.0, 0.0, 0.1732868),
    ],
)
def test_quality_focal_by_hand(label, logit, expected):
    assert value(quality_focal(f32(label), f32(logit), 2.0)[0]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_huber_by_hand():
    # Inside .1: half the square, .5 * .05**2; at .1: .005; outside: .1 * (error - .05).
    found = ops.convert_to_numpy(huber(f32(0, 0, 0, 0), f32(0.05, -0.1, 1, 0), 0.1))
    assert found == pytest.approx([0.00125, 0.005, 0.095, 0], rel=1e-5)


def test_dice_is_nearly_zero_for_the_same_mask_and_nearly_one_for_another():
    left = np.zeros((20, 20), np.float32)
    left[:, :10] = 1
    assert value(dice(left, left)) == 0
    # 200 px each, none in common: 1 - 1 / 401.
    assert value(dice(left, 1 - left)) == pytest.approx(1 - 1 / 401)
    # Half of the mask: 1 - (2 * 100 + 1) / (200 + 100 + 1).
    half = left * (np.arange(20) < 10)[:, None]
    assert value(dice(left, half)) == pytest.approx(1 - 201 / 301)
    assert value(dice(np.zeros((20, 20), np.float32), np.zeros((20, 20), np.float32))) == 0


def test_dice_of_a_soft_mask():
    mask = np.zeros((20, 20), np.float32)
    mask[:, :10] = 1
    # 200 px at one half: 1 - (2 * 100 + 1) / (200 + 50 + 1); squares, not the sum, stand below.
    assert value(dice(mask, 0.5 * mask)) == pytest.approx(0.1992032, abs=1e-6)
    assert value(dice(0.5 * mask, 0.5 * mask)) == pytest.approx(0, abs=1e-6)


def test_jitter_moves_by_at_most_a_tenth_and_repeats():
    boxes = np.tile(f32(10, 10, 30, 50), (1, 400, 1))
    index = np.arange(400, dtype=np.int32)[None]
    moved = [ops.convert_to_numpy(jitter(boxes, index, step)) for step in (3, 3, 4)]
    assert (moved[0] == moved[1]).all()
    assert (moved[0] != moved[2]).any()
    shift = ((moved[0] - boxes) / f32(20, 40, 20, 40))[0]
    assert np.abs(shift).max() <= 0.1 + 1e-4
    assert np.abs(shift).max() > 0.09
    assert np.abs(shift.mean(0)).max() < 0.01
    assert shift.std(0) == pytest.approx([0.1 / 3**0.5] * 4, rel=0.05)  # uniform, on every side
    assert np.abs(np.corrcoef(shift.T) - np.eye(4)).max() < 0.1


@pytest.fixture(scope="module")
def network(tiny_config):
    return build_network(tiny_config)


def make_batch(cells, count=6, seed=0):
    """One image per list of boxes, padded to `count`, every mask full."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((len(cells), count, 4), np.float32)
    classes = np.full((len(cells), count), -1, np.int32)
    masks = np.zeros((len(cells), count, 28, 28), np.uint8)
    for k, image_cells in enumerate(cells):
        for j, cell in enumerate(image_cells):
            boxes[k, j], classes[k, j], masks[k, j] = cell, 0, 255
    images = rng.normal(size=(len(cells), SIZE, SIZE, 1)).astype(np.float32)
    ignored = np.zeros((len(cells), 2, 4), np.float32)  # padding alone
    arrays = {"image": images, "boxes": boxes, "classes": classes, "masks": masks, "ignored": ignored}
    arrays["scores"] = (classes >= 0).astype(np.float32)
    return {name: tf.constant(v) for name, v in arrays.items()}


CELLS = [[5, 5, 17, 20], [30, 8, 55, 30], [40, 44, 52, 60]]


def run(network, config, batch):
    with tf.GradientTape() as tape:
        # Inference statistics: an image's outputs then do not depend on its neighbours in the batch.
        outputs = network.dense(batch["image"], training=False)
        sums = detection_losses(config, network.mask_head, outputs, batch, tf.constant(3))
        terms = combine(config, sums, sums["positives"], sums["instances"])
    gradients = tape.gradient(terms["total"], network.trainable_variables)
    return (
        {k: value(v) for k, v in sums.items()},
        {k: value(v) for k, v in terms.items()},
        [g.numpy() for g in gradients if g is not None],
    )


@pytest.mark.parametrize("cells", [[[], []], [[], CELLS]], ids=["all padding", "one empty image"])
@pytest.mark.parametrize("losses", [("quality_focal", "giou"), ("focal", "huber")])
def test_empty_images_give_finite_losses_and_gradients(network, tiny_config, cells, losses):
    config = tiny_config.override([f"loss.class_loss={losses[0]}", f"loss.box_loss={losses[1]}"])
    sums, terms, gradients = run(network, config, make_batch(cells))
    assert all(math.isfinite(v) for v in (*sums.values(), *terms.values()))
    assert all(np.isfinite(g).all() for g in gradients)
    assert terms["class"] > 0
    if any(cells):
        assert sums["positives"] > 0 and sums["box"] > 0 and sums["mask"] > 0
        assert sums["instances"] == len(CELLS)
    else:
        assert (sums["positives"], sums["instances"], sums["box"], sums["mask"]) == (0, 0, 0, 0)
        assert terms["total"] == pytest.approx(terms["class"])  # divided by 1, not by 0


@pytest.fixture(scope="module")
def points_network(tiny_points):
    return build_network(tiny_points)


def test_an_unsure_label_counts_less_and_teaches_a_lower_score(points_network, tiny_points):
    config = tiny_points.override(["assign.method=task_aligned", "loss.class_loss=quality_focal"])
    batch = make_batch([CELLS])
    sure, _, _ = run(points_network, config, batch)
    half, _, _ = run(points_network, config, {**batch, "scores": batch["scores"] * 0.5})
    for name in ("positives", "box", "mask", "instances"):
        assert half[name] == pytest.approx(sure[name] / 2, rel=1e-5), name
    assert 0 < half["class"] < sure["class"]  # the network begins with low scores: the nearer aim costs less
    # Only the cell in doubt is concerned.
    doubt = batch["scores"] * np.array([[1, 0, 1, 1, 1, 1]], np.float32)
    some, _, _ = run(points_network, config, {**batch, "scores": doubt})
    assert 0 < some["instances"] == sure["instances"] - 1 and some["positives"] < sure["positives"]


@pytest.mark.parametrize("cells", [[[], []], [[], CELLS]], ids=["all padding", "one empty image"])
@pytest.mark.parametrize("box_loss", ["giou", "ciou"])
@pytest.mark.parametrize("method", ["task_aligned", "atss"])
def test_empty_images_are_no_trouble_without_anchors(points_network, tiny_points, cells, box_loss, method):
    config = tiny_points.override([f"loss.box_loss={box_loss}", f"assign.method={method}"])
    sums, terms, gradients = run(points_network, config, make_batch(cells))
    assert all(math.isfinite(v) for v in (*sums.values(), *terms.values()))
    assert all(np.isfinite(g).all() for g in gradients)
    if any(cells):
        assert sums["positives"] > 0 and sums["box"] > 0 and sums["instances"] == len(CELLS)
    else:
        assert (sums["positives"], sums["instances"], sums["box"], sums["mask"]) == (0, 0, 0, 0)


def test_aligned_positives_weigh_as_much_as_they_fit(tiny_points):
    """Of two points in one cell, one with the right box: it counts with IoU 1, the other with its share."""
    config = tiny_points.override(["model.mask.enabled=false", "assign.candidates=2"])
    cell = [24, 24, 40, 40]  # holds the points 26, 30, 34, 38 of stride 4 along each axis
    batch = make_batch([[cell]])
    anchors = ops.concatenate(grid(SIZE, SIZE, config.anchors, 2, 3))
    deltas = np.full((1, len(anchors), 4), -4.0, np.float32)  # all others see next to nothing
    good, fair = 7 * 16 + 7, 7 * 16 + 8  # centres 30, 30 and 30, 34
    deltas[0, good] = encode(ops.convert_to_tensor([cell], "float32"), anchors[good : good + 1], "sides")[0]
    half = [[24, 28, 40, 40]]  # 12 of 16 columns: IoU .75
    deltas[0, fair] = encode(ops.convert_to_tensor(half, "float32"), anchors[fair : fair + 1], "sides")[0]
    logits = np.full((1, len(anchors), 1), -20.0, np.float32)
    logits[0, [good, fair]] = 0.0
    outputs = {"class_logits": tf.constant(logits), "box_deltas": tf.constant(deltas)}
    sums = {k: value(v) for k, v in detection_losses(config, None, outputs, batch, 0).items()}
    share = 0.75**6
    assert sums["positives"] == pytest.approx(1 + share, rel=1e-3)
    assert sums["box"] == pytest.approx(0.25 * share, rel=1e-3)
    # Quality focal loss at p = .5: |t - .5|^2 x log 2.
    assert sums["class"] == pytest.approx((0.25 + (share - 0.5) ** 2) * np.log(2), rel=1e-3)


def test_dice_is_left_out_where_its_weight_is_0(network, tiny_config):
    both, _, _ = run(network, tiny_config, make_batch([CELLS]))
    entropy, _, _ = run(network, tiny_config.override(["loss.mask_dice=0"]), make_batch([CELLS]))
    twice, _, _ = run(network, tiny_config.override(["loss.mask_dice=2"]), make_batch([CELLS]))
    assert 0 < entropy["mask"] < both["mask"]
    assert twice["mask"] - both["mask"] == pytest.approx(both["mask"] - entropy["mask"], rel=1e-3)


def test_an_empty_image_adds_background_only(network, tiny_config):
    both = make_batch([CELLS, []])
    full, empty = ({k: v[j : j + 1] for k, v in both.items()} for j in (0, 1))
    sums = [run(network, tiny_config, batch)[0] for batch in (both, full, empty)]
    assert sums[0]["positives"] == sums[1]["positives"]
    assert sums[0]["box"] == pytest.approx(sums[1]["box"], rel=1e-4)
    assert sums[0]["class"] == pytest.approx(sums[1]["class"] + sums[2]["class"], rel=1e-4)


def test_the_same_images_twice_give_the_same_loss(network, tiny_config):
    once = make_batch([CELLS])
    twice = {k: tf.concat([v, v], 0) for k, v in once.items()}
    sums, terms, _ = run(network, tiny_config, once)
    more_sums, more_terms, _ = run(network, tiny_config, twice)
    assert more_sums["positives"] == 2 * sums["positives"]
    assert more_sums["class"] == pytest.approx(2 * sums["class"], rel=1e-4)
    for name in ("class", "box"):
        assert more_terms[name] == pytest.approx(terms[name], rel=1e-4)
    # Another anchor may stand for a cell in the second image, so the masks agree only nearly.
    assert more_terms["mask"] == pytest.approx(terms["mask"], rel=0.1)


def test_two_replicas_with_global_counts_add_up_to_one(tiny_config):
    sums = {"class": 6.0, "box": 2.0, "mask": 1.0}
    whole = combine(tiny_config, sums, 4.0, 2.0)
    parts = [combine(tiny_config, {k: v * s for k, v in sums.items()}, 4.0, 2.0) for s in (0.25, 0.75)]
    for name in whole:
        assert value(whole[name]) == pytest.approx(sum(value(p[name]) for p in parts))


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_gradients_are_clipped_by_their_norm_which_is_reported_as_it_was(tiny_config, limit):
    config = tiny_config.override([f"train.clip_norm={limit}", f"data.crop_size=[{SIZE}, {SIZE}]"])
    network = build_network(config)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(network.trainable_variables)
    average = [keras.Variable(v.numpy()) for v in named_variables(network).values()]
    before = [v.numpy() for v in network.trainable_variables]
    state = Vectors(network, average, optimizer)
    step = make_step(config, network, state, 28)
    norm = step(make_batch([CELLS, CELLS[:1]]), tf.constant(3), tf.constant(0.5)).numpy()[-1]
    moves = [
        (old - new.numpy()).ravel() for old, new in zip(before, network.trainable_variables, strict=True)
    ]
    assert 0.01 < norm < 1e3  # as it was, not as it was cut to
    assert np.linalg.norm(np.concatenate(moves)) == pytest.approx(0.5 * min(limit, norm), rel=1e-2)


def test_terms_are_divided_and_weighed():
    config = preset("d0")  # class weight 1, box weight 50
    terms = combine(config, {"class": 6.0, "box": 2.0, "mask": 3.0}, 4.0, 2.0)
    assert {k: value(v) for k, v in terms.items()} == {"class": 1.5, "box": 0.5, "mask": 1.5, "total": 28.0}


def perfect_outputs(config, batch):
    """Outputs that say exactly what the targets ask for."""
    model = config.model
    anchors = ops.concatenate(grid(SIZE, SIZE, config.anchors, model.min_level, model.max_level))
    valid = batch["classes"] >= 0
    found = assign(
        batch["boxes"], valid, (SIZE, SIZE), config.anchors, config.assign, model.min_level, model.max_level
    )
    cells = ops.take_along_axis(batch["boxes"], found.matched[..., None], axis=1)
    positive = ops.cast(found.state == int(State.POSITIVE), "float32")[..., None]
    return {"class_logits": positive * 40 - 20, "box_deltas": encode(cells, anchors[None]) * positive}


@pytest.mark.parametrize("losses", [("quality_focal", "giou"), ("focal", "huber")])
def test_perfect_outputs_cost_nothing_and_wrong_ones_do(tiny_config, losses):
    config = tiny_config.override(
        [f"loss.class_loss={losses[0]}", f"loss.box_loss={losses[1]}", "model.mask.enabled=false"]
    )
    batch = make_batch([CELLS, CELLS[:1]])
    outputs = perfect_outputs(config, batch)
    sums = {k: value(v) for k, v in detection_losses(config, None, outputs, batch, 0).items()}
    assert sums["positives"] >= 4
    assert sums["class"] == pytest.approx(0, abs=1e-4)
    assert sums["box"] == pytest.approx(0, abs=1e-3)
    assert (sums["mask"], sums["instances"]) == (0, 0)
    moved = {**outputs, "box_deltas": outputs["box_deltas"] + 0.2}
    assert value(detection_losses(config, None, moved, batch, 0)["box"]) > 0.01 * sums["positives"]
    flipped = {**outputs, "class_logits": -outputs["class_logits"]}
    assert value(detection_losses(config, None, flipped, batch, 0)["class"]) > sums["positives"]


def test_the_class_of_the_cell_is_what_is_learned(tiny_config):
    config = dataclasses.replace(
        tiny_config.override(["model.mask.enabled=false", "loss.class_loss=focal"]),
        class_names=("a", "b"),
        category_ids=(1, 2),
    )
    batch = make_batch([CELLS])
    outputs = perfect_outputs(config, batch)
    first = outputs["class_logits"]
    nothing = ops.full_like(first, -20.0)
    outputs["class_logits"] = ops.concatenate([first, nothing], axis=-1)
    assert value(detection_losses(config, None, outputs, batch, 0)["class"]) == pytest.approx(0, abs=1e-4)
    outputs["class_logits"] = ops.concatenate([nothing, first], axis=-1)
    assert value(detection_losses(config, None, outputs, batch, 0)["class"]) > 10


def test_any_number_of_cells_that_the_configuration_allows(tiny_config):
    config = tiny_config.override(["model.mask.enabled=false", "data.max_instances=5000"])
    batch = make_batch([CELLS])
    filled = make_batch([[[0, 0, 1, 1]] * 4997 + CELLS], count=5000)
    filled["classes"] = tf.where(tf.range(5000)[None] < 4997, -1, filled["classes"])
    outputs = perfect_outputs(config, batch)

    names = ("boxes", "classes", "masks", "scores")
    signature = {k: tf.TensorSpec((1, None, *batch[k].shape[2:]), batch[k].dtype) for k in names}

    @tf.function(input_signature=[signature])
    def run(cells):
        own = {name: batch[name] for name in ("image", "ignored")}
        return detection_losses(config, None, outputs, {**cells, **own}, tf.constant(0))

    for cells in (batch, filled):
        sums = run({k: cells[k] for k in names})
        assert value(sums["box"]) == pytest.approx(0, abs=1e-3)
        assert value(sums["positives"]) >= 3


def test_ignored_anchors_carry_no_class_loss(tiny_config):
    config = tiny_config.override(["model.mask.enabled=false", "loss.class_loss=focal"])
    batch = make_batch([CELLS])
    found = assign(batch["boxes"], batch["classes"] >= 0, (SIZE, SIZE), config.anchors, config.assign, 2, 3)
    ignored = ops.cast(found.state == int(State.IGNORE), "float32")[..., None]
    assert value(ops.sum(ignored)) > 0
    outputs = perfect_outputs(config, batch)
    outputs["class_logits"] = outputs["class_logits"] * (1 - ignored) + 30 * ignored
    assert value(detection_losses(config, None, outputs, batch, 0)["class"]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("kind", ["anchors", "points"])
def test_a_region_that_is_neither_cell_nor_background_carries_no_class_loss(tiny_config, tiny_points, kind):
    config = (tiny_config if kind == "anchors" else tiny_points).override(
        ["model.mask.enabled=false", "loss.class_loss=quality_focal"]
    )
    batch = make_batch([CELLS])
    region = np.float32([0, 36, 28, 64])  # no cell lies in it, in part or whole
    batch["boxes"] = tf.where(batch["boxes"][..., 1:2] == 8, 0.0, batch["boxes"])
    batch["classes"] = tf.where(tf.range(6)[None] == 1, -1, batch["classes"])
    anchors = np.concatenate([np.asarray(a) for a in grid(SIZE, SIZE, config.anchors, 2, 3)])
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    inside = ((middle >= region[:2]) & (middle < region[2:])).all(1)
    assert 0 < inside.sum() < len(anchors) / 2
    logits = np.where(inside, 10.0, -20.0).astype(np.float32)[None, :, None]
    outputs = {
        "class_logits": tf.constant(logits),
        "box_deltas": tf.zeros((1, len(anchors), 4)),
    }

    def loss(regions):
        found = {**batch, "ignored": tf.constant([regions], tf.float32)}
        return value(detection_losses(config, None, outputs, found, 0)["class"])

    nothing = [0.0] * 4
    without, whole = loss([nothing]), loss([nothing, region])
    # Quality focal loss of a background location that is sure of a cell: about the logit.
    assert without - whole == pytest.approx(10 * inside.sum(), rel=0.01)
    half = [region[0], region[1], region[2] / 2, region[3]]
    part = ((middle >= half[:2]) & (middle < half[2:])).all(1)
    assert without - loss([half]) == pytest.approx(10 * part.sum(), rel=0.01)


def test_a_cell_in_such_a_region_is_learned_all_the_same(tiny_points):
    config = tiny_points.override(["model.mask.enabled=false"])
    batch = make_batch([CELLS])
    count = sum(r * r for r in (SIZE // 4, SIZE // 8))
    outputs = {"class_logits": tf.zeros((1, count, 1)), "box_deltas": tf.zeros((1, count, 4))}
    plain = detection_losses(config, None, outputs, batch, 0)
    everything = {**batch, "ignored": tf.constant([[[0.0, 0, SIZE, SIZE]]])}
    covered = detection_losses(config, None, outputs, everything, 0)
    assert value(plain["positives"]) == value(covered["positives"]) > 0
    assert value(plain["box"]) == value(covered["box"])
    assert 0 < value(covered["class"]) < value(plain["class"])
