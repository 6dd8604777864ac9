"""COCO average precision, by the LIVECell protocol first and by COCO's own as the other choice.

LIVECell (Edlund et al. 2021, Nature Methods 18, 1038): all classes as one, up to 100/500/2000 detections
an image, small/medium/large split at 18^2 and 31^2 px. The evaluator is faster-coco-eval where it is
installed and pycocotools elsewhere; both give the same figures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.errors import UserError
from effdet_tf.metrics.inputs import (
    ANY_CLASS,
    check_predictions,
    compress_segmentation,
    group_images,
    has_masks,
    prepare_ground_truth,
)

KINDS = ("bbox", "segm")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


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


def evaluate_coco(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    kinds: Sequence[str] = KINDS,
    protocol: str = "livecell",
    by: str | None = "cell_type",
    evaluator: str | None = None,
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
        evaluator: "faster-coco-eval" or "pycocotools"; None takes the first that is installed.

    Returns:
        `{"protocol", "evaluator", "all": group, "by": {value: group}}`, a group being `{"images", "cells",
        "predictions", "dropped", kind: {figure: value}}`; dropped counts the detections of lowest score
        beyond the protocol's limit for one image. With `per_class` protocols each kind also holds
        "classes": {name: {AP, AP50}}.

    Raises:
        UserError: for a detection on an unknown image, of an unknown class (when classes count), without a
            finite score, or without the box or mask that `kinds` asks for; for masks of cells that are
            annotated by boxes alone.
        ValueError: for an unknown protocol, kind or evaluator.
    """
    if protocol not in PROTOCOLS or not set(kinds) <= set(KINDS):
        raise ValueError(f"unknown protocol {protocol!r} or kinds {kinds!r}")
    rules = PROTOCOLS[protocol]
    backend = evaluator or default_evaluator()
    if "segm" in kinds and not has_masks(ground_truth):
        raise UserError("the annotations have boxes only, so there are no masks to score; score boxes alone")
    truth = prepare_ground_truth(ground_truth, rules.per_class)
    check_predictions(truth, predictions, rules.per_class)
    groups = group_images(truth["images"], by)
    report: dict[str, Any] = {
        "protocol": protocol,
        "evaluator": backend,
        "all": _count(truth, predictions, None, rules),
        "by": {name: _count(truth, predictions, ids, rules) for name, ids in groups.items()},
    }
    for kind in kinds:
        detections = _detections(truth, predictions, kind, rules)
        run = _evaluator(backend, truth, detections, kind, rules)
        report["all"][kind] = _figures(run, None, truth["categories"], rules)
        for name, ids in groups.items():
            whole = len(groups) == 1 and len(ids) == len(truth["images"])
            report["by"][name][kind] = (
                report["all"][kind] if whole else _figures(run, sorted(ids), truth["categories"], rules)
            )
    return report


def default_evaluator() -> str:
    """The faster of the two evaluators where it is installed, else pycocotools."""
    return "faster-coco-eval" if importlib.util.find_spec("faster_coco_eval") else "pycocotools"


def _count(
    truth: dict[str, Any], predictions: Sequence[dict[str, Any]], ids: set[int] | None, rules: Protocol
) -> dict[str, Any]:
    """Images, cells, predictions and dropped predictions of one group of images."""
    images = {image["id"] for image in truth["images"]} if ids is None else ids
    found = Counter(
        (p["image_id"], p["category_id"] if rules.per_class else ANY_CLASS)
        for p in predictions
        if p["image_id"] in images
    )
    return {
        "images": len(images),
        "cells": sum(a["image_id"] in images and not a["iscrowd"] for a in truth["annotations"]),
        "predictions": found.total(),
        "dropped": sum(max(0, n - rules.max_detections[-1]) for n in found.values()),
    }


def _detections(
    truth: dict[str, Any], predictions: Sequence[dict[str, Any]], kind: str, rules: Protocol
) -> list[dict[str, Any]]:
    """Detections as an evaluator wants them; the area is the box's for boxes, the mask's for masks."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    detections = []
    for number, found in enumerate(predictions, start=1):
        detection = {
            "id": number,
            "image_id": found["image_id"],
            "category_id": found["category_id"] if rules.per_class else ANY_CLASS,
            "score": float(found["score"]),
            "iscrowd": 0,
        }
        mask = found.get("segmentation")
        box = found.get("bbox")
        if mask is None and (kind == "segm" or box is None):
            raise UserError(f"prediction {number - 1} has no {'mask' if kind == 'segm' else 'box'} to score")
        rle = None if mask is None else compress_segmentation(mask, *sizes[found["image_id"]])
        if rle is not None and tuple(rle["size"]) != sizes[found["image_id"]]:
            raise UserError(
                f"prediction {number - 1}: its mask is {rle['size'][0]}x{rle['size'][1]}, image "
                f"{found['image_id']} is {sizes[found['image_id']][0]}x{sizes[found['image_id']][1]}"
            )
        if kind == "segm":
            detection |= {"segmentation": rle, "area": float(coco_mask.area(rle))}
            detection["bbox"] = coco_mask.toBbox(rle).tolist()
        else:
            values = [float(v) for v in (coco_mask.toBbox(rle) if box is None else box)]
            detection |= {"bbox": values, "area": values[2] * values[3]}
        detections.append(detection)
    return detections


def _evaluator(
    backend: str, truth: dict[str, Any], detections: list[dict[str, Any]], kind: str, rules: Protocol
) -> Any:
    """A COCOeval of the chosen package, ready to evaluate."""
    if backend == "faster-coco-eval":
        from faster_coco_eval import COCO, COCOeval_faster

        index, evaluation = COCO, COCOeval_faster
    elif backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        index, evaluation = COCO, COCOeval
    else:
        raise ValueError(f"unknown evaluator {backend!r}")
    shared = {"images": truth["images"], "categories": truth["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = []
        # The evaluators write into the annotations they are given.
        for cells in ([dict(cell) for cell in truth["annotations"]], detections):
            coco = index()
            coco.dataset = {**shared, "annotations": cells}
            coco.createIndex()
            indexed.append(coco)
        run = evaluation(*indexed, kind)
    # `useCats` stays on: without classes everything has the same one. Switched off, pycocotools forgets the
    # class ids after its first accumulate().
    run.params.maxDets = list(rules.max_detections)
    run.params.areaRng = rules.area_ranges
    run.params.areaRngLbl = ["all", "small", "medium", "large"]
    return run


def _figures(
    run: Any, image_ids: list[int] | None, categories: list[dict[str, Any]], rules: Protocol
) -> dict[str, Any]:
    """Evaluate on some images; `precision` is read directly, `summarize()` knows only 100 detections."""
    if image_ids is not None:
        run.params.imgIds = image_ids
    if not run.params.imgIds:
        raise UserError("no annotated image to score on")
    with contextlib.redirect_stdout(io.StringIO()):
        run.evaluate()
        run.accumulate()
    precision = np.asarray(run.eval["precision"])  # [IoU, recall, class, area, detections]
    recall = np.asarray(run.eval["recall"])  # [IoU, class, area, detections]
    figures: dict[str, Any] = {
        "AP": _mean(precision[:, :, :, 0, 2]),
        "AP50": _mean(precision[0, :, :, 0, 2]),
        "AP75": _mean(precision[5, :, :, 0, 2]),
        "APs": _mean(precision[:, :, :, 1, 2]),
        "APm": _mean(precision[:, :, :, 2, 2]),
        "APl": _mean(precision[:, :, :, 3, 2]),
        "AP50_80": _mean(precision[:7, :, :, 0, 2]),
    }
    for slot, limit in enumerate(rules.max_detections[:2]):
        figures[f"AR{limit}"] = _mean(recall[:, :, 0, slot])
    for area, name in enumerate(("AR", "ARs", "ARm", "ARl")):
        figures[name] = _mean(recall[:, :, area, 2])
    figures["AFNR"] = None if figures["AR"] is None else 1.0 - figures["AR"]
    if rules.per_class:
        names = {category["id"]: category["name"] for category in categories}
        figures["classes"] = {
            names[id_]: {"AP": _mean(precision[:, :, k, 0, 2]), "AP50": _mean(precision[0, :, k, 0, 2])}
            for k, id_ in enumerate(run.params.catIds)
        }
    return figures


def _mean(values: np.ndarray) -> float | None:
    """Mean of what is defined; the evaluators mark the rest with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
