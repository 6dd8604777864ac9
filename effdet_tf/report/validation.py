"""Whether what was read from a file is what a report is made of: files may be damaged, or others'."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime
from typing import Any

from effdet_tf.metrics.protocols import KINDS
from effdet_tf.metrics.scores import COLUMNS, comparison_rows

_AT_SCORE = {"images", "true_cells", "found_cells", "precision", "recall", "f1", "count_mean_error"}


def _false_if_damaged(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A part that is missing, or of another kind, makes the answer no."""

    @functools.wraps(test)
    def holds(value: Any) -> bool:
        try:
            return test(value)
        except (KeyError, TypeError, AttributeError, ValueError):
            return False

    return holds


@_false_if_damaged
def is_evaluation(report: Any) -> bool:
    """Whether this is a report of `metrics.scores.Evaluator`, of this version or an earlier one."""
    result = report["boxes"] if report["boxes_only"] else report["cells"]
    protocols = [report["livecell"], *([report["coco"]] if report.get("coco") else [])]
    return (
        all(_protocol(protocol) for protocol in protocols)
        and _figure(result["score_threshold"])
        and isinstance(result["chosen"], str)
        and all(_at_score(group) for group in (result["all"], *result["by"].values()))
        and all(_image(image) for image in report.get("images", []))
        and _confusion(report.get("confusion"))
        and _sizes(report.get("sizes"))
        and all(_pair(pair) for pair in report.get("compared", []))
        and _calibration(report.get("calibration"))
        and isinstance(report.get("evaluated", {}), dict)
        and is_work(report.get("about", {}))
    )


@_false_if_damaged
def is_work(about: Any) -> bool:
    """Whether this is what `inventory.describe_work` gave, or nothing."""
    environment = about.get("environment", {})
    if "date" in about:
        datetime.fromisoformat(about["date"])
    return (
        isinstance(about.get("seconds", 0), int | float)
        and isinstance(about.get("data", []), list)
        and isinstance(environment.get("packages", {}), dict)
        and isinstance(environment.get("devices", []), list)
    )


@_false_if_damaged
def is_examples(examples: Any) -> bool:
    """Whether this is what `examples.write_examples` wrote."""
    return (
        _folders(examples["data"])
        and isinstance(examples["score"], float)
        and isinstance(examples["masks"], bool)
        and all(
            _image(image) and isinstance(image["what"], str) and isinstance(image["found_cells"], list)
            for image in examples["images"]
        )
    )


def _folders(data: Any) -> bool:
    several = isinstance(data, list) and data and all(isinstance(folder, str) for folder in data)
    return isinstance(data, str) or bool(several)


def _pair(pair: dict[str, Any]) -> bool:
    figures = [value for metric in pair["metrics"].values() for value in metric.values()]
    named = isinstance(pair["first"], str) and isinstance(pair["second"], str)
    return named and all(map(_figure, figures)) and all(len(row) == 6 for row in comparison_rows(pair))


def _protocol(protocol: dict[str, Any]) -> bool:
    curves = protocol.get("curves", {})
    return all(_group(group) for group in (protocol["all"], *protocol["by"].values())) and all(
        kind in KINDS and (curve is None or _curve(curve)) for kind, curve in curves.items()
    )


def _group(group: dict[str, Any]) -> bool:
    kinds = [group[kind] for kind in KINDS if kind in group]
    return (
        "bbox" in group
        and all(isinstance(group[name], int) for name in ("images", "cells", "dropped"))
        and all(set(kind) >= set(COLUMNS) for kind in kinds)
        and all(_figure(v) for kind in kinds for name, v in kind.items() if name != "classes")
        and all(
            _figure(values["AP"]) and _figure(values["AP50"])
            for kind in kinds
            for values in kind.get("classes", {}).values()
        )
    )


def _curve(curve: dict[str, Any]) -> bool:
    lines = curve["precision"].values()
    return _numbers(curve["AP"], 10) and all(_numbers(line, 101) for line in lines)


def _at_score(group: dict[str, Any]) -> bool:
    return set(group) >= _AT_SCORE and all(_figure(value) for value in group.values())


def _image(image: dict[str, Any]) -> bool:
    counted = all(isinstance(image[name], int) for name in ("true", "found"))
    known = isinstance(image["id"], int | str)
    return counted and known and _figure(image["f1"]) and _figure(image.get("sartorius"))


def _confusion(confusion: dict[str, Any] | None) -> bool:
    if confusion is None:
        return True
    size = len(confusion["classes"])
    lines = [*confusion["counts"], confusion["missed"], confusion["false"]]
    return len(confusion["counts"]) == size and all(_numbers(line, size) for line in lines)


def _calibration(calibration: dict[str, Any] | None) -> bool:
    if calibration is None:
        return True
    before = [calibration["before"]] if "before" in calibration else []
    return all(
        isinstance(group["cells"], int)
        and _figure(group["error"])
        and all(_numbers(row, 3) for row in group["bins"])
        for group in (calibration["all"], *before, *calibration["by"].values())
    )


def _sizes(sizes: dict[str, Any] | None) -> bool:
    if sizes is None:
        return True
    edges = sizes["edges"]
    rising = _numbers(edges, len(edges)) and all(0 < a < b for a, b in zip(edges, edges[1:], strict=False))
    bars = len(edges) + 1
    return rising and len(edges) > 1 and _numbers(sizes["true"], bars) and _numbers(sizes["found"], bars)


def _figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _numbers(values: Any, count: int) -> bool:
    whole = isinstance(values, list) and len(values) == count
    return whole and all(_figure(value) and value is not None for value in values)
