"""Named configurations: the published EfficientDets and the ones for cells."""

from __future__ import annotations

import difflib

from effdet_tf.config import (
    AnchorConfig,
    AssignConfig,
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    MaskConfig,
    ModelConfig,
    PostprocessConfig,
    TrainConfig,
)
from effdet_tf.errors import UserError

# Of pixel values 0..255, R, G, B: what the published networks of each family were trained on
# (ImageNet: .485, .456, .406 and .229, .224, .225 of 255).
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
LITE_MEAN = (127.0,)
LITE_STD = (128.0,)

# name: backbone, input, BiFPN channels, BiFPN repeats, head repeats, anchor scale, max level
_REFERENCE = {
    "d0": ("efficientnet-b0", 512, 64, 3, 3, 4, 7),
    "d1": ("efficientnet-b1", 640, 88, 4, 3, 4, 7),
    "d2": ("efficientnet-b2", 768, 112, 5, 3, 4, 7),
    "d3": ("efficientnet-b3", 896, 160, 6, 4, 4, 7),
    "d4": ("efficientnet-b4", 1024, 224, 7, 4, 4, 7),
    "d5": ("efficientnet-b5", 1280, 288, 7, 4, 4, 7),
    "d6": ("efficientnet-b6", 1280, 384, 8, 5, 4, 7),
    "d7": ("efficientnet-b6", 1536, 384, 8, 5, 5, 7),
    "d7x": ("efficientnet-b7", 1536, 384, 8, 5, 4, 8),
    "lite0": ("efficientnet-lite0", 320, 64, 3, 3, 3, 7),
    "lite1": ("efficientnet-lite1", 384, 88, 4, 3, 3, 7),
    "lite2": ("efficientnet-lite2", 448, 112, 5, 3, 3, 7),
    "lite3": ("efficientnet-lite3", 512, 160, 6, 4, 4, 7),
    "lite3x": ("efficientnet-lite3", 640, 200, 6, 4, 3, 7),
    "lite4": ("efficientnet-lite4", 640, 224, 7, 4, 4, 7),
}

# name: backbone, its levels, BiFPN channels, BiFPN repeats, head repeats, channels of the masks, drop rate,
# crop, learning rate. Small cells need no context of hundreds of pixels: Lite0 is cut behind stride 16.
_CELLS = {
    "cells-lite0": ("efficientnet-lite0", (2, 3, 4), 64, 2, 2, 16, 0.0, 256, 4e-3),
    "cells-lite2": ("efficientnet-lite2", (2, 3, 4, 5), 112, 4, 3, 32, 0.2, 256, 4e-3),
    "cells-d0": ("efficientnet-b0", (2, 3, 4, 5), 64, 3, 3, 16, 0.2, 512, 1.5e-3),
}


def _reference(name: str) -> Config:
    backbone, size, channels, repeats, head_repeats, scale, max_level = _REFERENCE[name]
    lite = name.startswith("lite")
    return Config(
        preset=name,
        model=ModelConfig(
            backbone=backbone,
            max_level=max_level,
            fpn_channels=channels,
            fpn_repeats=repeats,
            fusion="sum" if lite or name in ("d6", "d7", "d7x") else "fast",
            head_repeats=head_repeats,
            activation="relu6" if lite else "swish",
        ),
        anchors=AnchorConfig(scale=float(scale)),
        data=DataConfig(
            channels=3,
            crop_size=(size, size),
            resize="fit",
            normalization="fixed",
            mean=LITE_MEAN[0] if lite else IMAGENET_MEAN,
            std=LITE_STD[0] if lite else IMAGENET_STD,
        ),
        # The reference crops a box wherever it likes and keeps what is left of it.
        augment=AugmentConfig(
            scale_range=(0.1, 2.0),
            flip_vertical=False,
            rot90=False,
            brightness=0.0,
            contrast=(1.0, 1.0),
            min_visible=0.0,
        ),
        train=TrainConfig(ema=0.9998),
        # The reference ends in Gaussian soft-NMS, which lowers the scores of neighbours; hard NMS at IoU
        # .5 of each class is ours, since only that converts to a TFLite builtin and stays bit-equal there.
        postprocess=PostprocessConfig(class_agnostic=False),
    )


def _cells(name: str) -> Config:
    """Presets for dense, tiny cells: magnified, a level at stride 4, no anchors, finer masks.

    `benchmarks/ablations.md` holds the comparisons behind these choices.
    """
    backbone, levels, channels, repeats, head_repeats, mask_channels, drop, crop, rate = _CELLS[name]
    lite = "lite" in backbone
    return Config(
        preset=name,
        model=ModelConfig(
            backbone=backbone,
            backbone_levels=levels,
            min_level=2,
            max_level=levels[-1] + 1,
            fpn_channels=channels,
            fpn_repeats=repeats,
            fusion="sum" if lite else "fast",
            head_repeats=head_repeats,
            activation="relu6" if lite else "swish",
            drop_connect=drop,
            batch_norm_momentum=0.95,
            mask=MaskConfig(stride=2, head="convolution", channels=mask_channels, hidden=mask_channels),
        ),
        # One point at each location; the sizes are where its box starts from.
        anchors=AnchorConfig(
            code="sides",
            ratios=(1.0,),
            sizes=((20.0,), (40.0,), (80.0,), (160.0,), (320.0,))[: len(levels) + 1],
            from_data=True,
        ),
        assign=AssignConfig(method="task_aligned"),
        loss=LossConfig("quality_focal", gamma=2.0, box_loss="giou", box_weight=2.0, mask_weight=1.0),
        data=DataConfig(crop_size=(crop, crop), zoom=1.5, normalization="content"),
        augment=AugmentConfig(),
        train=TrainConfig(learning_rate=rate, ema=0.998),
        # IoU-weighted class scores times mask quality run low; a validated run tunes this.
        # Dense cells fill 5,000 candidates, a cell has dozens of them, before its neighbours come up.
        postprocess=PostprocessConfig(report_score=0.3, top_k=20_000, vote_iou=0.65, mask_sure=0.6),
    )


REFERENCE_PRESETS: tuple[str, ...] = tuple(_REFERENCE)
PRESETS: tuple[str, ...] = (*REFERENCE_PRESETS, *_CELLS)


def preset(name: str) -> Config:
    """The configuration called `name`.

    Raises:
        UserError: for an unknown name; the message lists the near ones.
    """
    if name in _REFERENCE:
        return _reference(name)
    if name in _CELLS:
        return _cells(name)
    near = difflib.get_close_matches(name, PRESETS, n=3) or PRESETS
    raise UserError(f"unknown preset {name!r}; did you mean {', '.join(near)}? All: {', '.join(PRESETS)}")
