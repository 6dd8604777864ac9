"""Predict many files: write what was found, and go on when one of them is broken."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from effdet_tf import outputs
from effdet_tf.errors import UserError
from effdet_tf.images.read import Stack
from effdet_tf.outputs.jobs import Job, find_images
from effdet_tf.outputs.wells import write_wells
from effdet_tf.prediction.results import Result

SUMMARY, WELLS = "summary.csv", "wells.csv"


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
        done: images, or pages of stacks, that were predicted.
        cells: cells found in them.
        failed: path and reason of each image that was not.
        boxes_only: whether the network makes no masks, so that there are no label images.
        best: highest score of anything seen, kept or not; 0 where nothing was.
        wells: how many wells and times `wells.csv` has; 0 where names tell of none: there is no such file.
    """

    out: Path
    done: int = 0
    cells: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    boxes_only: bool = False
    best: float = 0.0
    wells: int = 0

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
    formats: Collection[str] = outputs.DEFAULT_FORMATS,
    um_per_px: float | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> PredictReport:
    """Predict images and write what `effdet_tf.outputs` describes.

    An image that cannot be read does not stop the rest, nor does a page of a stack. `out/summary.csv` has one
    row per page and grows as the images are done, after their files, as does the submission; `out/wells.csv`
    has one for each well and time, where the images' names tell them.

    Args:
        predictor: finds the cells.
        inputs: files, patterns and folders, see `find_images`.
        out: output folder.
        score: keep cells with this score or more; None keeps all that the predictor gives.
        sartorius: also write a Sartorius submission to this file.
        formats: some of `outputs.FORMATS`; a network without masks has no label images.
        um_per_px: side of a pixel in micrometres; None takes what a tif says of itself.
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
    if out.is_file():
        raise UserError(f"{out}: is a file, the predictions need a folder; name another one")
    _refuse_to_replace([out / SUMMARY, *([sartorius] if sartorius is not None else [])], overwrite)
    ids = _submission_ids(jobs)
    report = PredictReport(out)
    with ExitStack() as stack:
        with _writing(out):
            columns = outputs.summary_columns(predictor.class_names)
            summary = stack.enter_context(outputs.AppendedCsv(out / SUMMARY, columns))
            submission = None
            if sartorius is not None:
                submission = stack.enter_context(outputs.AppendedCsv(sartorius, ("id", "predicted")))
            if "yolo" in formats:
                outputs.write_classes(out / outputs.CLASSES, predictor.class_names)
        work = _Work(predictor, report, score, formats, um_per_px, summary, submission, progress)
        bar = stack.enter_context(tqdm(jobs, desc="predict", unit="image", disable=not progress))
        for job, identity in zip(bar, ids, strict=True):
            work.do(job, identity)
    with _writing(out):
        report.wells = write_wells(out / SUMMARY, out / WELLS)
    return report


@dataclass
class _Work:
    """Predicts one image after another."""

    predictor: CellPredictor
    report: PredictReport
    score: float | None
    formats: Collection[str]
    um_per_px: float | None
    summary: outputs.AppendedCsv
    submission: outputs.AppendedCsv | None
    progress: bool

    def do(self, job: Job, identity: str) -> None:
        """Predict the pages of one file and write what was found."""
        out = self.report.out
        try:
            opened = Stack(job.path)
        except UserError as error:
            row = self._failed_row(job, 0, 1, str(error))
            with _writing(out):
                self.summary.append([row])
            return
        with opened as stack, ExitStack() as files:
            info = outputs.ImageInfo(
                job.path.name,
                self.predictor.category_ids,
                self.predictor.class_names,
                stack.pages,
                stack.axis,
                self.um_per_px or stack.um_per_px,
            )
            written: outputs.ImageFiles | None = None
            rows: list[list[Any]] = []
            submitted: list[tuple[str, str]] = []
            skipped = 0
            for page in range(stack.pages):
                try:
                    image = stack.read(page)
                    found = self.predictor.predict(image)
                except UserError as error:
                    rows.append(self._failed_row(job, page, stack.pages, str(error)))
                    skipped += 1
                    continue
                cells = outputs.number_cells(found if self.score is None else found.filter(self.score))
                with _writing(out):
                    if written is None:
                        written = outputs.ImageFiles(out / job.name, info, self.formats)
                        files.enter_context(written)
                    done = outputs.Page(page, image, cells, outputs.cell_table(cells, image, info.um_per_px))
                    written.add(done, skipped)
                rows.append(outputs.summary_row(job.name, done, info))
                submitted += self._submission(identity, page, info.pages, cells)
                skipped = 0
                self._count(job, found, cells)
            with _writing(out):
                if written is not None:
                    written.skip(skipped)
                    files.close()
                # A row tells of files that are there: it is the last to be written.
                if self.submission is not None:
                    self.submission.append(submitted)
                self.summary.append(rows)

    def _count(self, job: Job, found: Result, cells: outputs.NumberedCells) -> None:
        self.report.boxes_only = cells.labels is None
        self.report.done += 1
        self.report.cells += len(cells.result)
        self.report.best = max(self.report.best, float(np.max(found.scores, initial=0.0)))
        # Cells are missing that would be kept only where the weakest that was reported would be.
        weakest = found.scores[-1:].min(initial=1.0)
        if found.truncated and self.progress and (self.score is None or weakest >= self.score):
            limit = "more cells than the network reports at once (data.max_instances)"
            tqdm.write(f"warning: {job.path}: {limit}: weaker ones are missing", file=sys.stderr)

    def _submission(
        self, identity: str, page: int, pages: int, cells: outputs.NumberedCells
    ) -> list[tuple[str, str]]:
        if self.submission is None:
            return []
        if cells.labels is None:
            raise UserError("this model has no mask head, so it makes no submission; leave --sartorius out")
        name = identity if pages == 1 else f"{identity}_{page + 1:04d}"
        return outputs.submission_rows(name, cells.labels)

    def _failed_row(self, job: Job, page: int, pages: int, reason: str) -> list[Any]:
        """Tell of a page that failed; its row of the summary."""
        self.report.failed.append((job.path, reason))
        if self.progress:
            named = reason if str(job.path) in reason else f"{job.path}: {reason}"
            tqdm.write(f"error: {named}", file=sys.stderr)
        return outputs.failed_row(job.name, page, pages, self.predictor.class_names, reason)


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
