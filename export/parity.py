"""The proof of an export: Keras against each artifact, on the same images, with tolerances."""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from effdet_tf._version import __version__
from effdet_tf.data.ground_truth import decode_pixels
from effdet_tf.data.manifest import load_manifest
from effdet_tf.metrics.evaluation import CocoPredictions, annotated_images
from effdet_tf.metrics.instances import image_instances
from effdet_tf.metrics.protocols import KINDS, CocoEvaluator
from effdet_tf.prediction.predictor import Predictor
from effdet_tf.prediction.results import Result
from effdet_tf.report.inventory import installed
from export.agreement import Agreement
from export.trial_images import TrialImages

PASSED, FAILED, NOT_EVALUATED = "passed", "FAILED", "not judged"
_PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "numpy")
KIND_NAMES = {"segm": "mask", "bbox": "box"}


class Tolerance(NamedTuple):
    """What an artifact must keep to; None: not asked."""

    matched_share: float | None = None  # minimum share of matched cells
    score_difference: float | None = None  # largest difference of two matched cells' scores
    ap_drop: float | None = None  # points of AP that may be lost: of masks where they are scored, else boxes


TOLERANCES = {
    "saved_model": Tolerance(matched_share=0.999, score_difference=1e-3),
    "float32": Tolerance(matched_share=0.999, score_difference=1e-3),
    "float16": Tolerance(matched_share=0.99),
    "int8": Tolerance(ap_drop=1.0),
}


class Artifact(NamedTuple):
    """One exported network."""

    name: str  # a key of `TOLERANCES`
    path: str  # file or folder, relative to the folder of exports
    size: int  # bytes
    predictor: Predictor  # the artifact, opened
    # What its cells are compared with: Keras on images of any size for a SavedModel, Keras with the same
    # padding and tiles for a TFLite file, whose input has one size.
    reference: Predictor


def compare(
    keras: Predictor,
    artifacts: Sequence[Artifact],
    images: TrialImages,
    allow_drop: float | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict every image once with every network, match the cells, and score them against ground truth.

    Args:
        keras: the run itself; its AP is the one before the export.
        artifacts: to compare.
        images: annotated ones give AP.
        allow_drop: points of AP that int8 may lose, in place of its tolerance.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Ready for JSON: {"images", "protocol", "keras": {"AP"}, "artifacts": {name: metrics of `Agreement`,
        path, bytes, AP, tolerance, verdict, why}, "passed"}. AP is {kind: {"AP", "AP50"}}, None without data.

    Raises:
        UserError: for images that cannot be read.
    """
    tolerances = TOLERANCES if allow_drop is None else TOLERANCES | {"int8": Tolerance(ap_drop=allow_drop)}
    agreements = [Agreement(keras.config) for _ in artifacts]
    scored = [keras, *(artifact.predictor for artifact in artifacts)]
    networks = {id(network): network for network in (*scored, *(one.reference for one in artifacts))}

    def predict(image: np.ndarray) -> dict[int, Result]:
        results = {key: network.predict(image) for key, network in networks.items()}
        for agreement, artifact in zip(agreements, artifacts, strict=True):
            agreement.add(results[id(artifact.reference)], results[id(artifact.predictor)])
        bar.update()
        return results

    protocol, precisions = None, [None] * len(scored)
    with tqdm(total=len(images), desc="parity", unit="image", file=sys.stderr, disable=not progress) as bar:
        if images.data is not None:
            protocol, precisions = _score(scored, predict, images.data, len(images))
        else:
            for image in images.pixels():
                predict(image)
    report: dict[str, Any] = {
        "images": {"number": len(images), "what": images.where, "annotated": images.data is not None},
        "protocol": protocol,
        "keras": {"AP": precisions[0]},
        "artifacts": {},
    }
    for artifact, agreement, precision in zip(artifacts, agreements, precisions[1:], strict=True):
        report["artifacts"][artifact.name] = metrics = {
            "path": artifact.path,
            "bytes": artifact.size,
            "compared_with": "keras" if artifact.reference is keras else "keras, padded and tiled alike",
            **agreement.metrics(),
            "AP": precision,
        }
        verdict, why = check(metrics, precisions[0], tolerances[artifact.name])
        metrics |= {"tolerance": tolerances[artifact.name]._asdict(), "verdict": verdict, "why": why}
    report["passed"] = all(metrics["verdict"] != FAILED for metrics in report["artifacts"].values())
    return report


def check(
    metrics: Mapping[str, Any], before: Mapping[str, Any] | None, tolerance: Tolerance
) -> tuple[str, str]:
    """`PASSED`, `FAILED` or `NOT_EVALUATED`, and why: the metrics of one artifact against its tolerance.

    The metrics are those of `Agreement`, with "AP"; `before` is the AP of the run itself, or None.
    """
    faults = []
    if tolerance.ap_drop is not None:
        kind = "segm" if before and "segm" in before else "bbox"
        was = before[kind]["AP"] if before else None
        if was is None or metrics["AP"] is None:
            return NOT_EVALUATED, "no annotated images: give --data"
        lost = round(100 * (was - (metrics["AP"].get(kind, {}).get("AP") or 0.0)), 3)
        if lost > tolerance.ap_drop:
            allowed = f"{tolerance.ap_drop:g} are allowed"
            faults.append(f"lost {lost:.1f} points of {KIND_NAMES[kind]} AP, {allowed}")
    elif metrics["matched_share"] is None:
        return NOT_EVALUATED, "no cells found in these images: give others with --data or --images"
    else:
        share, minimum = metrics["matched_share"], tolerance.matched_share
        if minimum is not None and share < minimum:
            faults.append(f"{100 * share:.2f} % of the cells matched, {100 * minimum:g} % are asked")
        worst, maximum = metrics["largest_score_difference"], tolerance.score_difference
        if maximum is not None and worst is not None and worst > maximum:
            faults.append(f"scores differ by up to {worst:.4f}, {maximum:g} is allowed")
    return (FAILED, "; ".join(faults)) if faults else (PASSED, "")


def circumstances(run: Path, size: tuple[int, int], **more: Any) -> dict[str, Any]:
    """What a report was made of and with: run, size of the TFLite input's images, versions, machine, date."""
    versions = {"effdet_tf": __version__, "python": platform.python_version()}
    versions |= {name: installed(name) for name in _PACKAGES}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"versions": versions, "machine": platform.machine(), "date": date}
    return {"run": str(run), "size": list(size), **more, **about}


def _score(
    networks: Sequence[Predictor],
    predict: Callable[[np.ndarray], Mapping[int, Result]],
    data: Path,
    number: int,
) -> tuple[str, list[dict[str, Any]]]:
    """The protocol, and {kind: {"AP", "AP50"}} of each network by it."""
    categories = load_manifest(data).categories
    cells = [CocoPredictions(network.class_names, categories, data) for network in networks]
    # Where the network tells classes apart, so must its metrics.
    protocol = "coco" if networks[0].per_class and not cells[0].class_mismatch else "livecell"
    evaluators = [CocoEvaluator(categories, protocol, by=None) for _ in networks]
    kinds = KINDS
    for one in annotated_images(data, number):
        results = predict(decode_pixels(one.record))
        for evaluator, found, network in zip(evaluators, cells, networks, strict=True):
            entries = found.entries(one.image["id"], results[id(network)])
            case = image_instances(one.image, one.cells, entries)
            if not found.masks or any(cell.rle is None for cell in case.ground_truth):
                kinds = KINDS[:1]
            evaluator.add(case, kinds)
    found = []
    for whole in (evaluator.report(kinds)["all"] for evaluator in evaluators):
        found.append({kind: {key: whole[kind][key] for key in ("AP", "AP50")} for kind in kinds})
    return protocol, found
