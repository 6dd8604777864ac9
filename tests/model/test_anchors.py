from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from effdet_tf.config import AnchorConfig
from effdet_tf.model.anchors import anchor_recall, at, feature_sizes, grid, shapes, suggest_anchors


def all_anchors(*arguments):
    return [ops.convert_to_numpy(level) for level in grid(*arguments)]


def test_d0_has_the_published_number_of_anchors():
    levels = all_anchors(512, 512, AnchorConfig(), 3, 7)
    assert [len(level) for level in levels] == [n * n * 9 for n in (64, 32, 16, 8, 4)]
    assert sum(map(len, levels)) == 49_104
    assert all(level.dtype == np.float32 for level in levels)


def test_the_first_nine_anchors_of_d0():
    # Stride 8, centre (4, 4); sides 32 x 2**(0, 1/3, 2/3) = 32, 40.3175, 50.7968, each with
    # width / height 1, 2, 0.5: height = side / sqrt(ratio), width = side * sqrt(ratio).
    expected = [
        (32.0, 32.0),
        (22.6274, 45.2548),
        (45.2548, 22.6274),
        (40.3175, 40.3175),
        (28.5088, 57.0175),
        (57.0175, 28.5088),
        (50.7968, 50.7968),
        (35.9188, 71.8376),
        (71.8376, 35.9188),
    ]
    first = all_anchors(512, 512, AnchorConfig(), 3, 7)[0][:9]
    by_hand = [(4 - h / 2, 4 - w / 2, 4 + h / 2, 4 + w / 2) for h, w in expected]
    np.testing.assert_allclose(first, by_hand, atol=1e-3)


def test_locations_are_row_major_and_levels_double():
    config = AnchorConfig(sizes=((10.0,), (30.0,)), ratios=(1.0,))
    fine, coarse = all_anchors(16, 32, config, 2, 3)
    centers = (fine[:, :2] + fine[:, 2:]) / 2
    assert centers[:3].tolist() == [[2, 2], [2, 6], [2, 10]]  # along the row first
    assert centers[8].tolist() == [6, 2]  # 32 / 4 = 8 columns, then the next row
    assert ((coarse[:, :2] + coarse[:, 2:]) / 2)[[0, 1, 4]].tolist() == [[4, 4], [4, 12], [12, 4]]
    assert np.allclose(fine[:, 2:] - fine[:, :2], 10)
    assert np.allclose(coarse[:, 2:] - coarse[:, :2], 30)


def test_an_input_off_the_strides_spreads_its_anchors_evenly():
    # 20 px at stride 8: ceil to 3 rows, each 20 / 3 px apart; 9 px: 2 columns, 4.5 px apart.
    assert feature_sizes(20, 9, 3, 3) == [(3, 2)]
    (level,) = all_anchors(20, 9, AnchorConfig(sizes=((6.0,),), ratios=(1.0,)), 3, 3)
    centers = (level[:, :2] + level[:, 2:]) / 2
    expected = [[y, x] for y in (10 / 3, 10, 50 / 3) for x in (2.25, 6.75)]
    np.testing.assert_allclose(centers, expected, atol=1e-5)


def test_anchors_sized_by_the_stride_follow_the_true_one():
    # Rows 20 / 3 px apart, columns 9 / 2: four strides are 26.67 px high and 18 px wide.
    (level,) = all_anchors(20, 9, AnchorConfig(scale=4, octaves=1, ratios=(1.0,)), 3, 3)
    np.testing.assert_allclose(level[:, 2:] - level[:, :2], [[80 / 3, 18]] * 6, rtol=1e-6)
    # Explicit sizes are pixels whatever the input.
    (level,) = all_anchors(20, 9, AnchorConfig(sizes=((6.0,),), ratios=(1.0,)), 3, 3)
    np.testing.assert_allclose(level[:, 2:] - level[:, :2], 6, rtol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (301, 333), (17, 23), (1, 1), (520, 704)])
def test_feature_sizes_are_those_of_halving_convolutions(height, width):
    for level, size in enumerate(feature_sizes(height, width, 1, 7), start=1):
        assert size == (-(-height // 2**level), -(-width // 2**level))


def test_explicit_sizes_belong_to_their_level():
    sizes = ((11.0, 18.0), (28.0, 40.0), (56.0, 80.0), (112.0, 160.0))
    config = AnchorConfig(sizes=sizes, ratios=(1.0, 2.0, 0.5))
    assert shapes(config, 2, 2)[0].tolist() == [11, 11]
    assert shapes(config, 5, 2)[0].tolist() == [112, 112]
    # Size first, then ratio.
    assert shapes(config, 2, 2)[3].tolist() == [18, 18]
    assert shapes(config, 2, 2)[1] == pytest.approx([11 / 2**0.5, 11 * 2**0.5])


def test_recall_by_hand():
    config = AnchorConfig(sizes=((16.0,),), ratios=(1.0,))
    # With one position the cell lies a quarter stride off the anchor: 1 px each way at stride 4.
    # 15 * 15 = 225 px in common of 2 * 256 - 225 = 287: IoU 0.784.
    recall = anchor_recall([[16, 16]], config, (2,), thresholds=(0.78, 0.79), positions=1)
    assert recall.tolist() == [1, 0]
    # 8 px cells lie inside: 64 / 256 = 0.25.
    recall = anchor_recall([[16, 16], [8, 8]], config, (2,), thresholds=(0.2, 0.26), positions=1)
    assert recall.tolist() == [1, 0.5]


def test_recall_averages_over_positions_and_takes_the_best_level():
    config = AnchorConfig(sizes=((16.0,), (64.0,)), ratios=(1.0,))
    sizes = [[16, 16], [64, 64]]
    assert anchor_recall(sizes, config, (2, 3), thresholds=(0.6,)).tolist() == [1]
    # At stride 16 half of the offsets (0.8 to 7.2 px by two axes) lose a 16 px cell at IoU .6.
    far = anchor_recall([[16, 16]], AnchorConfig(sizes=((16.0,),), ratios=(1.0,)), (4,), thresholds=(0.6,))
    assert 0 < far[0] < 1
    assert anchor_recall(np.zeros((0, 2)), config, (2, 3)).tolist() == [0, 0, 0, 0]


def cells(low, high, count=2000, seed=0):
    rng = np.random.default_rng(seed)
    side = rng.uniform(low, high, count)
    ratio = np.exp(rng.normal(0, 0.25, count))
    return np.stack([side / np.sqrt(ratio), side * np.sqrt(ratio)], axis=1)


def test_each_level_is_given_its_own_cells():
    mixed = np.concatenate([cells(12, 24), cells(30, 50), cells(70, 100), cells(130, 200)])
    found = suggest_anchors(mixed, (2, 3, 4, 5))
    assert len(found.sizes) == 4
    bands = [(0, 28), (28, 56), (56, 112), (112, 1000)]  # 3.5 strides and the double of it
    for sizes, (low, high) in zip(found.sizes, bands, strict=True):
        assert len(sizes) == 2
        assert all(low <= s < high for s in sizes)
    # Quartiles of the smallest: uniform 12..24, so 15 and 21.
    assert found.sizes[0] == pytest.approx((15, 21), abs=0.5)
    assert found.ratios[0] == 1.0


def test_small_cells_are_found_better_than_by_a_geometric_spread():
    small = cells(16, 24)
    levels = (2, 3, 4, 5)
    found = suggest_anchors(small, levels)
    spread = AnchorConfig(scale=2.0, octaves=2)  # 8..11 px at stride 4, 16..23 px at stride 8
    ours, naive = (anchor_recall(small, config, levels, (0.5, 0.6, 0.7)) for config in (found, spread))
    assert ours[0] > 0.99
    assert (ours >= naive).all()
    assert ours.sum() > naive.sum() + 0.1


def test_a_level_without_cells_stays_usable():
    found = suggest_anchors(cells(12, 20), (2, 3, 4))
    for level, sizes in zip((3, 4), found.sizes[1:], strict=True):
        assert all(3.5 * 2**level < s < 7 * 2**level for s in sizes)


def test_elongated_cells_get_elongated_anchors():
    long = np.array([[10, 28], [28, 10]] * 300) * np.random.default_rng(0).uniform(0.8, 1.2, (600, 1))
    assert max(suggest_anchors(long, (2, 3)).ratios) >= 2
    assert suggest_anchors(long, (2, 3), ratios=(1.0,)).ratios == (1.0,)
    round_cells = np.tile(np.random.default_rng(0).uniform(14, 20, (300, 1)), 2)
    assert max(suggest_anchors(round_cells, (2, 3)).ratios) < 2


def test_magnified_training_needs_larger_anchors():
    plain = suggest_anchors(cells(16, 20), (2,))
    zoomed = suggest_anchors(cells(16, 20), (2,), scale_range=(1.0, 2.0))
    assert zoomed.sizes[0][1] > 1.3 * plain.sizes[0][1]


def test_no_cells_no_anchors():
    with pytest.raises(ValueError, match="no cell sizes"):
        suggest_anchors(np.zeros((0, 2)), (2, 3))


def test_cells_of_one_size_get_no_two_equal_anchors() -> None:
    found = suggest_anchors(np.full((500, 2), 20.0), (2, 3), scales_per_level=2)
    assert found.sizes[0] == (20.0, 23.0)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (200, 267), (41, 67)])
@pytest.mark.parametrize("sizes", [(), ((9.0, 14.0), (20.0, 30.0), (40.0, 50.0))])
def test_single_anchors_are_those_of_the_grid(height, width, sizes):
    config = AnchorConfig(sizes=sizes)
    whole = np.concatenate([np.array(level) for level in grid(height, width, config, 3, 5)])
    index = np.random.default_rng(0).permutation(len(whole)).astype(np.int32)
    found = at(ops.convert_to_tensor(index), height, width, config, 3, 5)
    np.testing.assert_array_equal(np.array(found), whole[index])
