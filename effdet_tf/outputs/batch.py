"""Predict many files: write what was found, and go on when one of them is broken."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from effdet_tf import outputs
from effdet_tf.errors import UserError, reason_of
from effdet_tf.files import atomic_write, locked
from effdet_tf.images.read import Stack
from effdet_tf.outputs.jobs import Job, printable
from effdet_tf.outputs.wells import write_wells
from effdet_tf.outputs.written import Record, files_of
from effdet_tf.prediction.predictor import Predictor
from effdet_tf.prediction.results import Result

SUMMARY, WELLS, ERRORS = "summary.csv", "wells.csv", "errors.log"


@dataclass
class PredictReport:
    """What `predict_files` did."""

    out: Path  # the output folder
    done: int = 0  # images, or pages of stacks, that were predicted
    cells: int = 0  # found in them
    failed: list[tuple[Path, str]] = field(default_factory=list)  # path and reason of each other image
    boxes_only: bool = False  # the network makes no masks, so there are no label images
    best: float = 0.0  # highest score of anything seen, kept or not
    wells: int = 0  # wells and times in `wells.csv`; 0 where names tell of none: there is no such file

    @property
    def exit_code(self) -> int:
        """0 when all images are done, 3 when some failed, 1 when all did."""
        return 0 if not self.failed else 3 if self.done else 1


def predict_files(
    predictor: Predictor,
    images: Sequence[Job],
    out: str | os.PathLike[str],
    *,
    score: float | None = None,
    sartorius: str | os.PathLike[str] | None = None,
    formats: Collection[str] = outputs.DEFAULT_FORMATS,
    um_per_px: float | None = None,
    channel: str | int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> PredictReport:
    """Predict images and write what `effdet_tf.outputs` describes.

    Whatever is wrong with a page does not stop the rest. `out/summary.csv` has a row per page and grows as
    images are done, after their files, as does the submission; `out/wells.csv` has one a well.

    Args:
        predictor: finds the cells.
        images: as `find_images` gives them.
        out: output folder.
        score: keep cells with this score or more; None keeps all that the predictor gives.
        sartorius: also write a Sartorius submission to this file.
        formats: some of `outputs.FORMATS`; a network without masks has no label images.
        um_per_px: side of a pixel in micrometres; None takes what a tif says of itself.
        channel: of files with several, as `channel_pages` in `effdet_tf.images.channels` takes it.
        overwrite: replace the predictions that `out` holds, with all that was written of the same images.
        progress: show a progress bar and one line per failure on stderr.

    Raises:
        UserError: when another process writes to `out`, it holds predictions and `overwrite` is False, a file
            cannot be written, or a submission is asked of a network without masks.
    """
    report = PredictReport(Path(out))
    tables = {report.out / SUMMARY: outputs.summary_columns(predictor.class_names)}
    if sartorius is not None:
        tables[sartorius := Path(sartorius)] = ["id", "predicted"]
    _check_free(report.out, tables, overwrite)
    batch = _Batch(predictor, report, score, formats, um_per_px, channel, sartorius is not None, progress)
    with ExitStack() as stack:
        stack.enter_context(locked(report.out, "writes predictions there"))
        record, stems = Record(report.out), Counter(map(_stem, images))
        with _writing(report.out):
            opened = [outputs.open_csv(*table, as_is=table[0] == sartorius) for table in tables.items()]
            add_rows, *submit = map(stack.enter_context, opened)
            if "yolo" in formats:
                _write_classes(report.out / "classes.txt", predictor.class_names)
        stack.enter_context(logging_redirect_tqdm())  # warnings go above the bar, not onto its line
        for job in stack.enter_context(tqdm(images, "predict", unit="image", disable=not progress)):
            # A submission has the file's stem, or the output name where several folders hold that stem.
            rows, submitted = batch.predict(job, _stem(job) if stems[_stem(job)] == 1 else job.name)
            with _writing(report.out):  # a row tells of files that are there: it is the last to be written
                record.replace(job.path, batch.files)
                for add in submit:
                    add(submitted)
                add_rows(rows)
    with _writing(report.out):
        report.wells = write_wells(report.out / SUMMARY, report.out / WELLS)
    return report


def _write_classes(path: Path, names: Sequence[str]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _check_free(out: Path, tables: Iterable[Path], overwrite: bool) -> None:
    if out.is_file():
        raise UserError(f"{out}: is a file, the predictions need a folder; name another one")
    for path in tables:
        if path.exists() and not overwrite:
            raise UserError(
                f"{path}: exists already; choose another place, or give --overwrite to replace it"
            )


def _stem(job: Job) -> str:
    return job.name.rsplit("/", 1)[-1]


@dataclass
class _Batch:
    """Predicts one file after another."""

    predictor: Predictor
    report: PredictReport
    score: float | None
    formats: Collection[str]
    um_per_px: float | None
    channel: str | int | None
    submission: bool
    progress: bool
    told: set[str] = field(default_factory=set)  # what was left out of files so far
    files: list[str] = field(default_factory=list)  # that the image at hand has now

    def predict(self, job: Job, identity: str) -> tuple[list[list[Any]], list[tuple[str, str]]]:
        """Write the files of an image file; gives its rows of the summary and of the submission."""
        self.files = []
        report, before = self.report, (self.report.done, self.report.cells, len(self.report.failed))
        try:
            return self._predict(job, identity)
        except (UserError, KeyboardInterrupt):  # nothing can be written any more
            raise
        except Exception as error:  # of this image alone: its files are taken back, the next one goes on
            report.done, report.cells = before[:2]
            del report.failed[before[2] :]
            self._log(job)
            return [self._failed_row(job, 0, 1, reason_of(error))], []

    def _predict(self, job: Job, identity: str) -> tuple[list[list[Any]], list[tuple[str, str]]]:
        report, out, rows, submitted = self.report, self.report.out, [], []
        with ExitStack() as opened:
            try:
                file = opened.enter_context(Stack(job.path))
                chosen, left = file.chosen(self.channel)
            except UserError as error:
                return [self._failed_row(job, 0, 1, str(error))], []
            self._tell(job, left)
            classes = self.predictor.category_ids, self.predictor.class_names
            scale = self.um_per_px or file.um_per_px
            info = outputs.ImageInfo(printable(job.path.name), *classes, file.axes, scale, file.is_ome)
            files = opened.enter_context(ExitStack())
            add = files.enter_context(outputs.open_image_files(str(out / job.name), info, self.formats))
            for number in chosen:
                try:
                    image = file.read(number)
                    result = self.predictor.predict(image, self.score)
                    if not (
                        len(result) or report.cells or report.best
                    ):  # to say how far the score is too high
                        report.best = float(np.max(self.predictor.predict(image).scores, initial=0.0))
                except Exception as error:
                    if not isinstance(error, UserError):
                        self._log(job)
                    rows.append(self._failed_row(job, number, file.pages, reason_of(error)))
                    continue
                page = outputs.make_page(result, image, number, info.um_per_px)
                with _writing(out):
                    add(page)
                rows.append(outputs.summary_row(job.name, page, info))
                if self.submission:
                    name = identity if file.pages == 1 else f"{identity}_{number + 1:04d}"
                    submitted += outputs.submission_rows(name, page.cells.labels)
                self._count(job, result, page)
            with _writing(out):
                files.close()
            if any(not row[-1] for row in rows):  # a page was written
                made = set(self.formats) - ({"labels"} if report.boxes_only else set())
                self.files = files_of(job.name, file.pages, made)
        return rows, submitted

    def _tell(self, job: Job, left: str) -> None:
        if left and self.progress and left not in self.told:
            tqdm.write(f"{job.path}: {left} (told once for files like this one)", file=sys.stderr)
        self.told.add(left)

    def _count(self, job: Job, result: Result, page: outputs.Page) -> None:
        self.report.boxes_only = page.cells.labels is None
        self.report.done += 1
        self.report.cells += len(page.table)
        self.report.best = max(self.report.best, float(np.max(result.scores, initial=0.0)))
        if result.truncated and self.progress:
            limit = "more cells than the network reports at once (data.max_instances)"
            tqdm.write(f"warning: {job.path}: {limit}: weaker ones are missing", file=sys.stderr)
        if result.disturbed and self.progress:
            tqdm.write(f"warning: {job.path}: {result.disturbed}", file=sys.stderr)

    def _log(self, job: Job) -> None:
        """Add the traceback of the error at hand to a file, for who is told of the fault."""
        with _writing(self.report.out), (self.report.out / ERRORS).open("a", encoding="utf-8") as file:
            file.write(f"{printable(str(job.path))}\n{printable(traceback.format_exc())}\n")

    def _failed_row(self, job: Job, number: int, pages: int, reason: str) -> list[Any]:
        """Tell of a page that failed; its row of the summary."""
        self.report.failed.append((job.path, reason))
        if self.progress:
            named = reason if str(job.path) in reason else f"{job.path}: {reason}"
            tqdm.write(f"error: {printable(named)}", file=sys.stderr)
        return outputs.failed_row(job.name, number, pages, self.predictor.class_names, printable(reason))


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a failure to write into the user's error, which ends the run: the next image would fail alike."""
    try:
        yield
    except OSError as error:
        place, reason = error.filename or out, error.strerror or error
        advice = "make room or choose another folder"
        raise UserError(f"{place}: cannot be written ({reason}); {advice}") from error
