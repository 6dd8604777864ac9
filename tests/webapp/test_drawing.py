"""What the browser draws, and that hiding cells by score shows what `predict --score` writes."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from effdet_tf import outputs
from effdet_tf.geometry.polygons import patch_to_polygons
from effdet_tf.geometry.rle import Patch
from effdet_tf.webapp.drawing import OUTLINES, PREVIEW, SCORES, THUMBNAIL, outline_files, picture_files
from tests.webapp.discs import make_result


@pytest.mark.parametrize("seed", range(4))
def test_all_cells_cut_at_a_score_are_the_cells_at_that_score(seed: int) -> None:
    result = make_result(seed, 50, 60, count=120)
    everything = outputs.number_cells(result)
    assert len(everything.result) < len(result)  # some were hidden by better ones
    levels = [0.0, 1.0, 0.2, *result.scores.tolist()]
    levels += np.nextafter(result.scores, np.float32(2)).tolist()
    for score in levels:
        cells = outputs.number_cells(result.filter(score))
        count = int((everything.result.scores >= score).sum())
        assert np.array_equal(np.where(everything.labels <= count, everything.labels, 0), cells.labels)
        for name in ("scores", "boxes", "classes"):
            kept = getattr(everything.result, name)[:count]
            assert np.array_equal(kept, getattr(cells.result, name))


def test_outlines_are_those_of_the_label_image() -> None:
    image = np.random.default_rng(1).integers(0, 255, (50, 60)).astype(np.uint8)
    cells = outputs.number_cells(make_result(3, 50, 60))
    files = {name: json.loads(content) for name, content in outline_files(cells).items()}
    document = files[OUTLINES]
    table = outputs.cell_table(cells, image)
    assert document["area"] == table["area"].tolist()
    assert [document["classes"][k] for k in document["class"]] == table["class"].tolist()
    assert np.array_equal(np.float32(document["scores"]), cells.result.scores)
    assert (document["height"], document["width"], document["masks"]) == (50, 60, True)
    for number, polygons in enumerate(document["polygons"], start=1):
        drawn = np.zeros((500, 600), np.uint8)
        for points in polygons:
            cv2.fillPoly(drawn, [np.array(points).reshape(-1, 1, 2) * 10], 1)
        inside = drawn[5::10, 5::10] > 0  # centres of pixels
        mask = cells.labels == number
        assert (
            (inside >= mask).all()
            and (inside == mask).all()
            or polygons == patch_to_polygons(Patch(0, 0, mask))
        )
    assert files[SCORES] == document["scores"]


def test_a_network_without_masks_gives_boxes() -> None:
    cells = outputs.number_cells(make_result(3, 50, 60, masks=False))
    document = json.loads(outline_files(cells)[OUTLINES])
    assert document["masks"] is False and len(document["polygons"]) == 60
    assert all(len(polygons) == 1 and len(polygons[0]) == 8 for polygons in document["polygons"])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_preview_is_stretched_as_the_overlay_is(dtype: type) -> None:
    image = (np.random.default_rng(0).normal(100, 10, (800, 1500)) * (1 if dtype is np.uint8 else 30)).astype(
        dtype
    )
    empty = outputs.number_cells(make_result(0, 800, 1500).take([]))
    overlay = outputs.draw_overlay(image, empty)
    preview = cv2.imdecode(np.frombuffer(picture_files(image)[PREVIEW], np.uint8), cv2.IMREAD_UNCHANGED)
    assert overlay.shape[:2] == preview.shape == (800, 1500)
    assert np.array_equal(overlay[..., 0], preview)


def test_pictures_for_the_browser_are_not_of_any_size() -> None:
    files = picture_files(np.random.default_rng(0).integers(0, 255, (20, 9000, 3)).astype(np.uint8))
    shapes = [cv2.imdecode(np.frombuffer(files[n], np.uint8), -1).shape for n in (PREVIEW, THUMBNAIL)]
    assert shapes == [(9, 4096), (1, 160)]
