"""COCO average precision, by the LIVECell protocol first and by COCO's own as the other choice.

LIVECell (Edlund et al. 2021, Nature Methods 18, 1038): all classes as one, up to 100/500/2000 detections
an image, small/medium/large split at 18^2 and 31^2 px. The results are those of pycocotools.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.metrics.instances import (
    ANY_CLASS,
    IOU_THRESHOLDS,
    Fields,
    ImageGroups,
    ImageInstances,
    Instance,
    iterate_instances,
    unknown_class,
)
from effdet_tf.metrics.precision import PackedMatch, match_precision, precision_and_recall

KIND_NAMES = {"bbox": "box", "segm": "mask"}
KINDS = tuple(KIND_NAMES)


@dataclass(frozen=True)
class Protocol:
    """How predictions are counted."""

    name: str  # as in the report
    per_class: bool  # a detection must also have the right class; metrics are then means over classes
    max_detections: tuple[int, int, int]  # of an image (and class, if `per_class`), rising; AP uses the last
    area_limits: tuple[float, float]  # upper ends of the small and of the medium area, px^2

    @property
    def area_ranges(self) -> list[list[float]]:
        """All, small, medium and large areas, px^2."""
        small, medium = self.area_limits
        return [[0, 1e10], [0, small], [small, medium], [medium, 1e10]]


PROTOCOLS = {
    "livecell": Protocol("livecell", False, (100, 500, 2000), (18.0**2, 31.0**2)),
    "coco": Protocol("coco", True, (1, 10, 100), (32.0**2, 96.0**2)),
}


class CocoEvaluator:
    """Computes average precision of annotated images that are added one by one."""

    def __init__(
        self, categories: Sequence[dict[str, Any]], protocol: str = "livecell", by: Fields = "cell_type"
    ) -> None:
        """Set the rules, as of `evaluate_coco`; `categories` are COCO's, `{"id", "name"}`.

        Raises:
            ValueError: for an unknown protocol.
        """
        if protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {protocol!r}")
        self.rules = PROTOCOLS[protocol]
        names = {int(category["id"]): str(category["name"]) for category in categories}
        self.names = dict(sorted(names.items())) if self.rules.per_class else {ANY_CLASS: "cell"}
        self._groups = ImageGroups(by)
        self._counts: dict[int, tuple[int, int, int]] = {}  # by image: cells, predictions, dropped
        self._matched: dict[tuple[str, int, int], PackedMatch] = {}  # by kind, class and image

    def add(self, image: ImageInstances, kinds: Sequence[str] = KINDS) -> None:
        """Evaluate the predictions on one image; `kinds` are "bbox", "segm" or both.

        Raises:
            UserError: for a prediction of an unknown class (when classes count), or without the box or mask
                that is to be scored.
        """
        identity, per_class = image.image["id"], self.rules.per_class
        self._groups.add(image.image)
        predictions: dict[int, list[Instance]] = defaultdict(list)
        for number, entry in enumerate(image.predictions):
            category = entry.category_id if per_class else ANY_CLASS
            if category not in self.names:
                raise unknown_class(image.name(number), category, self.names)
            for kind, shape in (("bbox", entry.box), ("segm", entry.rle)):
                if shape is None and kind in kinds:
                    raise UserError(f"{image.name(number)} has no {KIND_NAMES[kind]} to score")
            predictions[category].append(entry)
        cells: dict[int, list[Instance]] = defaultdict(list)
        for cell in image.ground_truth:
            cells[cell.category_id if per_class else ANY_CLASS].append(cell)
        maximum = self.rules.max_detections[-1]
        self._counts[identity] = (
            sum(not cell.crowd for cell in image.ground_truth),
            len(image.predictions),
            sum(max(0, len(entries) - maximum) for entries in predictions.values()),
        )
        for kind in kinds:
            for category in {*predictions, *cells}:
                self._matched[kind, category, identity] = match_precision(
                    cells[category], predictions[category], kind, self.rules.area_ranges, maximum
                )

    def matched(self, kind: str) -> list[PackedMatch]:
        """What is kept of each image, by rising id, where classes do not count; `kind` is bbox or segm."""
        areas = len(self.rules.area_ranges)
        bits = np.zeros((2, areas, len(IOU_THRESHOLDS), 0), np.uint8)
        none = PackedMatch(np.zeros(0), bits, np.zeros(areas, np.int64))
        return [self._matched.get((kind, ANY_CLASS, identity), none) for identity in sorted(self._groups.ids)]

    def report(self, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
        """The metrics, see `evaluate_coco`, of some of the kinds; a UserError when there was no image."""
        everything = set(self._groups.ids)
        if not everything:
            raise UserError("no annotated image to score on")
        curves: dict[str, Any] = {}
        report = {"protocol": self.rules.name, "all": self._group(everything, kinds, curves)}
        report["by"] = {
            name: report["all"] if ids == everything else self._group(ids, kinds)
            for name, ids in self._groups.split().items()
        }
        return report | {"curves": curves}

    def _group(
        self, ids: set[int], kinds: Sequence[str], curves: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Metrics of some images; with `curves`, those of each kind are put there."""
        counts = np.array([self._counts[identity] for identity in ids]).sum(0)
        group: dict[str, Any] = {"images": len(ids)}
        group |= {name: int(n) for name, n in zip(("cells", "predictions", "dropped"), counts, strict=True)}
        for kind in kinds:
            precision, recall = self._precision_and_recall(kind, sorted(ids))
            group[kind] = self._metrics(precision, recall)
            if curves is not None:
                curves[kind] = _curves(precision[:, 0])
        return group

    def _precision_and_recall(self, kind: str, ids: Sequence[int]) -> list[np.ndarray]:
        """Precision float64 `[class, area, IoU, recall]` and recall `[class, area, IoU, detections]`."""
        curves = []
        for category in self.names:
            keys = [(kind, category, identity) for identity in ids]
            matched = [self._matched[key] for key in keys if key in self._matched]
            for area in range(len(self.rules.area_ranges)):
                curves.append(precision_and_recall(matched, area, self.rules.max_detections))
        shape = len(self.names), len(self.rules.area_ranges)
        return [np.array(part).reshape(*shape, *part[0].shape) for part in zip(*curves, strict=True)]

    def _metrics(self, precision: np.ndarray, recall: np.ndarray) -> dict[str, Any]:
        metrics: dict[str, Any] = {
            "AP": _mean(precision[:, 0]),
            "AP50": _mean(precision[:, 0, 0]),
            "AP75": _mean(precision[:, 0, 5]),
            **{name: _mean(precision[:, area]) for area, name in enumerate(("APs", "APm", "APl"), 1)},
            "AP50_80": _mean(precision[:, 0, :7]),
            **{f"AR{n}": _mean(recall[:, 0, :, k]) for k, n in enumerate(self.rules.max_detections[:2])},
            **{name: _mean(recall[:, area, :, 2]) for area, name in enumerate(("AR", "ARs", "ARm", "ARl"))},
        }
        metrics["AFNR"] = None if metrics["AR"] is None else 1.0 - metrics["AR"]
        if self.rules.per_class:
            metrics["classes"] = {
                name: {"AP": _mean(precision[k, 0]), "AP50": _mean(precision[k, 0, 0])}
                for k, name in enumerate(self.names.values())
            }
        return metrics


def evaluate_coco(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    kinds: Sequence[str] = KINDS,
    protocol: str = "livecell",
    by: Fields = "cell_type",
) -> dict[str, Any]:
    """Score predictions against annotated images.

    Metrics are fractions 0..1; None stands for "not defined" (no cell in that area range). AP, AP50, AP75:
    average precision over IoU .50:.05:.95, at .50, at .75. APs, APm, APl: by area. AP50_80: over IoU
    .50:.05:.80. AR: mean of the highest recall over the IoUs; ARs, ARm, ARl: by area; AR1, AR10 and so on:
    with so few detections. AFNR: 1 - AR, the mean share of missed cells. Regions with `iscrowd` count
    neither as found nor as missed, and predictions on them are not false.

    Args:
        ground_truth: COCO dict: images (id, height, width, and `by`), categories, annotations (image_id,
            category_id, segmentation as polygons or RLE, bbox x, y, w, h, iscrowd). The area is the mask's,
            or the box's where there is no segmentation.
        predictions: COCO results: image_id, category_id, score, bbox, segmentation RLE.
        kinds: "bbox", "segm" or both.
        protocol: a name in `PROTOCOLS`.
        by: image field to split the images by, or several; None for no split.

    Returns:
        `{"protocol", "all": group, "by": {value: group}, "curves"}`, a group being `{"images", "cells",
        "predictions", "dropped", kind: {metric: value}}`; dropped counts the predictions of lowest score
        beyond the protocol's limit for one image. With `per_class` protocols each kind also holds
        "classes": {name: {AP, AP50}}. "curves" is `{kind: {"AP": [10], by IoU threshold, "precision": {"50",
        "75", "mean": [101]}}}` of all images, precision at recalls 0, .01 ... 1 at these IoUs and as the mean
        over all, to four digits; None for a kind without a cell.

    Raises:
        UserError: for a prediction on an unknown image, of an unknown class (when classes count), without a
            finite score, or without the box or mask that `kinds` asks for; for masks of cells that are
            annotated by boxes alone.
        ValueError: for an unknown protocol or kind.
    """
    if not set(kinds) <= set(KINDS):
        raise ValueError(f"unknown kinds {kinds!r}")
    evaluator = CocoEvaluator(ground_truth["categories"], protocol, by)
    if "segm" in kinds and not all(cell.get("segmentation") for cell in ground_truth["annotations"]):
        raise UserError("the annotations have boxes only, so there are no masks to score; score boxes alone")
    for image in iterate_instances(ground_truth, predictions):
        evaluator.add(image, kinds)
    return evaluator.report(kinds)


def _curves(precision: np.ndarray) -> dict[str, Any] | None:
    """Of float64 `[class, IoU, recall]`, means over the classes that have a cell; see `evaluate_coco`."""
    defined = precision[precision[:, 0, 0] > -1]
    if not len(defined):
        return None
    means = defined.mean(0)
    lines = {"50": means[0], "75": means[5], "mean": means.mean(0)}
    rounded = {name: line.round(4).tolist() for name, line in lines.items()}
    return {"AP": means.mean(1).round(5).tolist(), "precision": rounded}


def _mean(values: np.ndarray) -> float | None:
    """Mean of what is defined; the rest is marked with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
