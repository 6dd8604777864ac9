"""Result: order, filtering, masks, label images and COCO entries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import decode_rle
from effdet_tf.prediction.results import Result


def _result(boxes, scores, classes=None, masks: bool = True, size: int = 8) -> Result:
    """Cells that fill their whole boxes, in a frame of 40 x 60."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    return Result(
        boxes=boxes,
        scores=np.asarray(scores, np.float32),
        classes=np.zeros(count, np.int32) if classes is None else np.asarray(classes, np.int32),
        masks=np.full((count, size, size), 255, np.uint8) if masks else None,
        mask_boxes=boxes if masks else None,
        height=40,
        width=60,
        class_names=("round", "long"),
    )


def test_filter_keeps_scores_from_the_threshold_on():
    result = _result([[0, 0, 4, 4], [5, 5, 9, 9], [10, 10, 14, 14]], [0.9, 0.5, 0.25], [1, 0, 1])
    kept = result.filter(0.5)
    assert len(kept) == 2
    assert kept.classes.tolist() == [1, 0]
    assert kept.masks.shape == (2, 8, 8) and np.array_equal(kept.mask_boxes, kept.boxes)
    assert len(result.filter(0.95)) == 0 and result.filter(0.95).boxes.shape == (0, 4)
    assert len(result.take([])) == 0
    assert result.take([1]).scores.tolist() == [0.5]


def test_patches_lie_where_the_boxes_are():
    patches = _result([[3, 7, 9, 20]], [0.9]).patches()
    assert (patches[0].y, patches[0].x) == (3, 7)
    assert patches[0].mask.shape == (6, 13) and patches[0].mask.all()


def test_mask_box_may_be_larger_than_the_box():
    result = replace(_result([[10, 10, 20, 20]], [0.9]), mask_boxes=np.array([[8, 6, 22, 24]], np.float32))
    patch = result.patches()[0]
    assert (patch.y, patch.x, *patch.mask.shape) == (8, 6, 14, 18)


def test_label_image_gives_overlaps_to_the_higher_score():
    # 10 x 10 each; the second loses 4 columns, the third keeps only 3 of its 10 columns, the fourth is empty.
    result = _result([[0, 0, 10, 10], [0, 6, 10, 16], [0, 9, 10, 19], [20, 20, 30, 30]], [0.9, 0.8, 0.7, 0.6])
    result.masks[3] = 0
    labels, kept = result.label_image(min_visible=0.5)
    assert kept.tolist() == [0, 1]
    assert labels.dtype == np.int32 and labels.shape == (40, 60)
    assert (labels[:10, :10] == 1).all() and (labels[:10, 10:16] == 2).all()
    assert np.bincount(labels.ravel()).tolist() == [40 * 60 - 160, 100, 60]
    labels, kept = result.label_image(min_visible=0.2)
    assert kept.tolist() == [0, 1, 2] and (labels == 3).sum() == 30


def test_kept_indices_skip_empty_masks():
    result = _result([[0, 0, 5, 5], [10, 10, 15, 15]], [0.9, 0.8])
    result.masks[0] = 0
    labels, kept = result.label_image()
    assert kept.tolist() == [1] and labels[12, 12] == 1


def test_coco_entries_keep_overlaps_and_restore_category_ids():
    result = _result([[0, 0, 10, 10], [0, 6, 10, 16.5]], [0.9, 0.8], [0, 1])
    first, second = result.to_coco(77, [5, 9])
    assert (first["image_id"], first["category_id"], second["category_id"]) == (77, 5, 9)
    assert first["score"] == pytest.approx(0.9) and second["bbox"] == [6.0, 0.0, 10.5, 10.0]
    assert coco_mask.area(first["segmentation"]) == 100
    assert decode_rle(second["segmentation"])[:10, 6:16].all()
    assert second["segmentation"]["size"] == [40, 60] and isinstance(second["segmentation"]["counts"], str)


def test_empty_mask_is_an_empty_rle():
    result = _result([[0, 0, 10, 10]], [0.9])
    result.masks[:] = 0
    assert coco_mask.area(result.to_coco(1, [1, 2])[0]["segmentation"]) == 0
    assert result.patches() == [None]


def test_no_cells():
    result = _result([], [])
    labels, kept = result.label_image()
    assert len(result) == 0 and not labels.any() and kept.size == 0
    assert result.to_coco(1, [1, 2]) == [] and result.patches() == []


def test_boxes_only_network_refuses_label_images_but_gives_boxes():
    result = _result([[0, 0, 10, 10]], [0.9], masks=False)
    assert "segmentation" not in result.to_coco(1, [1, 2])[0]
    assert result.filter(0.5).masks is None
    with pytest.raises(UserError, match="no mask head"):
        result.label_image()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([0.1, 0.9], np.float32)}, "must fall"),
        ({"boxes": np.zeros((3, 4), np.float32)}, "do not match"),
        ({"classes": np.array([0, 2], np.int32)}, "2 names"),
        ({"classes": np.array([-1, 0], np.int32)}, "names"),
        ({"masks": None}, "go together"),
        ({"masks": np.zeros((2, 8, 7), np.uint8)}, "do not match"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(_result([[0, 0, 4, 4], [5, 5, 9, 9]], [0.9, 0.5]), **change)
