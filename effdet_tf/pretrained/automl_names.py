"""Names of the original EfficientDet (google/automl) to ours: TF1, Keras variables, Keras object graphs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.presets import IMAGENET_MEAN, IMAGENET_STD, LITE_MEAN, LITE_STD, preset
from effdet_tf.pretrained.architecture import recognise_detector
from effdet_tf.pretrained.effdet_names import rows
from effdet_tf.pretrained.source import UNIT_RANGE, Pixels, Pretrained, list_faults, refuse

OBJECT = "/.ATTRIBUTES/VARIABLE_VALUE"  # ends every name of a Keras object graph
_SLOT = "/.OPTIMIZER_SLOT/"
_TF1_AVERAGE = "/ExponentialMovingAverage"
_TF1_SLOT = re.compile(r"/(Momentum|Adam(_1)?|RMSProp(_1)?)$")
_BOOKKEEPING = re.compile(r"(optimizer|save_counter|global_step|beta\d_power|moving_normalizer)(/|$)")
_STATISTICS = ("/moving_mean", "/moving_variance")

_PART = r"(?P<part>\w+)"
_NORM = r"(?:tpu_)?batch_normalization"
_BACKBONE = r"efficientnet-\w+"
_BLOCK = rf"{_BACKBONE}/blocks_(?P<block>\d+)"
_NODE = r"fpn_cells/cell_(?P<cell>\d+)/fnode(?P<node>\d+)"
_HEAD = r"(?P<head>class|box)_net"
_OBJECT_BLOCK = r"backbone/_blocks/(?P<block>\d+)"
_OBJECT_NODE = r"fpn_cells/cells/(?P<cell>\d+)/fnodes/(?P<node>\d+)"
_WEIGHT = r"WSM(?:_(?P<weight>\d+))?"

# Their name -> ours. Groups `conv`, `norm`, `node`, `weight`, `extra` and `position` are translated first.
# Keras numbers the unnamed layers of a process: the stem of its second network is stem_1/conv2d_1.
_RULES = {
    rf"{_BACKBONE}/stem(?:_\d+)?/conv2d(?:_\d+)?/{_PART}": "stem_conv/{part}",
    rf"{_BACKBONE}/stem(?:_\d+)?/{_NORM}(?:_\d+)?/{_PART}": "stem_bn/{part}",
    rf"{_BLOCK}/depthwise_conv2d/depthwise_kernel": "block{block}_dw_conv/kernel",
    rf"{_BLOCK}/conv2d(?P<conv>(?:_\d+)?)/{_PART}": "block{block}_{conv}_conv/{part}",
    rf"{_BLOCK}/{_NORM}(?P<norm>(?:_\d+)?)/{_PART}": "block{block}_{norm}_bn/{part}",
    rf"{_BLOCK}/se/conv2d/{_PART}": "block{block}_se_reduce/{part}",
    rf"{_BLOCK}/se/conv2d_1/{_PART}": "block{block}_se_expand/{part}",
    rf"resample_p(?P<level>\d+)/conv2d/{_PART}": "p{level}_resample_conv/{part}",
    rf"resample_p(?P<level>\d+)/bn/{_PART}": "p{level}_resample_bn/{part}",
    rf"{_NODE}/{_WEIGHT}": "fpn{cell}_{node}_fuse/weight_{weight}",
    rf"{_NODE}/resample_0_\d+_\d+/conv2d/{_PART}": "fpn{cell}_{node}_resample_conv/{part}",
    rf"{_NODE}/resample_0_\d+_\d+/bn/{_PART}": "fpn{cell}_{node}_resample_bn/{part}",
    rf"{_NODE}/op_after_combine\d+/(?P<kind>conv|bn)/{_PART}": "fpn{cell}_{node}_{kind}/{part}",
    rf"{_HEAD}/(?P=head)-(?P<k>\d+)/{_PART}": "{head}_conv{k}/{part}",
    rf"{_HEAD}/(?P=head)-(?P<k>\d+)-bn-(?P<level>\d+)/{_PART}": "{head}_bn{k}_level{level}/{part}",
    rf"{_HEAD}/(?P=head)-predict/{_PART}": "{head}_predict/{part}",
    # Object graphs: attributes and positions in lists.
    rf"backbone/_stem/_conv_stem/{_PART}": "stem_conv/{part}",
    rf"backbone/_stem/_bn/{_PART}": "stem_bn/{part}",
    rf"{_OBJECT_BLOCK}/_depthwise_conv/depthwise_kernel": "block{block}_dw_conv/kernel",
    rf"{_OBJECT_BLOCK}/_(?P<kind>expand|project)_conv/{_PART}": "block{block}_{kind}_conv/{part}",
    rf"{_OBJECT_BLOCK}/_bn0/{_PART}": "block{block}_expand_bn/{part}",
    rf"{_OBJECT_BLOCK}/_bn1/{_PART}": "block{block}_dw_bn/{part}",
    rf"{_OBJECT_BLOCK}/_bn2/{_PART}": "block{block}_project_bn/{part}",
    rf"{_OBJECT_BLOCK}/_se/_se_(?P<kind>reduce|expand)/{_PART}": "block{block}_se_{kind}/{part}",
    rf"resample_layers/(?P<extra>\d+)/conv2d/{_PART}": "p{extra}_resample_conv/{part}",
    rf"resample_layers/(?P<extra>\d+)/bn/{_PART}": "p{extra}_resample_bn/{part}",
    rf"{_OBJECT_NODE}/{_WEIGHT}": "fpn{cell}_{node}_fuse/weight_{weight}",
    rf"{_OBJECT_NODE}/resample_layers/0/conv2d/{_PART}": "fpn{cell}_{node}_resample_conv/{part}",
    rf"{_OBJECT_NODE}/resample_layers/0/bn/{_PART}": "fpn{cell}_{node}_resample_bn/{part}",
    rf"{_OBJECT_NODE}/op_after_combine/conv_op/{_PART}": "fpn{cell}_{node}_conv/{part}",
    rf"{_OBJECT_NODE}/op_after_combine/bn/{_PART}": "fpn{cell}_{node}_bn/{part}",
    rf"{_HEAD}/conv_ops/(?P<k>\d+)/{_PART}": "{head}_conv{k}/{part}",
    rf"{_HEAD}/bns/(?P<k>\d+)/(?P<position>\d+)/{_PART}": "{head}_bn{k}_level{position}/{part}",
    rf"{_HEAD}/(?:classes|boxes)/{_PART}": "{head}_predict/{part}",
}
_COMPILED = tuple((re.compile(theirs), ours) for theirs, ours in _RULES.items())
_MIN_LEVEL = 3
_TAPS = 3  # levels of the backbone; those above are made by resampling


def from_automl(variables: Mapping[str, np.ndarray], where: str, advprop: bool | None = None) -> Pretrained:
    """Take over a checkpoint of the original EfficientDet.

    Moving averages are preferred to the weights they follow, as the original does in evaluation. Keras runs
    average the trained weights only: their batch-norm statistics are taken as they are.

    Args:
        variables: by their names in the checkpoint or HDF5 file.
        where: the source, for messages; its name also tells D7 from D6 and AdvProp from plain training,
            whose tensors look the same.
        advprop: whether it was trained with AdvProp, on pixels in -1..1; None reads it off `where`.

    Raises:
        UserError: when this is no such checkpoint, its architecture is none of ours, a tensor is missing or
            has another shape.
    """
    translate = _Translator(map(_variable, variables))
    found: dict[str, dict[str, str]] = {}  # our name -> slot -> their name
    unused: dict[str, str] = {}
    for name in variables:
        ours, slot = translate(_variable(name)), _slot(name)
        if not ours or slot not in ("raw", "average"):
            unused[name] = _why_unused(name, slot)
        elif (before := found.setdefault(ours, {}).setdefault(slot, name)) != name:
            raise UserError(f"{where}: {before} and {name} are the same variable of EfficientDet")
    taken = {ours: names.get("average") or names["raw"] for ours, names in found.items()}
    followed = [names["raw"] for names in found.values() if len(names) == 2]
    unused |= dict.fromkeys(followed, "its moving average is taken")
    arrays = {ours: np.asarray(variables[name], np.float32) for ours, name in taken.items()}
    for ours, name in taken.items():
        if ours.endswith("kernel") and arrays[ours].ndim != 4:
            raise UserError(f"{where}: {name} has shape {variables[name].shape}, no convolution's")
    preset_name = recognise_detector(arrays, where, hint=where)
    top, nodes = preset(preset_name).model.max_level, translate.nodes
    if nodes != 2 * (top - _MIN_LEVEL):
        bifpn = f"a BiFPN up to P{top} has {2 * (top - _MIN_LEVEL)}"
        raise UserError(f"{where}: its pyramid has {nodes} nodes, {bifpn}")
    refuse(list_faults(arrays, _shapes(preset_name, arrays), taken), f"{where}: {preset_name} is not whole")
    averages = sum("average" in names for names in found.values())
    names = "Keras object graph" if any(n.endswith(OBJECT) for n in taken.values()) else "TF1 or Keras names"
    preferred = f"moving averages preferred ({averages} tensors)" if averages else "no moving averages"
    mean, std, notes = _pixels(preset_name, where, advprop)
    return Pretrained(
        arrays,
        origin=f"EfficientDet TensorFlow checkpoint, {preset_name}, {names}, {preferred}",
        kind="detector",
        mean=mean,
        std=std,
        unused=unused,
        notes=notes,
    )


def _variable(name: str) -> str:
    """The variable that a name or a slot of it belongs to."""
    name = name.removesuffix(":0").removesuffix(OBJECT).split(_SLOT)[0].removesuffix(_TF1_AVERAGE)
    return _TF1_SLOT.sub("", name)


def _slot(name: str) -> str:
    """`raw` for a variable itself, `average`, `stale` for an average that no step moves, or `optimizer`."""
    name = name.removesuffix(OBJECT)
    if name.endswith(_TF1_AVERAGE):
        return "average"
    if _SLOT in name and name.endswith("/average"):
        # Keras's optimizer averages what it trains; statistics may have a slot, which stays 0.
        return "stale" if name.split(_SLOT)[0].endswith(_STATISTICS) else "average"
    return "optimizer" if _SLOT in name or _TF1_SLOT.search(name) else "raw"


def _why_unused(name: str, slot: str) -> str:
    if _BOOKKEEPING.match(name) or slot == "optimizer":
        return "only the original's training reads it"
    return "an average that no training step moves" if slot == "stale" else "no variable of EfficientDet"


class _Translator:
    """Turns their names into ours; `nodes` is how many each repeat of the pyramid has."""

    def __init__(self, variables: Iterable[str]) -> None:
        text = "\n".join(variables)
        self._expanded = set(re.findall(r"^[\w-]+/blocks_(\d+)/conv2d_1/kernel$", text, re.MULTILINE))
        nodes = re.findall(r"^fpn_cells/cells?[_/]\d+/fnodes?/?(\d+)/", text, re.MULTILINE)
        self.nodes = max(map(int, nodes), default=-1) + 1

    def __call__(self, name: str) -> str | None:
        """Return our name, None when there is none."""
        for pattern, ours in _COMPILED:
            if m := pattern.fullmatch(name):
                return ours.format(**self._groups(m.groupdict()))
        return None

    def _groups(self, groups: dict[str, str]) -> dict[str, str]:
        parts = ["expand", "dw", "project"] if groups.get("block") in self._expanded else ["dw", "project"]
        if "conv" in groups:
            groups["conv"] = _at([p for p in parts if p != "dw"], groups["conv"])
        if "norm" in groups:
            groups["norm"] = _at(parts, groups["norm"])
        if "node" in groups:
            number, levels = int(groups["node"]), self.nodes // 2
            way, level = ("td", levels - 1 - number) if number < levels else ("bu", 1 + number - levels)
            groups["node"] = f"{way}{_MIN_LEVEL + level}"
        if "weight" in groups:
            groups["weight"] = groups["weight"] or "0"
        for name, first in (("extra", _MIN_LEVEL + _TAPS), ("position", _MIN_LEVEL)):
            if name in groups:
                groups[name] = str(first + int(groups[name]))
        return groups


def _at(parts: list[str], counter: str) -> str:
    """The part of a block that the layer with this counter is: ``, `_1`, `_2`."""
    number = int(counter.removeprefix("_") or 0)
    return parts[number] if number < len(parts) else f"unknown{number}"


def _shapes(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The shapes of a preset's variables, for as many classes as `arrays` have."""
    anchors = preset(name).anchors.per_location
    classes = len(np.atleast_1d(arrays.get("class_predict/bias", np.zeros(anchors)))) // anchors
    outputs = {"class_predict": classes * anchors, "box_predict": 4 * anchors}
    return {
        row.ours: tuple(outputs[row.ours.split("/")[0]] if n is None else n for n in row.shape)
        for row in rows(preset(name))
    }


def _pixels(name: str, where: str, advprop: bool | None) -> tuple[Pixels, Pixels, tuple[str, ...]]:
    """Mean and deviation that images were normalised by, and notes."""
    if advprop or advprop is None and "advprop" in where.lower():
        why = "as asked for" if advprop else "by the name of the path"
        return UNIT_RANGE, UNIT_RANGE, (f"AdvProp weights, {why}: pixels are taken to -1..1",)
    if name.startswith("lite"):
        return LITE_MEAN, LITE_STD, ()
    return IMAGENET_MEAN, IMAGENET_STD, ()
