"""All metrics of one evaluation: as a dict for JSON and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from effdet_tf.errors import UserError
from effdet_tf.metrics.box_metrics import BoxEvaluator
from effdet_tf.metrics.calibration import Reliability
from effdet_tf.metrics.cell_metrics import CellEvaluator
from effdet_tf.metrics.confusion import ConfusionMatrix
from effdet_tf.metrics.instances import Fields, ImageInstances, iterate_instances
from effdet_tf.metrics.matching import MatchCounts
from effdet_tf.metrics.precision import PackedMatch
from effdet_tf.metrics.protocols import KIND_NAMES, KINDS, CocoEvaluator

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP50_80", "AR", "AFNR")
# The twelve that pycocotools' summarize() prints, in its order; "AR" is its AR of 100 detections.
_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
COCO_COLUMNS = {name: "AR" if name == "AR100" else name for name in _COCO}
CELL_LINES = (
    ("sartorius", "Sartorius metric", "mean TP/(TP+FP+FN) over IoU .50:.05:.95, per image, cells disjoint"),
    ("f1", "F1", "at IoU .5, counts of all images pooled"),
    ("mean_f1", "F1, mean of images", "at IoU .5; chooses the score that cells are reported from"),
    ("precision", "precision", "share of found cells that are true, IoU .5"),
    ("recall", "recall", "share of true cells that are found, IoU .5"),
    ("pq", "PQ", "panoptic quality, IoU .5"),
    ("aji", "AJI", "aggregated Jaccard index, mean of images"),
    ("seg", "SEG", "Cell Tracking Challenge, mean over true cells"),
    ("matching_accuracy50", "matching accuracy", "TP/(TP+FP+FN) at IoU .5; StarDist's and Cellpose's AP"),
    ("matching_accuracy75", "matching acc. .75", "the same at IoU .75"),
    (
        "matching_accuracy",
        "matching acc., mean",
        "the same, mean over IoU .50:.05:.95",
    ),
    ("missed", "missed", "true cells that none matches at IoU .5"),
    ("merged", "merged", "found over two true cells or more, each by more than half"),
    ("split", "split", "found in a true cell beside another such part"),
    ("false", "false", "found, and none of these"),
    ("count_mean_error", "count error", "cells per image, mean of |found - true|"),
    ("count_bias", "count bias", "cells per image, mean of found - true"),
    ("count_correlation", "count correlation", "Pearson's r over images"),
)


def summarise(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    score_threshold: float | None = None,
    by: Fields = "cell_type",
    coco: bool = False,
    masks: bool | None = None,
) -> dict[str, Any]:
    """Compute `Evaluator.report` of what is in memory; `Evaluator` takes images one by one.

    Args:
        ground_truth: COCO dict, at full resolution.
        predictions: COCO results; a network without masks gives boxes only.
        score_threshold: minimum score of a cell for the metrics that need one; None takes the best by the
            Sartorius metric on these images, or by F1 where only boxes are scored.
        by: image field to split the images by, or several; None for no split.
        coco: also score by COCO's own protocol, class by class.
        masks: whether the network makes masks; None looks at the predictions, of which none at all counts as
            yes.

    Raises:
        UserError: for predictions that do not fit the images.
    """
    evaluator = Evaluator(ground_truth["categories"], score_threshold, by, coco)
    for image in iterate_instances(ground_truth, predictions):
        evaluator.add(image)
    return evaluator.report(masks)


class Evaluator:
    """Computes all metrics of images that are added one by one; it keeps 130 bytes of a prediction."""

    def __init__(
        self,
        categories: Sequence[dict[str, Any]],
        score_threshold: float | None = None,
        by: Fields = "cell_type",
        coco: bool = False,
    ) -> None:
        """Set the rules, as of `summarise`; `categories` are COCO's, `{"id", "name"}`."""
        names = ("livecell", "coco") if coco else ("livecell",)
        self._protocols = {name: CocoEvaluator(categories, name, by) for name in names}
        self._cells = CellEvaluator(score_threshold, by)
        self._boxes = BoxEvaluator(categories, score_threshold, by, coco)
        self._images: list[dict[str, Any]] = []
        self._mask_matrix, self._box_matrix = ConfusionMatrix(categories), ConfusionMatrix(categories)
        self._mask_trust, self._box_trust = Reliability(by), Reliability(by)
        self._boxes_alone = False  # some annotation has no mask
        self._masked = 0  # predictions that have one
        self._unmasked: str | None = None  # the first prediction that has none

    def add(self, image: ImageInstances) -> None:
        """Evaluate the predictions on one image.

        Raises:
            UserError: for a prediction of an unknown class, when classes count, or without a box.
        """
        self._boxes_alone |= any(cell.rle is None for cell in image.ground_truth)
        lacking = [number for number, entry in enumerate(image.predictions) if entry.rle is None]
        self._masked += len(image.predictions) - len(lacking)
        if lacking and self._unmasked is None:
            self._unmasked = image.name(lacking[0])
        masks = not self._boxes_alone and self._unmasked is None
        for evaluator in self._protocols.values():
            evaluator.add(image, KINDS if masks else KINDS[:1])
        if masks:
            match = self._cells.add(image)
            self._mask_matrix.add(image, match)
            self._mask_trust.add(image.image, match)
        match = self._boxes.add(image)
        self._box_matrix.add(image, match)
        self._box_trust.add(image.image, match)
        known = ("id", "file_name", "source", "cell_type")
        self._images.append({name: image.image[name] for name in known if name in image.image})

    def report(self, masks: bool | None = None) -> dict[str, Any]:
        """The metrics of all images; `masks` as of `summarise`.

        Returns:
            `{"livecell": evaluate_coco(...), "cells": score_cells(...), "boxes": score_boxes(...), "coco":
            evaluate_coco(...), "boxes_only", "images", "calibration", "confusion", "sizes"}`, ready for JSON.
            "boxes_only" says why masks are not scored and "cells" is None; it and "boxes" are None where
            masks are scored. "coco" is None when that is off. "images" has id, file_name, source (of several
            sets), cell_type, true, found, sartorius (of masks) and f1 of every image at the score of a cell;
            "calibration" is that of `Reliability.report`, "confusion" and "sizes" those of
            `ConfusionMatrix.report`.

        Raises:
            UserError: for predictions that do not fit the images.
        """
        boxes_only = self._boxes_only(masks)
        kinds = KINDS[:1] if boxes_only else KINDS
        protocols = {name: evaluator.report(kinds) for name, evaluator in self._protocols.items()}
        evaluator = self._boxes if boxes_only else self._cells
        matrix = self._box_matrix if boxes_only else self._mask_matrix
        trust = self._box_trust if boxes_only else self._mask_trust
        at_score = evaluator.report()
        by_image = evaluator.by_image(at_score["score_threshold"])
        return {
            "livecell": protocols["livecell"],
            "cells": None if boxes_only else at_score,
            "boxes": at_score if boxes_only else None,
            "coco": protocols.get("coco"),
            "boxes_only": boxes_only,
            "images": [image | by_image[image["id"]] for image in self._images],
            "calibration": trust.report(),
            **matrix.report(at_score["score_threshold"]),
        }

    def counted(self) -> tuple[list[MatchCounts], list[PackedMatch]]:
        """Of each image, in one order: counts at the score of a cell, and what LIVECell's protocol has of it.

        Raises:
            UserError: for predictions that do not fit the images.
        """
        boxes_only = self._boxes_only(None)
        evaluator = self._boxes if boxes_only else self._cells
        kind = KINDS[0] if boxes_only else KINDS[1]
        return evaluator.counted(), self._protocols["livecell"].matched(kind)

    def _boxes_only(self, masks: bool | None) -> str | None:
        """Why masks are not scored; None where they are."""
        masks = (self._masked > 0 or self._unmasked is None) if masks is None else masks
        boxes_only = None if masks else "the predictions have no masks"
        if self._boxes_alone:
            boxes_only = "the images are annotated by boxes alone"
        if not boxes_only and self._unmasked is not None:
            raise UserError(f"{self._unmasked} has no mask to score")
        return boxes_only


def headline(report: dict[str, Any]) -> dict[str, float | None]:
    """The few metrics to follow during training.

    Returns:
        box_AP, box_AP50, mask_AP, mask_AP50 of the LIVECell protocol, sartorius, f1, count_mean_error; None
        where not defined. f1 and count_mean_error are of boxes where masks are not scored. With COCO's own
        protocol also coco_box_AP, coco_box_AP50, coco_mask_AP, coco_mask_AP50.
    """
    figures: dict[str, float | None] = {}
    for protocol, prefix in (("livecell", ""), ("coco", "coco_")):
        if report[protocol]:
            for kind, name in KIND_NAMES.items():
                values = report[protocol]["all"].get(kind, {})
                figures |= {f"{prefix}{name}_{key}": values.get(key) for key in ("AP", "AP50")}
    cells = (report["cells"] or report["boxes"])["all"]
    return figures | {key: cells.get(key) for key in ("sartorius", "f1", "count_mean_error")}


def choosing_score(figures: dict[str, float | None]) -> float:
    """The metric of `headline` by which one network is better than another.

    The AP of COCO's protocol where that was asked for, since classes count there, else of LIVECell's; of the
    masks where they are scored, else of the boxes. 0 where none of them is defined.
    """
    values = (figures.get(name) for name in ("coco_mask_AP", "coco_box_AP", "mask_AP", "box_AP"))
    return next((value for value in values if value is not None), 0.0)


def reporting_score(report: dict[str, Any]) -> float | None:
    """The minimum score of a cell to report by, as these images have it: "report_score" of `score_cells`.

    The score of the best F1 at IoU .5, mean over the images, of the masks or, where they are not scored, the
    boxes. The best by the Sartorius metric finds too few: a cell that is found a bit off costs it more at
    its high IoUs than one that is missed. None where no prediction matches: any score is right where no cell
    is.
    """
    score = (report["cells"] or report["boxes"])["report_score"]
    return None if score is None else float(score)


def format_table(report: dict[str, Any]) -> str:
    """The report as text: AP rows for boxes and masks, all and per group, then one line per other metric."""
    how = "classes as one, up to 100/500/2000 detections an image, areas split at 324 and 961 px"
    lines = [f"LIVECell protocol, % ({how})"]
    lines += _ap_table(report["livecell"], {name: name for name in COLUMNS})
    lines.append("AP50_80 is AP over IoU .50:.05:.80; AFNR is 100 - AR, the mean share of missed cells.")
    if report.get("coco"):
        how = "mean over classes, up to 100 detections an image and class, areas split at 1024 and 9216 px"
        lines += ["", f"COCO protocol, % ({how})"]
        lines += _ap_table(report["coco"], COCO_COLUMNS)
        lines += _class_lines(report["coco"]["all"])
    if report["boxes_only"]:
        lines += ["", f"Only boxes are scored: {report['boxes_only']}."]
        lines += _score_table(report["boxes"], "Boxes of score {} and more", "F1", "best_f1")
    else:
        title = "Cells of score {} and more, no pixel in two cells"
        lines += ["", *_score_table(report["cells"], title, "Sartorius metric", "best_sartorius")]
    lines += _calibration_lines(report.get("calibration"))
    if report.get("left_out"):
        lines += [f"{report['left_out']} predictions of classes that the images lack were left out."]
    if report.get("compared"):
        lines.append(format_comparison(report["compared"], report["livecell"]["all"]["images"]))
    return "\n".join(lines)


def _ap_table(result: dict[str, Any], columns: dict[str, str]) -> list[str]:
    groups = {"all": result["all"], **result["by"]}
    width = max(5, *(len(name) for name in groups))
    lines = [f"{'':{width}} {'':4} {'images':>6} {'cells':>8} " + " ".join(f"{c:>7}" for c in columns)]
    for name, group in groups.items():
        for kind, label in KIND_NAMES.items():
            if kind in group:
                values = " ".join(f"{percent(group[kind][name]):>7}" for name in columns.values())
                lines.append(f"{name:{width}} {label:4} {group['images']:>6} {group['cells']:>8} {values}")
    if dropped := result["all"]["dropped"]:
        lines.append(f"{dropped} predictions beyond that number were dropped, lowest scores first.")
    return lines


def _calibration_lines(calibration: Mapping[str, Any] | None) -> list[str]:
    if not calibration or calibration["all"]["error"] is None:
        return []
    errors = {"all": calibration["all"], **calibration["by"]}
    told = ", ".join(f"{name} {one['error']:.3f}" for name, one in errors.items() if one["error"] is not None)
    before = f"; {calibration['before']['error']:.3f} before calibration" if "before" in calibration else ""
    return ["", f"Expected calibration error of the scores as probabilities of a match: {told}{before}"]


def _class_lines(group: dict[str, Any]) -> list[str]:
    lines = []
    for kind, label in KIND_NAMES.items():
        for name, values in group.get(kind, {}).get("classes", {}).items():
            ap, ap50 = percent(values["AP"]), percent(values["AP50"])
            lines.append(f"class {name}, {label}: AP {ap}, AP50 {ap50}")
    return lines


def _score_table(result: dict[str, Any], title: str, metric: str, best: str) -> list[str]:
    how = "the best of a grid on these images: an upper bound"
    if result["chosen"] == "given":
        how = f"best {metric} {result[best]:.3f} at {score_text(result['best_score_threshold'])}"
    groups = {"all": result["all"], **result["by"]}
    widths = [max(8, len(name)) for name in groups]
    names = " ".join(f"{name:>{width}}" for name, width in zip(groups, widths, strict=True))
    lines = [f"{title.format(score_text(result['score_threshold']))} ({how})", f"{'':18} {names}"]
    for key, label, meaning in CELL_LINES:
        if key in groups["all"]:
            values = [metric_text(group[key], key) for group in groups.values()]
            lines.append(f"{label:18} {' '.join(map(str.rjust, values, widths))}  {meaning}")
    return lines


def format_comparison(compared: Sequence[dict[str, Any]], images: int) -> str:
    """Differences of predictions, `{"first", "second", "metrics"}` of each pair, as text."""
    lines = []
    for pair in compared:
        lines += [
            "",
            f"{pair['second']} against {pair['first']}, {images} images (paired bootstrap over them)",
        ]
        form = "{:18} {:>8} {:>8} {:>11} {:>20} {:>7}"
        lines.append(form.format("", "first", "second", "difference", "95 % interval", "p"))
        lines += [form.format(*row) for row in comparison_rows(pair)]
    return "\n".join(lines)


def comparison_rows(pair: Mapping[str, Any]) -> list[list[str]]:
    """A row of text for each metric of a pair: name, first, second, difference, interval, p."""
    shares = {"AP": "AP, %", "AP50": "AP50, %", "AFNR": "AFNR, %"}
    labels = shares | {key: label for key, label, _ in CELL_LINES}
    rows = []
    for key, label in labels.items():
        one = pair["metrics"].get(key)
        if one is None or one["difference"] is None:
            continue
        factor = 100 if key in shares else 1
        digits = 1 if key in (*shares, "count_mean_error", "count_bias") else 3
        first, second, difference, low, high = (
            factor * one[name] for name in ("first", "second", "difference", "low", "high")
        )
        values = [f"{first:.{digits}f}", f"{second:.{digits}f}", f"{difference:+.{digits}f}"]
        rows.append([label, *values, f"{low:+.{digits}f} to {high:+.{digits}f}", _p(one["p"])])
    return rows


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"


def score_text(score: float) -> str:
    """A minimum score of cells: two digits, three where there is a third."""
    text = f"{score:.3f}"
    return text.removesuffix("0")


def percent(value: float | None) -> str:
    """A share as 12.3, in %; a dash stands for "not defined"."""
    return "-" if value is None else f"{100 * value:.1f}"


def metric_text(value: float | None, key: str) -> str:
    """A metric of `CELL_LINES` for people; a dash stands for "not defined"."""
    if value is None:
        return "-"
    if isinstance(value, int):  # a number of cells
        return str(value)
    if key == "count_bias":
        return f"{value:+.1f}"
    return f"{value:.1f}" if key == "count_mean_error" else f"{value:.3f}"
