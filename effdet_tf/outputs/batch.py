"""Predict many files: write what was found, and go on when one of them is broken."""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from effdet_tf import outputs
from effdet_tf.errors import UserError, reason_of
from effdet_tf.files import atomic_write, locked, writing
from effdet_tf.images.read import Stack
from effdet_tf.images.tif_metadata import Axes
from effdet_tf.outputs.jobs import Job, printable
from effdet_tf.outputs.wells import write_wells
from effdet_tf.outputs.written import Record, files_of
from effdet_tf.prediction.overlap import Stopped, ahead, behind
from effdet_tf.prediction.predictor import Predictor, is_large
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.sizing import AS_THEY_ARE, Sizing, check_sizing, predict_sized, scale_words

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
    f1: list[float] = field(default_factory=list)  # expected of each image of which that is known
    unlike: int = 0  # images that are like none that the network was trained on
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
    sizing: Sizing = AS_THEY_ARE,
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
        sizing: what is said of the size of pixels and cells, by which images are scaled and measured.
        channel: of files with several, as `channel_pages` in `effdet_tf.images.channels` takes it.
        overwrite: replace the predictions that `out` holds, with all that was written of the same images.
        progress: show a progress bar and one line per failure on stderr.

    Raises:
        UserError: when another process writes to `out`, it holds predictions and `overwrite` is False, a file
            cannot be written, or a submission is asked of a network without masks.
    """
    report = PredictReport(Path(out))
    tables = {report.out / SUMMARY: outputs.summary_columns(predictor.class_names)}
    sartorius = None if sartorius is None else Path(sartorius)
    tables |= {sartorius: ["id", "predicted"]} if sartorius else {}
    _check_free(report.out, tables, overwrite)
    batch = _Batch(predictor, report, score, formats, sizing, channel, sartorius is not None, progress)
    with ExitStack() as stack:
        stack.enter_context(locked(report.out, "writes predictions there"))
        record, stems = Record(report.out), Counter(map(_stem, images))
        with writing(report.out):
            opened = [outputs.open_csv(*table, as_is=table[0] == sartorius) for table in tables.items()]
            add_rows, *submit = map(stack.enter_context, opened)
            _write_classes(report.out, predictor.class_names, formats)
        stack.enter_context(logging_redirect_tqdm())  # warnings go above the bar, not onto its line
        bar = stack.enter_context(tqdm(total=len(images), desc="predict", unit="image", disable=not progress))

        def write(found: Iterator[tuple[_Page, Result | None]]) -> None:
            for job, pages in itertools.groupby(found, lambda one: one[0].job):
                # In a submission; the output name where several folders hold a file of that stem.
                identity = _stem(job) if stems[_stem(job)] == 1 else job.name
                batch.write(job, pages, identity, record, submit, add_rows)
                bar.update()

        batch.find_all(images, write)
    with writing(report.out):
        return replace(report, wells=write_wells(report.out / SUMMARY, report.out / WELLS))


def _write_classes(out: Path, names: Sequence[str], formats: Collection[str]) -> None:
    if "yolo" in formats:
        with atomic_write(out / "classes.txt") as temporary:
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


class _File(NamedTuple):
    """What is known of an image file when it is closed again."""

    pages: int
    axes: Axes
    um_per_px: float | None
    is_ome: bool
    left: str  # what of it is left out, in words


class _Page(NamedTuple):
    """A page of an image file that was read."""

    job: Job
    number: int
    file: _File | None  # None where it could not be opened
    image: np.ndarray | None
    error: Exception | None = None
    is_last: bool = True  # of its file

    @property
    def is_large(self) -> bool:
        return self.image is not None and is_large(self.image)


def _until_last(pages: Iterable[tuple[_Page, Result | None]]) -> Iterator[tuple[_Page, Result | None]]:
    """The pages of a file, without a look at what follows: a file is finished before more is waited for."""
    for page, result in pages:
        yield page, result
        if page.is_last:
            break


@dataclass
class _Batch:
    """Reads pages, finds their cells, and writes the files of one image after another."""

    predictor: Predictor
    report: PredictReport
    score: float | None
    formats: Collection[str]
    sizing: Sizing
    channel: str | int | None
    submission: bool
    progress: bool
    told: set[str] = field(default_factory=set)  # what was left out of files so far
    files: list[str] = field(default_factory=list)  # that the image at hand has now
    best: float = 0.0  # score of an image without cells, while no other has any

    def __post_init__(self) -> None:
        """Raise a UserError for a size that the network has no use for, before the first image."""
        if self.sizing.cell_size is not None:
            check_sizing(self.predictor.config, self.sizing)

    def read(self, jobs: Sequence[Job]) -> Iterator[list[_Page]]:
        """The pages of all files, by as many as the network takes at once."""
        group: list[_Page] = []
        for page in itertools.chain.from_iterable(map(self._pages, jobs)):
            image = page.image
            if group and (image is None or group[0].image is None or image.shape != group[0].image.shape):
                yield group
                group = []
            group.append(page)
            if image is None or len(group) >= self.predictor.at_once(image.shape):
                yield group
                group = []
        if group:
            yield group

    def _pages(self, job: Job) -> Iterator[_Page]:
        file = None
        try:
            with Stack(job.path) as stack:
                chosen, left = stack.chosen(self.channel)
                file = _File(stack.pages, stack.axes, stack.um_per_px, stack.is_ome, left)
                for number in chosen:
                    try:
                        page = _Page(job, number, file, stack.read(number))
                    except Exception as error:
                        page = _Page(job, number, file, None, error)
                    yield page._replace(is_last=number == chosen[-1])
                    del page
        except Exception as error:
            yield _Page(job, 0, file, None, error)

    def find_all(
        self, jobs: Sequence[Job], write: Callable[[Iterator[tuple[_Page, Result | None]]], None]
    ) -> None:
        """Read all files and find their cells; `write` is given the pages, in a thread."""
        with behind(write) as hand:
            for group in ahead(self.read(jobs), lambda group: group[0].is_large):
                for page, result in self.find(group):
                    hand((page, result), page.is_large)

    def find(self, group: list[_Page]) -> Iterator[tuple[_Page, Result | None]]:
        """The cells of pages; None, and the error, where there are none to be had."""
        images = [page.image for page in group if page.image is not None]
        if len(images) > 1:
            try:
                found = self.predictor.predict_batch(images, self.score)
                pairs = [(one, self._sized(one, result)) for one, result in zip(group, found, strict=True)]
            except Exception:  # of one of them: each on its own
                pairs = []
            if pairs:
                yield from pairs
                return
        for page in group:
            result = None
            if page.image is not None:
                try:
                    result = self._sized(page)
                    if not (len(result) or self.report.cells or self.best):
                        # To say how far the score is too high.
                        self.best = float(self.predictor.predict(page.image).scores[:1].max(initial=0.0))
                except Exception as error:
                    page = page._replace(error=error)
            yield page, result

    def _sized(self, page: _Page, found: Result | None = None) -> Result:
        """The cells of a page; `found` are those of the page as it is, if known."""
        assert page.image is not None
        side = None if page.file is None else page.file.um_per_px
        result = predict_sized(self.predictor, page.image, self.score, self.sizing, side, found)
        return result if self.score is not None else replace(result, trust=None)

    def write(
        self,
        job: Job,
        found: Iterable[tuple[_Page, Result | None]],
        identity: str,
        record: Record,
        submit: Sequence[Callable[..., None]],
        add_rows: Callable[..., None],
    ) -> None:
        """Write the files of an image file, then its rows of the submission and of the summary."""
        rows, submitted = self._write_files(job, _until_last(found), identity)
        with writing(self.report.out):  # a row tells of files that are there: it is the last to be written
            record.replace(job.path, self.files)
            for add in submit:
                add(submitted)
            add_rows(rows)

    def _write_files(
        self, job: Job, found: Iterable[tuple[_Page, Result | None]], identity: str
    ) -> tuple[list[list[Any]], list[tuple[str, str]]]:
        """Write the files of an image file; gives its rows of the summary and of the submission."""
        self.files = []
        report, before = self.report, (self.report.done, self.report.cells, len(self.report.failed))
        try:
            return self._write(job, found, identity)
        except (UserError, Stopped):  # nothing can be written any more
            raise
        except Exception as error:  # of this image alone: its files are taken back, the next one goes on
            report.done, report.cells = before[:2]
            del report.failed[before[2] :]
            self._log(job, error)
            return [self._failed_row(job, 0, 1, reason_of(error))], []

    def _write(
        self, job: Job, found: Iterable[tuple[_Page, Result | None]], identity: str
    ) -> tuple[list[list[Any]], list[tuple[str, str]]]:
        report, out, rows, submitted = self.report, self.report.out, [], []
        with ExitStack() as files:
            add = None
            for page_read, result in found:
                number, file, image, error = page_read[1:5]
                pages = 1 if file is None else file.pages
                if result is None or image is None or file is None:
                    assert error is not None
                    if not isinstance(error, UserError):
                        self._log(job, error)
                    rows.append(self._failed_row(job, number, pages, reason_of(error)))
                if file is None:
                    return rows, []
                if add is None:
                    self._tell(job, file.left)
                    classes = self.predictor.category_ids, self.predictor.class_names
                    scale = self.sizing.um_per_px or file.um_per_px
                    info = outputs.ImageInfo(
                        printable(job.path.name), *classes, file.axes, scale, file.is_ome
                    )
                    opened = outputs.open_image_files(str(out / job.name), info, self.formats)
                    add = files.enter_context(opened)
                if result is None or image is None:
                    continue
                page = outputs.make_page(result, image, number, info.um_per_px)
                with writing(out):
                    add(page)
                rows.append(outputs.summary_row(job.name, page, info))
                if self.submission:
                    name = identity if pages == 1 else f"{identity}_{number + 1:04d}"
                    submitted += outputs.submission_rows(name, page.cells.labels)
                self._count(job, result, page)
            with writing(out):
                files.close()
            if any(not row[-1] for row in rows):  # a page was written
                made = set(self.formats) - ({"labels"} if report.boxes_only else set())
                self.files = files_of(job.name, pages, made)
        return rows, submitted

    def _tell(self, job: Job, words: str) -> None:
        if words and self.progress and words not in self.told:
            tqdm.write(f"{job.path}: {words} (told once for files like this one)", file=sys.stderr)
        self.told.add(words)

    def _count(self, job: Job, result: Result, page: outputs.Page) -> None:
        self.report.boxes_only = page.cells.labels is None
        self.report.done += 1
        self.report.cells += len(page.table)
        self.report.best = max(self.report.best, self.best, float(np.max(result.scores, initial=0.0)))
        self._tell(job, scale_words(result))
        if result.trust is not None:
            self.report.f1 += [] if result.trust.f1 is None else [result.trust.f1]
            self.report.unlike += bool(result.trust.unlike)
        if result.truncated and self.progress:
            limit = "more cells than the network reports at once (data.max_instances)"
            tqdm.write(f"warning: {job.path}: {limit}: weaker ones are missing", file=sys.stderr)
        if result.disturbed and self.progress:
            tqdm.write(f"warning: {job.path}: {result.disturbed}", file=sys.stderr)

    def _log(self, job: Job, error: Exception) -> None:
        """Add the traceback of an error to a file, for who is told of the fault."""
        told = "".join(traceback.format_exception(error))
        with writing(self.report.out), (self.report.out / ERRORS).open("a", encoding="utf-8") as file:
            file.write(f"{printable(str(job.path))}\n{printable(told)}\n")

    def _failed_row(self, job: Job, number: int, pages: int, reason: str) -> list[Any]:
        """Tell of a page that failed; its row of the summary."""
        self.report.failed.append((job.path, reason))
        if self.progress:
            named = reason if str(job.path) in reason else f"{job.path}: {reason}"
            tqdm.write(f"error: {printable(named)}", file=sys.stderr)
        return outputs.failed_row(job.name, number, pages, self.predictor.class_names, printable(reason))
