"""Keras models as backbones: hand-made ones always, keras-hub's and keras-cv's where they are installed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from effdet_tf import cli
from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.model.network import Network, build_network
from effdet_tf.model.weights import named_variables, save_arrays, to_arrays
from effdet_tf.prediction.load import load
from effdet_tf.prediction.run import RunPredictor
from effdet_tf.runs import CONFIG_FILE, LAST_FILE
from training.optimizer import make_optimizer
from training.trainer import make_step
from training.vectors import Vectors

CHANNELS = {1: 4, 2: 6, 3: 8, 4: 10}


def features_of(image: Any, padding: str = "same") -> dict[int, Any]:
    """Level -> feature: a convolution of stride 2 each, and a batch norm."""
    x, features = image, {}
    for level, channels in CHANNELS.items():
        x = layers.Conv2D(channels, 3, 2, padding=padding, activation="relu", name=f"own_conv{level}")(x)
        x = layers.BatchNormalization(name=f"own_bn{level}")(x)
        features[level] = x
    return features


def hand_made(form: str = "dict", channels: int = 1, seed: int = 0, **options: Any) -> keras.Model:
    """A small backbone whose features are found in one of the ways that there are."""
    keras.utils.set_random_seed(seed)
    image = layers.Input((None, None, channels))
    features = features_of(image, **options)
    if form == "dict":
        return keras.Model(image, {f"P{level}": x for level, x in features.items()})
    if form == "list":
        # Two features of stride 8: the last one counts.
        return keras.Model(image, [layers.Activation("tanh")(features[3]), *features.values()])
    model = keras.Model(image, layers.GlobalAveragePooling2D()(features[4]))
    if form == "pyramid_outputs":
        model.pyramid_outputs = {f"P{level}": x for level, x in features.items()}
    else:
        model.pyramid_level_inputs = {f"P{level}": f"own_bn{level}" for level in features}
    return model


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    return tiny_config.override(
        ["model.backbone=custom", "postprocess.score_threshold=0.001", "data.max_instances=50"]
    )


def image_batch(channels: int = 1, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *size, channels)).astype(np.float32)


def one_step(network: Network, config: Config) -> np.ndarray:
    """One training step on two images with a cell each; returns its figures."""
    optimizer = make_optimizer(config)
    optimizer.build(network.trainable_variables)
    average = [keras.Variable(v.value, trainable=False) for v in named_variables(network).values()]
    state = Vectors(network, average, optimizer)
    step = make_step(config, network, state, 28)
    batch = {
        "image": tf.constant(image_batch(config.data.channels, config.data.crop_size)),
        "boxes": tf.constant([[[8.0, 8.0, 24.0, 24.0]], [[20.0, 30.0, 40.0, 44.0]]]),
        "classes": tf.zeros((2, 1), tf.int32),
        "masks": tf.fill((2, 1, 28, 28), tf.constant(255, tf.uint8)),
        "ignored": tf.zeros((2, 1, 4)),
        "scores": tf.ones((2, 1)),
    }
    return np.array(step(batch, tf.constant(0), tf.constant(0.01)))


def check_library_backbone(model: keras.Model, config: Config, levels: dict[int, Any]) -> None:
    """The network sees the library's own features, learns in them, and goes to a file and back."""
    config = config.override(
        [
            "data.channels=3",
            "model.backbone_levels=[3, 4, 5]",
            "model.min_level=3",
            "model.max_level=6",
            "model.mask.stride=4",
            "anchors.sizes=[[9], [20], [40], [80]]",
            "data.crop_size=[96, 128]",
        ]
    )
    network = build_network(config, backbone=model)
    trunk = next(layer for layer in network.dense.layers if isinstance(layer, keras.Model))
    image = image_batch(3, (96, 128))
    finest = min(levels)
    expected = keras.Model(model.inputs[0], [levels[level] for level in range(finest, 6)])(image)
    for level, ours, theirs in zip(range(finest, 6), trunk(image), expected, strict=True):
        assert ours.shape[1:3] == (96 // 2**level, 128 // 2**level)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.std(ours) > 0
    before = {name: np.array(v) for name, v in named_variables(network).items()}
    figures = one_step(network, config)
    assert np.isfinite(figures).all() and figures[3] > 0 and figures[-1] > 0  # mask loss, gradient norm
    moved = {
        name for name, v in named_variables(network).items() if np.abs(np.array(v) - before[name]).max() > 0
    }
    assert sum(name.startswith("backbone/") for name in moved) > 20
    again = build_network(config, backbone=model)
    for name, variable in named_variables(again).items():
        variable.assign(to_arrays(network)[name])
    outputs = (net.dense(image, training=False)["class_logits"] for net in (network, again))
    np.testing.assert_array_equal(*(np.array(part) for part in outputs))


@pytest.mark.parametrize("form", ["dict", "list", "pyramid_outputs", "pyramid_level_inputs"])
def test_every_form_gives_the_same_network(config, form):
    network = build_network(config, backbone=hand_made(form))
    names = [name for name in named_variables(network) if name.startswith("backbone/")]
    # The backbone is cut behind level 3: its fourth convolution is no part of the network.
    assert {name.split("/")[1] for name in names} == {
        f"own_{k}{n}" for k in ("conv", "bn") for n in (1, 2, 3)
    }
    model = hand_made("dict")
    trunk = next(layer for layer in network.dense.layers if isinstance(layer, keras.Model))
    for level, feature in zip((1, 2, 3), trunk(image_batch()), strict=True):
        np.testing.assert_array_equal(feature, model(image_batch())[f"P{level}"])
    outputs = network.dense(image_batch(), training=False)
    assert outputs["class_logits"].shape == (2, (16 * 16 + 8 * 8) * 6, 1)
    assert outputs["mask_feature"].shape == (2, 32, 32, 8)  # stride 2: of the backbone's level 1


def test_networks_share_no_weights_with_each_other_or_with_the_model(config):
    model = hand_made()
    start = [np.array(w) for w in model.get_weights()]
    networks = [build_network(config, backbone=model) for _ in range(2)]
    first, second = (to_arrays(network) for network in networks)
    for name in first:
        if name.startswith("backbone/"):
            np.testing.assert_array_equal(first[name], second[name])
    figures = one_step(networks[0], config)
    assert np.isfinite(figures).all()
    moved, still = (to_arrays(network) for network in networks)
    assert np.abs(moved["backbone/own_conv1/kernel"] - first["backbone/own_conv1/kernel"]).max() > 1e-4
    assert np.abs(moved["backbone/own_bn1/moving_mean"] - first["backbone/own_bn1/moving_mean"]).max() > 0
    for name in still:
        np.testing.assert_array_equal(still[name], second[name])
    for now, then in zip(model.get_weights(), start, strict=True):
        np.testing.assert_array_equal(now, then)


def test_frozen_layers_stay_frozen(config):
    model = hand_made()
    model.get_layer("own_conv1").trainable = False
    network = build_network(config, backbone=model)
    names = {v.path for v in network.trainable_variables}
    assert "backbone/own_conv2/kernel" in names and "backbone/own_conv1/kernel" not in names
    assert "backbone/own_conv1/kernel" in named_variables(network)


def test_a_run_is_loaded_with_its_backbone_and_says_so_without(config, tmp_path, capsys):
    network = build_network(config, backbone=hand_made())
    config.save(tmp_path / CONFIG_FILE)
    save_arrays(tmp_path / LAST_FILE, to_arrays(network))
    image = np.random.default_rng(0).integers(0, 255, (80, 72), dtype=np.uint8)
    expected = RunPredictor(network, config).predict(image)
    result = load(tmp_path, backbone=hand_made(seed=9)).predict(image)  # other weights
    assert len(expected) > 0
    np.testing.assert_array_equal(result.boxes, expected.boxes)
    np.testing.assert_array_equal(result.scores, expected.scores)
    with pytest.raises(UserError, match=r"effdet_tf\.load\(RUN, backbone=model\)"):
        load(tmp_path)
    keras.utils.save_img(str(tmp_path / "a.png"), image[..., None])
    command = ["predict", "--run", str(tmp_path), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: model.backbone is custom")
    other = keras.Model(x := layers.Input((None, None, 1)), {"P2": layers.Conv2D(6, 3, 4, padding="same")(x)})
    with pytest.raises(UserError, match="has no level 3"):
        load(tmp_path, backbone=other)


class Unsaved(layers.Layer):
    """A layer whose arguments Keras cannot know."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


class Doubles(layers.Layer):
    """A layer that gives two weights one name."""

    def build(self, shape):
        self.parts = [self.add_weight(shape=(), name="part") for _ in range(2)]

    def call(self, inputs):
        return inputs * self.parts[0] + self.parts[1]


class Subclassed(keras.Model):
    def call(self, inputs):
        return {"P2": inputs}


def wrong(kind: str) -> keras.Model:
    """A backbone with one thing wrong."""
    image = layers.Input((None, None, 1))
    features = features_of(image)
    if kind == "fixed size":
        image = layers.Input((64, 64, 1))
        return keras.Model(image, {f"P{k}": x for k, x in features_of(image).items()})
    if kind == "two inputs":
        other = layers.Input((None, None, 1))
        return keras.Model([image, other], {"P2": features[2], "P3": other})
    if kind == "wrong name":
        return keras.Model(image, {"P2": features[2], "P3": features[2]})
    if kind == "stride 3":
        return keras.Model(image, [features[2], layers.Conv2D(4, 3, 3, padding="same")(image)])
    if kind == "unnamed":
        return keras.Model(image, {"P2": features[2], "deep": features[3]})
    if kind == "pooled":
        return keras.Model(image, [features[2], layers.GlobalAveragePooling2D()(features[3])])
    if kind == "doubles":
        return keras.Model(image, {"P2": features[2], "P3": Doubles()(features[3])})
    if kind == "coarse":
        return keras.Model(image, {"P2": features[2], "P3": features[3]})
    return keras.Model(image, {"P2": features[2], "P3": Unsaved(lambda x: x)(features[3])})


@pytest.mark.parametrize(
    ("backbone", "settings", "words"),
    [
        (hand_made, ["model.backbone=efficientnet-lite0"], "set model.backbone=custom"),
        (None, [], "model.backbone is custom: .* build_network"),
        (hand_made, ["model.stem_stride=1"], "stem_stride has no effect"),
        (hand_made, ["data.channels=3"], "takes 1 channels, data.channels is 3; set data.channels=1"),
        (
            hand_made,
            [
                "model.backbone_levels=[5, 6]",
                "model.min_level=5",
                "model.max_level=6",
            ],
            r"no level 5 \(stride 32\), but 1, 2, 3, 4; set model.backbone_levels",
        ),
        (lambda: hand_made(padding="valid"), [], r"512x512 pixels into level 1 of shape \[255, 255, 4\]"),
        (lambda: wrong("fixed size"), [], r"\(None, 64, 64, 1\); build it for images of any size"),
        (lambda: wrong("two inputs"), [], "no functional Keras model with one input"),
        (Subclassed, [], "no functional Keras model with one input"),
        (lambda: wrong("wrong name"), [], r"into level 3 of shape \[128, 128, 6\]; its stride must be 8"),
        (lambda: wrong("stride 3"), [], r"a feature of shape \[171, 171, 4\]; its stride must be a power"),
        (lambda: wrong("pooled"), [], r"a feature of shape \[8\]; its stride must be a power of two"),
        (lambda: wrong("unnamed"), [], "calls an output 'deep'; name them by level"),
        (lambda: wrong("doubles"), [], r"several weights one name \(backbone/.*part\)"),
        (lambda: wrong("uncopyable"), [], "cannot be copied .*; give its own layers a get_config"),
        (
            lambda: wrong("coarse"),
            [],
            "model.mask.stride 2: the backbone has no feature of that stride",
        ),
    ],
)  # fmt: skip
def test_a_backbone_that_does_not_fit_is_one_line(config, backbone, settings, words):
    config = config.override(settings)
    with pytest.raises(UserError, match=words) as error:
        build_network(config, backbone=backbone and backbone())
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_crop_that_the_backbone_rounds_down_is_refused(config):
    """Pooling without padding: 512 px are fine, 36 px make 4 where the pyramid has 5."""
    image = layers.Input((None, None, 1))
    x, features = image, {}
    for level in (1, 2, 3):
        x = layers.AveragePooling2D(2)(layers.Conv2D(4, 3, padding="same", name=f"c{level}")(x))
        features[f"P{level}"] = x
    model = keras.Model(image, features)
    with pytest.raises(UserError, match=r"level 3 of a 36x64 crop 4x8, not 5x8; .* multiple of 8"):
        build_network(config.override(["data.crop_size=[36, 64]"]), backbone=model)
    build_network(config.override(["data.crop_size=[40, 64]"]), backbone=model)


def test_masks_need_no_finer_level_than_they_have(config):
    network = build_network(config.override(["model.mask.stride=4"]), backbone=wrong("coarse"))
    assert network.dense(image_batch())["mask_feature"].shape == (2, 16, 16, 8)


def test_a_backbone_of_keras_hub(config):
    keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed (pip install keras-hub)")
    model = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )
    assert sorted(model.pyramid_outputs) == ["P2", "P3", "P4", "P5"]
    check_library_backbone(model, config, {int(k[1:]): x for k, x in model.pyramid_outputs.items()})


def test_a_backbone_of_keras_cv(config):
    keras_cv = pytest.importorskip("keras_cv", reason="keras-cv is not installed (pip install keras-cv)")
    model = keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 64, 64, 64],
        stackwise_blocks=[1, 1, 1, 1],
        stackwise_strides=[1, 2, 2, 2],
        block_type="basic_block",
        include_rescaling=False,
        input_shape=(None, None, 3),
    )
    levels = {int(k[1:]): model.get_layer(name).output for k, name in model.pyramid_level_inputs.items()}
    assert sorted(levels) == [2, 3, 4, 5]
    check_library_backbone(model, config, levels)
