from __future__ import annotations

import io
import os
import sys
import warnings
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from scipy.ndimage import gaussian_filter
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from effdet_tf.errors import UserError
from effdet_tf.prediction.metadata import METADATA_FILE, read_metadata
from effdet_tf.prediction.run import RunPredictor, load_run
from effdet_tf.prediction.tflite import TFLitePredictor
from effdet_tf.runs import find_run
from export import tflite
from export.flatbuffer_merge import custom_operators, merge
from export.tflite import convert, keras_reference, split

SIZE = (60, 90)  # becomes 64 x 96


@pytest.fixture(scope="module")
def predictor(tiny_config, lively) -> RunPredictor:
    return lively(
        tiny_config.override(
            ["class_names=[a, b]", "category_ids=[1, 2]", "postprocess.score_threshold=0.15"]
        )
    )


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Smooth noise: no two places are alike."""
    noise = np.random.default_rng(0).normal(size=(4, 130, 200, 1))
    smooth = gaussian_filter(noise, (0, 2, 2, 0)) * 400 + 120
    return list(smooth.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def models(predictor, images) -> dict[str, bytes]:
    return {
        "float32": convert(predictor, SIZE, "float32"),
        "float16": convert(predictor, SIZE, "float16"),
        "int8": convert(predictor, SIZE, "int8", images),
        "int8, heads in float": convert(predictor, SIZE, "int8", iter(images), float_heads=True),
    }


def opened(model: bytes, folder) -> TFLitePredictor:
    path = folder / "model.tflite"
    path.write_bytes(model)
    return TFLitePredictor(path, threads=1)


def parsed(model: bytes):
    return flatbuffer_utils.convert_bytearray_to_object(bytearray(model))


@pytest.mark.parametrize(
    ("name", "share", "score"),
    [("float32", 1, 1e-4), ("float16", 0.95, 0.02), ("int8", 0.5, 0.2), ("int8, heads in float", 0.5, 0.2)],
)
def test_the_file_finds_the_cells_of_the_keras_network(
    predictor, images, models, tmp_path, name, share, score
):
    found = opened(models[name], tmp_path)
    reference = keras_reference(predictor, SIZE)
    assert reference.input_size == found.input_size == (64, 96)
    for image in (images[0], images[1][: SIZE[0], : SIZE[1]], images[1][:9, :12]):
        expected, result = reference.predict(image), found.predict(image)
        assert len(expected) > 20 or image.size < 200
        assert (result.height, result.width) == image.shape[:2]
        distance = np.abs(expected.boxes[:, None] - result.boxes[None]).max(-1)
        near, partner = distance.min(1) < 1, distance.argmin(1)
        assert near.mean() >= share
        assert np.abs(expected.scores - result.scores[partner])[near].max() <= score
        masks = result.masks[partner].astype(int)
        assert np.abs(expected.masks - masks)[near].mean() < (2 if name.startswith("float") else 20)


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_a_magnified_network_without_anchors(tiny_points, lively, images, tmp_path, nms):
    settings = ["postprocess.score_threshold=0.15", f"postprocess.nms={nms}", "data.normalization=content"]
    calibrated = ["postprocess.calibration=[[0, 0], [.05, .3], [.4, .7], [1, 1]]", "postprocess.min_score=.4"]
    predictor = lively(tiny_points.override(settings + (calibrated if nms == "hard" else [])))
    found = opened(convert(predictor, SIZE, "float32"), tmp_path)
    reference = keras_reference(predictor, SIZE)
    assert reference.input_size == found.input_size == (96, 136)  # 90 x 135, rounded up to the stride of 8
    assert found.metadata["input"]["zoom"] == 1.5
    for image in (images[0], images[1][: SIZE[0], : SIZE[1]]):  # in tiles, and in one piece
        expected, result = reference.predict(image), found.predict(image)
        assert len(expected) > 10 and len(result) == len(expected)
        distance = np.abs(expected.boxes[:, None] - result.boxes[None]).max(-1)
        assert distance.min(1).max() < 0.1
        assert np.abs(expected.scores - result.scores[distance.argmin(1)]).max() <= 1e-4
    if nms == "hard":
        assert result.scores.max() > 0.3  # calibrated
        assert custom_operators(convert(predictor, SIZE, "float32")) == []
    whole = predictor.predict(images[1][: SIZE[0], : SIZE[1]])
    assert 0.8 < len(whole) / len(expected) < 1.25  # Keras itself pads as much, and is not tiled
    if nms == "hard":
        int8 = opened(convert(predictor, SIZE, "int8", images), tmp_path)
        assert len(int8.predict(images[0])) > 5


def test_the_reference_is_the_predictor_where_nothing_is_padded(predictor, images):
    image = images[0][:64, :96]
    expected, result = predictor.predict(image), keras_reference(predictor, (64, 96)).predict(image)
    np.testing.assert_allclose(result.boxes, expected.boxes, atol=1e-4)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-6)


def test_only_builtin_operators(models):
    for model in models.values():
        assert custom_operators(model) == []


def test_custom_operators_are_found(predictor, monkeypatch):
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [tf.function(tf.linalg.inv).get_concrete_function(tf.TensorSpec((2, 2), tf.float32))], tf.Module()
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    with tflite._quiet():
        model = converter.convert()
    assert custom_operators(model) == ["FlexMatrixInverse"]
    monkeypatch.setattr(tflite._Part, "convert", lambda *_: model)
    with pytest.raises(UserError, match="no builtin for .*: FlexMatrixInverse"):
        convert(predictor, SIZE, "float32")


def test_weights_have_the_precision(models):
    """Bytes of the constants of each type."""

    def share(model: bytes, kind: int) -> float:
        size = {schema.TensorType.FLOAT32: 4, schema.TensorType.FLOAT16: 2, schema.TensorType.INT8: 1}
        held = dict.fromkeys(size, 0)
        read = parsed(model)
        for graph in read.subgraphs:
            for tensor in graph.tensors:
                data = read.buffers[tensor.buffer].data
                if data is not None and tensor.type in held:
                    held[tensor.type] += len(data) // size[tensor.type]
        return held[kind] / sum(held.values())

    assert share(models["float32"], schema.TensorType.FLOAT32) == 1
    # The first blocks stay float32: half of this network, a hundredth of one that is of use.
    assert share(models["float16"], schema.TensorType.FLOAT16) > 0.4
    of_use = convert(load_run(find_run("cells")), (64, 96), "float16")
    assert share(of_use, schema.TensorType.FLOAT16) > 0.8
    heads = share(models["int8, heads in float"], schema.TensorType.INT8)
    assert 0.8 < heads < share(models["int8"], schema.TensorType.INT8)


def test_one_signature_with_fixed_names(models):
    for model in models.values():
        read = parsed(model)
        (signature,) = read.signatureDefs
        assert signature.signatureKey == b"serving_default"
        tensors = read.subgraphs[0].tensors
        inputs = {entry.name.decode(): list(tensors[entry.tensorIndex].shape) for entry in signature.inputs}
        assert inputs == {"image": [1, 64, 96, 1], "frame": [2]}
        names = {entry.name.decode() for entry in signature.outputs}
        assert names == {"boxes", "scores", "classes", "masks", "mask_boxes", "count"}


def test_the_file_says_what_it_is(models):
    for name, model in models.items():
        with zipfile.ZipFile(io.BytesIO(model)) as archive:
            assert archive.read(tflite.LABELS_FILE) == b"a\nb\n"
            metadata, config = read_metadata(archive.read(METADATA_FILE), "here")
        assert metadata["precision"] == name.split(",")[0]
        assert (metadata["input"]["height"], metadata["input"]["width"]) == (64, 96)
        assert config.class_names == ("a", "b")


def test_equal_networks_give_equal_files(predictor, models):
    assert convert(predictor, (64, 96), "float32") == models["float32"]


def test_boxes_alone_and_quietly(tiny_config, lively, tmp_path, images, capfd):
    predictor = lively(tiny_config.override(["model.mask.enabled=false", "model.head_repeats=0"]))
    model = convert(predictor, SIZE, "int8", images[:1], float_heads=True)
    assert capfd.readouterr() == ("", "")
    result = opened(model, tmp_path).predict(images[0])
    assert len(result) > 20
    assert result.masks is None and result.mask_boxes is None


def test_no_candidate_is_no_cell(tiny_points, lively, tmp_path, images):
    """Box voting multiplies a matrix of candidates, and the runtime none without rows."""
    predictor = lively(tiny_points.override(["postprocess.score_threshold=0.99999"]))
    found = opened(convert(predictor, SIZE, "float32"), tmp_path)
    assert len(found.predict(images[0])) == 0  # in tiles
    assert len(found.predict(np.full((*SIZE, 1), 7, np.uint8))) == 0
    assert len(predictor.predict(images[0])) == 0

    def fails(**_):  # as files from before do
        raise RuntimeError("XNNPack delegate failed to reshape runtime")

    found._runner = fails
    assert len(found.predict(images[0])) == 0


def test_fitted_images(tiny_config, lively, tmp_path, images):
    config = tiny_config.override(["data.resize=fit", "data.crop_size=[64, 80]"])
    predictor = lively(config)
    with pytest.raises(UserError, match="size 64x64: .* to 64x80 .*; leave the size out"):
        convert(predictor, (64, 64), "float32")
    found = opened(convert(predictor, (64, 80), "float32"), tmp_path)
    for image in (images[0][:30, :20], images[1].astype(np.uint16) * 257):
        expected, result = predictor.predict(image), found.predict(image)
        assert len(expected) == len(result) > 20
        np.testing.assert_allclose(result.boxes, expected.boxes, atol=0.05)
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-3)


def test_classes_on_their_own_in_colour(tiny_config, lively, tmp_path):
    # What the published presets are: colour, statistics given, NMS class by class, no masks.
    config = tiny_config.override(
        [
            "model.mask.enabled=false",
            "data.channels=3",
            "data.normalization=fixed",
            "data.mean=[120, 110, 100]",
            "data.std=[50, 60, 70]",
            "postprocess.class_agnostic=false",
            "class_names=[a, b, c]",
            "category_ids=[1, 2, 3]",
        ]
    )
    predictor = lively(config)
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(64, 96, 3)), (2, 2, 0)) * 400 + 120
    image = noise.clip(0, 255).astype(np.uint8)
    expected = predictor.predict(image)
    result = opened(convert(predictor, (64, 96), "float32"), tmp_path).predict(image)
    assert len(expected) == len(result) > 20 and set(expected.classes) == {0, 1, 2}
    np.testing.assert_array_equal(result.classes, expected.classes)
    np.testing.assert_allclose(result.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "float_heads", "precisions"),
    [
        ("float32", False, ["float32"]),
        ("float16", False, ["float32", "float16", "float32"]),
        ("int8", False, ["int8"]),
        ("int8", True, ["int8", "float32"]),
    ],
)
def test_the_parts_are_the_network(predictor, precision, float_heads, precisions):
    image = np.random.default_rng(0).normal(size=(1, 64, 96, 1)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Keras speaks of names, which are no concern of the user's
        parts = split(predictor.network.dense, precision, float_heads)
    assert [own for _, own in parts] == precisions
    expected = predictor.network.dense(image, training=False)
    tensors = {"image": image}
    for part, _ in parts:
        tensors = part(**tensors)
    assert set(tensors) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(tensors[name], values, atol=1e-5)


@pytest.mark.parametrize("size", [(0, 64), (64, -1)])
def test_a_wrong_size_is_the_users_error(predictor, size):
    with pytest.raises(UserError, match="must be 1 or more"):
        convert(predictor, size, "float32")


def test_int8_needs_images(predictor):
    with pytest.raises(UserError, match="int8 needs images to calibrate on: give some 20"):
        convert(predictor, SIZE, "int8")


def test_a_bad_image_to_calibrate_on_is_the_users_error(predictor, images):
    with pytest.raises(UserError, match="an image is"):
        convert(predictor, SIZE, "int8", [images[0], np.zeros((3, 3, 7))])


def test_calibration_sees_the_middle_of_a_large_image(predictor):
    image = np.zeros((200, 300, 1), np.uint8)
    image[68:132, 102:198] = 255
    values = tflite._fitted(image, predictor.config, (64, 96))
    assert values.shape == (1, 64, 96, 1)
    assert (values > 0).all()


def test_a_failing_conversion_is_one_line_and_shows_what_was_held_back(predictor, monkeypatch, capfd):
    def fail(*_):
        os.write(2, b"from C++\n")
        print("from Python", file=sys.stderr)
        raise RuntimeError("\n  it broke\nmore")

    monkeypatch.setattr(tflite._Part, "convert", fail)
    with pytest.raises(UserError, match="^this network does not convert to TFLite float16: it broke$"):
        convert(predictor, SIZE, "float16")
    assert "from C++" in capfd.readouterr().err


def test_joined_models_keep_their_loops(tmp_path):
    """Two loops, one in each model: every loop finds its own subgraphs."""

    def part(step: int, names: tuple[str, str], extra: bool) -> bytes:
        def function(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            x = inputs[names[0]]
            times = inputs["times"] if extra else tf.cast(tf.reduce_sum(x * 0), tf.int32) + 3
            _, x = tf.while_loop(
                lambda k, x: k < times, lambda k, x: (k + 1, x * step + 1), (tf.constant(0), x)
            )
            return {names[1]: x}

        specs = {names[0]: tf.TensorSpec((2,), tf.float32, names[0])}
        if extra:
            specs["times"] = tf.TensorSpec((), tf.int32, "times")
        concrete = tf.function(function, autograph=False).get_concrete_function(**specs)
        with tflite._quiet():
            return tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert()

    joined = merge(part(2, ("x", "y"), False), part(10, ("y", "z"), True))
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_content=joined).get_signature_runner("serving_default")
    assert set(run.get_input_details()) == {"x", "times"}
    x = np.float32([0, 1])
    y = ((x * 2 + 1) * 2 + 1) * 2 + 1
    np.testing.assert_array_equal(run(x=x, times=np.int32(2))["z"], (y * 10 + 1) * 10 + 1)
    with pytest.raises(ValueError, match="output y is no input of the second"):
        merge(part(2, ("x", "y"), False), part(2, ("x", "y"), False))
