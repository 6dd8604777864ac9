"""EfficientNet B0-B7 (Tan and Le, 2019) and EfficientNet-Lite0-4 as feature pyramids."""

from __future__ import annotations

import math
from typing import NamedTuple

from keras import layers

from effdet_tf.errors import UserError
from effdet_tf.geometry.boxes import Tensor
from effdet_tf.model.layers import DepthwiseConv2D, StochasticDepth, activation, batch_norm


class Stage(NamedTuple):
    """One row of the EfficientNet table."""

    kernel: int
    repeats: int
    filters: int
    expand: int
    stride: int


STEM_FILTERS = 32
STAGES = (
    Stage(3, 1, 16, 1, 1),
    Stage(3, 2, 24, 6, 2),
    Stage(5, 2, 40, 6, 2),
    Stage(3, 3, 80, 6, 2),
    Stage(5, 3, 112, 6, 1),
    Stage(5, 4, 192, 6, 2),
    Stage(3, 1, 320, 6, 1),
)
_FACTORS = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))
# name: width and depth factors
SCALES = {f"efficientnet-b{k}": factors for k, factors in enumerate(_FACTORS)}
SCALES |= {f"efficientnet-lite{k}": factors for k, factors in enumerate(_FACTORS[:5])}


def round_filters(filters: int, width: float) -> int:
    """Scale a channel count and round it to a multiple of 8, never more than 10 % down."""
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class Plan(NamedTuple):
    """A scaled EfficientNet table."""

    stem: int  # channels of the first convolution
    stages: tuple[tuple[Stage, int], ...]  # with scaled filters, and how many blocks each has


def build_plan(name: str) -> Plan:
    """Scale the table; Lite variants keep their stem and the depth of their first and last stages.

    Raises:
        UserError: for an unknown name.
    """
    if name not in SCALES:
        raise UserError(f"unknown backbone {name!r}; known: {', '.join(SCALES)}")
    lite = "lite" in name
    width, depth = SCALES[name]
    stages = []
    for k, stage in enumerate(STAGES):
        fixed = lite and k in (0, len(STAGES) - 1)
        count = stage.repeats if fixed else math.ceil(stage.repeats * depth)
        stages.append((stage._replace(filters=round_filters(stage.filters, width)), count))
    return Plan(STEM_FILTERS if lite else round_filters(STEM_FILTERS, width), tuple(stages))


def build_backbone(
    image: Tensor,
    name: str,
    levels: tuple[int, ...],
    stem_stride: int = 2,
    drop_connect: float = 0.2,
    momentum: float = 0.99,
) -> dict[int, Tensor]:
    """Apply a backbone, cut behind its last wanted level.

    Lite variants have ReLU6 and no squeeze-and-excitation.

    Args:
        image: `[B, H, W, C]` float, normalised.
        name: a key of `SCALES`.
        levels: wanted levels; a level l has stride 2**l.
        stem_stride: 2, or 1 to halve every stride.
        drop_connect: drop rate of the last block; it grows linearly from 0.
        momentum: of batch normalisation.

    Returns:
        level -> `[B, H / 2**l, W / 2**l, C_l]`, for the wanted levels and every finer one.

    Raises:
        UserError: for an unknown name or a level that the backbone does not reach.
    """
    plan = build_plan(name)
    lite = "lite" in name
    act = "relu6" if lite else "swish"
    level = stem_stride - 1
    x = layers.Conv2D(plan.stem, 3, stem_stride, padding="same", use_bias=False, name="stem_conv")(image)
    x = activation(batch_norm("stem_bn", momentum)(x), act)
    features: dict[int, Tensor] = {}
    block, total = 0, sum(count for _, count in plan.stages)
    for stage, count in plan.stages:
        if stage.stride == 2:
            if level >= max(levels):
                break
            level += 1
        for k in range(count):
            own, drop = stage._replace(stride=stage.stride if k == 0 else 1), drop_connect * block / total
            x = _block(x, f"block{block}", own, act, 0 if lite else 0.25, drop, momentum)
            block += 1
        features[level] = x
    if missing := sorted(set(levels) - set(features)):
        raise UserError(f"backbone {name} with stem stride {stem_stride} has no level {missing[0]}")
    return features


def _block(
    x: Tensor, name: str, stage: Stage, act: str, squeeze: float, drop: float, momentum: float
) -> Tensor:
    """Mobile inverted bottleneck: expand, depthwise, squeeze-and-excitation, project, residual."""
    inputs, channels = x, x.shape[-1]
    if stage.expand != 1:
        x = layers.Conv2D(channels * stage.expand, 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = activation(batch_norm(f"{name}_expand_bn", momentum)(x), act)
    x = DepthwiseConv2D(stage.kernel, stage.stride, padding="same", use_bias=False, name=f"{name}_dw_conv")(x)
    x = activation(batch_norm(f"{name}_dw_bn", momentum)(x), act)
    if squeeze:
        gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_pool")(x)
        gate = layers.Conv2D(max(1, int(channels * squeeze)), 1, name=f"{name}_se_reduce")(gate)
        gate = layers.Conv2D(x.shape[-1], 1, name=f"{name}_se_expand")(activation(gate, act))
        x = layers.Multiply(name=f"{name}_se_scale")([x, layers.Activation("sigmoid")(gate)])
    x = layers.Conv2D(stage.filters, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = batch_norm(f"{name}_project_bn", momentum)(x)
    if stage.stride == 1 and channels == stage.filters:
        if drop:
            x = StochasticDepth(drop, name=f"{name}_drop")(x)
        x = layers.Add(name=f"{name}_add")([inputs, x])
    return x
