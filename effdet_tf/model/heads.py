"""Class and box heads: separable convolutions shared by all levels, batch norm of each level's own."""

from __future__ import annotations

import math

import keras
from keras import layers

from effdet_tf.config import ModelConfig
from effdet_tf.geometry.boxes import Tensor
from effdet_tf.model.layers import SeparableConv2D, activation, batch_norm

CLASS_PRIOR = 0.01  # start probability of every class output (Lin et al., RetinaNet)


def build_tower(pyramid: dict[int, Tensor], name: str, config: ModelConfig) -> dict[int, Tensor]:
    """Apply `head_repeats` separable convolutions to every level: level -> `[B, H_l, W_l, fpn_channels]`.

    `name` is `class` or `box`.
    """
    start = dict.fromkeys(("depthwise_initializer", "pointwise_initializer"), "variance_scaling")
    convolutions = [
        SeparableConv2D(config.fpn_channels, 3, padding="same", name=f"{name}_conv{k}", **start)
        for k in range(config.head_repeats)
    ]
    features = {}
    for level, x in pyramid.items():
        for k, convolution in enumerate(convolutions):
            x = batch_norm(f"{name}_bn{k}_level{level}", config.batch_norm_momentum)(convolution(x))
            x = activation(x, config.activation)
        features[level] = x
    return features


def build_predictor(
    features: dict[int, Tensor], name: str, outputs: int, anchors: int, prior: bool
) -> Tensor:
    """Apply one shared separable convolution and join all levels.

    Args:
        features: level -> `[B, H_l, W_l, C]`.
        name: of the layer.
        outputs: values per anchor.
        anchors: per location.
        prior: start with the bias of `CLASS_PRIOR`, so that the many negatives do not swamp the
            first steps.

    Returns:
        `[B, A, outputs]`, A = all anchors, finest level first, location row-major.
    """
    bias = -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR) if prior else 0.0
    convolution = SeparableConv2D(
        outputs * anchors,
        3,
        padding="same",
        depthwise_initializer="variance_scaling",
        pointwise_initializer=keras.initializers.RandomNormal(stddev=0.01) if prior else "variance_scaling",
        bias_initializer=keras.initializers.Constant(bias),
        name=name,
    )
    flat = [layers.Reshape((-1, outputs))(convolution(features[level])) for level in sorted(features)]
    return layers.Concatenate(axis=1, name=f"{name}_outputs", dtype="float32")(flat)
