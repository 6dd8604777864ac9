"""Nested frozen dataclasses of settings: made from plain values and changed, every key and value checked."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, TypeVar

from effdet_tf.errors import UserError

# What numbers may be, lowest and highest: beyond these a network is no network, or takes all memory.
_RANGES: dict[str, tuple[float, float]] = {
    name: bounds
    for bounds, names in (
        ((0, 1), "model.drop_connect model.batch_norm_momentum postprocess.score_threshold"),
        ((0, 1), "postprocess.min_score data.source_share augment.invert train.start_share"),
        ((0.5, 1), "postprocess.mask_sure"),
        ((0, 10), "augment.blur augment.noise augment.vignette"),
        ((1, 100), "augment.jpeg"),
        ((0.1, 10), "augment.gamma"),
        ((0, 1), "postprocess.nms_iou postprocess.vote_iou postprocess.report_score postprocess.calibration"),
        ((0, 12), "model.backbone_levels model.min_level model.max_level"),
        ((0, 1024), "model.fpn_channels"),
        ((0, 16), "model.fpn_repeats model.head_repeats"),
        ((1, 64), "anchors.octaves"),
        ((1, 1024), "model.mask.channels model.mask.hidden model.mask.size model.mask.stride"),
        ((0, 100), "model.mask.expand"),
        ((1, 2**15), "data.crop_size"),
        ((0.1, 10), "data.zoom"),
        ((1e-3, 1e5), "data.cell_size"),
        ((0, 1e3), "data.um_per_px"),
        ((-100, 100), "trust.f1 trust.count"),
        ((1, 10**5), "data.max_instances train.batch"),
        ((1, 10**6), "postprocess.top_k"),
        ((0, 10**7), "model.mask.samples data.crops_per_image train.epochs train.evaluate_every"),
        ((1e-6, 1e6), "anchors.scale anchors.ratios anchors.sizes data.std postprocess.soft_nms_sigma"),
        ((-(2**63), 2**63 - 1), "category_ids train.seed"),
    )
    for name in names.split()
}
_OTHERS = (-1e9, 1e9)
_MANY = 10_000  # entries of a list


def _in_range(value: Any, name: str) -> Any:
    low, high = _RANGES.get(name, _OTHERS)
    if isinstance(value, (int, float)) and not low <= value <= high:  # nor NaN
        raise UserError(f"{name} {value!r}: take {low:g} to {high:g}")
    return value


T = TypeVar("T")


def build(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Make a dataclass from nested dicts, checking every key and type; a missing field keeps its default.

    `where` is the dotted path of `values`, for messages.

    Raises:
        UserError: for an unknown key or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    prefix = where + "." if where else ""
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(_unknown(prefix + str(key), [prefix + h for h in hints]))
        arguments[key] = _coerce(hints[key], value, prefix + key)
    return kind(**arguments)


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    advice = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(known)}"
    return f"unknown configuration key {key!r}; {advice}"


def set_value(section: Any, keys: list[str], value: Any, name: str, known: list[str]) -> Any:
    """A copy of nested dataclasses in which the field at the path `keys` is `value`, checked.

    `name` stands for it in messages, and the `known` names for an unknown one.

    Raises:
        UserError: for an unknown key or a value of the wrong type.
    """
    hints = typing.get_type_hints(type(section))
    key, rest = keys[0], keys[1:]
    if key not in hints or rest and not dataclasses.is_dataclass(hints[key]):
        raise UserError(_unknown(name, known))
    value = (
        set_value(getattr(section, key), rest, value, name, known)
        if rest
        else _coerce(hints[key], value, name)
    )
    return dataclasses.replace(section, **{key: value})


def leaves(kind: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields of nested dataclasses."""
    found = []
    for key, hint in typing.get_type_hints(kind).items():
        nested = dataclasses.is_dataclass(hint) and isinstance(hint, type)
        found += leaves(hint, f"{prefix}{key}.") if nested else [prefix + key]
    return found


def _coerce(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, dict):
            return build(hint, value, name)
    elif origin is types.UnionType:
        listed = isinstance(value, (list, tuple))
        kind = next(a for a in arguments if (typing.get_origin(a) is tuple) == listed)
        return _coerce(kind, value, name)
    elif origin is Literal:
        # YAML reads on/off as booleans; a choice that is spelled so means the word.
        word = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        if word in arguments:
            return word
        raise UserError(f"{name}: {value!r} is not one of {', '.join(map(str, arguments))}")
    elif origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) <= _MANY:
            if arguments[-1] is Ellipsis:
                return tuple(_coerce(arguments[0], v, name) for v in value)
            if len(value) == len(arguments):
                return tuple(_coerce(a, v, name) for a, v in zip(arguments, value, strict=True))
    elif origin is dict:
        if isinstance(value, dict) and len(value) <= _MANY:
            return {str(key): _coerce(arguments[1], entry, name) for key, entry in value.items()}
    elif hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return _in_range(float(value), name)  # YAML 1.1 reads 1e-3 as text
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return _in_range(value, name)
    raise UserError(f"{name}: {value!r} is not {_kind(hint)}")


def _kind(hint: Any) -> str:
    """What a value must be, in words."""
    if typing.get_origin(hint) is tuple:
        first, *rest = typing.get_args(hint)
        length = "" if rest[-1] is Ellipsis else f" of {1 + len(rest)}"
        return f"a list{length}, each {_kind(first)}"
    if typing.get_origin(hint) is dict:
        return f"a mapping of names, each to {_kind(typing.get_args(hint)[1])}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return words.get(hint, "a section of settings")


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as what YAML writes."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return dict(value)
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value
