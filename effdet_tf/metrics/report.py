"""All figures of one evaluation: as a dict for JSON and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effdet_tf.metrics.cells import score_cells
from effdet_tf.metrics.coco import KINDS, evaluate_coco

_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP50_80", "AR", "AFNR")
_KIND_NAMES = {"bbox": "box", "segm": "mask"}
_CELL_LINES = (
    ("sartorius", "Sartorius metric", "mean TP/(TP+FP+FN) over IoU .50:.05:.95, per image, cells disjoint"),
    ("f1", "F1", "at IoU .5, counts of all images pooled"),
    ("precision", "precision", "share of found cells that are true, IoU .5"),
    ("recall", "recall", "share of true cells that are found, IoU .5"),
    ("pq", "PQ", "panoptic quality, IoU .5"),
    ("aji", "AJI", "aggregated Jaccard index, mean of images"),
    ("seg", "SEG", "Cell Tracking Challenge, mean over true cells"),
    ("matching_accuracy50", "matching accuracy", "TP/(TP+FP+FN) at IoU .5; StarDist's and Cellpose's AP"),
    ("count_mean_error", "count error", "cells per image, mean of |found - true|"),
    ("count_bias", "count bias", "cells per image, mean of found - true"),
    ("count_correlation", "count correlation", "Pearson's r over images"),
)


def summarise(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    score_threshold: float | None = None,
    by: str | None = "cell_type",
    per_class: bool = False,
) -> dict[str, Any]:
    """Compute every figure.

    Args:
        ground_truth: COCO dict with the truth at full resolution.
        predictions: COCO results; a network without masks gives boxes only.
        score_threshold: least score of a cell for the figures that need one; None takes the best by the
            Sartorius metric on these images.
        by: image field to split the figures by; None for no split.
        per_class: also score by COCO's own protocol, class by class.

    Returns:
        `{"livecell": evaluate_coco(...), "cells": score_cells(...), "coco": evaluate_coco(...)}`, ready for
        JSON. "cells" is None when no prediction has a mask, "coco" when `per_class` is off.

    Raises:
        UserError: for predictions that do not fit the images.
    """
    masks = any("segmentation" in found for found in predictions) or not predictions
    kinds = KINDS if masks else KINDS[:1]
    return {
        "livecell": evaluate_coco(ground_truth, predictions, kinds, "livecell", by),
        "cells": score_cells(ground_truth, predictions, score_threshold, by) if masks else None,
        "coco": evaluate_coco(ground_truth, predictions, kinds, "coco", by) if per_class else None,
    }


def headline(report: dict[str, Any]) -> dict[str, float | None]:
    """The few figures to follow during training.

    Returns:
        box_AP, box_AP50, mask_AP, mask_AP50, sartorius, f1, count_mean_error; None where not defined.
    """
    figures: dict[str, float | None] = {}
    for kind, name in _KIND_NAMES.items():
        values = report["livecell"]["all"].get(kind, {})
        figures |= {f"{name}_AP": values.get("AP"), f"{name}_AP50": values.get("AP50")}
    cells = report["cells"]["all"] if report["cells"] else {}
    return figures | {key: cells.get(key) for key in ("sartorius", "f1", "count_mean_error")}


def format_table(report: dict[str, Any]) -> str:
    """The report as text: AP rows for boxes and masks, all and per group, then one line per other figure."""
    lines = [
        "LIVECell protocol, % (classes as one, up to 100/500/2000 detections an image, "
        "areas split at 324 and 961 px)"
    ]
    lines += _ap_table(report["livecell"])
    lines.append("AP50_80 is AP over IoU .50:.05:.80; AFNR is 100 - AR, the mean share of missed cells.")
    if report.get("coco"):
        lines += ["", "COCO protocol, % (class by class, up to 100 detections an image and class)"]
        lines += _ap_table(report["coco"])
        lines += _class_lines(report["coco"]["all"])
    if report["cells"]:
        lines += ["", *_cell_table(report["cells"])]
    else:
        lines += ["", "The predictions have no masks: only boxes are scored."]
    return "\n".join(lines)


def _ap_table(result: dict[str, Any]) -> list[str]:
    groups = {"all": result["all"], **result["by"]}
    width = max(5, *(len(name) for name in groups))
    lines = [f"{'':{width}} {'':4} {'images':>6} {'cells':>8} " + " ".join(f"{c:>7}" for c in _COLUMNS)]
    for name, group in groups.items():
        for kind, label in _KIND_NAMES.items():
            if kind in group:
                values = " ".join(f"{_percent(group[kind][column]):>7}" for column in _COLUMNS)
                lines.append(f"{name:{width}} {label:4} {group['images']:>6} {group['cells']:>8} {values}")
    dropped = result["all"]["dropped"]
    if dropped:
        lines.append(f"{dropped} predictions beyond that number were dropped, lowest scores first.")
    return lines


def _class_lines(group: dict[str, Any]) -> list[str]:
    lines = []
    for kind, label in _KIND_NAMES.items():
        for name, values in group.get(kind, {}).get("classes", {}).items():
            ap, ap50 = _percent(values["AP"]), _percent(values["AP50"])
            lines.append(f"class {name}, {label}: AP {ap}, AP50 {ap50}")
    return lines


def _cell_table(cells: dict[str, Any]) -> list[str]:
    groups = {"all": cells["all"], **cells["by"]}
    score = f"{cells['score_threshold']:.2f}"
    if cells["chosen"] == "given":
        how = f"best Sartorius metric {cells['best_sartorius']:.3f} at {cells['best_score_threshold']:.2f}"
    else:
        how = "the best of a grid on these images: an upper bound"
    lines = [f"Cells of score {score} and more, no pixel in two cells ({how})"]
    widths = [max(8, len(name)) for name in groups]
    names = " ".join(f"{name:>{width}}" for name, width in zip(groups, widths, strict=True))
    lines.append(f"{'':18} {names}")
    for key, label, meaning in _CELL_LINES:
        values = " ".join(
            f"{_number(group[key], key):>{width}}"
            for group, width in zip(groups.values(), widths, strict=True)
        )
        lines.append(f"{label:18} {values}  {meaning}")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None, key: str) -> str:
    if value is None:
        return "-"
    if key == "count_bias":
        return f"{value:+.1f}"
    return f"{value:.1f}" if key == "count_mean_error" else f"{value:.3f}"
