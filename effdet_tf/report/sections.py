"""The parts of a report: what each shows, and what it says where there is nothing to show."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from effdet_tf.data.annotated import folder_list
from effdet_tf.metrics.protocols import KIND_NAMES
from effdet_tf.metrics.published import PUBLISHED, PUBLISHED_ANCHOR_FREE
from effdet_tf.metrics.scores import score_text
from effdet_tf.report import charts, tables
from effdet_tf.report.collect import Material
from effdet_tf.report.examples import ranking_figure
from effdet_tf.report.gallery import GalleryPicture, make_gallery

EARLIER = "the evaluation is of an earlier version; evaluate again"
NOTHING = "Nothing was evaluated: the training had no validation images (--val)."
_LOSSES = {name: name for name in ("total", "class", "box", "mask")}
_SHARES = {f"coco_{kind}_AP": f"COCO {kind} AP" for kind in ("mask", "box")}
_SHARES |= {f"{kind}_{name}": f"{kind} {name}" for kind in ("mask", "box") for name in ("AP", "AP50")}
_SHARES |= {"sartorius": "Sartorius metric", "f1": "F1"}
_OUTLINES = {
    "true": "as annotated",
    "right": "found, and matches a true cell with an IoU of .5 or more",
    "missed": "true, but no found cell matches it",
    "false": "found, but matches no true cell",
    "merged": "one found cell that covers several true ones, each by more than half",
    "split": "one of several found cells that lie in one true cell",
}


def _svgs(items: Sequence[str]) -> list[Markup]:
    return [Markup(item) for item in items]  # noqa: S704 (made by charts.py, which escapes all names)


def learning(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Losses, learning rate and validation figures over the steps."""
    if not history:
        return {"charts": [], "missing": ["There is no log of a training beside these figures."]}
    losses, rate = _over_steps(history, _LOSSES), _over_steps(history, {"rate": "learning rate"})
    shares = _over_steps(history, _SHARES, 100)
    errors = _over_steps(history, {"count_mean_error": "count error"})
    last = max(row.get("step", 0) for row in history)
    chart = functools.partial(charts.lines, x="step", end=1.03 * last if last else None)
    positive = all(min(values) > 0 for _, values in losses.values())
    error = {"y": "cells an image", "limits": (0, None)}
    parts = (
        ("losses", "Losses, mean of an epoch", losses, {"logarithmic": positive}),
        ("rate", "Learning rate", rate, {"limits": (0, None)}),
        ("validation", "Validation images", shares, {"y": "%", "limits": (0, 100)}),
        ("counterror", "Count error, validation images", errors, error),
    )
    drawn = [chart(name, title, curves=curves, **how) for name, title, curves, how in parts if curves]
    none = "There are no validation figures over the steps: the training had no --val."
    return {"charts": _svgs(drawn), "missing": [] if shares else [none]}


def _over_steps(
    history: Sequence[Mapping[str, float]], labels: Mapping[str, str], factor: float = 1.0
) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of some columns of the log, by label; those without a value are left out."""
    curves = {}
    for name, label in labels.items():
        rows = [row for row in history if name in row and "step" in row]
        if rows:
            curves[label] = [row["step"] for row in rows], [factor * row[name] for row in rows]
    return curves


def precision(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """AP by type, by size and by IoU, precision-recall curves, and COCO's figures where there are any."""
    if report is None:
        return {"missing": NOTHING}
    livecell, coco = report["livecell"], report.get("coco")
    notes = [
        "AFNR is 100 - AR, the mean share of missed cells. The published rows are of the whole LIVECell test "
        "set (Edlund et al. 2021; CenterMask2 is the anchor-free network, Cascade Mask R-CNN with "
        "ResNeSt-200 the anchor-based one): figures of other images, or of a "
        "part of that set, are no comparison."
    ]
    if any(name in PUBLISHED for name in livecell["by"]):
        notes.append(
            "The published AP beside a cell type is of networks trained on that type alone, on all of its "
            "images of the LIVECell test set."
        )
    curves = _curves(livecell)
    why = "the images have no true cell" if "curves" in livecell else EARLIER
    drawn = [
        *_recall_charts("pr", curves),
        *([charts.ap_by_iou("apiou", curves)] if curves else []),
        _ap_by_size(livecell["all"]),
        *([_ap_by_group(report)] if livecell["by"] else []),
    ]
    return {
        "text": "By the LIVECell protocol, in %: classes count as one, up to 100, 500 and 2,000 detections "
        "an image, cells split by area at 18² and 31² px.",
        "table": tables.precision_table(livecell),
        "notes": notes,
        "charts": _svgs(drawn),
        "no_curves": "" if curves else f"There are no precision-recall curves: {why}.",
        "coco": tables.coco_table(coco) if coco else None,
        "classes": tables.class_table(coco["all"]) if coco else None,
        "coco_charts": _svgs(_recall_charts("coco", _curves(coco or {}))),
    }


def _recall_charts(name: str, curves: Mapping[str, Any]) -> list[str]:
    return [charts.precision_recall(name + kind, kind, curve["precision"]) for kind, curve in curves.items()]


def _curves(protocol: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: curve for kind, curve in protocol.get("curves", {}).items() if curve}


def _ap_by_size(group: Mapping[str, Any]) -> str:
    values = {
        label: [_in_percent(group[kind].get(name)) for name in charts.SIZES]
        for kind, label in KIND_NAMES.items()
        if kind in group
    }
    which = int("segm" in group)
    label = f"published, {list(KIND_NAMES.values())[which]}"
    values[label] = [PUBLISHED_ANCHOR_FREE[name][which] for name in charts.SIZES]
    return charts.bars("apsize", "AP by cell size", list(charts.SIZES.values()), values)


def _ap_by_group(report: Mapping[str, Any]) -> str:
    groups = report["livecell"]["by"]
    several = any("source" in image for image in report.get("images", []))
    title = "AP by source and cell type" if several else "AP by cell type"
    values = {
        label: [_in_percent(group.get(kind, {}).get("AP")) for group in groups.values()]
        for kind, label in KIND_NAMES.items()
        if any(kind in group for group in groups.values())
    }
    return charts.bars("aptype", title, list(groups), values)


def _in_percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def cells(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Figures at the score of a cell, counts of images and sizes."""
    if report is None:
        return {"missing": NOTHING}
    result = report["boxes"] if report["boxes_only"] else report["cells"]
    what = "Boxes" if report["boxes_only"] else "Cells, no pixel in two of them,"
    text = f"{what} of score {score_text(result['score_threshold'])} and more"
    if result.get("chosen") == "best here":
        text += ", the best of a grid on these very images: an upper bound"
    if report["boxes_only"]:
        text += f". Only boxes are evaluated: {report['boxes_only']}"
    images, sizes = report.get("images"), report.get("sizes")
    drawn = [charts.counts("counts", images)] if images else []
    drawn += [charts.sizes("sizes", sizes)] if sizes else []
    no_charts = f"Counts and sizes of single cells are not there: {EARLIER}."
    no_charts = "" if images and sizes else no_charts
    table = tables.cell_table(result)
    return {"text": f"{text}.", "table": table, "charts": _svgs(drawn), "no_charts": no_charts}


def calibration(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Whether scores are probabilities, of all images and of each group."""
    if report is None:
        return {"missing": NOTHING}
    found = report.get("calibration")
    if not found:
        return {"missing": f"Scores were not compared with matches: {EARLIER}."}
    groups = {"all": found["all"], **found["by"]}
    if "before" in found:
        groups["all, as the network gave them"] = found["before"]
    told = {name: group for name, group in groups.items() if group["bins"]}
    text = "Of all cells of one score, how many match an annotated cell at IoU .5?"
    if "before" in found:
        text += " The scores were calibrated on these very images."
    return {
        "text": text,
        "table": tables.calibration_table(groups),
        "charts": _svgs([charts.reliability("reliability", told)] if told else []),
    }


def compared(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Other predictions on the same images against these."""
    pairs = (report or {}).get("compared", [])
    titles = [f"{pair['second']} against {pair['first']}" for pair in pairs]
    made = [tables.comparison_table(pair) for pair in pairs]
    return {"pairs": [{"title": title, "table": own} for title, own in zip(titles, made, strict=True)]}


def confusion(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which class was taken for which."""
    if report is None:
        return {"missing": NOTHING}
    if "confusion" not in report:
        return {"missing": f"Classes were not compared: {EARLIER}."}
    if report["confusion"] is None:
        why = "there is one class, or what was found has classes that the images do not have"
        return {"missing": f"Classes are not compared: {why}."}
    return tables.confusion_table(report["confusion"])


def images(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """The table of all images."""
    if report is None:
        return {"missing": NOTHING}
    if not report.get("images"):
        return {"missing": f"There are no figures of single images: {EARLIER}."}
    total = len(report["images"])
    text = "The worst first, at the score of a cell; F1 at IoU .5."
    if total > tables.MAX_IMAGES:
        text += f" The {tables.MAX_IMAGES:,} worst of {total:,}; the JSON beside this page has all of them."
    return {"text": text, "table": tables.image_table(report["images"])}


def gallery(material: Material) -> dict[str, Any]:
    """The best, the median and the worst images, with the outlines of their cells."""
    report, examples = material.report, material.examples
    if report is None:
        return {"missing": NOTHING}
    if examples is None or not examples["images"]:
        none = "what was found in single images was not kept; evaluate again"
        why = none if examples is None else "no image has a true or a found cell"
        return {"missing": f"There are no pictures: {why}."}
    folders = folder_list(examples["data"])
    if not all(folder.is_dir() for folder in folders):
        gone = f"the images were in {', '.join(map(str, folders))}, and are not there any more"
        advice = "`python -m effdet_tf report ... --data FOLDER` names another place"
        return {"missing": f"There are no pictures: {gone}. {advice}."}
    pictures = make_gallery(examples)
    lacking = len(examples["images"]) - len(pictures)
    figure = {"sartorius": "Sartorius metric", "f1": "F1"}[ranking_figure(examples["images"])]
    shapes = "Outlines" if examples["masks"] else "Boxes"
    outlines = []
    for name, meaning in _OUTLINES.items():
        count = None if name == "true" else sum(picture.counts[name] for picture in pictures)
        outlines.append({"name": name, "meaning": meaning, "shown": name != "true", "count": count})
    return {
        "pictures": [_picture(picture) for picture in pictures],
        "missing": f"{lacking} images are not in {', '.join(map(str, folders))} any more." if lacking else "",
        "text": f"By the {figure} of the image. {shapes} of the cells of score "
        f"{score_text(examples['score'])} and more, whatever their class; a click makes a picture large.",
        "outlines": outlines,
    }


def _picture(picture: GalleryPicture) -> dict[str, Any]:
    entry = picture.entry
    figures = [f"{entry.get('true', 0)} true cells, {entry.get('found', 0)} found"]
    for key, label in (("sartorius", "Sartorius metric"), ("f1", "F1")):
        if entry.get(key) is not None:
            figures.append(f"{label} {entry[key]:.3f}")
    kind = [str(entry[name]) for name in ("source", "cell_type") if entry.get(name)]
    return {
        **picture._asdict(),
        "title": ", ".join([str(entry.get("file_name", entry["id"])), *kind, *figures]),
        "counts": ", ".join(f"{count} {kind}" for kind, count in picture.counts.items()),
    }
