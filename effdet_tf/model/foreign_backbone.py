"""A Keras model as backbone: one of keras-hub, of keras-cv, or any with features at strides of 2, 4, 8, ...

Its features are found in the first of these that it has:

- `pyramid_outputs`, {"P3": tensor, ...}: backbones of keras-hub;
- `pyramid_level_inputs`, {"P3": name of a layer, ...}: backbones of keras-cv;
- its outputs: a dict {"P3": tensor, ...}, or a list, whose levels follow from the strides. Of two features
  of one stride the last counts.

P3 has stride 2**3 = 8 input pixels, and so on; that is measured, not believed.
"""

from __future__ import annotations

import re
from collections import Counter

import keras

from effdet_tf.errors import UserError
from effdet_tf.geometry.boxes import Tensor

CUSTOM = "custom"  # what model.backbone says of such a network
SCOPE = "backbone"  # before the names of its weights
_PROBE = 512  # px, a side on which every stride is measured


def build_foreign(
    image: Tensor, model: keras.Model, levels: tuple[int, ...], crop_size: tuple[int, int]
) -> dict[int, Tensor]:
    """Apply a copy of a model, weights included, cut behind the last wanted level.

    Args:
        image: `[B, H, W, C]` float, normalised.
        model: a functional Keras model, see the module's description.
        levels: wanted levels; a level l has stride 2**l.
        crop_size: height and width of a training crop.

    Returns:
        level -> `[B, H / 2**l, W / 2**l, C_l]`, for the wanted levels and every finer one that it offers.

    Raises:
        UserError: when it has another input, lacks a level, or its strides do not fit.
    """
    channels = image.shape[-1]
    _check_input(model, channels)
    found = _levels(model, channels)
    features = {level: feature for level, feature in found.items() if level <= max(levels)}
    missing = sorted(set(levels) - set(features))
    if missing:
        offered = ", ".join(str(level) for level in sorted(found))
        raise UserError(
            f"the backbone {model.name} has no level {missing[0]} (stride {2 ** missing[0]}), but {offered}; "
            "set model.backbone_levels and model.min_level to these"
        )
    names = sorted(features)
    trunk = _copy(keras.Model(model.inputs[0], [features[level] for level in names]), model.name)
    for level, shape in zip(names, _shapes(trunk, *crop_size, channels), strict=True):
        expected = tuple(-(-side // 2**level) for side in crop_size)
        if shape[1:3] != expected:
            raise UserError(
                f"the backbone {model.name} makes level {level} of a {crop_size[0]}x{crop_size[1]} crop "
                f"{shape[1]}x{shape[2]}, not {expected[0]}x{expected[1]}; choose a data.crop_size that is a "
                f"multiple of {2 ** max(levels)}"
            )
    return dict(zip(names, trunk(image), strict=True))


def _check_input(model: keras.Model, channels: int) -> None:
    inputs = getattr(model, "inputs", None)
    if not inputs or len(inputs) != 1:
        raise UserError(
            f"the backbone {getattr(model, 'name', model)} is no functional Keras model with one input; wrap "
            "it: keras.Model(image, model(image))"
        )
    shape = tuple(inputs[0].shape)
    if len(shape) != 4 or shape[1:3] != (None, None):
        raise UserError(
            f"the backbone {model.name} takes inputs {shape}; build it for images of any size, channels "
            f"last: (None, None, {channels})"
        )
    if shape[3] != channels:
        raise UserError(
            f"the backbone {model.name} takes {shape[3]} channels, data.channels is {channels}; set "
            f"data.channels={shape[3]}, or build the backbone for {channels}"
        )


def _levels(model: keras.Model, channels: int) -> dict[int, Tensor]:
    """The features by level, strides measured."""
    named = getattr(model, "pyramid_outputs", None)
    layers = getattr(model, "pyramid_level_inputs", None)
    if not named and layers:
        named = {level: model.get_layer(name).output for level, name in layers.items()}
    outputs = named or model.output
    if isinstance(outputs, dict):
        pairs = [(_level_of(key, model.name), tensor) for key, tensor in outputs.items()]
    else:
        pairs = [(None, tensor) for tensor in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]
    shapes = _shapes(keras.Model(model.inputs[0], [t for _, t in pairs]), _PROBE, _PROBE, channels)
    found = {}
    for (level, tensor), shape in zip(pairs, shapes, strict=True):
        strides = [_PROBE / side if side else 0.0 for side in shape[1:3]] if len(shape) == 4 else [0.0]
        fits = len(set(strides)) == 1 and strides[0] in (1, 2, 4, 8, 16, 32, 64, 128, 256)
        measured = int(strides[0]).bit_length() - 1
        if not fits or level not in (None, measured):
            name = "a feature" if level is None else f"level {level}"
            wanted = "a power of two" if level is None else f"{2**level}"
            raise UserError(
                f"the backbone {model.name} turns {_PROBE}x{_PROBE} pixels into {name} of shape "
                f"{list(shape[1:])}; its stride must be {wanted}"
            )
        found[measured] = tensor
    return found


def _level_of(key: object, name: str) -> int:
    match = re.fullmatch(r"[Pp]?(\d+)", str(key))
    if match is None:
        raise UserError(f"the backbone {name} calls an output {key!r}; name them by level: P3, P4, ...")
    return int(match[1])


def _shapes(model: keras.Model, height: int, width: int, channels: int) -> list[tuple[int, ...]]:
    """Shapes of a model's outputs for one image; nothing is computed."""
    specs = model.compute_output_spec(keras.KerasTensor((1, height, width, channels)))
    return [tuple(spec.shape) for spec in (specs if isinstance(specs, (list, tuple)) else [specs])]


def _copy(model: keras.Model, name: str) -> keras.Model:
    """A copy with weights of its own, named after `SCOPE`: two networks from one backbone stay apart."""
    try:
        with keras.name_scope(SCOPE):
            copy = keras.models.clone_model(model, clone_function=_copy_layer, recursive=True)
    except (NotImplementedError, TypeError, ValueError) as error:  # the first is Keras's, without get_config
        reason = " ".join(str(error).split())
        raise UserError(
            f"the backbone {name} cannot be copied ({reason[:200]}); give its own layers a get_config"
        ) from error
    copy.set_weights(model.get_weights())
    paths = Counter(v.path for v in copy.variables)
    twice = [path for path, count in paths.items() if count > 1]
    if twice:
        raise UserError(
            f"the backbone {name} gives several weights one name ({twice[0]}): a file could not tell them "
            "apart; name its layers"
        )
    return copy


def _copy_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    # A Lambda holds no weights, and Keras refuses to read its function back from a config.
    return layer if isinstance(layer, keras.layers.Lambda) else type(layer).from_config(layer.get_config())
