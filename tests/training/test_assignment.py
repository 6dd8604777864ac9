from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from effdet_tf.config import AnchorConfig, AssignConfig
from effdet_tf.model.anchors import feature_sizes, grid
from effdet_tf.presets import preset
from training.assignment import Predictions, State, assign

CLOSE = 1e-5  # IoU differences that float32 and the matcher's integer keys cannot tell apart


def array(value):
    return ops.convert_to_numpy(value)


def overlap_matrix(cells, anchors):
    """IoU `[A, M]` in double precision."""
    cells, anchors = cells.astype(np.float64)[None], anchors.astype(np.float64)[:, None]
    sides = np.minimum(cells[..., 2:], anchors[..., 2:]) - np.maximum(cells[..., :2], anchors[..., :2])
    inner = np.clip(sides, 0, None).prod(-1)
    total = (cells[..., 2:] - cells[..., :2]).prod(-1) + (anchors[..., 2:] - anchors[..., :2]).prod(-1)
    return inner / (total - inner)


def check_against_full_matrix(cells, size, config, rules, low, high):
    """Compare every anchor of one image with the full matrix; return how many positives there were."""
    anchors = np.concatenate([array(level) for level in grid(*size, config, low, high)])
    found = assign(cells[None], np.ones((1, len(cells)), bool), size, config, rules, low, high)
    state, matched = array(found.state)[0], array(found.matched)[0]
    assert state.shape == matched.shape == (len(anchors),)
    iou = overlap_matrix(cells, anchors)
    top = iou.max(1)
    best = iou.max(0)  # of every cell
    # Ren et al.: the anchor, or the anchors, of highest IoU. Where two lie within CLOSE, either may win.
    sure = (iou >= best - 1e-12) & (best > 0) & rules.force_match
    forced = (iou >= best - CLOSE) & (best > 0) & rules.force_match
    may_be_forced = forced.any(1)
    expected = np.where(top >= rules.positive_iou, 1, np.where(top >= rules.negative_iou, -1, 0))
    near = np.minimum(np.abs(top - rules.positive_iou), np.abs(top - rules.negative_iou)) < CLOSE
    settled = ~may_be_forced & ~near
    assert settled.mean() > 0.5
    np.testing.assert_array_equal(state[settled], expected[settled])
    # Forced: positive, unless only a tie says so; every cell's forced anchors are settled up to ties.
    assert (expected[(state == State.POSITIVE) & ~may_be_forced & ~near] == 1).all()
    alone = sure.any(1) & (forced.sum(0) == 1)[forced.argmax(1)] & (forced.sum(1) == 1)
    assert (state[alone] == State.POSITIVE).all()
    assert (matched[alone] == forced[alone].argmax(1)).all()
    # The matched cell: the one of highest IoU, or the one that the anchor was forced for.
    taken = np.flatnonzero(state != State.NEGATIVE)
    own = iou[taken, matched[taken]]
    assert ((own >= top[taken] - CLOSE) | forced[taken, matched[taken]]).all()
    assert (matched[state == State.NEGATIVE] == 0).all()
    # No cell goes without, unless each of its best anchors was forced for another cell too, or was
    # best only up to rounding.
    for cell in np.flatnonzero(best > 0) if rules.force_match else ():
        mine = np.flatnonzero(forced[:, cell])
        assert (state[mine] == State.POSITIVE).any()
        assert (matched[mine] == cell).any() or (forced[mine].sum(1) > 1).all() or len(mine) > 1
    return int((state == State.POSITIVE).sum())


def random_cells(count, size, low, high, seed):
    rng = np.random.default_rng(seed)
    side = np.exp(rng.uniform(np.log(low), np.log(high), (count, 1)))
    ratio = np.exp(rng.normal(0, 0.4, (count, 1)))
    sides = np.concatenate([side / ratio, side * ratio], axis=1)
    center = rng.uniform(0, size, (count, 2))
    frame = np.array([*size, *size])
    cells = np.clip(np.concatenate([center - sides / 2, center + sides / 2], axis=1), 0, frame)
    return cells[((cells[:, 2:] - cells[:, :2]) >= 2).all(1)].astype(np.float32)


def two_sizes(low, high):
    """Two sizes and three ratios of anchors a location, with room between the thresholds."""
    sizes = [[2.75 * 2**level, 4.5 * 2**level] for level in range(low, high + 1)]
    return preset("d0").override(
        [
            f"anchors.sizes={sizes}",
            "assign.negative_iou=0.4",
            f"model.min_level={low}",
            f"model.max_level={high}",
        ]
    )


@pytest.mark.parametrize(
    ("height", "width", "count", "low", "high"),
    [
        (128, 128, 60, 6, 60),
        (96, 160, 120, 8, 30),
        (101, 77, 50, 5, 80),  # off every stride
        (37, 53, 20, 5, 60),
        (128, 128, 1, 10, 20),
        (128, 128, 30, 100, 400),  # larger than the anchors: forced ones only
        (128, 128, 80, 2, 5),  # smaller than the anchors
    ],
)
@pytest.mark.parametrize("name", ["two sizes", "two sizes, five levels", "d0"])
def test_assignment_equals_the_full_matrix(name, height, width, count, low, high):
    config = preset("d0") if name == "d0" else two_sizes(2, 6 if "five" in name else 5)
    positives = 0
    for seed in range(2):
        cells = random_cells(count, (height, width), low, high, seed)
        positives += check_against_full_matrix(
            cells,
            (height, width),
            config.anchors,
            config.assign,
            config.model.min_level,
            config.model.max_level,
        )
    assert positives > 0


def test_without_forcing_only_the_overlap_counts():
    config = preset("d0")
    cells = random_cells(80, (128, 128), 10, 60, 3)
    rules = AssignConfig(positive_iou=0.5, negative_iou=0.4, force_match=False)
    assert check_against_full_matrix(cells, (128, 128), config.anchors, rules, 3, 7) > 0
    tiny = np.array([[60, 60, 64, 64]], np.float32)
    found = assign(tiny[None], np.ones((1, 1), bool), (128, 128), config.anchors, rules, 3, 7)
    assert (array(found.state) == State.NEGATIVE).all()


ONE = AnchorConfig(sizes=((16.0,),), ratios=(1.0,))  # at stride 8: centres 4, 12, 20, 28


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        # The anchor at (12, 12) is rows and columns 4..20.
        ([4, 4, 20, 20], {5: State.POSITIVE}),  # IoU 1; its neighbours reach 128 / 384 = 1/3
        ([4, 4, 20, 12], {4: State.POSITIVE, 5: State.POSITIVE}),  # IoU exactly 1/2 with two of them
        # 12 columns of 16 in common with (12, 12): .75; 8 of 20 with (12, 4): .4.
        ([4, 4, 20, 16], {5: State.POSITIVE, 4: State.IGNORE}),
    ],
)
def test_states_by_hand(cell, expected):
    rules = AssignConfig(positive_iou=0.5, negative_iou=0.4)
    cells = np.array([[cell]], np.float32)
    found = assign(cells, np.ones((1, 1), bool), (32, 32), ONE, rules, 3, 3)
    states = np.zeros(16, int)
    for index, state in expected.items():
        states[index] = state
    assert array(found.state)[0].tolist() == states.tolist()


@pytest.mark.parametrize("count", [2, 300, 2000])  # the last needs 11 bits for the cell's index
def test_an_overlap_of_exactly_the_threshold_is_positive(count):
    cells = np.zeros((1, count, 4), np.float32)
    cells[0, 0] = [4, 4, 20, 12]  # half of anchors 4 and 5
    cells[0, -1] = [4, 4, 20, 20]  # all of anchor 5
    rules = AssignConfig(positive_iou=0.5, negative_iou=0.5, force_match=False)
    found = assign(cells, cells[..., 2] > 0, (32, 32), ONE, rules, 3, 3)
    assert array(found.state)[0, 4:6].tolist() == [State.POSITIVE] * 2
    assert array(found.matched)[0, 4:6].tolist() == [0, count - 1]


def test_a_forced_anchor_beats_a_larger_overlap_of_another_cell():
    # The large cell overlaps anchor 5 by 13 columns of 19 and anchor 6 by 11 of 21, more than half.
    # The small one lies within anchor 6, 36 px of 256: its best, so it gets it all the same.
    cells = np.array([[[4, 7, 20, 23], [9, 19, 15, 25]]], np.float32)
    for force, owner in ((True, 1), (False, 0)):
        rules = AssignConfig(force_match=force)
        found = assign(cells, np.ones((1, 2), bool), (32, 32), ONE, rules, 3, 3)
        assert array(found.state)[0, 5:7].tolist() == [State.POSITIVE] * 2
        assert array(found.matched)[0, 5:7].tolist() == [0, owner]
    # Two cells with the same best anchor: the larger overlap has it.
    cells = np.array([[[4, 4, 20, 17], [4, 4, 20, 20]]], np.float32)
    found = assign(cells, np.ones((1, 2), bool), (32, 32), ONE, AssignConfig(), 3, 3)
    assert array(found.matched)[0, 5] == 1


def test_images_of_a_batch_do_not_meet():
    config = two_sizes(2, 5)
    first, second = (random_cells(40, (64, 64), 8, 40, seed)[:20] for seed in (0, 1))
    rest = (config.anchors, config.assign, 2, 5)
    valid = np.ones((1, 20), bool)
    both = assign(np.stack([first, second]), np.ones((2, 20), bool), (64, 64), *rest)
    for k, cells in enumerate((first, second)):
        alone = assign(cells[None], valid, (64, 64), *rest)
        np.testing.assert_array_equal(array(both.state)[k], array(alone.state)[0])
        np.testing.assert_array_equal(array(both.matched)[k], array(alone.matched)[0])


def test_padding_changes_nothing():
    config = two_sizes(2, 5)
    cells = random_cells(30, (64, 64), 8, 40, 0)
    rest = ((64, 64), config.anchors, config.assign, 2, 5)
    plain = assign(cells[None], np.ones((1, len(cells)), bool), *rest)
    # Padding at the front, in places where a cell would match.
    padded = np.concatenate([cells[:7] + 1, cells])[None]
    valid = np.arange(padded.shape[1])[None] >= 7
    found = assign(padded, valid, *rest)
    np.testing.assert_array_equal(array(found.state), array(plain.state))
    taken = array(plain.state) != State.NEGATIVE
    np.testing.assert_array_equal(array(found.matched)[taken], array(plain.matched)[taken] + 7)


@pytest.mark.parametrize("count", [1, 50])
def test_padding_alone_gives_no_target(count):
    config = two_sizes(2, 5)
    cells = np.zeros((2, count, 4), np.float32)
    found = assign(cells, np.zeros((2, count), bool), (64, 64), config.anchors, config.assign, 2, 5)
    assert (array(found.state) == State.NEGATIVE).all()
    assert (array(found.matched) == 0).all()


def test_two_thousand_cells_need_no_full_matrix():
    config = two_sizes(2, 5)
    cells = random_cells(2100, (512, 512), 10, 30, 0)[:2000]
    assert len(cells) == 2000

    @tf.function
    def run(cells):
        found = assign(
            cells, tf.ones(tf.shape(cells)[:2], bool), (512, 512), config.anchors, config.assign, 2, 5
        )
        return found.state, found.matched

    graph = run.get_concrete_function(tf.TensorSpec((1, 2000, 4))).graph
    largest = max(
        int(np.prod(output.shape))
        for op in graph.get_operations()
        for output in op.outputs
        if output.shape.rank
    )
    full = 2000 * (128**2 + 64**2 + 32**2 + 16**2) * 6
    assert largest < full / 30
    state, matched = run(cells[None])
    assert int((state[0] == State.POSITIVE).numpy().sum()) > 1500
    assert len(np.unique(matched[0].numpy()[state[0] == State.POSITIVE])) > 1500


def test_more_cells_than_usual_keep_their_numbers_when_the_shape_is_open():
    count = 5000
    cells = np.zeros((1, count, 4), np.float32)
    cells[0, -1] = [4, 4, 20, 20]

    @tf.function(input_signature=[tf.TensorSpec((None, None, 4))])
    def run(cells):
        valid = cells[..., 2] > 0
        return assign(cells, valid, (32, 32), ONE, AssignConfig(), 3, 3, max_cells=count)

    found = run(cells)
    assert array(found.state)[0, 5] == State.POSITIVE
    assert array(found.matched)[0, 5] == count - 1


POINTS = AnchorConfig(code="sides", sizes=((12.0,), (26.0,), (52.0,)), ratios=(1.0,))  # levels 2, 3, 4
KINDS = AnchorConfig(sizes=((12.0, 16.0), (26.0, 36.0), (52.0, 70.0)), ratios=(1.0, 2.0, 0.5))


def locations(size, config):
    """Centre `[A, 2]` and stride `[A]` of all anchors, and where each level starts."""
    anchors = [array(level).astype(np.float64) for level in grid(*size, config, 2, 4)]
    centers = [(a[:, :2] + a[:, 2:]) / 2 for a in anchors]
    strides = np.concatenate([np.full(len(a), 2.0**k) for k, a in enumerate(anchors, 2)])
    starts = np.cumsum([0, *(len(a) for a in anchors)])
    return np.concatenate(anchors), np.concatenate(centers), strides, starts


@pytest.mark.parametrize("anchors", [POINTS, KINDS], ids=["points", "kinds"])
@pytest.mark.parametrize(("count", "low", "high"), [(40, 8, 60), (80, 5, 14), (1, 30, 40)])
def test_atss_equals_the_full_matrix(anchors, count, low, high):
    size = (96, 128)
    cells = random_cells(count, size, low, high, 5)
    rules = AssignConfig(method="atss", candidates=9, force_match=False)
    found = assign(cells[None], np.ones((1, len(cells)), bool), size, anchors, rules, 2, 4)
    boxes, centers, strides, starts = locations(size, anchors)
    iou = overlap_matrix(cells, boxes)
    wanted = np.zeros(iou.shape, bool)
    for k, cell in enumerate(cells.astype(np.float64)):
        middle = (cell[:2] + cell[2:]) / 2
        distance = np.round((((centers - middle) / strides[:, None]) ** 2).sum(1), 4)
        nearest = np.concatenate(
            [
                first + np.flatnonzero(part <= np.sort(part)[min(9 * anchors.per_location, len(part)) - 1])
                for first, part in zip(starts, np.split(distance, starts[1:-1]), strict=False)
            ]
        )
        # The window is 5 x 5 locations: of more there is no need unless the frame's edge is near.
        nearest = nearest[(np.abs(centers[nearest] - middle) / strides[nearest, None] < 2.5).all(1)]
        inside = ((centers[nearest] > cell[:2]) & (centers[nearest] < cell[2:])).all(1)
        least = iou[nearest, k].mean() + iou[nearest, k].std()
        wanted[nearest[inside & (iou[nearest, k] >= least)], k] = True
    state, matched = array(found.state)[0], array(found.matched)[0]
    expected = wanted.any(1)
    differing = np.flatnonzero(expected != (state == State.POSITIVE))
    assert len(differing) <= 0.01 * expected.sum()  # thresholds that rounding decides
    assert set(np.unique(state)) <= {State.NEGATIVE, State.POSITIVE}
    both = np.flatnonzero(expected & (state == State.POSITIVE))
    assert len(both) > 0
    best = np.where(wanted, iou, -1).max(1)
    np.testing.assert_allclose(iou[both, matched[both]], best[both], atol=1e-4)


def aligned_by_hand(cells, classes, size, anchors, rules, boxes, scores):
    """Task-aligned assignment from the full matrix: matched cell (-1 for none) and alignment, each `[A]`."""
    _, centers, strides, _ = locations(size, anchors)
    iou = overlap_matrix(cells, boxes)
    metric = scores[:, classes] ** rules.score_power * iou**rules.iou_power
    claims = np.zeros(iou.shape, bool)
    for k, cell in enumerate(cells):
        home = np.floor((cell[:2] + cell[2:]) / 2 / strides[:, None])
        offset = np.abs(np.floor(centers / strides[:, None]) - home)
        covered = ((centers > cell[:2]) & (centers < cell[2:])).all(1)
        nearest = (offset == 0).all(1) & (strides == 4)
        allowed = np.flatnonzero((offset <= rules.reach).all(1) & (covered | nearest))
        claims[allowed[np.argsort(-metric[allowed, k], kind="stable")[: rules.candidates]], k] = True
    owner = np.where(claims.any(1), np.where(claims, iou, -1).argmax(1), -1)
    held = claims & (owner[:, None] == np.arange(len(cells)))
    strongest = np.where(held, metric, 0).max(0)
    widest = np.where(held, iou, 0).max(0)
    alignment = np.where(held, metric / np.maximum(strongest, 1e-12) * widest, 0).sum(1)
    return owner, alignment


@pytest.mark.parametrize("anchors", [POINTS, KINDS], ids=["points", "kinds"])
@pytest.mark.parametrize(("count", "low", "high"), [(40, 8, 60), (90, 5, 14), (1, 30, 40)])
def test_task_aligned_equals_the_full_matrix(anchors, count, low, high):
    size, rng = (96, 128), np.random.default_rng(2)
    rules = AssignConfig(method="task_aligned", candidates=7, reach=3)
    first, second = (random_cells(count, size, low, high, seed) for seed in (3, 4))
    most = max(len(first), len(second))
    cells = np.zeros((2, most, 4), np.float32)
    cells[0, : len(first)], cells[1, : len(second)] = first, second
    classes = np.full((2, most), -1, np.int32)
    classes[0, : len(first)] = rng.integers(0, 3, len(first))
    classes[1, : len(second)] = rng.integers(0, 3, len(second))
    base, _, _, _ = locations(size, anchors)
    boxes = (base + rng.normal(0, 2, (2, *base.shape))).astype(np.float32)
    scores = rng.uniform(0.01, 0.9, (2, len(base), 3)).astype(np.float32)
    found = assign(
        cells, classes >= 0, size, anchors, rules, 2, 4, predictions=Predictions(boxes, scores, classes)
    )
    for k, own in enumerate((first, second)):
        owner, alignment = aligned_by_hand(
            own, classes[k, : len(own)], size, anchors, rules, boxes[k].astype(np.float64), scores[k]
        )
        state, matched = array(found.state)[k], array(found.matched)[k]
        same = (state == State.POSITIVE) == (owner >= 0)
        assert same.mean() > 0.999
        taken = (owner >= 0) & (state == State.POSITIVE)
        assert taken.sum() >= min(len(own), 3)
        agree = taken & (matched == owner)
        assert agree.sum() >= 0.99 * taken.sum()
        np.testing.assert_allclose(array(found.alignment)[k][agree], alignment[agree], rtol=2e-3, atol=1e-5)
        assert (array(found.alignment)[k][state == State.NEGATIVE] == 0).all()


def test_a_cell_between_all_locations_is_not_lost():
    # 2 x 2 px in the middle between four locations of stride 4 (centres at 2, 6, 10, ...).
    cells = np.array([[[31, 31, 33, 33]]], np.float32)
    base, _, _, _ = locations((64, 64), POINTS)
    seen = Predictions(
        base[None].astype(np.float32), np.full((1, len(base), 1), 0.01, np.float32), np.int32([[0]])
    )
    rules = AssignConfig(method="task_aligned")
    found = assign(cells, np.ones((1, 1), bool), (64, 64), POINTS, rules, 2, 4, predictions=seen)
    positive = np.flatnonzero(array(found.state)[0] == State.POSITIVE)
    assert positive.tolist() == [8 * 16 + 8]
    found = assign(cells, np.ones((1, 1), bool), (64, 64), POINTS, AssignConfig(method="atss"), 2, 4)
    assert (array(found.state) == State.POSITIVE).sum() >= 1


@pytest.mark.parametrize("method", ["atss", "task_aligned"])
def test_two_thousand_cells_by_the_other_methods_need_no_full_matrix(method):
    cells = random_cells(2100, (512, 512), 10, 30, 0)[:2000]
    places = sum(rows * columns for rows, columns in feature_sizes(512, 512, 2, 4))

    @tf.function
    def run(cells, boxes, scores):
        count = tf.shape(cells)[:2]
        seen = Predictions(boxes, scores, tf.zeros(count, tf.int32))
        found = assign(
            cells, tf.ones(count, bool), (512, 512), POINTS, AssignConfig(method=method), 2, 4, 2000, seen
        )
        return found.state, found.matched

    signature = [tf.TensorSpec((1, 2000, 4)), tf.TensorSpec((1, places, 4)), tf.TensorSpec((1, places, 1))]
    graph = run.get_concrete_function(*signature).graph
    largest = max(
        int(np.prod(output.shape))
        for op in graph.get_operations()
        for output in op.outputs
        if output.shape.rank
    )
    assert largest < 2000 * places / 30
    base, _, _, _ = locations((512, 512), POINTS)
    state, matched = run(cells[None], base[None].astype(np.float32), np.full((1, places, 1), 0.1, np.float32))
    taken = state[0].numpy() == State.POSITIVE
    assert len(np.unique(matched[0].numpy()[taken])) > 1500


@pytest.mark.parametrize("method", ["atss", "task_aligned"])
def test_padding_alone_gives_no_target_by_any_method(method):
    cells = np.zeros((2, 3, 4), np.float32)
    base, _, _, _ = locations((64, 64), POINTS)
    seen = Predictions(
        np.tile(base[None], (2, 1, 1)).astype(np.float32),
        np.full((2, len(base), 1), 0.1, np.float32),
        np.full((2, 3), -1, np.int32),
    )
    rules = AssignConfig(method=method)
    found = assign(cells, np.zeros((2, 3), bool), (64, 64), POINTS, rules, 2, 4, predictions=seen)
    assert (array(found.state) == State.NEGATIVE).all()
