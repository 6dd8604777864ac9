from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.errors import UserError
from effdet_tf.images.normalize import normalize
from effdet_tf.model.anchors import grid
from effdet_tf.model.network import Network, build_network
from effdet_tf.model.weights import save_arrays, to_arrays
from effdet_tf.prediction.load import load
from effdet_tf.prediction.run import RunPredictor
from effdet_tf.prediction.sizing import Sizing, predict_sized
from effdet_tf.runs import BEST_FILE, CONFIG_FILE, LAST_FILE


def talkative(config):
    """A network with random weights that finds many cells: the class bias is lifted."""
    import keras

    keras.utils.set_random_seed(0)
    network = build_network(config)
    layer = network.dense.get_layer("class_predict")
    layer.bias.assign(layer.bias + 4)
    layer.pointwise_kernel.assign(layer.pointwise_kernel * 100)
    return network


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config.override(["postprocess.score_threshold=0.2", "postprocess.nms_iou=0.3"])


@pytest.fixture(scope="module")
def network(config):
    return talkative(config)


@pytest.fixture(scope="module")
def predictor(network, config):
    return RunPredictor(network, config)


def picture(height=96, width=80, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 200, (height // 8 + 1, width // 8 + 1)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def assert_same(a, b, exact=False):
    assert len(a) == len(b)
    if exact:
        for field in ("boxes", "scores", "classes", "masks", "mask_boxes"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
        return
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)
    # Cells of nearly the same score may change places.
    distance = np.abs(a.boxes[:, None] - b.boxes[None]).max(-1)
    assert distance.min(1).max() < 0.05
    order = distance.argmin(1)
    assert np.abs(a.masks.astype(int) - b.masks[order].astype(int)).max() <= 2


def test_a_result_is_whole_and_in_the_pixels_of_the_image(predictor):
    image = picture()
    result = predictor.predict(image)
    assert 3 < len(result) <= 200
    assert (result.height, result.width) == (96, 80)
    assert result.class_names == ("cell",)
    assert (np.diff(result.scores) <= 0).all()
    assert (result.boxes[:, :2] >= 0).all()
    assert (result.boxes[:, 2] <= 96).all() and (result.boxes[:, 3] <= 80).all()
    assert (result.boxes[:, 2:] > result.boxes[:, :2]).all()
    assert result.masks.shape == (len(result), 28, 28) and result.masks.dtype == np.uint8
    h = result.boxes[:, 2] - result.boxes[:, 0]
    np.testing.assert_allclose(result.mask_boxes[:, 0], result.boxes[:, 0] - 0.1 * h, atol=1e-3)


def test_the_same_image_twice_gives_the_same_cells(predictor):
    assert_same(predictor.predict(picture()), predictor.predict(picture()), exact=True)
    other = predictor.predict(picture(seed=1))
    assert (
        len(other) != len(predictor.predict(picture()))
        or (other.scores != predictor.predict(picture()).scores).any()
    )


def test_bit_depth_gain_and_type_do_not_matter(predictor):
    image = picture()
    expected = predictor.predict(image)
    for same in (
        image.astype(np.uint16) * 257,
        image.astype(np.float32) / 255,
        image.astype(np.float64) * 3 + 1000,
        image.astype(np.int32),
    ):
        assert_same(predictor.predict(same), expected)


def test_gray_and_equal_channels_do_not_matter(predictor):
    image = picture()
    expected = predictor.predict(image)
    for same in (image[..., None], np.repeat(image[..., None], 3, axis=2)):
        assert_same(predictor.predict(same), expected, exact=True)
    alpha = np.concatenate([np.repeat(image[..., None], 3, axis=2), np.full((96, 80, 1), 7, np.uint8)], 2)
    assert_same(predictor.predict(alpha), expected, exact=True)


@pytest.mark.parametrize("shape", [(301, 333), (17, 23), (1, 1), (64, 64), (8, 200)])
def test_any_size_of_image(predictor, shape):
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    result = predictor.predict(image)
    assert (result.height, result.width) == shape
    if len(result):
        assert (result.boxes.max(0) <= [*shape, *shape]).all()
        assert (result.boxes.min(0) >= 0).all()


def test_a_flat_image_is_no_crash(predictor):
    for value in (0, 255):
        result = predictor.predict(np.full((40, 40), value, np.uint8))
        assert np.isfinite(result.scores).all()


def test_nothing_found_is_an_empty_result(tiny_config):
    quiet = RunPredictor(
        build_network(tiny_config), tiny_config.override(["postprocess.score_threshold=0.99"])
    )
    result = quiet.predict(picture())
    assert len(result) == 0
    assert result.boxes.shape == result.mask_boxes.shape == (0, 4)
    assert result.masks.shape == (0, 28, 28)
    labels, kept = result.label_image()
    assert labels.shape == (96, 80) and labels.max() == 0 and len(kept) == 0


def test_a_network_without_masks_gives_boxes_only(config):
    config = config.override(["model.mask.enabled=false"])
    result = RunPredictor(talkative(config), config).predict(picture())
    assert len(result) > 3
    assert result.masks is None and result.mask_boxes is None
    with pytest.raises(UserError):
        result.label_image()


def test_a_file_and_its_pixels_give_the_same_cells(predictor, tmp_path):
    image = picture()
    expected = predictor.predict(image)
    for name in ("a.png", "b.tif"):
        cv2.imwrite(str(tmp_path / name), image)
        assert_same(predictor.predict(tmp_path / name), expected, exact=True)
        assert_same(predictor.predict(str(tmp_path / name)), expected, exact=True)
    cv2.imwrite(str(tmp_path / "c.png"), image.astype(np.uint16) * 257)
    assert_same(predictor.predict(tmp_path / "c.png"), expected)


def test_a_missing_file_is_a_users_error(predictor, tmp_path):
    with pytest.raises(UserError, match="none.png"):
        predictor.predict(tmp_path / "none.png")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5),
        np.zeros((4, 4, 2)),
        np.zeros((4, 4, 5)),
        np.zeros((2, 4, 4, 1)),
        np.zeros((0, 4)),
        np.zeros(()),
        np.array([["a", "b"]]),
        np.zeros((4, 4), complex),
        np.array([[None, 1]], dtype=object),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_what_is_no_image_is_refused(predictor, array):
    with pytest.raises(UserError, match="image"):
        predictor.predict(array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(predictor, value):
    image = picture().astype(np.float32)
    image[3, 4] = value
    with pytest.raises(UserError, match="not finite"):
        predictor.predict(image)


def test_normalisation_by_hand(tiny_config):
    image = np.array([[1, 3], [5, 7]], np.uint8)  # mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    found = normalize(image, tiny_config)
    assert found.shape == (2, 2, 1) and found.dtype == np.float32
    np.testing.assert_allclose(found[..., 0], (image - 4.0) / 5**0.5, rtol=1e-6)
    fixed = tiny_config.override(["data.normalization=fixed", "data.mean=2", "data.std=4"])
    np.testing.assert_allclose(normalize(image, fixed)[..., 0], (image - 2.0) / 4)
    three = normalize(image, tiny_config.override(["data.channels=3"]))
    assert three.shape == (2, 2, 3)
    assert (three == found).all()
    colour = np.stack([image, image * 0, image * 0], -1)
    kept = normalize(colour, fixed.override(["data.channels=3"]))
    np.testing.assert_allclose(kept, (colour - 2.0) / 4)


def test_fixed_statistics_are_of_pixels_0_to_255(tiny_config):
    fixed = tiny_config.override(
        ["data.normalization=fixed", "data.channels=3", "data.mean=[10, 20, 30]", "data.std=[1, 2, 4]"]
    )
    image = np.array([[0, 51], [102, 255]], np.uint8)
    expected = (image[..., None] - np.float32([10, 20, 30])) / np.float32([1, 2, 4])
    np.testing.assert_allclose(normalize(image, fixed), expected)
    np.testing.assert_allclose(normalize(image.astype(np.uint16) * 257, fixed), expected, atol=1e-4)
    # As convert stores it: between its least and its largest value.
    np.testing.assert_allclose(normalize(image / 100 + 3, fixed), expected, atol=1e-4)
    assert np.isfinite(normalize(np.full((2, 2), 0.3), fixed)).all()
    with pytest.raises(UserError, match="data.mean has 3 values, data.channels is 1"):
        RunPredictor(build_network(tiny_config), fixed.override(["data.channels=1"]))


class OneAnchor:
    """In place of a dense network: finds the anchors `wanted`, and nothing else."""

    coarsest_stride = 8

    def __init__(self, wanted, size, anchors=1920):
        self.wanted, self.size, self.anchors = wanted, size, anchors

    def __call__(self, image, training):
        tf.debugging.assert_equal(tf.shape(image), [1, *self.size, 1])
        self.seen = image
        # Beside the image, 64 x 48 of it, there is padding.
        tf.debugging.assert_equal(image[:, :, 48:], 0.0)
        tf.debugging.assert_greater(tf.reduce_max(tf.abs(image[:, :, 47])), 0.0)
        logits = tf.tensor_scatter_nd_update(
            tf.fill([self.anchors, 1], -9.0), [[k] for k in self.wanted], [[3.0]] * len(self.wanted)
        )
        return {"class_logits": logits[None], "box_deltas": tf.zeros((1, self.anchors, 4))}


def test_a_fitted_image_gives_boxes_in_its_own_pixels(tiny_config):
    config = tiny_config.override(["data.resize=fit", "model.mask.enabled=false", "data.crop_size=[64, 64]"])
    anchors = np.concatenate([np.array(part) for part in grid(64, 64, config.anchors, 2, 3)])
    assert anchors.shape == (1920, 4)
    # One inside the image, one across its right edge, one in the padding beside it.
    inside, across, beside = (
        int(np.abs(anchors - np.array(box)).sum(1).argmin())
        for box in ([18, 18, 42, 42], [40, 40, 52, 52], [50, 54, 60, 64])
    )
    assert anchors[beside, 1] > 48 > anchors[across, 1]
    dense = OneAnchor((inside, across, beside), (64, 64))
    predictor = RunPredictor(Network(dense, None), config)
    image = np.random.default_rng(0).integers(0, 255, (128, 96), dtype=np.uint8)  # 64 x 48 fits
    result = predictor.predict(image)
    assert (result.height, result.width) == (128, 96)
    assert len(result) == 2
    expected = anchors[[inside, across]] * 2
    expected[1, 3] = 96
    np.testing.assert_allclose(np.sort(result.boxes, axis=0), np.sort(expected, axis=0), atol=1e-3)


@pytest.mark.parametrize("zoom", [0.5, 1.5, 2.0])
def test_a_zoomed_image_gives_boxes_in_its_own_pixels(tiny_config, zoom):
    config = tiny_config.override([f"data.zoom={zoom}", "model.mask.enabled=false"])
    anchors = np.concatenate([np.array(part) for part in grid(64, 48, config.anchors, 2, 3)])
    inside, across = (
        int(np.abs(anchors - np.array(box)).sum(1).argmin()) for box in ([18, 18, 42, 42], [40, 40, 52, 52])
    )
    dense = OneAnchor((inside, across), (64, 48), len(anchors))
    image = np.random.default_rng(0).integers(0, 255, (round(64 / zoom), round(48 / zoom)), dtype=np.uint8)
    result = RunPredictor(Network(dense, None), config).predict(image)
    assert (result.height, result.width) == image.shape
    assert len(result) == 2
    expected = anchors[[inside, across]] / zoom
    expected = np.minimum(expected, np.float32([*image.shape, *image.shape]))
    np.testing.assert_allclose(np.sort(result.boxes, axis=0), np.sort(expected, axis=0), atol=0.6)


def test_zoom_is_a_larger_image(network, config):
    image = picture(64, 64)
    zoomed = RunPredictor(network, config.override(["data.zoom=2"])).predict(image)
    bilinear = tf.image.resize(image[..., None].astype(np.float32), (128, 128)).numpy()[..., 0]
    # Each image is normalised by its own deviation, which the resized one has a little less of.
    scale = image.std() / bilinear.std()
    large = RunPredictor(network, config).predict((bilinear - bilinear.mean()) * scale + bilinear.mean())
    assert len(zoomed) > 3 and 0.8 < len(zoomed) / len(large) < 1.25
    distance = np.abs(zoomed.boxes[:, None] * 2 - large.boxes[None]).max(-1).min(1)
    assert np.median(distance) < 0.5
    h = zoomed.boxes[:, 2] - zoomed.boxes[:, 0]
    np.testing.assert_allclose(zoomed.mask_boxes[:, 0], zoomed.boxes[:, 0] - 0.1 * h, atol=1e-3)


def test_a_network_with_masks_takes_fitted_images(network, config):
    fitted = config.override(["data.resize=fit", "data.crop_size=[96, 96]"])
    image = picture(288, 240)
    result = RunPredictor(network, fitted).predict(image)
    small = RunPredictor(network, config).predict(cv2.resize(image, (80, 96), interpolation=cv2.INTER_AREA))
    assert len(result) > 3 and 0.5 < len(result) / len(small) < 2
    assert result.boxes[:, 2].max() > 150
    h = result.boxes[:, 2] - result.boxes[:, 0]
    np.testing.assert_allclose(result.mask_boxes[:, 0], result.boxes[:, 0] - 0.1 * h, atol=1e-3)


def test_prediction_follows_the_weights(network, config):
    predictor = RunPredictor(network, config)
    bias = network.dense.get_layer("class_predict").bias
    before = predictor.predict(picture())
    start = bias.numpy()
    bias.assign(start - 50)
    assert len(predictor.predict(picture())) == 0
    bias.assign(start)
    assert_same(predictor.predict(picture()), before, exact=True)


@pytest.fixture(scope="module")
def run(network, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    dataclasses.replace(config, class_names=("neuron",), category_ids=(7,)).save(folder / CONFIG_FILE)
    save_arrays(folder / LAST_FILE, to_arrays(network))
    return folder


def test_a_run_folder_alone_is_enough(run, predictor):
    loaded = load(run)
    assert (loaded.class_names, loaded.category_ids) == (("neuron",), (7,))
    assert_same(loaded.predict(picture()), predictor.predict(picture()), exact=True)


def test_the_best_weights_come_first(run, network, tmp_path):
    folder = tmp_path
    (folder / CONFIG_FILE).write_bytes((run / CONFIG_FILE).read_bytes())
    (folder / LAST_FILE).write_bytes((run / LAST_FILE).read_bytes())
    silent = {k: v - 50 if k.endswith("class_predict/bias") else v for k, v in to_arrays(network).items()}
    save_arrays(folder / BEST_FILE, silent)
    assert len(load(folder).predict(picture())) == 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such run folder"),
        ({}, "is no run folder, it holds no config.yaml"),
        ({CONFIG_FILE: b"train: {bach: 2}"}, r"config.yaml: unknown configuration key 'train.bach'"),
        ({CONFIG_FILE: b"- 1"}, "config.yaml: holds no configuration"),
        ({CONFIG_FILE: b"preset: d0"}, "holds no weights yet"),
        ({CONFIG_FILE: "good", LAST_FILE: b"PK"}, "last.npz: not a readable weights file"),
        ({CONFIG_FILE: b"model: {max_level: 1}", LAST_FILE: b"PK"}, "max_level 1"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(files, message, run, tmp_path):
    folder = tmp_path / "run"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes((run / name).read_bytes() if content == "good" else content)
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_refused(run, config, tmp_path):
    config.override(["model.fpn_channels=16"]).save(tmp_path / CONFIG_FILE)
    (tmp_path / LAST_FILE).write_bytes((run / LAST_FILE).read_bytes())
    with pytest.raises(UserError, match="last.npz: weights do not fit the network"):
        load(tmp_path)


SETTINGS = ["data.max_instances=2000", "postprocess.mask_scoring=false"]
LINES = "postprocess.calibration=[[0, 0], [0.25, 0.1], [0.6, 0.8], [1, 1]]"


def test_calibration_changes_scores_alone(network, config):
    config = config.override(SETTINGS)
    image, calibrated = picture(), RunPredictor(network, config.override([LINES]))
    plain, found = RunPredictor(network, config).predict(image), calibrated.predict(image)
    expected = np.interp(plain.scores, (0, 0.25, 0.6, 1), (0, 0.1, 0.8, 1)).astype(np.float32)
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert_same(dataclasses.replace(plain, scores=expected), found)
    # A score that is asked for is one of those that are reported, and loses no cell.
    for score in (0.05, 0.3, float(found.scores[5])):
        asked = calibrated.predict(image, score)
        assert len(asked) == (found.scores >= score).sum() > 0
        assert_same(asked, found.filter(score))


def test_a_minimum_score_is_one_of_those_that_are_reported(network, config):
    image, settings = picture(), [LINES, *SETTINGS]
    found = RunPredictor(network, config.override(settings)).predict(image)
    least = float(np.median(found.scores))
    fixed = config.override([*settings, f"postprocess.min_score={least}"])
    fixed = RunPredictor(network, fixed).predict(image)
    assert 0 < len(fixed.filter(least)) == (found.scores >= least).sum()
    assert len(fixed) < len(found)


@pytest.mark.parametrize(
    "lines", ["[[0, 0], [1, 1], [1, 1]]", "[[0, 0.1], [1, 1]]", "[[0, 0], [0.5, 0.4], [0.6, 0.4], [1, 1]]"]
)
def test_wrong_lines_are_the_users_error(config, tmp_path, lines):
    config.override([f"postprocess.calibration={lines}"]).save(tmp_path / CONFIG_FILE)
    with pytest.raises(UserError, match=r"postprocess.calibration: give pairs of numbers that both rise"):
        load(tmp_path)


def test_an_image_is_judged_for_the_score_that_the_network_was_saved_with(network, config):
    trust = {"trust__f1": (0.0, 1.0), "trust__count": (-0.5, 0.0, 1.0, 0.0)}
    image, config = picture(), config.override(SETTINGS).replace(**trust)
    score = float(np.median(RunPredictor(network, config).predict(image).scores))
    predictor = RunPredictor(network, config.replace(postprocess__report_score=score))
    own = predict_sized(predictor, image, score, Sizing())
    assert (
        own.trust.score == score
        and own.trust.least <= len(own) <= own.trust.most
        and own.trust.unlike is None
    )
    assert predict_sized(predictor, image, score + 0.01).trust is None
    every = predict_sized(predictor, image)
    assert every.trust.f1 == pytest.approx(own.trust.f1, abs=1e-5) and len(every) > len(own)
    assert every.filter(score).trust == every.trust and every.filter(score + 0.01).trust is None
