"""Which network a set of weights belongs to, read off their names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.model.backbone import SCALES, build_plan
from effdet_tf.presets import REFERENCE_PRESETS, preset


def recognise_backbone(arrays: Mapping[str, np.ndarray], where: str) -> str:
    """Name the EfficientNet that all blocks of `arrays` make.

    Args:
        arrays: by our names; only `stem_conv` and `block*` count.
        where: the source, for the message.

    Raises:
        UserError: when it is none that we know.
    """
    blocks = _count(arrays, r"block(\d+)_")
    stem, last = arrays.get("stem_conv/kernel"), arrays.get(f"block{max(blocks - 1, 0)}_project_conv/kernel")
    if stem is None or last is None:
        raise UserError(f"{where}: holds no EfficientNet (no first convolution or no last block)")
    squeezes = "block0_se_reduce/kernel" in arrays  # the Lite variants have no squeeze-and-excitation
    for name in SCALES:
        plan = build_plan(name)
        shape = plan.stem, sum(count for _, count in plan.stages), plan.stages[-1][0].filters
        if shape == (stem.shape[-1], blocks, last.shape[-1]) and squeezes == ("lite" not in name):
            return name
    raise UserError(
        f"{where}: an EfficientNet of {blocks} blocks, {stem.shape[-1]} channels at the start and "
        f"{last.shape[-1]} at the end is none that we know: {', '.join(SCALES)}"
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
    channels, repeats = fpn.shape[-1], _count(arrays, r"fpn(\d+)_")
    heads, levels = _count(arrays, r"class_conv(\d+)/"), _count(arrays, r"class_bn0_level(\d+)/")
    fusion = "fast" if any(name.startswith("fpn0_td3_fuse/") for name in arrays) else "sum"
    fitting = []
    for name in REFERENCE_PRESETS:
        model = preset(name).model
        sizes = model.fpn_channels, model.fpn_repeats, model.head_repeats, model.max_level + 1
        if (model.backbone, model.fusion, *sizes) == (backbone, fusion, channels, repeats, heads, levels):
            fitting.append(name)
    if not fitting:
        raise UserError(
            f"{where}: {backbone} with a BiFPN of {channels} channels x {repeats} and heads of {heads} up to "
            f"P{levels - 1} is none of {', '.join(REFERENCE_PRESETS)}"
        )
    named = [name for name in fitting if re.search(rf"(?<![a-z]){name}(?![0-9x])", hint)]
    return (named or fitting)[0]


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number at the start of a name."""
    return max((int(m[1]) for name in names if (m := re.match(pattern, name))), default=-1) + 1
