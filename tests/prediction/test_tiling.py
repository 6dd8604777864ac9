from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from effdet_tf.errors import UserError
from effdet_tf.geometry.resample import resize
from effdet_tf.model.detections import Detections
from effdet_tf.prediction.fixed_size import FixedSizePredictor, fitted_size, padded, zoomed_size
from effdet_tf.prediction.predictor import DENSE_OVERLAP as OVERLAP
from effdet_tf.prediction.tiling import make_tiles

LEVEL = 0.5  # of a normalised pixel above which it belongs to a blob


def blobs(image: np.ndarray, shown: tuple[int, int]) -> Detections:
    """A network that finds bright blobs exactly; the score falls with the place inside the blob's own row."""
    bright = image[: shown[0], : shown[1]].mean(-1) > LEVEL
    assert not image[shown[0] :].any() and not image[:, shown[1] :].any()
    labels, count = ndimage.label(bright, np.ones((3, 3)))
    slices = ndimage.find_objects(labels)
    boxes = np.float32([[y.start, x.start, y.stop, x.stop] for y, x in slices]).reshape(-1, 4)
    size = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    scores = (size / (size + 100)).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    masks = np.stack([np.full((4, 4), 255, np.uint8)] * count) if count else np.zeros((0, 4, 4), np.uint8)
    return Detections(boxes, scores, np.zeros(count, np.int32), masks, boxes.copy()).take(order)


def picture(
    height: int, width: int, boxes: list[tuple[int, int, int, int]] | np.ndarray, dtype: type = np.uint8
) -> np.ndarray:
    image = np.zeros((height, width), dtype)
    for y0, x0, y1, x1 in boxes:
        image[y0:y1, x0:x1] = np.iinfo(dtype).max
    return image


def scattered(height: int, width: int, count: int, largest: int, seed: int = 0) -> np.ndarray:
    """Boxes that do not touch each other."""
    draw = np.random.default_rng(seed)
    taken, boxes = np.zeros((height, width), bool), []
    for _ in range(20 * count):
        h, w = draw.integers(2, largest + 1, 2)
        y, x = draw.integers(0, height - h + 1), draw.integers(0, width - w + 1)
        around = taken[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2]
        if not around.any() and len(boxes) < count:
            taken[y : y + h, x : x + w] = True
            boxes.append((y, x, y + h, x + w))
    return np.array(boxes)


def rows(boxes: np.ndarray) -> list[tuple[float, ...]]:
    return sorted(map(tuple, np.asarray(boxes, float).tolist()))


@pytest.fixture
def config(tiny_config):
    """Coarsest stride 8; a pixel counts as it is."""
    return tiny_config.override(
        ["data.normalization=fixed", "data.mean=0", "data.std=255", "data.max_instances=2000"]
    )


FRAME = (96, 128)  # tiles share 24 and 32 px at least


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [(300, 401), (97, 128), (96, 129), (500, 60)])
def test_tiles_find_every_cell_once(config, size, seed):
    boxes = scattered(*size, 60, 24, seed)
    result = FixedSizePredictor(config, FRAME, blobs).predict(picture(*size, boxes))
    assert rows(result.boxes) == rows(boxes)
    assert (np.diff(result.scores) <= 0).all()
    assert (result.height, result.width, result.truncated) == (*size, False)
    np.testing.assert_array_equal(result.boxes, result.mask_boxes)


def test_tiled_equals_whole(config):
    image = picture(300, 401, scattered(300, 401, 80, 24))
    tiled = FixedSizePredictor(config, FRAME, blobs).predict(image)
    whole = FixedSizePredictor(config, (304, 408), blobs).predict(image)
    assert rows(tiled.boxes) == rows(whole.boxes)
    np.testing.assert_array_equal(tiled.scores, whole.scores)


@pytest.mark.parametrize("shift", range(-2, 3))
def test_two_tiles_may_see_a_cell_a_little_differently(config, shift):
    """The middle of the overlap runs through the cell; each tile pulls it to its side, or away from it."""
    first, second = make_tiles((96, 200), FRAME, 8, OVERLAP)
    middle = int(first.core[1, 1])
    box = np.float32([[40, middle - 8, 56, middle + 8]])

    def run(image, shown):
        left = shown[1] == FRAME[1] and image[0, 0, 0] > 0
        moved = box + np.float32([0, 1, 0, 1]) * (shift if left else -shift - second.start[1])
        one = np.ones(1, np.float32)
        return Detections(moved, one * (0.9 if left else 0.8), np.zeros(1, np.int32), None, None)

    image = np.zeros((96, 200), np.uint8)
    image[0, 0] = 255  # tells the tiles apart
    result = FixedSizePredictor(config, FRAME, run).predict(image)
    assert len(result) == 1
    assert abs(result.boxes[0] - box[0]).max() <= 3


def test_the_tile_in_whose_core_a_cell_lies_has_it(config):
    """The other one gives it a higher score, but sees it nearer to its edge."""
    first, second = make_tiles((96, 200), FRAME, 8, OVERLAP)
    middle = int(first.core[1, 1])
    box = np.float32([[40, middle - 7, 56, middle + 9]])

    def run(image, shown):
        left = image[0, 0, 0] > 0
        seen = box + np.float32([0, 1, 0, 1]) * (1 if left else -second.start[1])
        return Detections(seen, np.float32([0.9 if left else 0.5]), np.zeros(1, np.int32), None, None)

    image = np.zeros((96, 200), np.uint8)
    image[0, 0] = 255
    assert rows(FixedSizePredictor(config, FRAME, run).predict(image).boxes) == rows(box)


def test_the_corner_of_a_cell_is_no_cell(config):
    """Four tiles see parts of it; the first one sees less than half."""
    boxes = [(64, 90, 112, 146)]
    assert len(make_tiles((144, 200), FRAME, 8, OVERLAP)) == 4
    result = FixedSizePredictor(config, FRAME, blobs).predict(picture(144, 200, boxes))
    assert rows(result.boxes) == boxes


def test_a_cell_larger_than_the_overlap_is_one_cell(config):
    image = picture(96, 200, [(20, 40, 60, 160)])
    first, second = make_tiles((96, 200), FRAME, 8, OVERLAP)
    assert first.start[1] + FRAME[1] - second.start[1] < 60
    assert len(FixedSizePredictor(config, FRAME, blobs).predict(image)) == 1


@pytest.mark.parametrize("seen", [(5, 30), (12, 30), (30, 5)])
def test_a_cell_in_very_unequal_parts_is_reported_whole(config, seen):
    """One tile sees a sliver of it at its edge, the other all of it."""
    first, second = make_tiles((96, 200), FRAME, 8, OVERLAP)
    edge = FRAME[1] if seen[0] < seen[1] else int(second.start[1])
    boxes = [(30, edge - seen[0], 60, edge + seen[1])]
    result = FixedSizePredictor(config, FRAME, blobs).predict(picture(96, 200, boxes))
    assert rows(result.boxes) == boxes


def test_cells_that_overlap_stay(config):
    """A small cell on a large one, at a seam: their boxes share little of their union."""
    found = np.float32([[30, 87, 60, 119], [40, 90, 50, 99]])

    def run(image, shown):
        offset = 0 if image[0, 0, 0] > 0 else second.start[1]
        boxes = found - np.float32([0, 1, 0, 1]) * offset
        return Detections(boxes, np.float32([0.9, 0.8]), np.zeros(2, np.int32), None, None)

    _, second = make_tiles((96, 200), FRAME, 8, OVERLAP)
    image = np.zeros((96, 200), np.uint8)
    image[0, 0] = 255
    assert rows(FixedSizePredictor(config, FRAME, run).predict(image).boxes) == rows(found)


@pytest.mark.parametrize(("agnostic", "count"), [(True, 1), (False, 2)])
def test_duplicates_are_sought_within_a_class_where_classes_are_told_apart(config, agnostic, count):
    config = config.override(
        [
            f"postprocess.class_agnostic={str(agnostic).lower()}",
            "class_names=[a, b]",
            "category_ids=[1, 2]",
        ]
    )
    first, second = make_tiles((96, 200), FRAME, 8, OVERLAP)
    middle = int(first.core[1, 1])

    def run(image, shown):
        left = image[0, 0, 0] > 0
        box = np.float32([[40, middle - 8, 56, middle + 8]])
        box = box if left else box - np.float32([0, 1, 0, 1]) * second.start[1]
        return Detections(box, np.ones(1, np.float32), np.int32([0 if left else 1]), None, None)

    image = np.zeros((96, 200), np.uint8)
    image[0, 0] = 255
    assert len(FixedSizePredictor(config, FRAME, run).predict(image)) == count


@pytest.mark.parametrize("size", [(1, 1), (1, 128), (50, 70), FRAME])
def test_what_fits_is_predicted_in_one_piece(config, size):
    calls = []

    def run(image, shown):
        calls.append((image.shape, shown, image.copy()))
        return blobs(image, shown)

    image = picture(*size, [(0, 0, size[0], size[1] // 2 + 1)])
    result = FixedSizePredictor(config, FRAME, run).predict(image)
    assert len(calls) == 1
    shape, shown, seen = calls[0]
    assert (shape, shown) == ((*FRAME, 1), size)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen[: size[0], : size[1], 0], image / 255, rtol=1e-6)
    assert rows(result.boxes) == [(0, 0, size[0], size[1] // 2 + 1)]


def test_16_bit_and_colour(tiny_config):
    """The whole image is normalised, not each tile."""
    config = tiny_config.override(["data.channels=3"])
    boxes = scattered(300, 401, 80, 24)
    gray = picture(300, 401, boxes)
    deep = gray.astype(np.uint16) * 100 + 5000
    for image in (gray, deep, np.stack([gray] * 3, -1), deep[..., None]):
        seen = []

        def run(part, shown, seen=seen):
            seen.append(part.max())
            return blobs(part, shown)

        assert rows(FixedSizePredictor(config, FRAME, run).predict(image).boxes) == rows(boxes)
        assert np.ptp(seen) == 0


def test_a_cut_is_told(config):
    boxes = scattered(300, 401, 80, 24)
    image = picture(300, 401, boxes)
    best = FixedSizePredictor(config, FRAME, blobs).predict(image)
    limit = 20
    few = FixedSizePredictor(config.override([f"data.max_instances={limit}"]), FRAME, blobs).predict(image)
    assert few.truncated and len(few) == limit
    np.testing.assert_array_equal(few.scores, best.scores[:limit])


def test_a_tile_that_was_cut_is_told(config):
    """Few cells in all, but one tile gave as many as it may."""
    config = config.override(["data.max_instances=3"])

    def run(image, shown):
        box = np.float32([[40, 100, 50, 110], [41, 101, 51, 111], [42, 102, 52, 112]])
        keep = slice(None) if image[0, 0, 0] > 0 else slice(0)
        return Detections(box, np.ones(3, np.float32), np.zeros(3, np.int32), None, None).take(keep)

    image = np.zeros((96, 200), np.uint8)
    image[0, 0] = 255
    result = FixedSizePredictor(config, FRAME, run).predict(image)
    assert len(result) < 3 and result.truncated


def test_memory_is_bounded(config, monkeypatch):
    config = config.override(["data.max_instances=10"])
    sizes = []
    from effdet_tf.prediction import tiling

    add = tiling.Merger.add
    monkeypatch.setattr(
        tiling.Merger, "add", lambda merger, *tile: (add(merger, *tile), sizes.append(merger._count))
    )
    boxes = scattered(600, 800, 400, 12)
    assert len(FixedSizePredictor(config, FRAME, blobs).predict(picture(600, 800, boxes))) == 10
    assert len(sizes) > 20 and max(sizes) <= 40


def test_fitted_images_are_scaled_and_results_scaled_back(config):
    config = config.override(["data.resize=fit", "data.crop_size=[96, 128]"])
    boxes = [(40, 80, 120, 200), (200, 300, 280, 420)]
    calls = []

    def run(image, shown):
        calls.append(shown)
        return blobs(image, shown)

    result = FixedSizePredictor(config, FRAME, run).predict(picture(288, 480, boxes))
    assert calls == [(77, 128)]
    assert len(result) == 2
    np.testing.assert_allclose(result.boxes[np.argsort(result.boxes[:, 0])], boxes, atol=4)
    np.testing.assert_array_equal(result.boxes, result.mask_boxes)
    assert (result.height, result.width) == (288, 480)


@pytest.mark.parametrize("zoom", [0.5, 2.0])
def test_zoomed_images_are_tiled_and_results_scaled_back(config, zoom):
    boxes = [(20, 40, 30, 52), (40, 120, 50, 134), (100, 90, 110, 100)]
    calls = []

    def run(image, shown):
        calls.append(shown)
        return blobs(image, shown)

    config = config.override([f"data.zoom={zoom}"])
    result = FixedSizePredictor(config, FRAME, run).predict(picture(150, 240, boxes))
    assert len(calls) == (1 if zoom == 0.5 else len(make_tiles((300, 480), FRAME, 8, OVERLAP)))
    assert (result.height, result.width) == (150, 240)
    np.testing.assert_allclose(result.boxes[np.argsort(result.boxes[:, 0])], boxes, atol=1.0)
    np.testing.assert_array_equal(result.boxes, result.mask_boxes)


@pytest.mark.parametrize("size", [(1, 1), (7, 5000), (520, 704), (77, 33), (3, 5)])
@pytest.mark.parametrize("zoom", [0.3, 1.5, 1.7, 2.0])
def test_zoomed_size_is_tensorflows(size, zoom):
    import tensorflow as tf

    from effdet_tf.images.resize import zoomed_size as expected

    np.testing.assert_array_equal(zoomed_size(np.array(size), zoom), expected(tf.constant(size), zoom))


def test_rounding_leads_no_fitted_box_beyond_the_image(config):
    config = config.override(["data.resize=fit", "data.crop_size=[96, 128]"])
    image = picture(230, 384, [(0, 0, 230, 384)])  # 77 x (230 / 77) is more than 230 in float32
    assert rows(FixedSizePredictor(config, FRAME, blobs).predict(image).boxes) == [(0, 0, 230, 384)]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (288, 480), (520, 704), (77, 33), (3, 4)])
def test_fitted_size_is_tensorflows(size):
    import tensorflow as tf

    from effdet_tf.images.resize import fit_scale, scaled_size

    expected = scaled_size(tf.constant(size), fit_scale(tf.constant(size), FRAME), FRAME)
    np.testing.assert_array_equal(fitted_size(np.array(size), FRAME), expected)


@pytest.mark.parametrize(
    ("size", "frame", "stride"),
    [
        ((520, 704), (512, 512), 128),
        ((3000, 200), (544, 704), 32),
        ((1536, 384), (384, 384), 128),
        ((129, 500), (128, 128), 128),
    ],
)
def test_tiles_cover_the_image(size, frame, stride):
    covered = np.zeros(size, int)
    owners = np.zeros(size, int)
    tiles = make_tiles(size, frame, stride, OVERLAP)
    y, x = np.indices(size) + 0.25  # nowhere on the middle of an overlap
    for tile in tiles:
        top, left = tile.start
        covered[top : top + frame[0], left : left + frame[1]] += 1
        low, high = tile.core
        owners += (y > low[0]) & (y < high[0]) & (x > low[1]) & (x < high[1])
        if min(frame) > stride:
            assert top % stride == 0 and left % stride == 0
    for axis in (0, 1):
        steps = np.diff(sorted({tile.start[axis] for tile in tiles}))
        assert (frame[axis] - steps >= min(OVERLAP, frame[axis] // 4)).all()
    assert covered.min() >= 1
    assert (owners == 1).all()


def test_padded_cuts_and_pads():
    image = np.ones((5, 2, 1), np.float32)
    result = padded(image, (3, 4))
    assert result.shape == (3, 4, 1)
    assert result.sum() == 6
    np.testing.assert_array_equal(result[:, 2:], 0)
    assert resize(image, np.array([3, 4])).shape == (3, 4, 1)


def test_a_wrong_array_is_the_users_error(config):
    with pytest.raises(UserError, match="an image is"):
        FixedSizePredictor(config, FRAME, blobs).predict(np.zeros((2, 2, 2, 2)))
