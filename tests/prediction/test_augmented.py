from __future__ import annotations

import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.geometry.resample import resample_bitmaps
from effdet_tf.prediction.augmented import AugmentedPredictor, View, make_views, merge
from effdet_tf.prediction.predictor import Predictor
from effdet_tf.prediction.results import Result
from effdet_tf.presets import preset


def result(boxes, scores, classes=None, masks=None, size=(40, 60)):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    if masks is None:
        masks = np.full((count, 4, 4), 255, np.uint8)
    classes = np.zeros(count, np.int32) if classes is None else np.array(classes, np.int32)
    return Result(boxes, np.array(scores, np.float32), classes, masks, boxes.copy(), *size, ("a", "b"))


class BlobFinder(Predictor):
    """Finds the bright rectangles of an image; the mask is the brightness inside."""

    def __init__(self):
        super().__init__(preset("cells-lite0").override(["class_names=[cell, other]", "category_ids=[1, 2]"]))

    def _detect(self, image, part_of, score=0):
        import cv2

        count, _, stats, _ = cv2.connectedComponentsWithStats((image > 100).astype(np.uint8))
        boxes, masks, scores = [], [], []
        for x, y, w, h, _ in stats[1:count]:
            boxes.append([y, x, y + h, x + w])
            masks.append(cv2.resize(image[y : y + h, x : x + w], (4, 4), interpolation=cv2.INTER_AREA))
            scores.append(image[y : y + h, x : x + w].max() / 255)
        order = np.argsort(-np.array(scores), kind="stable")
        boxes = np.array(boxes, np.float32).reshape(-1, 4)[order]
        masks = np.array(masks, np.uint8).reshape(-1, 4, 4)[order]
        classes = np.zeros(len(boxes), np.int32)
        scores = np.array(scores, np.float32)[order]
        return Result(boxes, scores, classes, masks, boxes.copy(), *image.shape, ("cell", "other"))


def picture():
    image = np.zeros((40, 60), np.uint8)
    image[4:12, 8:24] = 200
    image[4:8, 8:16] = 120  # a darker corner: masks must turn with the image
    image[20:36, 40:48] = 240
    return image


@pytest.mark.parametrize("view", make_views(scales=(1.0, 2.0)))
def test_every_view_finds_its_way_back(view):
    image, finder = picture(), BlobFinder()
    wanted, found = finder.predict(image), finder.predict(view.enter(image))
    back = view.leave(found, *image.shape)
    assert len(back) == len(wanted) == 2
    np.testing.assert_allclose(back.boxes, wanted.boxes, atol=1.0 if view.scale != 1 else 0)
    np.testing.assert_allclose(back.mask_boxes, back.boxes)
    if view.scale == 1:
        np.testing.assert_array_equal(back.masks, wanted.masks)


def test_all_views_are_different_and_eight_a_scale():
    views = make_views(scales=(1.0, 1.5))
    assert len(set(views)) == 16
    assert make_views(flips=False) == [View(1.0, False, False, False)]
    image = np.arange(12).reshape(3, 4)
    assert len({view.enter(image).tobytes() + bytes(view.enter(image).shape) for view in make_views()}) == 8


def test_what_all_views_agree_on_comes_as_it_is():
    image, finder = picture(), BlobFinder()
    found = AugmentedPredictor(finder, make_views()).predict(image)
    wanted = finder.predict(image)
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-4)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5)
    assert np.abs(found.masks.astype(int) - wanted.masks.astype(int)).max() <= 1


def test_boxes_and_masks_are_means_weighted_by_score():
    one = result([[0, 0, 10, 10]], [0.9], masks=np.full((1, 4, 4), 200, np.uint8))
    two = result([[0, 0, 10, 13]], [0.3], masks=np.full((1, 4, 4), 100, np.uint8))
    both = merge([one, two], 0.5, False, 100)
    assert len(both) == 1
    assert both.boxes[0] == pytest.approx([0, 0, 10, 10.75])
    assert both.scores[0] == pytest.approx(0.6)
    # The mask box is 10.75 wide: its last column ends where the first view saw nothing.
    assert both.masks[0, :, 0].tolist() == [175] * 4


def test_what_one_view_alone_shows_counts_its_share():
    one = result([[0, 0, 10, 10], [20, 20, 30, 30]], [0.8, 0.6])
    both = merge([one, result([[0, 0, 10, 10]], [0.8])], 0.5, False, 100)
    assert both.scores.tolist() == pytest.approx([0.8, 0.3])


def test_a_view_counts_once_for_a_cell():
    # Two of one view that its own NMS let stand: the better one counts.
    one = result([[0, 0, 10, 10]], [0.9])
    two = result([[0, 1, 10, 11], [0, -1, 10, 9]], [0.8, 0.7])
    both = merge([one, two], 0.5, False, 100)
    assert both.scores.tolist() == pytest.approx([0.85])


@pytest.mark.parametrize(("per_class", "count"), [(False, 1), (True, 2)])
def test_classes_stay_apart_where_they_are_told_apart(per_class, count):
    one, two = result([[0, 0, 10, 10]], [0.9], [0]), result([[0, 0, 10, 10]], [0.8], [1])
    assert len(merge([one, two], 0.5, per_class, 100)) == count


def test_nothing_found_and_too_much_found():
    none = merge([result([], []), result([], [])], 0.5, False, 100)
    assert len(none) == 0 and none.masks.shape == (0, 4, 4)
    many = result([[0, 0, 10, 10], [20, 20, 30, 30]], [0.8, 0.6])
    cut = merge([many], 0.5, False, 1)
    assert len(cut) == 1 and cut.truncated


def test_boxes_without_masks():
    one = result([[0, 0, 10, 10]], [0.9])
    bare = Result(one.boxes, one.scores, one.classes, None, None, 40, 60, ("a", "b"))
    both = merge([bare, bare], 0.5, False, 10)
    assert both.masks is None and both.mask_boxes is None
    assert both.scores.tolist() == pytest.approx([0.9])
    assert View(1.0, True, False, True).leave(bare, 60, 40).masks is None


def test_what_is_no_image_is_refused():
    with pytest.raises(UserError, match="an image is"):
        AugmentedPredictor(BlobFinder(), make_views()).predict(np.zeros((2, 3, 4, 5)))


def test_bitmaps_move_as_the_targets_of_the_mask_head_do():
    from training.mask_targets import mask_targets

    rng = np.random.default_rng(0)
    bitmaps = rng.integers(0, 256, (5, 12, 12), dtype=np.uint8)
    boxes = rng.uniform(0, 20, (5, 4)).astype(np.float32) + np.float32([0, 0, 20, 20])
    targets = boxes + rng.uniform(-4, 4, (5, 4)).astype(np.float32)
    expected = np.asarray(mask_targets(bitmaps[None], boxes[None], targets[None], 12))[0] * 255
    np.testing.assert_allclose(
        resample_bitmaps(bitmaps.astype(np.float32), boxes, targets, bitmaps.shape[-1]), expected, atol=0.01
    )
