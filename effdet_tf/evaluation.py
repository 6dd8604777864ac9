"""Predict on annotated images and score what was found, for training, evaluation and exports."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from effdet_tf.data.ground_truth import build_ground_truth, decode_pixels, match_classes
from effdet_tf.data.manifest import refuse_pseudo
from effdet_tf.data.record import ImageRecord, iterate_records, read_manifest
from effdet_tf.errors import UserError
from effdet_tf.metrics.report import summarise
from effdet_tf.results import Result


class FoundCells:
    """The COCO predictions of one network on one annotated data set, gathered image by image.

    Attributes:
        predictions: COCO results so far.
        left_out: cells of classes that the data do not have: they cannot be judged.
        masks: whether every result had masks.
        strangers: why classes cannot be compared, or "": no class name is among those of the data. Every
            prediction gets the first category then: the figures without classes stay valid.
    """

    def __init__(
        self, class_names: Sequence[str], categories: Sequence[dict[str, Any]], data_dir: str | Path
    ) -> None:
        """Compare the classes of a network with those of the data.

        Args:
            class_names: the network's, by class id.
            categories: the manifest's, `{"id", "name"}`.
            data_dir: for messages.
        """
        category_ids = match_classes(class_names, categories)
        known = np.array([identity is not None for identity in category_ids])
        self.strangers = ""
        if not known.any():
            self.strangers = (
                f"the network knows the classes {', '.join(class_names)}, {data_dir} has "
                f"{', '.join(str(c['name']) for c in categories)}: they cannot be scored class by class"
            )
            known = ~known
        self._known = known
        self._ids = [int(categories[0]["id"]) if identity is None else identity for identity in category_ids]
        self.predictions: list[dict[str, Any]] = []
        self.left_out = 0
        self.masks = True

    def add(self, image_id: int, found: Result) -> None:
        """Take the cells of one image."""
        result = found.take(self._known[found.classes])
        self.left_out += len(found) - len(result)
        self.masks = self.masks and result.masks is not None
        self.predictions.extend(result.to_coco(image_id, self._ids))


def evaluate_run(
    predictor: Any,
    data_dir: str | Path,
    limit: int | None = None,
    progress: bool = True,
    score_threshold: float | None = None,
    coco: bool | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Predict on the images of a converted data set and score the result.

    Args:
        predictor: has `predict(image [H, W, C]) -> Result`, `class_names`, tuple of str, and `per_class`,
            whether it tells classes apart.
        data_dir: folder with manifest and shards.
        limit: only the first images; None for all.
        progress: whether to draw a progress bar on stderr.
        score_threshold: see `summarise`.
        coco: also score by COCO's own protocol; None does so for a network that tells classes apart.

    Returns:
        (the report of `summarise` with "left_out", COCO results). Predictions of classes that the data do not
        have cannot be judged: they are left out, and left_out counts them. When no class name is among those
        of the data, every prediction gets the first category: the figures without classes stay valid.

    Raises:
        UserError: for data that cannot be read; for `coco` with class names that do not fit.
    """
    manifest = read_manifest(data_dir)
    cells = FoundCells(predictor.class_names, manifest.categories, data_dir)
    if cells.strangers:
        if coco:
            raise UserError(cells.strangers)
        if coco is None and predictor.per_class:
            print(f"no figures by COCO's protocol: {cells.strangers}", file=sys.stderr)
        coco = False

    def predicted() -> Iterator[ImageRecord]:
        images = manifest.images if limit is None else min(limit, manifest.images)
        records = islice(iterate_records(data_dir), limit)
        for record in tqdm(records, "predict", images, unit="image", file=sys.stderr, disable=not progress):
            cells.add(int(record.image_id), predictor.predict(decode_pixels(record)))
            yield record

    truth = truth_of(predicted(), data_dir, manifest.categories)
    coco = predictor.per_class if coco is None else coco
    report = summarise(truth, cells.predictions, score_threshold, coco=coco, masks=cells.masks)
    return {**report, "left_out": cells.left_out}, cells.predictions


def truth_of(
    records: Iterable[ImageRecord], data_dir: str | Path, categories: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The annotations of records as a COCO dict; see `build_ground_truth`.

    Raises:
        UserError: when a network labelled the images, there is no record, or two images have the same id.
    """
    refuse_pseudo(data_dir, read_manifest(data_dir), "judge on annotated images")
    truth = build_ground_truth(records, categories)
    if not truth["images"]:
        raise UserError(f"{data_dir}: no image to evaluate on; convert annotated images first")
    return truth
