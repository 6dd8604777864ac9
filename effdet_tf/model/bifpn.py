"""BiFPN (Tan, Pang and Le, CVPR 2020): repeated two-way fusion of a feature pyramid."""

from __future__ import annotations

from keras import layers

from effdet_tf.config import ModelConfig
from effdet_tf.geometry.boxes import Tensor
from effdet_tf.model.layers import FastFusion, SeparableConv2D, UpsampleLike, activation, batch_norm


def _to_channels(x: Tensor, channels: int, name: str, momentum: float) -> Tensor:
    if x.shape[-1] == channels:
        return x
    x = layers.Conv2D(channels, 1, name=f"{name}_conv")(x)
    return batch_norm(f"{name}_bn", momentum)(x)


def _halve(x: Tensor, name: str) -> Tensor:
    return layers.MaxPooling2D(3, 2, padding="same", name=f"{name}_pool")(x)


def _node(inputs: list[Tensor], name: str, config: ModelConfig) -> Tensor:
    """Fuse, activate, convolve, normalise: in this order, as the reference does."""
    fuse = FastFusion if config.fusion == "fast" else layers.Add
    x = activation(fuse(name=f"{name}_fuse")(inputs), config.activation)
    x = SeparableConv2D(config.fpn_channels, 3, padding="same", name=f"{name}_conv")(x)
    return batch_norm(f"{name}_bn", config.batch_norm_momentum)(x)


def extend_pyramid(features: dict[int, Tensor], config: ModelConfig) -> dict[int, Tensor]:
    """Add the levels above the backbone's last: one 1x1 convolution, then max pooling.

    From and to level -> `[B, H_l, W_l, C_l]`, up to `config.max_level`.
    """
    pyramid = {level: features[level] for level in config.backbone_levels}
    channels, momentum = config.fpn_channels, config.batch_norm_momentum
    for level in range(max(pyramid) + 1, config.max_level + 1):
        x = _to_channels(pyramid[level - 1], channels, f"p{level}_resample", momentum)
        pyramid[level] = _halve(x, f"p{level}")
    return pyramid


def build_bifpn(pyramid: dict[int, Tensor], config: ModelConfig) -> dict[int, Tensor]:
    """Repeat the two-way fusion, from level -> `[B, H_l, W_l, C_l]` to `[B, H_l, W_l, fpn_channels]`.

    Each use of a backbone feature has a 1x1 convolution of its own, as in the reference.
    """
    low, high = config.min_level, config.max_level
    channels, momentum = config.fpn_channels, config.batch_norm_momentum
    for repeat in range(config.fpn_repeats):
        name = f"fpn{repeat}"
        down = {high: pyramid[high]}
        for level in range(high - 1, low - 1, -1):
            own = _to_channels(pyramid[level], channels, f"{name}_td{level}_resample", momentum)
            # The top feature may still have the backbone's channels when nothing was added above it.
            above = _to_channels(down[level + 1], channels, f"{name}_td{level}_above", momentum)
            above = UpsampleLike(name=f"{name}_td{level}_up")([above, own])
            down[level] = _node([own, above], f"{name}_td{level}", config)
        fused = {low: down[low]}
        for level in range(low + 1, high + 1):
            own = _to_channels(pyramid[level], channels, f"{name}_bu{level}_resample", momentum)
            inputs = [own] if level == high else [own, down[level]]
            inputs.append(_halve(fused[level - 1], f"{name}_bu{level}"))
            fused[level] = _node(inputs, f"{name}_bu{level}", config)
        pyramid = fused
    return pyramid
