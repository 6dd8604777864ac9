"""What is chosen by annotated images once a network is trained: its calibration, its score, its trust."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from effdet_tf.config import Config, PostprocessConfig, TrustConfig, load_config
from effdet_tf.data.annotated import Folders, open_annotated
from effdet_tf.data.ground_truth import decode_pixels
from effdet_tf.data.manifest import load_manifest
from effdet_tf.data.record import iterate_records
from effdet_tf.errors import UserError
from effdet_tf.metrics.calibration import JudgedImage, fit_trust
from effdet_tf.metrics.cell_metrics import match_cells
from effdet_tf.metrics.evaluation import AnnotatedImage, annotated_images, evaluate_run
from effdet_tf.metrics.instances import image_instances
from effdet_tf.metrics.matching import match_boxes
from effdet_tf.metrics.scores import reporting_score
from effdet_tf.prediction.likeness import known_looks, looks_at_sizes
from effdet_tf.prediction.run import load_run
from effdet_tf.runs import config_file

if TYPE_CHECKING:
    from effdet_tf.prediction.predictor import Predictor

_T = TypeVar("_T")

EACH = 48  # images of a source that are looked at, spread evenly over it
_FEWEST = 10  # validation images below which nothing is said of an image


def tuned(postprocess: PostprocessConfig, report: dict[str, Any]) -> PostprocessConfig | None:
    """The calibration and the score to report cells by, as a report on an uncalibrated network has them.

    None where no predicted cell matches one that is there (`reporting_score`): any score is right then.
    """
    score = reporting_score(report)
    if score is None:
        return None
    lines = tuple((float(x), float(y)) for x, y in report["calibration"]["lines"])
    found = replace(postprocess, calibration=lines)
    return replace(found, report_score=round(float(found.calibrated(score)), 3))


def as_reported(report: dict[str, Any], postprocess: PostprocessConfig) -> dict[str, Any]:
    """The report on an uncalibrated network with the scores that `postprocess` makes of its own.

    Of "calibration", "all" and "by" are after it then, and "before" is what was in place of "all".
    """
    kind = "boxes" if report["boxes_only"] else "cells"
    scores = {}
    for name in ("score_threshold", "best_score_threshold", "report_score"):
        own = report[kind][name]
        scores[name] = None if own is None else round(float(postprocess.calibrated(own)), 3)
    calibration = {**report["calibration"], "before": report["calibration"]["all"]}
    calibration |= report["calibration"]["after"]
    return {**report, kind: {**report[kind], **scores}, "calibration": calibration}


def tune(predictor: Predictor, data: Folders, progress: bool = True) -> PostprocessConfig:
    """Choose calibration and score of an uncalibrated network on annotated images.

    Args:
        predictor: as of `evaluate_run`.
        data: folders of converted images, one for each source; every image has the same weight for the score,
            every predicted cell for the calibration.
        progress: whether to draw a progress bar on stderr.

    Raises:
        UserError: as `evaluate_run`, and when no cell that is found matches one that is there.
    """
    found = tuned(predictor.config.postprocess, evaluate_run(predictor, data, progress=progress))
    if found is None:
        raise UserError(
            f"{open_annotated(data).title}: no found cell matches an annotated one, so no score can be "
            "chosen; give images of cells that the network knows"
        )
    return found


def settle(run: Path, validation: Sequence[Path], progress: bool = True) -> Config:
    """`tune` a trained network anew, and write what was chosen into its folder."""
    config = load_config(config_file(run))
    plain = load_run(run, settings=["postprocess.calibration=[]"])
    config = replace(config, postprocess=tune(plain, validation, progress))
    config.save(config_file(run))
    return config


def settle_trust(
    run: Path,
    validation: Sequence[Path],
    training: Iterable[Iterable[np.ndarray]] | None = None,
    progress: bool = True,
) -> Config:
    """Learn what a network can say of its results, and write it into its folder; see `learn_trust`.

    `training` are pixels of training images, by source; None keeps what is known of them.
    """
    predictor = load_run(run)
    trust = learn_trust(predictor, validation, progress)
    if trust.f1:
        known = predictor.config.trust.known if training is None else known_looks(list(map(_looks, training)))
        trust = replace(trust, known=known)
    config = replace(predictor.config, trust=trust)
    config.save(config_file(run))
    return config


def learn_trust(predictor: Predictor, validation: Sequence[Path], progress: bool = True) -> TrustConfig:
    """Learn what scores tell of a whole image.

    Validation images are all good ones, so each is also shown blurred, noisy, of low resolution and of low
    contrast: the network is to know a bad result when it makes one.

    Args:
        predictor: tuned.
        validation: folders of converted, annotated images, a source each.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Nothing of it where there are fewer than 10 validation images.
    """
    sets = open_annotated(validation)
    if sets.images() < _FEWEST:
        return TrustConfig()
    judged: list[JudgedImage] = []
    with tqdm(desc="judge", unit="image", file=sys.stderr, disable=not progress) as bar:
        for folder in sets.folders:
            for number, one in enumerate(_spread(folder, annotated_images(folder))):
                judged += _judged(predictor, one, str(folder), number)
                bar.update()
    return TrustConfig(*fit_trust(judged))


def spread_images(folder: Path) -> Iterator[np.ndarray]:
    """The pixels of at most `EACH` images of a converted set, spread evenly over it."""
    return map(decode_pixels, _spread(folder, iterate_records(folder)))


def _spread(folder: Path, images: Iterable[_T]) -> Iterator[_T]:
    return islice(images, None, None, -(-load_manifest(folder).images // EACH))


def worse_copies(pixels: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """An image blurred, noisy, of low resolution and of low contrast, in its own type."""
    random = np.random.default_rng(seed)
    values = pixels.astype(np.float32)
    size, deviation, middle = values.shape[1::-1], float(values.std()), values.mean()
    small = cv2.resize(values, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    faint = middle + 0.15 * (values - middle)
    for worse in (
        cv2.GaussianBlur(values, (0, 0), 2.0),
        values + random.normal(0, 0.6 * deviation, values.shape),
        cv2.resize(small, size, interpolation=cv2.INTER_LINEAR),
        faint + random.normal(0, 0.03 * deviation, values.shape),
    ):
        shaped = worse.reshape(pixels.shape)
        if pixels.dtype.kind in "iu":
            limits = np.iinfo(pixels.dtype)
            shaped = np.clip(np.rint(shaped), limits.min, limits.max)
        yield shaped.astype(pixels.dtype)


def _judged(predictor: Predictor, one: AnnotatedImage, source: str, seed: int) -> Iterator[JudgedImage]:
    """An annotated image as it is and in its worse copies."""
    pixels = decode_pixels(one.record)
    score = predictor.config.postprocess.report_score
    first = [int(one.cells[0]["category_id"]) if one.cells else 1]
    for copy, worse in ((pixels, False), *((copy, True) for copy in worse_copies(pixels, seed))):
        found = predictor.predict(copy, score)
        entries = found.to_coco(one.image["id"], first * len(found.class_names))
        instances = image_instances(one.image, one.cells, entries)
        masks = found.masks is not None and all("segmentation" in cell for cell in one.cells)
        boxes = instances.ground_truth, instances.predictions
        match = match_cells(instances) if masks else match_boxes(*boxes)
        hits = int((match.matched_gt >= 0).sum())
        mean = float(found.scores.mean()) if len(found) else 0.0
        yield JudgedImage(source, worse, len(match.gt_areas), len(found), hits, mean)


def _looks(images: Iterable[np.ndarray]) -> np.ndarray:
    looks = [own for image in images for own in looks_at_sizes(image)]
    return np.array(looks).reshape(len(looks), -1)
