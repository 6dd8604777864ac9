"""Detection sets, annotated by boxes alone: converted without masks, and told from sets that lack a few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from effdet_tf import cli
from effdet_tf.data import check
from effdet_tf.data.ground_truth import cell_entries
from effdet_tf.data.manifest import load_manifest
from effdet_tf.data.record import iterate_records
from effdet_tf.data.store import RecordStore
from effdet_tf.presets import preset

BOXES = [[10.3, 5.6, 20.5, 8.25], [-4.0, 30.0, 10.5, 12.0], [40.0, 40.0, 0.4, 0.4], [70.0, 5.0, 5.0, 5.0]]
SQUARE = [[10.0, 20.0, 14.0, 20.0, 14.0, 26.0, 10.0, 26.0]]


def convert(folder: Path, annotations: list[dict[str, Any]], *options: str) -> Path:
    """One image of 64 x 60, categories 7 and 9; annotation k is k + 1 with the fields given."""
    (folder / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "a.png"), np.arange(3840, dtype=np.uint8).reshape(64, 60))
    document = {
        "images": [{"id": 4, "file_name": "a.png", "height": 64, "width": 60}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": k + 1, "image_id": 4, "category_id": 7, "iscrowd": 0, **given}
            for k, given in enumerate(annotations)
        ],
    }
    (folder / "boxes.json").write_text(json.dumps(document))
    out = folder / "out"
    code = cli.main(["convert", "coco", str(folder), str(out), "--workers", "1", "--quiet", *options])
    assert code == 0
    return out


@pytest.mark.parametrize("segmentation", ["absent", None, [], [[]]], ids=str)
def test_boxes_stay_as_annotated_and_no_mask_is_made_up(tmp_path, segmentation, capsys):
    given = {} if segmentation == "absent" else {"segmentation": segmentation}
    annotations = [{"bbox": box, "category_id": 7 + 2 * (k % 2)} | given for k, box in enumerate(BOXES)]
    out = convert(tmp_path, annotations)
    shown = capsys.readouterr().out
    assert "boxes only: train with --set model.mask.enabled=false" in shown
    manifest = load_manifest(out)
    assert not manifest.masks
    assert manifest.dropped == {"box outside the image": {"count": 1, "examples": ["a.png (annotation 4)"]}}
    assert manifest.notes.keys() == {"cell of fewer than 4 pixels"}
    (record,) = iterate_records(out)
    assert record.rles == [b"", b"", b""]
    assert record.classes.tolist() == [0, 1, 0]
    annotated = np.array([[5.6, 10.3, 13.85, 30.8], [30.0, -4.0, 42.0, 6.5], [40.0, 40.0, 40.4, 40.4]])
    np.testing.assert_allclose(record.annotated_boxes, annotated, rtol=1e-6)
    np.testing.assert_allclose(record.boxes, annotated.clip(0), rtol=1e-6)  # training stays in the frame
    assert (record.masks == 255).all()
    truth = cell_entries(record, [category["id"] for category in manifest.categories])
    assert all("segmentation" not in cell for cell in truth)
    np.testing.assert_allclose([cell["bbox"] for cell in truth], BOXES[:3], atol=1e-5)
    assert [cell["category_id"] for cell in truth] == [7, 9, 7]
    assert not RecordStore(out).masks


def test_a_detection_set_is_no_fault(tmp_path):
    out = convert(tmp_path, [{"bbox": BOXES[0]}], "--strict")
    assert not load_manifest(out).masks


def test_only_exact_duplicates_of_boxes_go(tmp_path):
    near = [BOXES[0][0] + 0.2, *BOXES[0][1:]]  # the same pixels, another box
    out = convert(tmp_path, [{"bbox": box} for box in (BOXES[0], near, BOXES[0])])
    (record,) = iterate_records(out)
    assert len(record.rles) == 2
    assert load_manifest(out).dropped["exact double of a cell"]["count"] == 1


def test_a_set_with_masks_stays_one_where_some_are_missing(tmp_path):
    out = convert(tmp_path, [{"bbox": [10, 20, 4, 6], "segmentation": SQUARE}, {"bbox": BOXES[0]}])
    manifest = load_manifest(out)
    assert manifest.masks
    assert manifest.notes["no segmentation: the box is used as mask"]["count"] == 1
    (record,) = iterate_records(out)
    assert all(record.rles)
    assert RecordStore(out).masks


def test_masks_of_crowds_alone_make_no_mask_set(tmp_path):
    crowd = {"bbox": [0, 0, 60, 64], "segmentation": {"size": [64, 60], "counts": [0, 3840]}, "iscrowd": 1}
    out = convert(tmp_path, [{"bbox": BOXES[0]}, crowd])
    (record,) = iterate_records(out)
    assert not load_manifest(out).masks
    assert record.rles == [b"", b""] and record.iscrowd.tolist() == [0, 1]


def test_a_set_from_before_has_masks(tmp_path):
    out = convert(tmp_path, [{"bbox": [10, 20, 4, 6], "segmentation": SQUARE}])
    path = out / "manifest.json"
    values = json.loads(path.read_text())
    assert values.pop("masks") is True
    path.write_text(json.dumps(values))
    assert load_manifest(out).masks


def test_check_draws_boxes_and_says_that_there_are_no_masks(tmp_path):
    out = convert(tmp_path, [{"bbox": [10, 5, 20, 8]}])
    report = check.read_report(out)
    assert any(line.startswith("annotation: boxes only") for line in check.describe(report))
    assert check.describe_preset(report, preset("d0"))
    (record,) = iterate_records(out)
    tile = check.draw_record(record)[check._CAPTION :]
    coloured = np.argwhere(tile.max(2) != tile.min(2))
    assert coloured.min(0).tolist() == [10, 20] and coloured.max(0).tolist() == [25, 59]
