from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.images.normalize import brightness
from effdet_tf.images.read import encode_png
from effdet_tf.model.network import build_network
from effdet_tf.prediction.load import load
from effdet_tf.prediction.metadata import describe
from effdet_tf.prediction.run import RunPredictor
from export.agreement import match
from export.saved_model import write_saved_model

PLAIN = [
    "model.mask.enabled=false",
    "data.channels=3",
    "data.resize=fit",
    "data.normalization=fixed",
    "data.mean=[120, 110, 100]",
    "data.std=[50, 60, 70]",
    "postprocess.class_agnostic=false",
    "class_names=[round, long]",
    "category_ids=[7, 9]",
]


@pytest.fixture(scope="module", params=["cells", "points", "content", "plain"])
def pair(request, tiny_config, tiny_points, tmp_path_factory):
    """A network and its SavedModel, opened.

    Cells with masks, by anchors or by points in magnified images, normalised by what shows cells and
    calibrated, or two classes of boxes in colour images.
    """
    config = tiny_points if request.param == "points" else tiny_config
    calibrated = ["postprocess.calibration=[[0, 0], [.01, .3], [.5, .6], [1, 1]]"]
    content = ["data.normalization=content", *calibrated]
    config = config.override(content if request.param == "content" else [])
    config = config.override(["postprocess.score_threshold=0.0", "data.max_instances=40"])
    config = config.override(PLAIN if request.param == "plain" else [])
    predictor = RunPredictor(build_network(config), config)
    folder = tmp_path_factory.mktemp(request.param) / "saved_model"
    write_saved_model(predictor, folder / "3", max_pixels=100_000, licence="CC BY-NC 4.0")
    return predictor, load(folder), folder / "3"


def picture(seed, height, width, channels=1, dtype=np.uint8):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, channels), dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_part_is_normalised_as_the_whole_image_is(pair, dtype, channels):
    """By the statistics that come with it: those of the dark part alone would give other cells."""
    predictor, opened, _ = pair
    image = picture(8, 90, 70, channels)
    image[:40] //= 4
    image = image.astype(dtype) * (dtype(200) if dtype == np.uint16 else dtype(1))
    whole, part = brightness(image), image[:40]
    ours, served = predictor._detect(part, whole), opened._detect(part, whole)
    assert len(ours) == len(served) > 0
    np.testing.assert_allclose(served.boxes, ours.boxes, atol=2e-3)
    np.testing.assert_allclose(served.scores, ours.scores, atol=1e-5)
    if predictor.config.data.normalization != "fixed":
        alone = opened._detect(part, None)
        assert len(alone) == len(ours) and np.abs(alone.boxes - ours.boxes).max() > 1


def test_a_large_image_has_the_cells_of_the_run(pair, monkeypatch):
    predictor, opened, _ = pair
    if predictor.config.data.resize == "fit":
        pytest.skip("every image is scaled to the input: none goes in tiles")
    for name, value in {"LARGE": 1000, "TILE": 64, "OVERLAP": 16, "DENSE_TILE": 64}.items():
        monkeypatch.setattr(f"effdet_tf.prediction.predictor.{name}", value)
    image = picture(9, 120, 150)
    image[:60] //= 4
    ours, served = predictor.predict(image), opened.predict(image)
    assert len(ours) == len(served) > 40
    np.testing.assert_allclose(served.boxes, ours.boxes, atol=2e-3)
    np.testing.assert_allclose(served.scores, ours.scores, atol=1e-5)


def test_an_older_export_says_once_that_its_tiles_are_normalised_by_themselves(pair, monkeypatch, caplog):
    predictor, opened, folder = pair
    older = load(folder)
    monkeypatch.setattr(older, "_takes_parts", False)
    part = picture(8, 40, 60)
    whole = brightness(np.concatenate([part, part // 4]))
    for _ in range(2):
        np.testing.assert_array_equal(older._detect(part, whole).scores, opened._detect(part, None).scores)
    told = [record.message.split(": ")[:2] for record in caplog.records]
    # Fixed statistics are those of every tile.
    fixed = predictor.config.data.normalization == "fixed"
    assert told == ([] if fixed else [[str(folder), "an older export"]])


def serve(opened, *files):
    found = opened._signatures["serving_default"](image_bytes=tf.constant(list(files), tf.string))
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize(
    "image",
    [
        picture(0, 64, 80),
        picture(1, 41, 67),
        picture(2, 64, 64, 3),
        picture(3, 50, 60, 1, np.uint16),
        picture(4, 50, 60, 3, np.uint16),
        np.repeat(picture(5, 40, 40), 3, axis=-1),
        picture(6, 40, 50).astype(np.float32) / 300,
        picture(7, 1, 1),
        np.full((30, 30, 1), 9, np.uint8),
    ],
    ids=["gray", "odd", "colour", "gray16", "colour16", "gray-as-colour", "float", "pixel", "flat"],
)
def test_the_same_cells_as_the_network_in_keras(pair, image):
    predictor, opened, _ = pair
    if image.dtype == np.float32 and predictor.config.data.channels == 3:
        image = np.repeat(image, 3, axis=-1)
    ours, served = predictor.predict(image), opened.predict(image)
    assert len(ours) == len(served) > 0
    np.testing.assert_allclose(served.scores, ours.scores, atol=1e-5)
    rows, columns = match(ours, served)  # two of nearly one score may come in either order
    assert len(rows) == len(ours)
    np.testing.assert_allclose(served.boxes[columns], ours.boxes[rows], atol=2e-3)
    np.testing.assert_array_equal(served.classes[columns], ours.classes[rows])
    assert served.truncated == ours.truncated
    if ours.masks is None:
        assert served.masks is None
    else:
        assert np.abs(served.masks[columns].astype(int) - ours.masks[rows]).max() <= 1
        np.testing.assert_allclose(served.mask_boxes[columns], ours.mask_boxes[rows], atol=2e-3)


def test_alpha_is_dropped_as_in_keras(pair):
    predictor, opened, _ = pair
    for dtype in (np.uint8, np.uint16):
        image = picture(0, 40, 50, 4, dtype)
        ours, served = predictor.predict(image), opened.predict(image)
        assert len(ours) == len(served) > 0
        np.testing.assert_allclose(served.scores, ours.scores, atol=1e-5)


@pytest.mark.parametrize("shape", [(9,), (0, 5), (8, 8, 2), (2, 8, 8, 1)])
def test_an_array_that_is_no_image_is_told_as_in_keras(pair, shape):
    predictor, opened, _ = pair
    for network in (predictor, opened):
        with pytest.raises(UserError, match="an image is"):
            network.predict(np.zeros(shape, np.uint8))


def test_an_image_that_the_graph_refuses_is_told(pair):
    with pytest.raises(UserError, match="refused the image, which 400x251 is more than"):
        pair[1].predict(np.zeros((400, 251), np.uint8))


def test_one_bad_image_does_not_fail_its_batch(pair):
    predictor, opened, _ = pair
    good, colour = encode_png(picture(0, 64, 80)), encode_png(picture(2, 40, 30, 3))
    jpeg = cv2.imencode(".jpg", picture(0, 64, 80))[1].tobytes()
    huge = cv2.imencode(".png", np.zeros((400, 251), np.uint8))[1].tobytes()
    files = [
        good,
        b"",
        b"hello",
        good[: len(good) // 2],
        jpeg[: len(jpeg) // 2],
        huge,
        jpeg,
        good[:20],
        colour,
    ]
    found = serve(opened, *files)
    assert found["ok"].tolist() == [True, False, False, False, False, False, True, False, True]
    errors = [text.decode() for text in found["error"]]
    assert [bool(text) for text in errors] == [not ok for ok in found["ok"]]
    assert "empty" in errors[1] and "neither PNG nor JPEG" in errors[2] and "damaged" in errors[3]
    assert "damaged" in errors[4] and "damaged" in errors[7]
    assert "400x251 is more than 100000 pixels" in errors[5]
    assert found["count"].tolist() == [
        n if ok else 0 for n, ok in zip(found["count"], found["ok"], strict=True)
    ]
    assert found["height"].tolist() == [64, 0, 0, 0, 0, 0, 64, 0, 40]
    alone = serve(opened, good)
    for name in ("boxes", "scores", "classes"):
        value = alone[name][0]
        np.testing.assert_array_equal(found[name][0][: len(value)], value)
    expected = predictor.predict(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED))
    np.testing.assert_allclose(found["scores"][6, : len(expected)], expected.scores, atol=1e-5)


def test_a_batch_is_as_wide_as_its_fullest_image_and_padded_with_nothing(pair):
    _, opened, _ = pair
    found = serve(opened, encode_png(picture(0, 8, 8)), encode_png(picture(1, 96, 96)))
    counts, scores = found["count"], found["scores"]
    assert scores.shape[1] == counts.max() <= 40
    for row, count in zip(scores, counts, strict=True):
        assert (np.diff(row[:count]) <= 0).all() and not row[count:].any()


@pytest.mark.parametrize("signature", ["serving_default", "tensor", "network", "info", "label_map"])
def test_an_empty_batch_is_answered(pair, signature):
    predictor, opened, _ = pair
    if signature == "label_map" and predictor.network.mask_head is None:
        assert signature not in opened._signatures
        return
    function = opened._signatures[signature]
    channels = predictor.config.data.channels
    given = {
        "tensor": {"images": tf.zeros((0, 64, 64, channels))},
        "network": {"images": tf.zeros((0, 64, 64, channels))},
        "info": {"query": tf.constant([], tf.string)},
    }.get(signature, {"image_bytes": tf.constant([], tf.string)})
    assert all(value.shape[0] == 0 for value in function(**given).values())


def test_label_images_are_those_of_the_result(pair):
    predictor, opened, _ = pair
    if predictor.network.mask_head is None:
        pytest.skip("no mask head, no label images")
    images = [picture(0, 64, 80), picture(1, 41, 67), picture(2, 96, 50)]
    files = [encode_png(images[0]), b"no image", encode_png(images[1]), encode_png(images[2])]
    found = opened._signatures["label_map"](image_bytes=tf.constant(files))
    labels = found["labels"].numpy()
    assert labels.shape == (4, 96, 80) and found["ok"].numpy().tolist() == [True, False, True, True]
    assert not labels[1].any()
    score = predictor.config.postprocess.report_score
    for k, image in zip((0, 2, 3), images, strict=True):
        expected, kept = predictor.predict(image).filter(score).label_image()
        height, width = expected.shape
        assert found["count"].numpy()[k] == len(kept) == labels[k].max()
        assert (labels[k, :height, :width] != expected).mean() < 1e-3
        assert not labels[k, height:].any() and not labels[k, :, width:].any()


def test_images_whose_common_canvas_would_be_gigantic_are_refused_in_a_batch(pair):
    predictor, opened, _ = pair
    if predictor.network.mask_head is None:
        pytest.skip("no mask head, no label images")
    files = [
        encode_png(picture(0, 2, 5_000)),
        encode_png(picture(1, 5_000, 2)),
        encode_png(picture(2, 30, 30)),
    ]
    found = opened._signatures["label_map"](image_bytes=tf.constant(files))
    assert found["ok"].numpy().tolist() == [True, False, True]
    assert b"on its own" in found["error"].numpy()[1]
    assert found["labels"].shape == (3, 30, 5_000)


def test_decoded_images_go_in_as_a_batch(pair):
    predictor, opened, _ = pair
    images = np.stack([picture(k, 48, 72, predictor.config.data.channels) for k in range(3)])
    found = opened._signatures["tensor"](images=tf.constant(images, tf.float32))
    for k, image in enumerate(images):
        expected = predictor.predict(image)
        assert found["count"].numpy()[k] == len(expected)
        np.testing.assert_allclose(found["scores"].numpy()[k, : len(expected)], expected.scores, atol=1e-5)


def test_the_network_alone_gives_its_raw_outputs(pair):
    predictor, opened, _ = pair
    image = tf.random.stateless_normal((2, 64, 64, predictor.config.data.channels), (0, 0))
    expected = predictor.network.dense(image, training=False)
    for name, value in opened._signatures["network"](images=image).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)


def test_weights_are_stored_once_and_the_papers_lie_beside_them(pair):
    predictor, opened, folder = pair
    stored = sum(path.stat().st_size for path in (folder / "variables").glob("*.data*"))
    needed = 4 * sum(int(np.prod(v.shape)) for v in predictor.network.variables)
    assert needed <= stored < 1.2 * needed + 5_000
    extra = folder / "assets.extra"
    metadata = json.loads((extra / "effdet_tf.json").read_text())
    assert metadata["classes"][0]["category_id"] == predictor.category_ids[0]
    assert metadata == json.loads(opened._signatures["info"](query=tf.constant(["?"]))["metadata"].numpy()[0])
    assert opened.config == predictor.config
    assert (extra / "labels.txt").read_text().split() == list(predictor.class_names)
    assert "CC BY-NC 4.0" in (extra / "MODEL_CARD.md").read_text()
    assert (extra / "tf_serving_warmup_requests").stat().st_size > 0
    assert (extra / "config.yaml").exists()


def test_another_programs_model_is_told_apart(tmp_path):
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec((), tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "other"), {"serving_default": module.f})
    with pytest.raises(UserError, match="another program"):
        load(tmp_path / "other")
    (tmp_path / "broken" / "assets.extra").mkdir(parents=True)
    about = json.dumps(describe(Config(), "float32"))
    (tmp_path / "broken" / "assets.extra" / "effdet_tf.json").write_text(about)
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(UserError, match="not a readable SavedModel"):
        load(tmp_path / "broken")
