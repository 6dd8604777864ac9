"""Names of PyTorch's `effdet` (`tf_efficientdet_*`, timm backbones) to ours, and its layouts to Keras's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.model.backbone import Stage, build_plan
from effdet_tf.presets import preset
from effdet_tf.pretrained.architecture import recognise_detector
from effdet_tf.pretrained.source import IMAGENET_MEAN, IMAGENET_STD, UNIT_RANGE, Pixels, Pretrained

STEM = "backbone.conv_stem.weight"
BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
DEPTHWISE = ("depthwise_kernel", "_dw_conv/kernel")  # how our names of such kernels end
COUNTER = "num_batches_tracked"  # of every PyTorch batch norm; only its own training reads it


class TensorName(NamedTuple):
    """One variable of ours and where it lies in the state dict."""

    theirs: str
    ours: str
    shape: tuple[int | None, ...]  # of ours; None where classes and anchors decide
    element: int | None = None  # of their vector, where ours is one number of it
    redundant: bool = False  # a bias before a batch norm, which some variants leave out


def rows(config: Config, level_first: bool = False) -> Iterator[TensorName]:
    """List the variables of a published detector, by their names and by ours.

    Args:
        config: a reference preset.
        level_first: whether the heads keep their batch norms by level, then by repeat
            (`head_bn_level_first` of effdet), not the other way round.

    Yields:
        One row per variable of the network without masks, on three input channels.
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
    parts = ["expand", "dw", "project"] if stage.expand != 1 else ["dw", "project"]
    expand, project = ("conv_pw", "conv_pwl") if stage.expand != 1 else ("", "conv_pw")
    convolutions = {
        "expand": (expand, (1, 1, channels, wide)),
        "dw": ("conv_dw", (stage.kernel, stage.kernel, wide, 1)),
        "project": (project, (1, 1, wide, stage.filters)),
    }
    for position, part in enumerate(parts, start=1):
        name, shape = convolutions[part]
        yield TensorName(f"{theirs}.{name}.weight", f"{ours}_{part}_conv/kernel", shape)
        width = stage.filters if part == "project" else wide
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
    width = _tap_channels(config)
    last = max(width)
    yield from _resample(f"fpn.resample.{last + 1 - low}", f"p{last + 1}_resample", width[last], channels)
    nodes = [("td", level) for level in range(high - 1, low - 1, -1)]
    nodes += [("bu", level) for level in range(low + 1, high + 1)]
    for repeat in range(model.fpn_repeats):
        for number, (way, level) in enumerate(nodes):
            theirs, ours = f"fpn.cell.{repeat}.fnode.{number}", f"fpn{repeat}_{way}{level}"
            # Only the first repeat reads the backbone, whose levels are inputs 0, 1, ...
            into = width.get(level, channels) if repeat == 0 else channels
            yield from _resample(
                f"{theirs}.combine.resample.{level - low}", f"{ours}_resample", into, channels
            )
            if model.fusion == "fast":
                for k in range(3 if way == "bu" and level < high else 2):
                    yield TensorName(
                        f"{theirs}.combine.edge_weights", f"{ours}_fuse/weight_{k}", (), element=k
                    )
            convolution = f"{theirs}.after_combine.conv"
            yield from _separable(convolution, f"{ours}_conv", channels, channels, redundant=True)
            yield from _norm(f"{convolution}.bn", f"{ours}_bn", channels)


def _tap_channels(config: Config) -> dict[int, int]:
    """Channels of the backbone's wanted levels: the last stage before each halving, and the last of all."""
    found, level = {}, 1
    for stage, _ in build_plan(config.model.backbone).stages:
        level += stage.stride - 1
        found[level] = stage.filters
    return {level: found[level] for level in config.model.backbone_levels}


def _head(head: str, config: Config, level_first: bool) -> Iterator[TensorName]:
    model = config.model
    for k in range(model.head_repeats):
        theirs, ours = f"{head}_net.conv_rep.{k}", f"{head}_conv{k}"
        yield from _separable(theirs, ours, model.fpn_channels, model.fpn_channels, redundant=True)
        for position, level in enumerate(range(model.min_level, model.max_level + 1)):
            norm = f"bn_rep.{position}.{k}" if level_first else f"bn_rep.{k}.{position}.bn"
            yield from _norm(f"{head}_net.{norm}", f"{head}_bn{k}_level{level}", model.fpn_channels)
    yield from _separable(f"{head}_net.predict", f"{head}_predict", model.fpn_channels, None)


def to_keras(tensor: np.ndarray, ours: str) -> np.ndarray:
    """Bring a tensor from PyTorch's layout to that of our variable `ours`.

    A convolution goes from `[out, in, h, w]` to `[h, w, in, out]`, a depthwise one from `[in, 1, h, w]` to
    `[h, w, in, 1]`; anything else stays.
    """
    if tensor.ndim != 4:
        return tensor
    return tensor.transpose((2, 3, 0, 1) if ours.endswith(DEPTHWISE) else (2, 3, 1, 0))


def from_effdet(state: Mapping[str, np.ndarray], where: str, advprop: bool | None = None) -> Pretrained:
    """Bring a state dict of `effdet` to our names and layouts.

    The weights may lie under any prefix (`state_dict.`, `model.`, `module.`); of several copies the
    running averages (`state_dict_ema.`) are preferred.

    Args:
        state: tensors by dotted name.
        where: the file, for messages; its name also tells D7 from D6 and the AdvProp variants, whose
            tensors look the same.
        advprop: whether it was trained with AdvProp; None reads it off the file's name.

    Returns:
        A detector's weights. The variants that PyTorch trained itself (`efficientdet_*`) have no biases
        before their batch norms: those are filled with 0, with a note that outputs are not equal.

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
    found = [name.removesuffix(STEM) for name in state if name.endswith(STEM)]
    found = [prefix for prefix in found if not prefix or prefix.endswith(".")]
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
    sketch = {}
    for theirs, ours in {
        STEM: "stem_conv/kernel",
        f"backbone.blocks.{last}.conv_pwl.weight": f"block{len(blocks) - 1}_project_conv/kernel",
        "backbone.blocks.0.0.se.conv_reduce.weight": "block0_se_reduce/kernel",
        f"{node}after_combine.conv.conv_pw.weight": "fpn0_td3_conv/pointwise_kernel",
    }.items():
        if theirs in tensors:
            if tensors[theirs].ndim != 4:
                raise UserError(f"{where}: {theirs} has shape {tensors[theirs].shape}, no convolution's")
            sketch[ours] = to_keras(tensors[theirs], ours)
    levels = _numbers(tensors, "class_net.bn_rep.#.0." if _level_first(tensors) else "class_net.bn_rep.0.#.")
    counted: dict[str, list[tuple[int, ...]]] = {
        "fpn{}_": _numbers(tensors, "fpn.cell.#."),
        "class_bn0_level{}/": [(3 + k,) for (k,) in levels],
    }
    counted["class_conv{}/"] = _numbers(tensors, "class_net.conv_rep.#.")
    if f"{node}combine.edge_weights" in tensors:
        counted["fpn0_td3_fuse/weight_{}"] = [(0,)]
    sketch |= {name.format(*k): np.zeros(0) for name, numbers in counted.items() for k in numbers}
    name = recognise_detector(sketch, where, hint=where)
    nodes, wanted = len(_numbers(tensors, "fpn.cell.0.fnode.#.")), 2 * (len(levels) - 1)
    if nodes != wanted:
        raise UserError(
            f"{where}: its pyramid has {nodes} nodes, a BiFPN of {len(levels)} levels has {wanted}"
        )
    return name


def _numbers(tensors: Mapping[str, np.ndarray], pattern: str) -> list[tuple[int, ...]]:
    """Every set of numbers that stands at the `#` of a name's beginning."""
    expression = re.compile(re.escape(pattern).replace(r"\#", r"(\d{1,4})"))
    found = (expression.match(name) for name in tensors)
    return sorted({tuple(map(int, m.groups())) for m in found if m})


def _check(tensors: Mapping[str, np.ndarray], listed: list[TensorName], what: str) -> None:
    """Refuse missing and wrongly shaped tensors, by name."""
    elements = Counter(row.theirs for row in listed)
    faults = []
    for row in listed:
        shape = (elements[row.theirs],) if row.element is not None else _to_torch(row.shape, row.ours)
        if row.theirs not in tensors:
            faults.append(f"{row.theirs} is missing")
        elif len(found := tensors[row.theirs].shape) != len(shape) or any(
            b is not None and a != b for a, b in zip(found, shape, strict=True)
        ):
            faults.append(f"{row.theirs} has shape {found}, not {shape}".replace("None", "any"))
    faults = list(dict.fromkeys(faults))
    if faults:
        raise UserError(f"{what} does not fit: {'; '.join(faults[:3])} ({len(faults)} in all)")


def _to_torch(shape: tuple[int | None, ...], ours: str) -> tuple[int | None, ...]:
    """The shape that `to_keras` brings to `shape`."""
    if len(shape) != 4:
        return shape
    rows, columns, into, out = shape
    return (into, out, rows, columns) if ours.endswith(DEPTHWISE) else (out, into, rows, columns)


def _pixels(name: str, where: str, advprop: bool | None) -> tuple[Pixels, Pixels, tuple[str, ...]]:
    """What effdet's own configuration says that the variant's images were normalised by."""
    if name.startswith("lite"):
        return UNIT_RANGE, UNIT_RANGE, ()
    if advprop is None and re.search(r"_ap(?![a-z0-9])", Path(where).name):
        return UNIT_RANGE, UNIT_RANGE, ("AdvProp weights, by the file's name: pixels are taken to -1..1",)
    if advprop:
        return UNIT_RANGE, UNIT_RANGE, ()
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
