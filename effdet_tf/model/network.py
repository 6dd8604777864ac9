"""The whole network, assembled from a configuration."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import layers

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.model.backbone import build_backbone
from effdet_tf.model.bifpn import build_bifpn, extend_pyramid
from effdet_tf.model.foreign_backbone import CUSTOM, build_foreign
from effdet_tf.model.heads import build_predictor, build_tower
from effdet_tf.model.mask_head import MaskHead, build_mask_feature


class Network(NamedTuple):
    """The dense part and the per-instance part, with the weights of both.

    `dense` maps `[B, H, W, C]` images to a dict: `class_logits` `[B, A, K]`, `box_deltas`
    `[B, A, 4]`, and with masks `codes` `[B, L, fpn_channels]` (one per location; the anchor a lies
    at location a // anchors-per-location) and `mask_feature` `[B, H/s, W/s, channels]`.
    `mask_head` is None for plain detection.
    """

    dense: keras.Model
    mask_head: MaskHead | None

    @property
    def variables(self) -> list[Any]:
        """All weights, batch-norm statistics included, in a fixed order."""
        head = self.mask_head.variables if self.mask_head is not None else []
        return [*self.dense.variables, *head]

    @property
    def trainable_variables(self) -> list[Any]:
        """The weights that gradients move."""
        head = self.mask_head.trainable_variables if self.mask_head is not None else []
        return [*self.dense.trainable_variables, *head]

    @property
    def stride(self) -> int:
        """Coarsest stride, px: an input padded to a multiple of it fits every level evenly."""
        return int(self.dense.coarsest_stride)


def check_levels(config: Config) -> None:
    """Refuse level settings that make no pyramid, with a UserError that names the setting."""
    model = config.model
    taps = model.backbone_levels
    if not taps or list(taps) != list(range(taps[0], taps[-1] + 1)):
        raise UserError(f"model.backbone_levels {list(taps)}: give neighbouring levels in rising order")
    if taps[0] != model.min_level or model.max_level < taps[-1]:
        raise UserError(
            f"model.min_level {model.min_level} and max_level {model.max_level} must start at the first of "
            f"backbone_levels {list(taps)} and reach its last"
        )
    if config.anchors.sizes and len(config.anchors.sizes) != model.max_level - model.min_level + 1:
        raise UserError(
            f"anchors.sizes has {len(config.anchors.sizes)} levels, the pyramid "
            f"P{model.min_level}-P{model.max_level} has {model.max_level - model.min_level + 1}"
        )
    if len({len(s) for s in config.anchors.sizes}) > 1:
        reason = "every level needs the same number of sizes, since they share the heads"
        raise UserError(f"anchors.sizes: {reason}")
    if config.anchors.per_location < 1:
        raise UserError("anchors: needs at least one size (or octave) and one ratio")
    possible = [stride for stride in (1, 2, 4, 8) if stride <= 2**model.min_level]
    if model.mask.enabled and model.mask.stride not in possible:
        raise UserError(f"model.mask.stride {model.mask.stride}: take 1, 2, 4 or 8, at most 2**min_level")
    widths = {"fpn_channels": model.fpn_channels}
    if model.mask.enabled:
        own = ("channels", "hidden", "size", "samples")
        widths |= {f"mask.{name}": getattr(model.mask, name) for name in own}
    for name, value in widths.items():
        if value < 1:
            raise UserError(f"model.{name} {value}: take 1 or more")


def check_backbone(config: Config, backbone: keras.Model | None) -> None:
    """Refuse a backbone that the configuration does not name, and one that it names but is not there."""
    name = config.model.backbone
    if backbone is None and name == CUSTOM:
        raise UserError(
            f"model.backbone is {CUSTOM}: this network is built on a Keras model of its maker's; pass that "
            "again, build_network(config, backbone=model) or effdet_tf.load(RUN, backbone=model)"
        )
    if backbone is not None and name != CUSTOM:
        raise UserError(
            f"a backbone was passed, but model.backbone is {name!r}; set model.backbone={CUSTOM}, so that "
            "the run tells of it"
        )
    if name == CUSTOM and config.model.stem_stride != 2:
        raise UserError("model.stem_stride has no effect on a backbone of your own; leave it at 2")


def build_network(
    config: Config,
    height: int | None = None,
    width: int | None = None,
    backbone: keras.Model | None = None,
) -> Network:
    """Build the network with fresh weights.

    Args:
        config: everything; `class_names` and `data.channels` set the outputs and the input.
        height: of the input, px; None for any.
        width: likewise.
        backbone: a Keras model with features at several strides, where `model.backbone` is "custom"; see
            `foreign_backbone`. The network takes a copy of it, with its weights.

    Raises:
        UserError: when the levels do not fit together, or the backbone does not fit the configuration.
    """
    check_levels(config)
    check_backbone(config, backbone)
    model = config.model
    image = layers.Input((height, width, config.data.channels), name="image")
    if backbone is not None:
        features = build_foreign(image, backbone, model.backbone_levels, config.data.crop_size)
    else:
        stem = (model.stem_stride, model.drop_connect, model.batch_norm_momentum)
        features = build_backbone(image, model.backbone, model.backbone_levels, *stem)
    fused = build_bifpn(extend_pyramid(features, model), model)
    anchors, classes = config.anchors.per_location, len(config.class_names)
    box_features, class_features = build_tower(fused, "box", model), build_tower(fused, "class", model)
    outputs = {
        "class_logits": build_predictor(class_features, "class_predict", classes, anchors, True),
        "box_deltas": build_predictor(box_features, "box_predict", 4, anchors, False),
    }
    head = None
    if model.mask.enabled:
        finest = (model.mask.stride - 1).bit_length()
        if any(level not in features for level in range(finest, model.min_level)):
            reason = "the backbone has no feature of that stride"
            raise UserError(f"model.mask.stride {model.mask.stride}: {reason}")
        embeddings = [layers.Reshape((-1, model.fpn_channels))(x) for _, x in sorted(box_features.items())]
        outputs["codes"] = layers.Concatenate(axis=1, name="codes")(embeddings)
        outputs["mask_feature"] = build_mask_feature(fused, features, model)
        # float32 whatever the policy: box coordinates do not survive 8 bits of mantissa.
        head = MaskHead(model.mask, name="mask_head", dtype="float32")
        head.build((None, None, None, model.mask.channels), (None, None, model.fpn_channels), (None, None, 4))
    dense = keras.Model(image, outputs, name=config.preset.replace("-", "_"))
    dense.coarsest_stride = 2**model.max_level
    return Network(dense, head)
