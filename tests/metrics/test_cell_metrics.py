from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import Patch, patch_to_rle
from effdet_tf.metrics.cell_metrics import match_cells, score_cells
from effdet_tf.metrics.instances import Instance, iterate_instances
from effdet_tf.metrics.matching import count_matches, match_boxes

HEIGHT, WIDTH = 60, 80


def full(y, x, h, w):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def rle(mask):
    return patch_to_rle(Patch(0, 0, mask), HEIGHT, WIDTH)


def case(true, found, ignored=(), kinds=None):
    """`true`, `ignored`: image -> masks; `found`: image -> (mask, score)."""
    images = [
        {"id": i, "height": HEIGHT, "width": WIDTH, "cell_type": (kinds or {}).get(i, "")}
        for i in sorted(true)
    ]
    cells = [
        {"image_id": i, "category_id": 1, "segmentation": rle(m), "iscrowd": crowd}
        for crowd, source in ((0, true), (1, dict(ignored)))
        for i, masks in source.items()
        for m in masks
    ]
    predictions = [
        {"image_id": i, "category_id": 1, "score": s, "segmentation": rle(m)}
        for i, masks in found.items()
        for m, s in masks
    ]
    return {"images": images, "annotations": cells, "categories": [{"id": 1, "name": "cell"}]}, predictions


def test_figures_of_a_case_worked_out_by_hand():
    # True: A 10x10, B 10x10, C 4x5.
    # Found: a covers 8 rows of A (80 of 100 px), b is B moved by 5 rows (50 shared), f is false (6x5).
    # IoU: A-a 80 / 100 = .8; B-b 50 / 150 = 1/3; C none. At .5: TP 1, FP 2, FN 2.
    true = {1: [full(0, 0, 10, 10), full(0, 20, 10, 10), full(40, 40, 4, 5)]}
    found = {1: [(full(0, 0, 8, 10), 0.9), (full(5, 20, 10, 10), 0.8), (full(50, 0, 6, 5), 0.7)]}
    figures = score_cells(*case(true, found), score_threshold=0.5)["all"]
    assert (figures["true_cells"], figures["found_cells"]) == (3, 3)
    assert figures["precision"] == pytest.approx(1 / 3)
    assert figures["recall"] == pytest.approx(1 / 3)
    assert figures["f1"] == pytest.approx(2 / 6)  # 2 TP / (2 TP + FP + FN)
    assert figures["pq"] == pytest.approx(0.8 / 3)  # .8 / (1 + 2/2 + 2/2)
    assert figures["matching_accuracy50"] == pytest.approx(1 / 5)
    # .50 .55 .60 .65 .70 .75: TP/(TP+FP+FN) = 1/5; at .80 the IoU must be above; four more zeros.
    assert figures["sartorius"] == pytest.approx(6 * 0.2 / 10)
    # AJI: shared 80 + 50; union 100 + 150, C's 20 and f's 30 alone.
    assert figures["aji"] == pytest.approx(130 / 300)
    # SEG: a covers 80 % of A: IoU .8; b covers just half of B, not more: 0; C: 0.
    assert figures["seg"] == pytest.approx(0.8 / 3)
    assert figures["count_mean_error"] == 0
    assert figures["count_bias"] == 0
    assert figures["count_correlation"] is None  # one image has no correlation


def test_matches_and_errors_are_added():
    # Three matches, one false cell, two missed: numbers whose sums differ from what their bits make.
    true = {1: [full(0, 12 * k, 8, 8) for k in range(5)]}
    found = {1: [*[(full(0, 12 * k, 8, 8), 0.9) for k in range(3)], (full(40, 0, 5, 5), 0.8)]}
    figures = score_cells(*case(true, found), score_threshold=0.5)["all"]
    assert figures["matching_accuracy50"] == pytest.approx(3 / (3 + 1 + 2))


@pytest.mark.parametrize(("rows", "found"), [(3, 1), (5, 1), (6, 0)])  # of 10, half is not yet more than half
def test_a_prediction_mostly_in_an_ignored_region_is_left_out(rows, found):
    truth, predictions = case({1: []}, {1: [(full(10, 10, 10, 10), 0.9)]}, {1: [full(10, 10, rows, 10)]})
    assert score_cells(truth, predictions, score_threshold=0.5)["all"]["found_cells"] == found


def test_boxes_of_unequal_size_overlap_by_their_iou():
    truth = [Instance(1, [0, 0, 2, 3], 6, None), Instance(1, [10, 0, 6, 2], 12, None)]
    predictions = [
        Instance(1, [0, 0, 4, 4], None, None, score=0.9),
        Instance(1, [12, 1, 6, 3], None, None, score=0.8),
    ]
    match = match_boxes(truth, predictions, overlaps=True)
    assert match.overlap_gt.tolist() == match.overlap_pred.tolist() == [0, 1]
    assert match.overlap_area.tolist() == [6, 4]
    np.testing.assert_allclose(match.iou, [6 / 16, 4 / (12 + 18 - 4)])


def test_an_iou_of_just_a_half_is_no_match():
    true, found = {1: [full(0, 0, 10, 10)]}, {1: [(full(0, 0, 5, 10), 0.9)]}
    assert score_cells(*case(true, found), score_threshold=0.5)["all"]["f1"] == 0
    found = {1: [(full(0, 0, 6, 10), 0.9)]}
    figures = score_cells(*case(true, found), score_threshold=0.5)["all"]
    assert figures["f1"] == 1
    assert figures["sartorius"] == pytest.approx(2 / 10)  # above .50 and .55, not above .60


def test_perfect_masks_score_1_everywhere_with_1500_cells():
    masks = [full(y, x, 1, 2) for y in range(0, HEIGHT, 2) for x in range(0, WIDTH - 2, 3)]
    places = {1: masks[:750], 2: masks[:750]}
    found = {i: [(m, 0.9) for m in cells] for i, cells in places.items()}
    report = score_cells(*case(places, found))
    assert report["all"]["true_cells"] == 1500
    for name in ("sartorius", "f1", "precision", "recall", "pq", "aji", "seg", "matching_accuracy50"):
        assert report["all"][name] == pytest.approx(1.0), name
    assert report["best_sartorius"] == pytest.approx(1.0)


def test_no_prediction_scores_0_and_an_image_without_cells_breaks_nothing():
    true = {1: [full(0, 0, 5, 5)], 2: []}
    report = score_cells(*case(true, {}, kinds={1: "a", 2: "b"}))
    assert report["by"]["a"]["sartorius"] == 0
    assert report["by"]["b"]["sartorius"] == 1  # nothing to find, nothing found
    assert report["all"]["sartorius"] == pytest.approx(0.5)
    assert report["all"]["f1"] == 0
    assert report["all"]["count_mean_error"] == pytest.approx(0.5)
    assert report["by"]["b"]["f1"] is None and report["by"]["b"]["aji"] is None
    json.dumps(report, allow_nan=False)
    report = score_cells(
        *case(true, {2: [(full(0, 0, 5, 5), 0.9)]}, kinds={1: "a", 2: "b"}), score_threshold=0.5
    )
    assert report["by"]["b"]["sartorius"] == 0  # one false cell on the empty image


def test_counts():
    true = {1: [full(0, 5 * n, 3, 3) for n in range(2)], 2: [full(0, 5 * n, 3, 3) for n in range(6)]}
    found = {
        1: [(full(0, 5 * n, 3, 3), 0.9) for n in range(5)],  # 3 too many
        2: [(full(0, 5 * n, 3, 3), 0.9) for n in range(5)]
        + [(full(30, 30, 3, 3), 0.2)],  # 1 too few above .5
    }
    figures = score_cells(*case(true, found), score_threshold=0.5)["all"]
    assert figures["count_mean_true"] == 4
    assert figures["count_mean_error"] == 2
    assert figures["count_bias"] == 1
    assert figures["count_correlation"] is None  # 5 and 5: no spread
    figures = score_cells(*case(true, found), score_threshold=0.1)["all"]
    assert (figures["count_mean_error"], figures["count_bias"]) == (1.5, 1.5)
    assert figures["count_correlation"] == pytest.approx(1.0)


def match_images(ground_truth, predictions):
    return {case.image["id"]: match_cells(case) for case in iterate_instances(ground_truth, predictions)}


def test_found_cells_share_no_pixel_and_the_higher_score_wins():
    low, high = full(0, 0, 10, 10), full(0, 5, 10, 10)
    ground_truth, found = case({1: [high]}, {1: [(low, 0.3), (high, 0.8), (full(0, 6, 10, 10), 0.5)]})
    match = match_images(ground_truth, found)[1]
    # `low` keeps 50 of its 100 pixels, just enough; the third keeps 10 of 100 and goes.
    assert match.pred_areas.tolist() == [100, 50]
    assert match.scores.tolist() == [0.8, 0.3]


def test_detections_on_ignored_regions_are_not_evaluated():
    true = {1: [full(0, 0, 10, 10), full(30, 0, 10, 10)]}
    found = {1: [(full(0, 0, 10, 10), 0.9), (full(32, 40, 8, 8), 0.8), (full(30, 0, 10, 10), 0.7)]}
    ignored = {1: [full(25, 0, 30, 70)]}  # the second true cell lies inside, too, and its match still counts
    figures = score_cells(*case(true, found, ignored), score_threshold=0.5)["all"]
    assert (figures["true_cells"], figures["found_cells"], figures["f1"]) == (2, 2, 1.0)
    assert figures["count_mean_error"] == 0
    assert score_cells(*case(true, found), score_threshold=0.5)["all"]["f1"] == pytest.approx(4 / 5)


def random_case(seed):
    """Three images whose true cells overlap and are even doubled; found cells near them, and false ones."""
    random = np.random.default_rng(seed)
    true, found = {}, {}
    for image in (1, 2, 3):
        true[image], found[image] = [], []
        for _ in range(12):
            y, x = random.integers(0, 40, 2)
            h, w = random.integers(4, 16, 2)
            true[image].append(full(y, x, h, w))
            if random.random() < 0.2:
                true[image].append(full(y, x, h + 1, w))
            if random.random() < 0.8:
                dy, dx, dh, dw = random.integers(-1, 2, 4)
                score = float(random.random())
                found[image].append((full(max(y + dy, 0), max(x + dx, 0), h + dh, w + dw), score))
    return true, found


def brute_force(true, found, threshold):
    """Sartorius metric, F1 and PQ from full-frame masks and an assignment, apart from the library."""
    metric, hits, iou_sum, total_true, total_found = [], 0, 0.0, 0, 0
    for image, cells in true.items():
        taken, kept = np.zeros((HEIGHT, WIDTH), bool), []
        for mask, score in sorted(found[image], key=lambda pair: -pair[1]):
            rest = mask & ~taken
            if score >= threshold and rest.sum() >= max(1, mask.sum() / 2):
                kept.append(rest)
                taken |= rest
        iou = np.array([[(a & b).sum() / (a | b).sum() for b in cells] for a in kept]).reshape(
            len(kept), len(cells)
        )
        per_threshold = []
        for cut in range(50, 100, 5):
            allowed = iou > cut / 100
            rows, columns = linear_sum_assignment(np.where(allowed, 1 + 1e-3 * iou, 0), maximize=True)
            good = allowed[rows, columns]
            per_threshold.append(good.sum() / (len(cells) + len(kept) - good.sum()))
            if cut == 50:
                hits += good.sum()
                iou_sum += iou[rows, columns][good].sum()
        metric.append(np.mean(per_threshold))
        total_true += len(cells)
        total_found += len(kept)
    pq = iou_sum / (hits + (total_true + total_found - 2 * hits) / 2)
    return np.mean(metric), 2 * hits / (total_true + total_found), pq


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8])
def test_equals_a_brute_force_assignment(seed, threshold):
    true, found = random_case(seed)
    figures = score_cells(*case(true, found), score_threshold=threshold)["all"]
    metric, f1, pq = brute_force(true, found, threshold)
    assert 0 < metric < 1
    assert figures["sartorius"] == pytest.approx(metric, abs=1e-12)
    assert figures["f1"] == pytest.approx(f1, abs=1e-12)
    assert figures["pq"] == pytest.approx(pq, abs=1e-12)


def test_the_best_score_is_the_best_of_the_grid():
    true, found = random_case(7)
    grid = (0.1, 0.3, 0.5, 0.7)
    report = score_cells(*case(true, found), grid=grid)
    values = {t: brute_force(true, found, t)[0] for t in grid}
    assert report["score_threshold"] == max(grid, key=values.get)
    assert report["chosen"] == "best here"
    assert report["best_sartorius"] == pytest.approx(max(values.values()))
    given = score_cells(*case(true, found), score_threshold=0.7, grid=grid)
    assert given["chosen"] == "given"
    assert given["all"]["sartorius"] == pytest.approx(values[0.7])
    assert given["best_score_threshold"] == report["score_threshold"]


def test_the_report_score_has_the_best_f1_of_an_image():
    """Of ten cells four are faint, and found with an IoU of .56.

    The Sartorius metric is .6 without them and (2 x 1 + 8 x 6/14) / 10 = .543 with them: it prefers .6. The
    F1 is 2 x 6 / 16 = .75 without them and 1 with them.
    """
    cells = [full(0, 7 * k, 5, 5) for k in range(10)]
    parts = [mask.copy() for mask in cells]
    for k, mask in enumerate(parts):  # 14 of 25 px
        mask[:, 7 * k + 3 :] = mask[4, 7 * k + 2] = False
    assert parts[0].sum() == 14
    found = [(m, 0.8) for m in cells[4:]] + [(m, 0.4) for m in parts[:4]]
    report = score_cells(*case({1: cells}, {1: found}), grid=(0.2, 0.4, 0.6, 0.8))
    # Ties go to the lowest score: .6 stands for .8, .2 for .4.
    assert report["best_score_threshold"] == report["score_threshold"] == 0.6
    assert report["best_sartorius"] == pytest.approx(0.6)
    assert report["all"]["mean_f1"] == pytest.approx(0.75)
    assert report["report_score"] == 0.2
    at_score = score_cells(*case({1: cells}, {1: found}), score_threshold=0.2)["all"]
    assert at_score["sartorius"] == pytest.approx(0.2 + 0.8 * 6 / 14)
    assert at_score["mean_f1"] == 1.0


def test_every_image_weighs_alike_in_the_mean_f1():
    """Image 1: 20 cells, of score .3; the others: one cell of score .9, and a false one of .5.

    At .2 the F1 of the images are 1, 2/3, 2/3, ..., at .6 they are 0, 1, 1, ...: of three images the lower
    score is the better one, of five the higher, though with counts pooled it has 8/28, the other 48/52.
    """
    many = [full(6 * (k // 10), 7 * (k % 10), 5, 5) for k in range(20)]
    one, false = full(0, 0, 5, 5), full(30, 30, 5, 5)
    sparse = [(one, 0.9), (false, 0.5)]
    for images, means, chosen in ((2, (7 / 9, 2 / 3), 0.2), (4, (11 / 15, 0.8), 0.6)):
        true = {1: many} | {2 + k: [one] for k in range(images)}
        found = {1: [(mask, 0.3) for mask in many]} | {2 + k: sparse for k in range(images)}
        report = score_cells(*case(true, found), grid=(0.2, 0.6))
        for score, mean in zip((0.2, 0.6), means, strict=True):
            at_score = score_cells(*case(true, found), score_threshold=score)["all"]
            assert at_score["mean_f1"] == pytest.approx(mean)
        assert report["report_score"] == chosen


def test_an_image_without_cells_speaks_for_the_score_at_which_nothing_is_found():
    """Image 1: one of two cells at .3, both at .2; images 2 and 3: none, and a false one of .2.

    At .1 the F1 of the images are 1, 0, 0; at .3 they are 2/3, 1, 1. At .9 they would be 0, 1, 1, which the
    one of .3 must not lose to; without it, nothing matches there, and no score is told.
    """
    cells, spot = [full(0, 0, 5, 5), full(0, 20, 5, 5)], full(30, 30, 5, 5)
    found = {1: [(cells[0], 0.3), (cells[1], 0.2)], 2: [(spot, 0.2)], 3: [(spot, 0.2)]}
    report = score_cells(*case({1: cells, 2: [], 3: []}, found), grid=(0.1, 0.3, 0.9))
    assert report["report_score"] == 0.3
    assert report["all"]["mean_f1"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    empty = score_cells(*case({1: cells, 2: [], 3: []}, {2: [(spot, 0.2)]}), grid=(0.1, 0.3))
    assert empty["report_score"] is None and empty["best_sartorius"] == pytest.approx(2 / 3)


def test_a_score_at_which_nothing_matches_is_not_reported_by():
    """Two images without cells have a false one of .5, the third its cell at .4: any score is bad for one."""
    cell, spot = full(0, 0, 5, 5), full(30, 30, 5, 5)
    found = {1: [(cell, 0.4)], 2: [(spot, 0.5)], 3: [(spot, 0.5)]}
    report = score_cells(*case({1: [cell], 2: [], 3: []}, found), grid=(0.3, 0.6))
    assert report["report_score"] == 0.3  # mean F1 1/3; at .6 it is 2/3, and the cell is lost


def test_a_match_is_counted_alike_at_any_score_and_from_scratch():
    ground_truth, found = case(*random_case(11))
    matches = match_images(ground_truth, found)
    for score in (0.2, 0.6):
        only = match_images(ground_truth, [f for f in found if f["score"] >= score])
        for image, match in matches.items():
            prefix, scratch = count_matches(match, score), count_matches(only[image], 0.0)
            assert (prefix.found, prefix.matched.tolist()) == (scratch.found, scratch.matched.tolist())
            assert (prefix.aji_overlap, prefix.aji_union) == (scratch.aji_overlap, scratch.aji_union)


def test_a_prediction_on_an_unknown_image_is_named():
    ground_truth, found = case({1: [full(0, 0, 5, 5)]}, {1: [(full(0, 0, 5, 5), 0.9)]})
    with pytest.raises(UserError, match="image_id 4"):
        score_cells(ground_truth, [found[0] | {"image_id": 4}])
