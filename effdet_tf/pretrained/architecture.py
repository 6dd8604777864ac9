"""Which network a set of weights belongs to, read off their names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.model.backbone import SCALES, build_plan
from effdet_tf.presets import REFERENCE_PRESETS, preset


class Backbone(NamedTuple):
    """What tells one EfficientNet from another."""

    stem: int  # channels of the first convolution
    blocks: int
    last: int  # channels of the last block
    squeeze: bool  # squeeze-and-excitation; the Lite variants have none


class Detector(NamedTuple):
    """What tells one EfficientDet from another."""

    backbone: str
    channels: int  # of the BiFPN
    repeats: int
    head_repeats: int
    max_level: int
    weighted: bool  # "fast" fusion has weights, "sum" has none


def recognise_backbone(arrays: Mapping[str, np.ndarray], where: str) -> str:
    """Name the EfficientNet that all blocks of `arrays` make.

    Args:
        arrays: by our names; only `stem_conv` and `block*` count.
        where: the source, for the message.

    Raises:
        UserError: when it is none that we know.
    """
    blocks = {int(m[1]) for name in arrays if (m := re.match(r"block(\d+)_", name))}
    stem, last = (
        arrays.get("stem_conv/kernel"),
        arrays.get(f"block{max(blocks, default=0)}_project_conv/kernel"),
    )
    if stem is None or last is None:
        raise UserError(f"{where}: holds no EfficientNet (no first convolution or no last block)")
    found = Backbone(stem.shape[-1], max(blocks) + 1, last.shape[-1], "block0_se_reduce/kernel" in arrays)
    for name in SCALES:
        plan = build_plan(name)
        blocks_of = sum(count for _, count in plan.stages)
        if found == (plan.stem, blocks_of, plan.stages[-1][0].filters, "lite" not in name):
            return name
    raise UserError(
        f"{where}: an EfficientNet of {found.blocks} blocks, {found.stem} channels at the start and "
        f"{found.last} at the end is none that we know: {', '.join(SCALES)}"
    )


def recognise_detector(arrays: Mapping[str, np.ndarray], where: str, hint: str = "") -> str:
    """Name the published EfficientDet that `arrays` make.

    Args:
        arrays: by our names.
        where: the source, for the message.
        hint: any text that may hold the name; decides between D6 and D7, which differ in their input
            and anchors alone.

    Returns:
        A preset.

    Raises:
        UserError: when it is none that we know.
    """
    backbone = recognise_backbone(arrays, where)
    fpn = arrays.get("fpn0_td3_conv/pointwise_kernel")
    if fpn is None:
        raise UserError(f"{where}: holds {backbone} but no BiFPN")
    found = Detector(
        backbone,
        fpn.shape[-1],
        _count(arrays, r"fpn(\d+)_"),
        _count(arrays, r"class_conv(\d+)/"),
        _count(arrays, r"class_bn0_level(\d+)/") - 1,
        any(name.startswith("fpn0_td3_fuse/") for name in arrays),
    )
    fitting = [name for name in REFERENCE_PRESETS if _signature(preset(name)) == found]
    if not fitting:
        raise UserError(
            f"{where}: {backbone} with a BiFPN of {found.channels} channels x {found.repeats} and heads of "
            f"{found.head_repeats} up to P{found.max_level} is none of {', '.join(REFERENCE_PRESETS)}"
        )
    named = [name for name in fitting if re.search(rf"(?<![a-z]){name}(?![0-9x])", hint)]
    return (named or fitting)[0]


def _signature(config: Config) -> Detector:
    model = config.model
    return Detector(
        model.backbone,
        model.fpn_channels,
        model.fpn_repeats,
        model.head_repeats,
        model.max_level,
        model.fusion == "fast",
    )


def _count(names: Iterable[str], pattern: str) -> int:
    return max((int(m[1]) for name in names if (m := re.match(pattern, name))), default=-1) + 1
