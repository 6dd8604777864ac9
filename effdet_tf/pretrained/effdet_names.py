"""Names of PyTorch's `effdet` (`tf_efficientdet_*`, timm backbones) to ours, and its layouts to Keras's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.model.backbone import Stage, build_plan
from effdet_tf.presets import IMAGENET_MEAN, IMAGENET_STD, preset
from effdet_tf.pretrained.architecture import recognise_detector
from effdet_tf.pretrained.source import (
    BATCH_NORM,
    COUNTER,
    DEPTHWISE,
    UNIT_RANGE,
    Pixels,
    Pretrained,
    refuse,
    to_keras,
)

STEM = "backbone.conv_stem.weight"


class TensorName(NamedTuple):
    """One variable of ours and where it lies in the state dict."""

    theirs: str
    ours: str
    shape: tuple[int | None, ...]  # of ours; None where classes and anchors decide
    element: int | None = None  # of their vector, where ours is one number of it
    redundant: bool = False  # a bias before a batch norm, which some variants leave out


def rows(config: Config, level_first: bool = False) -> Iterator[TensorName]:
    """The variables of a published detector without masks, on three channels, by their names and by ours.

    With `level_first` the heads keep their batch norms by level, then by repeat (`head_bn_level_first` of
    effdet), not the other way round.
    """
    yield from _backbone(config)
    yield from _pyramid(config)
    for head in ("class", "box"):
        yield from _head(head, config, level_first)


def _norm(theirs: str, ours: str, channels: int) -> Iterator[TensorName]:
    for their_part, our_part in BATCH_NORM.items():
        yield TensorName(f"{theirs}.{their_part}", f"{ours}/{our_part}", (channels,))


def _backbone(config: Config) -> Iterator[TensorName]:
    plan = build_plan(config.model.backbone)
    yield TensorName(STEM, "stem_conv/kernel", (3, 3, 3, plan.stem))
    yield from _norm("backbone.bn1", "stem_bn", plan.stem)
    channels, block = plan.stem, 0
    for number, (stage, count) in enumerate(plan.stages):
        for k in range(count):
            theirs = f"backbone.blocks.{number}.{k}"
            yield from _block(theirs, f"block{block}", stage, channels, "lite" not in config.model.backbone)
            channels, block = stage.filters, block + 1


def _block(theirs: str, ours: str, stage: Stage, channels: int, squeeze: bool) -> Iterator[TensorName]:
    """One bottleneck; without expansion the names of the last convolution and of the norms differ."""
    wide = channels * stage.expand
    parts = [("dw", "conv_dw", (stage.kernel, stage.kernel, wide, 1), wide)]
    if stage.expand != 1:
        parts.insert(0, ("expand", "conv_pw", (1, 1, channels, wide), wide))
    last = "conv_pw" if stage.expand == 1 else "conv_pwl"
    parts.append(("project", last, (1, 1, wide, stage.filters), stage.filters))
    for position, (part, name, shape, width) in enumerate(parts, start=1):
        yield TensorName(f"{theirs}.{name}.weight", f"{ours}_{part}_conv/kernel", shape)
        yield from _norm(f"{theirs}.bn{position}", f"{ours}_{part}_bn", width)
    if squeeze:
        narrow = max(1, channels // 4)
        for part, into, out in (("reduce", wide, narrow), ("expand", narrow, wide)):
            yield TensorName(f"{theirs}.se.conv_{part}.weight", f"{ours}_se_{part}/kernel", (1, 1, into, out))
            yield TensorName(f"{theirs}.se.conv_{part}.bias", f"{ours}_se_{part}/bias", (out,))


def _resample(theirs: str, ours: str, into: int, channels: int) -> Iterator[TensorName]:
    if into != channels:
        yield TensorName(f"{theirs}.conv.conv.weight", f"{ours}_conv/kernel", (1, 1, into, channels))
        yield TensorName(f"{theirs}.conv.conv.bias", f"{ours}_conv/bias", (channels,), redundant=True)
        yield from _norm(f"{theirs}.conv.bn", f"{ours}_bn", channels)


def _separable(
    theirs: str, ours: str, channels: int, out: int | None, redundant: bool = False
) -> Iterator[TensorName]:
    yield TensorName(f"{theirs}.conv_dw.weight", f"{ours}/depthwise_kernel", (3, 3, channels, 1))
    yield TensorName(f"{theirs}.conv_pw.weight", f"{ours}/pointwise_kernel", (1, 1, channels, out))
    yield TensorName(f"{theirs}.conv_pw.bias", f"{ours}/bias", (out,), redundant=redundant)


def _pyramid(config: Config) -> Iterator[TensorName]:
    """Levels above the backbone, then the fusion nodes; effdet numbers nodes and inputs by position."""
    model = config.model
    low, high, channels = model.min_level, model.max_level, model.fpn_channels
    width, last = {}, 1  # channels of the backbone's levels: of the last stage before each halving
    for stage, _ in build_plan(model.backbone).stages:
        last += stage.stride - 1
        width[last] = stage.filters
    width = {level: width[level] for level in model.backbone_levels}
    last = max(width)
    yield from _resample(f"fpn.resample.{last + 1 - low}", f"p{last + 1}_resample", width[last], channels)
    nodes = [("td", level) for level in range(high - 1, low - 1, -1)]
    nodes += [("bu", level) for level in range(low + 1, high + 1)]
    for repeat, (number, (way, level)) in product(range(model.fpn_repeats), enumerate(nodes)):
        theirs, ours = f"fpn.cell.{repeat}.fnode.{number}", f"fpn{repeat}_{way}{level}"
        # Only the first repeat reads the backbone, whose levels are inputs 0, 1, ...
        into = width.get(level, channels) if repeat == 0 else channels
        yield from _resample(f"{theirs}.combine.resample.{level - low}", f"{ours}_resample", into, channels)
        inputs = 3 if way == "bu" and level < high else 2
        for k in range(inputs if model.fusion == "fast" else 0):
            yield TensorName(f"{theirs}.combine.edge_weights", f"{ours}_fuse/weight_{k}", (), element=k)
        convolution = f"{theirs}.after_combine.conv"
        yield from _separable(convolution, f"{ours}_conv", channels, channels, redundant=True)
        yield from _norm(f"{convolution}.bn", f"{ours}_bn", channels)


def _head(head: str, config: Config, level_first: bool) -> Iterator[TensorName]:
    model = config.model
    for k in range(model.head_repeats):
        theirs, ours = f"{head}_net.conv_rep.{k}", f"{head}_conv{k}"
        yield from _separable(theirs, ours, model.fpn_channels, model.fpn_channels, redundant=True)
        for position, level in enumerate(range(model.min_level, model.max_level + 1)):
            norm = f"bn_rep.{position}.{k}" if level_first else f"bn_rep.{k}.{position}.bn"
            yield from _norm(f"{head}_net.{norm}", f"{head}_bn{k}_level{level}", model.fpn_channels)
    yield from _separable(f"{head}_net.predict", f"{head}_predict", model.fpn_channels, None)


def from_effdet(state: Mapping[str, np.ndarray], where: str, advprop: bool | None = None) -> Pretrained:
    """Bring a state dict of `effdet` to our names and layouts.

    The weights may lie under any prefix (`state_dict.`, `model.`, `module.`); of several copies the
    running averages (`state_dict_ema.`) are preferred.

    Args:
        state: tensors by dotted name.
        where: the file, for messages; its name also tells D7 from D6 and the AdvProp variants, whose
            tensors look the same.
        advprop: whether it was trained with AdvProp; None reads it off the file's name.

    The variants that PyTorch trained itself (`efficientdet_*`) have no biases before their batch norms: those
    are filled with 0, with a note that outputs are not equal.

    Raises:
        UserError: when this is no such state dict, its architecture is none of ours, a tensor is missing
            or has another shape.
    """
    prefix, *others = _prefixes(state, where)
    tensors = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    name = _recognise(tensors, where)
    listed = list(rows(preset(name), level_first=_level_first(tensors)))
    bare = not any(row.redundant and row.theirs in tensors for row in listed)
    present = [row for row in listed if not (bare and row.redundant)]
    _check(tensors, present, f"{where}: a {name} of effdet")
    arrays = {}
    for row in listed:
        if bare and row.redundant:
            arrays[row.ours] = np.zeros([n for n in row.shape if n is not None], np.float32)
            continue
        array = to_keras(tensors[row.theirs], row.ours).astype(np.float32, copy=False)
        arrays[row.ours] = array if row.element is None else np.asarray(array[row.element])
    mean, std, notes = _pixels(name, where, advprop)
    if bare:
        notes += (
            "no biases before batch norms: a variant trained with symmetric padding. The biases are 0, "
            "outputs are not equal to the original's; good as a start for training only",
        )
    return Pretrained(
        arrays,
        origin=f"PyTorch state dict of effdet, {name}" + (f", from {prefix[:-1]}" if prefix else ""),
        kind="detector",
        mean=mean,
        std=std,
        unused=_unused(state, prefix, others, {row.theirs for row in present}, name),
        notes=notes,
    )


def _prefixes(state: Mapping[str, np.ndarray], where: str) -> list[str]:
    """What stands before the names of each copy of the weights; the preferred copy first."""
    found = [name.removesuffix(STEM) for name in state if f".{name}".endswith(f".{STEM}")]
    if not found:
        raise UserError(f"{where}: no state dict of effdet (it has no tensor {STEM})")
    return sorted(found, key=lambda prefix: (not re.search(r"(^|[_.])ema([_.]|$)", prefix), len(prefix)))


def _level_first(tensors: Mapping[str, np.ndarray]) -> bool:
    return "class_net.bn_rep.0.0.weight" in tensors


def _recognise(tensors: Mapping[str, np.ndarray], where: str) -> str:
    """Name the preset, from the names and shapes that tell one from another."""
    blocks = _numbers(tensors, "backbone.blocks.#.#.")
    last = ".".join(map(str, blocks[-1])) if blocks else ""
    node = "fpn.cell.0.fnode.0."
    few = {}  # arrays that `recognise_detector` looks at, by our names
    for theirs, ours in {
        STEM: "stem_conv/kernel",
        f"backbone.blocks.{last}.conv_pwl.weight": f"block{len(blocks) - 1}_project_conv/kernel",
        "backbone.blocks.0.0.se.conv_reduce.weight": "block0_se_reduce/kernel",
        f"{node}after_combine.conv.conv_pw.weight": "fpn0_td3_conv/pointwise_kernel",
    }.items():
        if theirs in tensors:
            if tensors[theirs].ndim != 4:
                raise UserError(f"{where}: {theirs} has shape {tensors[theirs].shape}, no convolution's")
            few[ours] = to_keras(tensors[theirs], ours)
    levels = _numbers(tensors, "class_net.bn_rep.#.0." if _level_first(tensors) else "class_net.bn_rep.0.#.")
    names = [f"class_bn0_level{3 + k}/" for (k,) in levels]
    names += [f"fpn{k}_" for (k,) in _numbers(tensors, "fpn.cell.#.")]
    names += [f"class_conv{k}/" for (k,) in _numbers(tensors, "class_net.conv_rep.#.")]
    names += ["fpn0_td3_fuse/weight_0"] * (f"{node}combine.edge_weights" in tensors)
    name = recognise_detector(few | dict.fromkeys(names, np.zeros(0)), where, hint=where)
    nodes, wanted = len(_numbers(tensors, "fpn.cell.0.fnode.#.")), 2 * (len(levels) - 1)
    if nodes != wanted:
        bifpn = f"a BiFPN of {len(levels)} levels has {wanted}"
        raise UserError(f"{where}: its pyramid has {nodes} nodes, {bifpn}")
    return name


def _numbers(tensors: Mapping[str, np.ndarray], pattern: str) -> list[tuple[int, ...]]:
    """Every set of numbers that stands at the `#` of a name's beginning."""
    expression = re.compile(re.escape(pattern).replace(r"\#", r"(\d{1,4})"))
    found = (expression.match(name) for name in tensors)
    return sorted({tuple(map(int, m.groups())) for m in found if m})


def _check(tensors: Mapping[str, np.ndarray], listed: list[TensorName], what: str) -> None:
    """Refuse missing and wrongly shaped tensors, by name."""
    elements = Counter(row.theirs for row in listed)
    faults: dict[str, None] = {}  # in order, each once
    for row in listed:
        shape = row.shape
        if row.element is not None:
            shape = (elements[row.theirs],)
        elif len(shape) == 4:  # the layout that `to_keras` brings to ours
            high, wide, into, out = shape
            shape = (into, out, high, wide) if row.ours.endswith(DEPTHWISE) else (out, into, high, wide)
        if row.theirs not in tensors:
            faults[f"{row.theirs} is missing"] = None
            continue
        found = tensors[row.theirs].shape
        if len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
            faults[f"{row.theirs} has shape {found}, not {shape}".replace("None", "any")] = None
    refuse(list(faults), f"{what} does not fit")


def _pixels(name: str, where: str, advprop: bool | None) -> tuple[Pixels, Pixels, tuple[str, ...]]:
    """Mean and deviation that effdet's configuration normalises the variant's images by, and notes."""
    named = advprop is None and bool(re.search(r"_ap(?![a-z0-9])", Path(where).name))
    if name.startswith("lite") or advprop or named:
        note = "AdvProp weights, by the file's name: pixels are taken to -1..1"
        return UNIT_RANGE, UNIT_RANGE, (note,) * (named and not name.startswith("lite"))
    return IMAGENET_MEAN, IMAGENET_STD, ()


def _unused(
    state: Mapping[str, np.ndarray], prefix: str, others: list[str], used: set[str], name: str
) -> dict[str, str]:
    """Why no variable takes the rest of the state dict."""
    reasons = {}
    for tensor in state:
        own = tensor.removeprefix(prefix) if tensor.startswith(prefix) else ""
        if own in used or tensor.endswith(COUNTER):
            continue
        if own.startswith(("backbone.", "fpn.", "class_net.", "box_net.")):
            reasons[tensor] = f"{name} has no such layer"
        elif tensor.endswith("anchors.boxes"):
            reasons[tensor] = "anchors are computed, not stored"
        elif any(tensor.startswith(other) and tensor.removeprefix(other) in used for other in others):
            reasons[tensor] = f"a second copy; {prefix or 'the one without prefix'} was taken"
        else:
            reasons[tensor] = "not part of the network"
    return reasons
