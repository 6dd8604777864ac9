"""COCO average precision, by the LIVECell protocol first and by COCO's own as the other choice.

LIVECell (Edlund et al. 2021, Nature Methods 18, 1038): all classes as one, up to 100/500/2000 detections
an image, small/medium/large split at 18^2 and 31^2 px. The figures are those of pycocotools.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.metrics.inputs import ANY_CLASS, ImageCase, group_images, has_masks, image_cases, unknown_class
from effdet_tf.metrics.precision import (
    Cells,
    Detections,
    MatchedImage,
    match_detections,
    precision_and_recall,
)

KINDS = ("bbox", "segm")


@dataclass(frozen=True)
class Protocol:
    """How detections are counted.

    Attributes:
        name: as in the report.
        per_class: whether a detection must also have the right class; figures are then means over classes.
        max_detections: detections an image may have (per class when `per_class`), rising; AP uses the last.
        area_limits: upper ends of the small and of the medium area, px^2.
    """

    name: str
    per_class: bool
    max_detections: tuple[int, int, int]
    area_limits: tuple[float, float]

    @property
    def area_ranges(self) -> list[list[float]]:
        """All, small, medium and large areas, px^2."""
        small, medium = self.area_limits
        return [[0, 1e10], [0, small], [small, medium], [medium, 1e10]]


PROTOCOLS = {
    "livecell": Protocol("livecell", False, (100, 500, 2000), (18.0**2, 31.0**2)),
    "coco": Protocol("coco", True, (1, 10, 100), (32.0**2, 96.0**2)),
}


class CocoJudge:
    """Takes annotated images one by one, and has the average precision in the end."""

    def __init__(
        self,
        categories: Sequence[dict[str, Any]],
        kinds: Sequence[str] = KINDS,
        protocol: str = "livecell",
        by: str | None = "cell_type",
    ) -> None:
        """Set the rules.

        Args:
            categories: COCO's, `{"id", "name"}`.
            kinds: "bbox", "segm" or both.
            protocol: a name in `PROTOCOLS`.
            by: image field to split the images by; None for no split.

        Raises:
            ValueError: for an unknown protocol or kind.
        """
        if protocol not in PROTOCOLS or not set(kinds) <= set(KINDS):
            raise ValueError(f"unknown protocol {protocol!r} or kinds {kinds!r}")
        self.rules, self.kinds, self.by = PROTOCOLS[protocol], tuple(kinds), by
        names = {int(category["id"]): str(category["name"]) for category in categories}
        self.names = dict(sorted(names.items())) if self.rules.per_class else {ANY_CLASS: "cell"}
        self._images: list[dict[str, Any]] = []
        self._counts: dict[int, tuple[int, int, int]] = {}  # by image: cells, predictions, dropped
        self._matched: dict[tuple[str, int, int], MatchedImage] = {}  # by kind, class and image

    def add(self, case: ImageCase) -> None:
        """Judge the detections on one image.

        Raises:
            UserError: for a detection of an unknown class (when classes count), or without the box or mask
                that is to be scored.
        """
        identity, per_class = case.image["id"], self.rules.per_class
        self._images.append({"id": identity} | ({self.by: case.image.get(self.by)} if self.by else {}))
        found: dict[int, list[int]] = defaultdict(list)
        for number, entry in enumerate(case.found):
            category = entry.category_id if per_class else ANY_CLASS
            if category not in self.names:
                raise unknown_class(case.what(number), category, self.names)
            found[category].append(number)
        cells: dict[int, list[int]] = defaultdict(list)
        for number, cell in enumerate(case.cells):
            cells[cell.category_id if per_class else ANY_CLASS].append(number)
        most = self.rules.max_detections[-1]
        self._counts[identity] = (
            sum(not cell.crowd for cell in case.cells),
            len(case.found),
            sum(max(0, len(numbers) - most) for numbers in found.values()),
        )
        for kind in self.kinds:
            for category in {*found, *cells}:
                self._matched[kind, category, identity] = match_detections(
                    _cells(case, cells[category], kind),
                    _detections(case, found[category], kind),
                    self.rules.area_ranges,
                    most,
                )

    def report(self, kinds: Sequence[str] | None = None) -> dict[str, Any]:
        """The figures; see `evaluate_coco`.

        Args:
            kinds: some of those that were judged; None for all of them.

        Raises:
            UserError: when there was no image.
        """
        if not self._images:
            raise UserError("no annotated image to score on")
        everything = {image["id"] for image in self._images}
        groups = group_images(self._images, self.by)
        report = {"protocol": self.rules.name, "all": self._group(everything, kinds or self.kinds)}
        report["by"] = {
            name: report["all"] if ids == everything else self._group(ids, kinds or self.kinds)
            for name, ids in groups.items()
        }
        return report

    def _group(self, ids: set[int], kinds: Sequence[str]) -> dict[str, Any]:
        counts = np.array([self._counts[identity] for identity in ids]).sum(0)
        group: dict[str, Any] = {"images": len(ids)}
        group |= {name: int(n) for name, n in zip(("cells", "predictions", "dropped"), counts, strict=True)}
        return group | {kind: self._figures(kind, sorted(ids)) for kind in kinds}

    def _figures(self, kind: str, ids: Sequence[int]) -> dict[str, Any]:
        areas = len(self.rules.area_ranges)
        curves = []
        for category in self.names:
            keys = [(kind, category, identity) for identity in ids]
            matched = [self._matched[key] for key in keys if key in self._matched]
            curves.append(
                [precision_and_recall(matched, k, areas, self.rules.max_detections) for k in range(areas)]
            )
        precision = np.array([[p for p, _ in of_class] for of_class in curves])  # [class, area, IoU, recall]
        recall = np.array([[r for _, r in of_class] for of_class in curves])  # [class, area, IoU, detections]
        figures: dict[str, Any] = {
            "AP": _mean(precision[:, 0]),
            "AP50": _mean(precision[:, 0, 0]),
            "AP75": _mean(precision[:, 0, 5]),
            "APs": _mean(precision[:, 1]),
            "APm": _mean(precision[:, 2]),
            "APl": _mean(precision[:, 3]),
            "AP50_80": _mean(precision[:, 0, :7]),
        }
        for slot, limit in enumerate(self.rules.max_detections[:2]):
            figures[f"AR{limit}"] = _mean(recall[:, 0, :, slot])
        for area, name in enumerate(("AR", "ARs", "ARm", "ARl")):
            figures[name] = _mean(recall[:, area, :, 2])
        figures["AFNR"] = None if figures["AR"] is None else 1.0 - figures["AR"]
        if self.rules.per_class:
            figures["classes"] = {
                name: {"AP": _mean(precision[k, 0]), "AP50": _mean(precision[k, 0, 0])}
                for k, name in enumerate(self.names.values())
            }
        return figures


def evaluate_coco(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    kinds: Sequence[str] = KINDS,
    protocol: str = "livecell",
    by: str | None = "cell_type",
) -> dict[str, Any]:
    """Score detections against annotated images.

    Figures are fractions 0..1; None stands for "not defined" (no cell in that area range). AP, AP50, AP75:
    average precision over IoU .50:.05:.95, at .50, at .75. APs, APm, APl: by area. AP50_80: over IoU
    .50:.05:.80. AR: mean of the highest recall over the IoUs; ARs, ARm, ARl: by area; AR1, AR10 and so on:
    with so few detections. AFNR: 1 - AR, the mean share of missed cells. Regions with `iscrowd` count
    neither as found nor as missed, and detections on them are not false.

    Args:
        ground_truth: COCO dict: images (id, height, width, and `by`), categories, annotations (image_id,
            category_id, segmentation as polygons or RLE, bbox x, y, w, h, iscrowd). The area is the mask's,
            or the box's where there is no segmentation.
        predictions: COCO results: image_id, category_id, score, bbox, segmentation RLE.
        kinds: "bbox", "segm" or both.
        protocol: a name in `PROTOCOLS`.
        by: image field to split the images by; None for no split.

    Returns:
        `{"protocol", "all": group, "by": {value: group}}`, a group being `{"images", "cells",
        "predictions", "dropped", kind: {figure: value}}`; dropped counts the detections of lowest score
        beyond the protocol's limit for one image. With `per_class` protocols each kind also holds
        "classes": {name: {AP, AP50}}.

    Raises:
        UserError: for a detection on an unknown image, of an unknown class (when classes count), without a
            finite score, or without the box or mask that `kinds` asks for; for masks of cells that are
            annotated by boxes alone.
        ValueError: for an unknown protocol or kind.
    """
    judge = CocoJudge(ground_truth["categories"], kinds, protocol, by)
    if "segm" in kinds and not has_masks(ground_truth):
        raise UserError("the annotations have boxes only, so there are no masks to score; score boxes alone")
    for case in image_cases(ground_truth, predictions):
        judge.add(case)
    return judge.report()


def _cells(case: ImageCase, numbers: Sequence[int], kind: str) -> Cells:
    """Some cells of an image; their areas are the masks' where there are masks."""
    chosen = [case.cells[number] for number in numbers]
    shapes: Any = [cell.rle for cell in chosen]
    if kind == "bbox":
        shapes = np.array([cell.box for cell in chosen], np.float64).reshape(-1, 4)
    areas = np.array([cell.area for cell in chosen], np.float64)
    return Cells(shapes, areas, np.array([cell.crowd for cell in chosen], np.uint8))


def _detections(case: ImageCase, numbers: Sequence[int], kind: str) -> Detections:
    """Some detections on an image; the area is the box's for boxes, the mask's for masks."""
    chosen = [case.found[number] for number in numbers]
    scores = np.array([entry.score for entry in chosen], np.float64)
    for number, entry in zip(numbers, chosen, strict=True):
        if (entry.rle if kind == "segm" else entry.box) is None:
            raise UserError(f"{case.what(number)} has no {'mask' if kind == 'segm' else 'box'} to score")
    if kind == "bbox":
        boxes = np.array([entry.box for entry in chosen], np.float64).reshape(-1, 4)
        return Detections(boxes, boxes[:, 2] * boxes[:, 3], scores)
    return Detections(
        [entry.rle for entry in chosen], np.array([entry.area for entry in chosen], np.float64), scores
    )


def _mean(values: np.ndarray) -> float | None:
    """Mean of what is defined; the rest is marked with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
