"""Predict on annotated images and score the predictions, for training, evaluation and exports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from effdet_tf.data.annotated import Folders, open_annotated
from effdet_tf.data.ground_truth import cell_entries, decode_pixels, image_entry, match_classes
from effdet_tf.data.record import ImageRecord, iterate_records
from effdet_tf.errors import UserError
from effdet_tf.metrics.instances import image_instances
from effdet_tf.metrics.scores import Evaluator
from effdet_tf.prediction.overlap import ahead, behind
from effdet_tf.prediction.results import Result

if TYPE_CHECKING:
    from effdet_tf.prediction.predictor import Predictor

Entries = list[dict[str, Any]]


class CocoPredictions:
    """Turns what a network predicts on an annotated data set into COCO results.

    Attributes:
        left_out: cells of classes that the data do not have: they are not evaluated.
        masks: whether every result had masks.
        class_mismatch: why classes cannot be compared, or "": no class name is among those of the data. Every
            prediction gets the first category then: the metrics without classes stay valid.
    """

    def __init__(
        self, class_names: Sequence[str], categories: Sequence[dict[str, Any]], data_dir: str | Path
    ) -> None:
        """Compare the classes of a network, by class id, with the categories of the data's manifest."""
        category_ids = match_classes(class_names, categories)
        known = np.array([identity is not None for identity in category_ids])
        self.class_mismatch = ""
        if not known.any():
            self.class_mismatch = (
                f"the network knows the classes {', '.join(class_names)}, {data_dir} has "
                f"{', '.join(str(c['name']) for c in categories)}: they cannot be scored class by class"
            )
            known = ~known
        self._known = known
        self._ids = [int(categories[0]["id"]) if identity is None else identity for identity in category_ids]
        self.left_out = 0
        self.masks = True

    def entries(self, image_id: int, found: Result) -> Entries:
        """The cells of one image as COCO results."""
        result = found.take(self._known[found.classes])
        self.left_out += len(found) - len(result)
        self.masks = self.masks and result.masks is not None
        return result.to_coco(image_id, self._ids)


class AnnotatedImage(NamedTuple):
    """One annotated image."""

    record: ImageRecord  # as converted
    image: dict[str, Any]  # its entry of COCO's "images"
    cells: Entries  # its entries of COCO's "annotations"


def annotated_images(data: Folders, limit: int | None = None) -> Iterator[AnnotatedImage]:
    """The images of converted data sets, of each all or the first `limit`, one by one.

    Ids are those of the set; of several sets, see `AnnotatedSets`.

    Raises:
        UserError: as `open_annotated`, and when a set has no image, or two of the same id.
    """
    sets = open_annotated(data)
    ids = [int(category["id"]) for category in sets.categories]
    for index, folder in enumerate(sets.folders):
        seen: dict[int, str] = {}
        for record in islice(iterate_records(folder), limit):
            entry, cells = image_entry(record), cell_entries(record, ids)
            if entry["id"] in seen:
                same = f"{record.file_name} and {seen[entry['id']]} have the same image id {entry['id']}"
                raise UserError(f"{same}; convert the data again with distinct ids")
            seen[entry["id"]] = record.file_name
            if place := sets.place(index):
                first, source = place
                entry |= {"id": first + len(seen) - 1, "source": source}
                cells = [cell | {"image_id": entry["id"]} for cell in cells]
            yield AnnotatedImage(record, entry, cells)
        if not seen:
            raise UserError(f"{folder}: no image to evaluate on; convert annotated images first")


def evaluate_run(
    predictor: Predictor,
    data: Folders,
    limit: int | None = None,
    progress: bool = True,
    score_threshold: float | None = None,
    coco: bool | None = None,
    keep: Callable[[Entries], object] | None = None,
) -> dict[str, Any]:
    """Predict on the images of a converted data set, or several, and score the result, image by image.

    Args:
        predictor: has `predict(image [H, W, C]) -> Result`, `class_names`, tuple of str, and `per_class`,
            whether it tells classes apart.
        data: folder with manifest and shards, or several folders: the report is of all their images, split by
            source beside by cell type (see `AnnotatedSets`).
        limit: only the first images of each; None for all.
        progress: whether to draw a progress bar on stderr.
        score_threshold: see `summarise`.
        coco: also score by COCO's own protocol; None does so for a network that tells classes apart.
        keep: is given the COCO results of each image.

    Returns:
        The report of `Evaluator.report` with "left_out", how many predictions of classes that the data do not
        have were left out. When no class name is among those of the data, every prediction gets the first
        category: the metrics without classes stay valid, and there is no confusion matrix.

    Raises:
        UserError: for data that cannot be read, or sets that do not go together; for `coco` with class names
            that do not fit.
    """
    sets = open_annotated(data)
    cells = CocoPredictions(predictor.class_names, sets.categories, sets.title)
    if cells.class_mismatch:
        if coco:
            raise UserError(cells.class_mismatch)
        if coco is None and predictor.per_class:
            print(f"no figures by COCO's protocol: {cells.class_mismatch}", file=sys.stderr)
        coco = False
    coco = predictor.per_class if coco is None else coco
    evaluator = Evaluator(sets.categories, score_threshold, sets.by, coco)

    def add(predicted: Iterator[tuple[AnnotatedImage, Result]]) -> None:
        for one, result in predicted:
            found = cells.entries(one.image["id"], result)
            evaluator.add(image_instances(one.image, one.cells, found))
            if keep is not None:
                keep(found)

    read = ahead((one, decode_pixels(one.record)) for one in annotated_images(data, limit))
    total = sets.images(limit)
    with behind(add) as hand:
        for one, pixels in tqdm(read, "predict", total, unit="image", file=sys.stderr, disable=not progress):
            hand((one, predictor.predict(pixels)))
    report = evaluator.report(cells.masks)
    if cells.class_mismatch:
        report["confusion"] = None
    return {**report, "left_out": cells.left_out}
