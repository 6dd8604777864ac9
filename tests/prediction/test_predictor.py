"""Large images: tiled equals whole, nothing doubled or cut, in memory that does not grow with the image."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

import numpy as np
import pandas as pd
import pytest
import tifffile

from effdet_tf import outputs
from effdet_tf.data.synthetic.phase_contrast import render_image
from effdet_tf.geometry.boxes import iou
from effdet_tf.images.normalize import brightness, normalize
from effdet_tf.images.read import read_image
from effdet_tf.outputs import cells as cells_module
from effdet_tf.outputs import labels as labels_module
from effdet_tf.outputs import overlay as overlay_module
from effdet_tf.prediction import predictor as large_images
from effdet_tf.prediction.load import load
from effdet_tf.prediction.predictor import missing_from, tile_unit
from effdet_tf.prediction.run import RunPredictor
from effdet_tf.prediction.tiling import make_tiles


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(iou(a[:, None], b[None]))


@pytest.fixture(scope="module")
def predictor():
    return load("cells")


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 256 px, 96 of them shared: a step of 128, since cells' grid has 64."""
    monkeypatch.setattr(large_images, "TILE", 256)
    monkeypatch.setattr(large_images, "OVERLAP", 96)


def test_the_cells_of_a_score_are_those_of_all_that_reach_it(predictor):
    image, _ = render_image(5, 300, 400, 60, "Cluster")
    every, asked = predictor.predict(image), predictor.predict(image, 0.4)
    wanted = every.filter(0.4)
    assert 10 < len(asked) == len(wanted) < len(every)
    # The same votes, summed in another order.
    for name in ("boxes", "scores", "classes", "mask_boxes"):
        np.testing.assert_allclose(getattr(asked, name), getattr(wanted, name), atol=1e-3, err_msg=name)
    assert np.abs(asked.masks.astype(int) - wanted.masks).max() <= 1


def test_images_that_are_predicted_together_come_out_alike(predictor, monkeypatch):
    images = [render_image(k, 200, 240, 30, "Cluster")[0] for k in range(3)]
    single = [predictor.predict(image, 0.2) for image in images]
    for one, other in zip(predictor.predict_batch(images, 0.2), single, strict=True):  # on a CPU one by one
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.masks, other.masks)
    monkeypatch.setattr(predictor, "_on_gpu", True)
    assert predictor.at_once((520, 704, 1)) > 4 and predictor.at_once((4000, 4000, 1)) == 1
    together = predictor.predict_batch(images, 0.2)
    for one, other in zip(together, single, strict=True):
        assert len(one) == len(other) > 5
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.01)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)
        assert np.abs(one.masks.astype(int) - other.masks).mean() < 0.1
    different = predictor.predict_batch([images[0], images[1][:150]], 0.2)
    np.testing.assert_array_equal(different[0].boxes, single[0].boxes)
    assert different[1].height == 150


def test_cells_are_missing_where_the_weakest_of_a_full_answer_would_be_reported():
    falling = np.float32([0.9, 0.5, 0.3])
    assert missing_from(falling, 3, 0.3) and missing_from(falling, 3, 0.0)
    assert not missing_from(falling, 3, 0.31) and not missing_from(falling, 4, 0.0)


def test_a_score_below_what_a_network_gives_is_said_once(predictor, caplog):
    few = RunPredictor(predictor.network, predictor.config.replace(postprocess__min_score=0.3))
    image, _ = render_image(5, 200, 200, 20, "Cluster")
    assert len(few.predict(image, 0.4)) == len(predictor.predict(image, 0.4))
    assert not caplog.records
    few.predict(image, 0.1)
    few.predict(image, 0.1)
    assert [record.getMessage()[:42] for record in caplog.records] == [
        "this network gives cells from score 0.3 on"
    ]


def _seams(size: int, config) -> np.ndarray:
    """Where the answer passes from one tile to the next, along one axis."""
    tiles = make_tiles((size, 256), (256, 256), tile_unit(config), 96)
    return np.unique([tile.core[0][0] for tile in tiles])[1:]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiled_equals_whole(predictor, small_tiles, dtype):
    image, _ = render_image(3, 512, 640, 120, "Cluster")
    image = image.astype(dtype) * (dtype(200) if dtype != np.uint8 else 1)
    whole, tiled = predictor.predict(image), predictor._predict_in_tiles(image)
    score = predictor.config.postprocess.report_score
    whole, tiled = whole.filter(score), tiled.filter(score)
    assert len(whole) > 60 and abs(len(whole) - len(tiled)) <= 1
    overlap = pairwise_iou(whole.boxes, tiled.boxes)
    same = overlap.max(axis=1) > 0.9
    assert same.mean() > 0.98
    # Away from the seams each cell is there, with its score and its mask.
    middle = (whole.boxes[:, :2] + whole.boxes[:, 2:]) / 2
    apart = np.stack(
        [
            np.abs(middle[:, axis, None] - _seams(size, predictor.config)).min(1)
            for axis, size in enumerate((512, 640))
        ]
    ).min(0)
    away = apart > 24
    assert away.sum() > 20 and same[away].all()
    partner = overlap.argmax(axis=1)[away]
    given = predictor.config.postprocess.uncalibrated  # as the network scores: calibration has steep parts
    np.testing.assert_allclose(given(whole.scores[away]), given(tiled.scores[partner]), atol=0.01)
    labels, other = whole.label_image()[0] > 0, tiled.label_image()[0] > 0
    assert (labels != other).mean() < 0.002


def test_no_cell_is_found_twice_or_cut_at_a_seam(predictor, small_tiles):
    image, _ = render_image(4, 640, 640, 260, "Round")
    whole, tiled = (
        found.filter(predictor.config.postprocess.report_score)
        for found in (predictor.predict(image), predictor._predict_in_tiles(image))
    )
    pairs = [np.triu(pairwise_iou(found.boxes, found.boxes), 1) for found in (whole, tiled)]
    assert (pairs[1] > 0.5).sum() <= (pairs[0] > 0.5).sum()  # NMS at .5 is over boxes before they are voted
    seams = _seams(640, predictor.config)
    crossing = [
        ((found.boxes[:, :2, None] < seams - 2) & (found.boxes[:, 2:, None] > seams + 2)).any((1, 2))
        for found in (whole, tiled)
    ]
    assert crossing[0].sum() > 20 and abs(crossing[0].sum() - crossing[1].sum()) <= 2
    size = [
        (found.boxes[kept, 2:] - found.boxes[kept, :2]).prod(1).mean()
        for found, kept in zip((whole, tiled), crossing, strict=True)
    ]
    assert size[1] == pytest.approx(size[0], rel=0.02)


@pytest.mark.real_data
@pytest.mark.parametrize("pattern", ["livecell/**/*.tif", "sartorius/train/*.png"])
def test_tiled_equals_whole_on_real_images(real_data, predictor, monkeypatch, pattern):
    monkeypatch.setattr(large_images, "TILE", 384)
    monkeypatch.setattr(large_images, "OVERLAP", 128)
    image = read_image(sorted(real_data.glob(pattern))[3])
    score = predictor.config.postprocess.report_score
    whole, tiled = (
        found.filter(score) for found in (predictor.predict(image), predictor._predict_in_tiles(image))
    )
    best = pairwise_iou(whole.boxes, tiled.boxes).max(axis=1)
    assert len(whole) > 30 and (best > 0.9).mean() >= 0.99 and abs(len(whole) - len(tiled)) <= 2


def test_large_images_go_in_tiles_by_themselves(predictor, small_tiles, monkeypatch):
    image, _ = render_image(5, 300, 420, 40, "Cluster")
    expected = predictor._predict_in_tiles(image)
    monkeypatch.setattr(large_images, "LARGE", 300 * 420 - 1)
    np.testing.assert_array_equal(predictor.predict(image).boxes, expected.boxes)
    assert len(expected) > 20


def test_dense_images_lose_no_cell(predictor, monkeypatch):
    """A network that reports 90 cells at once finds those that one for 2,000 does."""
    image, _ = render_image(7, 512, 512, 330, "Round")
    score = predictor.config.postprocess.report_score
    expected = predictor.predict(image).filter(score)
    assert len(expected) > 120
    few = load("cells", settings=["data.max_instances=90"])
    cut = few.predict(image)
    assert cut.truncated and len(cut) == 90  # no larger than a tile: as many as asked for
    for name, value in (("TILE", 320), ("OVERLAP", 96), ("DENSE_TILE", 192), ("DENSE_OVERLAP", 64)):
        monkeypatch.setattr(large_images, name, value)
    found = few.predict(image).filter(score)
    best = pairwise_iou(expected.boxes, found.boxes).max(axis=1)
    assert (best > 0.7).mean() > 0.97 and abs(len(found) - len(expected)) <= 0.03 * len(expected)


def test_brightness_in_bands_is_that_of_the_image(monkeypatch, tiny_config):
    image = np.random.default_rng(0).normal(900, 77, (203, 131)).astype(np.float32)
    monkeypatch.setattr("effdet_tf.images.normalize._BAND", 1000)
    found = brightness(image)
    np.testing.assert_allclose(found, [image.mean(), image.std(), image.min(), image.max()], rtol=1e-5)
    for config in (
        tiny_config,
        tiny_config.override(["data.normalization=fixed", "data.mean=9", "data.std=3"]),
    ):
        part = normalize(image[50:90], config, found)
        np.testing.assert_allclose(part, normalize(image, config)[50:90], atol=1e-4)


def test_tiles_start_where_the_coarsest_grid_does(tiny_config):
    for zoom in (1.0, 1.5, 0.75, 2.0, 1.25):
        config = tiny_config.override([f"data.zoom={zoom}"])
        unit = tile_unit(config)
        assert unit * zoom % 2**config.model.max_level == 0 and unit <= 64


def test_files_of_a_large_image_are_written_in_parts(predictor, monkeypatch, tmp_path):
    """Every part that serves large images alone, forced on a small one: the files stay the same."""
    image, _ = render_image(6, 300, 420, 60, "Cluster")
    tifffile.imwrite(tmp_path / "a.tif", image)
    result = predictor.predict(image).filter(0.2)
    plain = outputs.number_cells(result)
    monkeypatch.setattr(cells_module, "_LARGE", 1)
    large = outputs.number_cells(result)
    assert isinstance(large.labels, np.memmap) and not isinstance(plain.labels, np.memmap)
    np.testing.assert_array_equal(large.labels, plain.labels)
    pd.testing.assert_frame_equal(outputs.cell_table(large, image), outputs.cell_table(plain, image))
    monkeypatch.setattr(labels_module, "_LARGE", 1)
    monkeypatch.setattr(labels_module, "_TILE", 128)
    outputs.write_labels(tmp_path / "tiled.tif", large.labels, 0.5)
    with tifffile.TiffFile(tmp_path / "tiled.tif") as file:
        assert file.pages[0].is_tiled
        np.testing.assert_array_equal(file.asarray(), plain.labels)
    monkeypatch.setattr(overlay_module, "_MOST", 210)
    monkeypatch.setattr(overlay_module, "_BAND", 4000)
    monkeypatch.setattr(overlay_module, "_SIDE", 100)
    assert outputs.draw_overlay(image, large).shape == (150, 210, 3)


def test_a_large_page_is_read_through_a_file(monkeypatch, tmp_path):
    from effdet_tf.images import read as image_io
    from effdet_tf.images import tif_pages

    image = np.random.default_rng(0).integers(0, 65535, (90, 70)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, compression="zlib")
    monkeypatch.setattr(tif_pages, "_LARGE", 1)
    with image_io.Stack(tmp_path / "a.tif") as stack:
        page = stack.read()
    np.testing.assert_array_equal(page[..., 0], image)
    while page.base is not None and not isinstance(page, np.memmap):
        page = page.base
    assert isinstance(page, np.memmap)


def test_a_terminal_sees_the_tiles(tmp_path):
    code = (
        "import numpy as np; from effdet_tf.prediction import predictor as l; l.TILE = 64; l.OVERLAP = 16\n"
        "from effdet_tf.presets import preset; from effdet_tf.prediction.results import Result\n"
        "class P(l.Predictor):\n"
        "    def _detect(self, image, part_of, score=0):\n"
        "        e = np.zeros((0, 4), np.float32)\n"
        "        masks, size = np.zeros((0, 4, 4), np.uint8), image.shape[:2]\n"
        "        return Result(e, e[:, 0], e[:, 0].astype(int), masks, e, *size, ('cell',))\n"
        "P(preset('cells-lite0'))._predict_in_tiles(np.zeros((300, 300), np.uint8))"
    )
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    os.set_blocking(ours, False)
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, cwd=os.getcwd())
    shown = os.read(ours, 10000).decode()
    os.close(theirs)
    os.close(ours)
    assert "tiles" in shown and "/36" in shown
    quiet = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=True, cwd=os.getcwd())
    assert b"tiles" not in quiet.stderr
