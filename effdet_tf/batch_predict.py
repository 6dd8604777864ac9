"""Predict many files: write what was found, and go on when one of them is broken."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from effdet_tf import outputs
from effdet_tf.data.image_io import read_image
from effdet_tf.errors import UserError
from effdet_tf.inputs import Job, find_images
from effdet_tf.results import Result

SUMMARY = "summary.csv"


class CellPredictor(Protocol):
    """What `predict_files` needs of a predictor.

    Attributes:
        class_names: name of each class.
        category_ids: COCO category id of each class.
    """

    class_names: Sequence[str]
    category_ids: Sequence[int]

    def predict(self, image: np.ndarray) -> Result:
        """Find the cells of an image `[H, W, C]`, uint8, uint16 or float32."""
        ...


@dataclass
class PredictReport:
    """What `predict_files` did.

    Attributes:
        out: the output folder.
        done: images that were predicted.
        cells: cells found in them.
        failed: path and reason of each image that was not.
        boxes_only: whether the network makes no masks, so that there are no label images.
    """

    out: Path
    done: int = 0
    cells: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    boxes_only: bool = False

    @property
    def exit_code(self) -> int:
        """0 when all images are done, 3 when some failed, 1 when all did."""
        if not self.failed:
            return 0
        return 3 if self.done else 1


def predict_files(
    predictor: CellPredictor,
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    score: float | None = None,
    sartorius: str | os.PathLike[str] | None = None,
    labels: bool = True,
    table: bool = True,
    coco: bool = True,
    overlay: bool = True,
    overwrite: bool = False,
    progress: bool = False,
) -> PredictReport:
    """Predict images and write what `effdet_tf.outputs` describes.

    An image that cannot be read does not stop the rest. `out/summary.csv` has one row per image and grows as
    the images are done, as does the submission.

    Args:
        predictor: finds the cells.
        inputs: files, patterns and folders, see `find_images`.
        out: output folder.
        score: keep cells with this score or more; None keeps all that the predictor gives.
        sartorius: also write a Sartorius submission to this file.
        labels: write label images; a network without masks has none.
        table: write cell tables.
        coco: write COCO files.
        overlay: write overlay pictures.
        overwrite: replace the predictions that `out` holds.
        progress: show a progress bar and one line per failure on stderr.

    Returns:
        How many images and cells, and what failed.

    Raises:
        UserError: when an input matches nothing, `out` holds predictions and `overwrite` is False, a file
            cannot be written, or a submission is asked of a network without masks.
    """
    jobs = find_images(inputs)
    out = Path(out)
    _refuse_to_replace([out / SUMMARY, *([sartorius] if sartorius is not None else [])], overwrite)
    wanted = {outputs.LABELS: labels, outputs.TABLE: table, outputs.COCO: coco, outputs.OVERLAY: overlay}
    columns = outputs.summary_columns(predictor.class_names)
    ids = _submission_ids(jobs)
    report = PredictReport(out)
    with ExitStack() as stack:
        with _writing(out):
            summary = stack.enter_context(outputs.AppendedCsv(out / SUMMARY, columns))
            submission = None
            if sartorius is not None:
                submission = stack.enter_context(outputs.AppendedCsv(sartorius, ("id", "predicted")))
        bar = stack.enter_context(tqdm(jobs, desc="predict", unit="image", disable=not progress))
        for job, identity in zip(bar, ids, strict=True):
            try:
                image = read_image(job.path)
                found = predictor.predict(image)
            except UserError as error:
                reason = str(error)
                report.failed.append((job.path, reason))
                with _writing(out):
                    summary.append([[job.name, *[""] * (len(columns) - 2), reason]])
                if progress:
                    named = reason if str(job.path) in reason else f"{job.path}: {reason}"
                    tqdm.write(f"error: {named}", file=sys.stderr)
                continue
            cells = outputs.number_cells(found if score is None else found.filter(score))
            if submission is not None and cells.labels is None:
                raise UserError(
                    "this model has no mask head, so it makes no submission; leave --sartorius out"
                )
            with _writing(out):
                row = write_image(out, job, image, cells, predictor.category_ids, wanted)
                if submission is not None and cells.labels is not None:
                    submission.append(outputs.submission_rows(identity, cells.labels))
                summary.append([row])
            report.boxes_only = cells.labels is None
            report.done += 1
            report.cells += len(cells.result)
            if found.truncated and progress:
                limit = f"the network reports at most {len(found)} cells an image (data.max_instances)"
                tqdm.write(f"warning: {job.path}: {limit}: weaker ones are missing", file=sys.stderr)
    return report


def _refuse_to_replace(targets: Sequence[str | os.PathLike[str]], overwrite: bool) -> None:
    for target in targets:
        if Path(target).exists() and not overwrite:
            raise UserError(
                f"{target}: exists already; choose another place, or give --overwrite to replace it"
            )


def _submission_ids(jobs: Sequence[Job]) -> list[str]:
    """The file's stem, or the whole output name where several folders hold that stem."""
    stems = [job.name.rsplit("/", 1)[-1] for job in jobs]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else job.name for job, stem in zip(jobs, stems, strict=True)]


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a failure to write into the user's error, which ends the run: the next image would fail alike."""
    try:
        yield
    except OSError as error:
        place, reason = error.filename or out, error.strerror or str(error)
        message = f"{place}: cannot be written ({reason}); make room or choose another folder"
        raise UserError(message) from error


def write_image(
    out: Path,
    job: Job,
    image: np.ndarray,
    cells: outputs.Cells,
    category_ids: Sequence[int],
    wanted: dict[str, bool],
) -> list[Any]:
    """Write the files of one image.

    Args:
        out: folder of the outputs.
        job: its name says where the files go; its file's name is stated in the COCO file.
        image: `[H, W, C]` in its own units.
        cells: its numbered cells.
        category_ids: COCO category id of each class.
        wanted: whether to write the file of each suffix of `outputs`.

    Returns:
        The image's row of the summary.

    Raises:
        OSError: when a file cannot be written.
    """
    base = out / job.name

    def target(suffix: str) -> Path:
        return base.with_name(base.name + suffix)

    table = outputs.cell_table(cells, image)
    if wanted[outputs.LABELS] and cells.labels is not None:
        outputs.write_labels(target(outputs.LABELS), cells.labels)
    if wanted[outputs.TABLE]:
        outputs.write_table(target(outputs.TABLE), table)
    if wanted[outputs.COCO]:
        outputs.write_coco(target(outputs.COCO), cells, job.path.name, category_ids)
    if wanted[outputs.OVERLAY]:
        outputs.write_overlay(target(outputs.OVERLAY), image, cells)
    return outputs.summary_row(job.name, cells, table)
