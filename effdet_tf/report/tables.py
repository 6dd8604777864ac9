"""The tables of a report, as text in rows; a dash stands for "not defined"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from effdet_tf.metrics.protocols import KIND_NAMES
from effdet_tf.metrics.published import PUBLISHED, PUBLISHED_ANCHOR_FREE
from effdet_tf.metrics.scores import CELL_LINES, COCO_COLUMNS, comparison_rows, metric_text, percent
from effdet_tf.report.examples import ranking_figure

Table = dict[str, Any]
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AFNR")
MAX_IMAGES = 1000  # rows of the table of images
_NETWORKS = ("CenterMask2", "Cascade Mask R-CNN")  # in the order of `PUBLISHED`


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits after the point."""
    return "-" if value is None else f"{value:.{digits}f}"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    published: Sequence[Sequence[str]] = (),
    words: Sequence[int] = (0,),
) -> Table:
    """A table for the page.

    Args:
        head: names of the columns.
        rows: cells as text.
        published: rows of others' results, set apart.
        words: columns that hold words, not numbers.
    """
    own = [{"cells": list(row), "published": False} for row in rows]
    others = [{"cells": list(row), "published": True} for row in published]
    return {"head": list(head), "rows": own + others, "words": list(words)}


def precision_table(livecell: Mapping[str, Any]) -> Table:
    """AP of all images and of each cell type, by the LIVECell protocol, and the published values below."""
    groups = {"all": livecell["all"], **livecell["by"]}
    types = [name for name in livecell["by"] if name in PUBLISHED]
    rows = []
    for name, group in groups.items():
        for kind, label in KIND_NAMES.items():
            if kind in group:
                values = [percent(group[kind].get(figure)) for figure in FIGURES]
                row = [name, label, f"{group['images']:,}", f"{group['cells']:,}", *values]
                rows.append(row + (_beside(name, list(KIND_NAMES).index(kind)) if types else []))
    padding = ["-", "-"] if types else []
    published = []
    for which, network in enumerate(_NETWORKS):
        for place, label in enumerate(KIND_NAMES.values()):
            if label == "mask" and "segm" not in livecell["all"]:
                continue
            known = {"AP": PUBLISHED["all"][which]} | (PUBLISHED_ANCHOR_FREE if which == 0 else {})
            values = [f"{known[name][place]:.1f}" if name in known else "-" for name in FIGURES]
            published.append([f"published: {network}", label, "-", "-", *values, *padding])
    beside = [f"published: {network}" for network in _NETWORKS] if types else []
    return table(["", "", "images", "cells", *FIGURES, *beside], rows, published, (0, 1))


def _beside(name: str, place: int) -> list[str]:
    """The published AP of a cell type, one of each network; those of "all" stand in rows of their own."""
    if name == "all" or name not in PUBLISHED:
        return ["-"] * len(_NETWORKS)
    return [f"{pair[place]:.1f}" for pair in PUBLISHED[name]]


def coco_table(coco: Mapping[str, Any]) -> Table:
    """COCO's twelve metrics, of all images and of each cell type."""
    rows = [
        [name, label, *(percent(group[kind].get(key)) for key in COCO_COLUMNS.values())]
        for name, group in {"all": coco["all"], **coco["by"]}.items()
        for kind, label in KIND_NAMES.items()
        if kind in group
    ]
    return table(["", "", *COCO_COLUMNS], rows, words=(0, 1))


def class_table(group: Mapping[str, Any]) -> Table:
    """AP class by class, by COCO's protocol."""
    kinds = [kind for kind in KIND_NAMES if "classes" in group.get(kind, {})]
    names = list(group[kinds[0]]["classes"]) if kinds else []
    rows = [
        [name, *(percent(group[kind]["classes"][name][key]) for kind in kinds for key in ("AP", "AP50"))]
        for name in names
    ]
    return table(["class", *(f"{KIND_NAMES[kind]} {key}" for kind in kinds for key in ("AP", "AP50"))], rows)


def cell_table(result: Mapping[str, Any]) -> Table:
    """Metrics of cells above one score, of all images and of each cell type."""
    groups = {"all": result["all"], **result["by"]}
    rows = []
    for key, label, meaning in CELL_LINES:
        if key in result["all"]:
            rows.append([label, *(metric_text(group.get(key), key) for group in groups.values()), meaning])
    return table(["", *groups, "what it is"], rows, words=(0, len(groups) + 1))


def calibration_table(groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """How far scores are from probabilities, of all images and of each group."""
    rows = [[name, f"{group['cells']:,}", number(group["error"])] for name, group in groups.items()]
    return table(["", "cells found, masks of score .05 and more", "expected calibration error"], rows)


def comparison_table(pair: Mapping[str, Any]) -> Table:
    """Metrics of two sets of predictions, their difference and how sure it is."""
    head = ["", "first", "second", "difference", "95 % interval", "p"]
    return table(head, comparison_rows(pair), words=(0,))


def image_table(images: Sequence[dict[str, Any]]) -> Table:
    """Every image, the worst first; at most `MAX_IMAGES`."""
    figure = ranking_figure(images)
    sources = any("source" in image for image in images)
    ranked = sorted(images, key=lambda image: (image.get(figure) is None, image.get(figure) or 0.0))
    rows = [
        [
            str(image.get("file_name", image["id"])),
            *([str(image.get("source") or "-")] if sources else []),
            str(image.get("cell_type") or "-"),
            str(image["true"]),
            str(image["found"]),
            f"{image['found'] - image['true']:+d}",
            *([number(image["sartorius"])] if figure == "sartorius" else []),
            number(image["f1"]),
        ]
        for image in ranked[:MAX_IMAGES]
    ]
    metric = ["Sartorius metric"] if figure == "sartorius" else []
    words = ["image", *(["source"] if sources else []), "cell type"]
    return table([*words, "true", "found", "difference", *metric, "F1"], rows, words=range(len(words)))


def confusion_table(confusion: Mapping[str, Any]) -> dict[str, Any]:
    """True classes by found ones, what was missed at the end of a row, what was false in the last row."""
    rows = []
    for name, counts, missed in zip(
        confusion["classes"], confusion["counts"], confusion["missed"], strict=True
    ):
        whole = max(1, sum(counts) + missed)
        cells = [{"value": f"{n:,}", "shade": round(60 * n / whole)} for n in (*counts, missed)]
        rows.append({"name": name, "cells": cells})
    false = [{"value": f"{n:,}", "shade": None} for n in confusion["false"]]
    rows.append({"name": "false: no true cell", "cells": [*false, {"value": "", "shade": None}]})
    return {"head": [*confusion["classes"], "missed"], "rows": rows}
