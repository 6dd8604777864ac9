"""Crops of images whose annotation would help a network most, with its own outlines to correct."""

from __future__ import annotations

import csv
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from effdet_tf.errors import UserError, reason_of
from effdet_tf.files import atomic_write, locked, writing
from effdet_tf.images.read import Stack
from effdet_tf.outputs.appended_csv import open_csv
from effdet_tf.outputs.cells import NumberedCells, number_cells
from effdet_tf.outputs.jobs import Job, fitting, printable
from effdet_tf.outputs.labels import LabelPages
from effdet_tf.prediction.predictor import Predictor
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.sizing import AS_THEY_ARE, Sizing, check_sizing, predict_sized
from effdet_tf.prediction.suggestion import Part, Place, choose, doubts, inside, parts_of, shown

CROPS, CELLS = "suggested.csv", "cells.csv"
CROP_COLUMNS = ("crop", "file", "page", "y0", "x0", "y1", "x1", "cells", "in_doubt")
CELL_COLUMNS = ("crop", "label", "score", "doubt", "y0", "x0", "y1", "x1")
_FOLDERS = ("images", "masks")
_IN_DOUBT = 0.5  # of `doubts`: scores from .15 to .85


@dataclass
class Suggestion:
    """What `suggest_crops` did."""

    out: Path  # the folder
    crops: list[str] = field(default_factory=list)  # their names, the most useful first
    cells: int = 0  # outlined in them
    in_doubt: int = 0  # of those, and of what the network sees besides
    images: int = 0  # images, or pages of stacks, that were looked at
    failed: list[tuple[Path, str]] = field(default_factory=list)  # path and reason of each other image
    own: int = 0  # crops and masks of earlier suggestions among the images, which were left out
    strangers: list[Path] = field(default_factory=list)  # annotated folders that hold none of these images

    @property
    def exit_code(self) -> int:
        """0 when all images were looked at, 3 when some could not be, 1 when none could."""
        return 0 if not self.failed else 3 if self.images else 1


class _Candidate(NamedTuple):
    job: Job
    page: int  # of its file, from 0
    pages: int
    part: Part


def suggest_crops(
    predictor: Predictor,
    images: Sequence[Job],
    out: str | os.PathLike[str],
    *,
    count: int = 10,
    side: int = 512,
    done: Sequence[str | os.PathLike[str]] = (),
    sizing: Sizing = AS_THEY_ARE,
    channel: str | int | None = None,
    progress: bool = False,
) -> Suggestion:
    """Write the crops that are best annotated next.

    `out/images` and `out/masks` are what `convert labelmaps` reads: the crops as they are in their files, and
    the network's outlines, to be corrected. `out/suggested.csv` tells where each crop comes from,
    `out/cells.csv` which cells to look at first: those in doubt, label 0 where the mask does not have them.

    Args:
        predictor: finds the cells.
        images: as `find_images` gives them.
        out: folder to write; one that holds crops is refused, since they may have been corrected.
        count: of crops; fewer where the images have no more.
        side: of a crop, px; images up to a quarter larger are taken whole.
        done: folders of this function's that are annotated: what they show is not suggested again.
        sizing: what is said of the size of pixels and cells.
        channel: of files with several, as `channel_pages` in `effdet_tf.images.channels` takes it.
        progress: show a progress bar and one line per failure on stderr.

    Raises:
        UserError: when `out` holds crops, a folder of `done` none, a file cannot be written, or the network
            has no masks.
    """
    report = Suggestion(Path(out))
    if not predictor.config.model.mask.enabled:
        raise UserError("this network has no mask head, so no outlines to correct; take one that has")
    check_sizing(predictor.config, sizing)
    annotated = {Path(folder): _read_crops(Path(folder)) for folder in done}
    looker = _Looker(predictor, sizing, channel, progress, report)
    with logging_redirect_tqdm(), writing(report.out), locked(report.out, "writes suggestions there"):
        _check_free(report.out)
        pictures = [job for job in images if not _is_crop(job.path)]
        report.own = len(images) - len(pictures)
        found = list(looker.parts(pictures, side))
        keys = {job.path: _key(job.path) for job in pictures}
        pages = [(keys[one.job.path], one.page) for one in found]
        files = {file for file, _ in pages}
        report.strangers = [
            name for name, crops in annotated.items() if crops and files.isdisjoint(one[0] for one in crops)
        ]
        known = [crop for crops in annotated.values() for crop in crops]
        covered = [
            any(page == (file, number) and shown(one.part.place, place) for file, number, place in known)
            for page, one in zip(pages, found, strict=True)
        ]
        chosen = choose([one.part for one in found], pages, count, covered)
        if chosen:
            looker.write([found[k] for k in chosen])
    return report


def _check_free(out: Path) -> None:
    """Refuse a folder whose crops, or other images, may be annotated by now."""
    for path in (out / CROPS, *(out / name for name in _FOLDERS)):
        if path.is_file() or path.is_dir() and any(path.iterdir()):
            raise UserError(f"{path}: exists already, and may be annotated by now; name another folder")


def _is_crop(path: Path) -> bool:
    """Whether an image is a crop, or a mask, of earlier suggestions."""
    return path.parent.name in _FOLDERS and (path.parent.parent / CROPS).is_file()


def _key(path: Path) -> str:
    """A file as the table names it, to be known again."""
    return printable(os.path.realpath(path))


def _read_crops(folder: Path) -> list[tuple[str, int, Place]]:
    """File, page, from 0, and place of every crop of a folder whose mask was not deleted."""
    table = folder / CROPS
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        masks = {path.stem for path in (folder / "masks").glob("*")}  # as convert finds them
        # "'" marks text that a spreadsheet would run.
        return [
            (
                row["file"],
                int(row["page"]) - 1,
                (int(row["y0"]), int(row["x0"]), int(row["y1"]), int(row["x1"])),
            )
            for row in rows
            if row["file"] and not masks.isdisjoint((row["crop"], row["crop"].removeprefix("'")))
        ]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{table}: cannot be read ({reason}); name a folder of suggested crops") from error
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{table}: is no table of suggested crops; name a folder that has one") from error


@dataclass
class _Looker:
    """Reads images, finds their cells, and writes parts of them."""

    predictor: Predictor
    sizing: Sizing
    channel: str | int | None
    progress: bool
    report: Suggestion

    def parts(self, images: Sequence[Job], side: int) -> Iterator[_Candidate]:
        """The parts of all images that can be read."""
        for job in tqdm(images, "look", unit="image", disable=not self.progress):
            try:
                with Stack(job.path) as stack:
                    chosen, left = stack.chosen(self.channel)
                    if left and self.progress:
                        tqdm.write(f"{job.path}: {left}", file=sys.stderr)
                    for page in chosen:
                        try:
                            image, result = self._find(stack, page)
                            found = parts_of(image, result, side)
                        except Exception as error:  # of this page alone
                            self._tell(job, error, page if stack.pages > 1 else None)
                            continue
                        self.report.images += 1
                        yield from (_Candidate(job, page, stack.pages, part) for part in found)
            except Exception as error:  # of this image alone
                self._tell(job, error)

    def _find(self, stack: Stack, page: int) -> tuple[np.ndarray, Result]:
        image = stack.read(page)
        return image, predict_sized(self.predictor, image, None, self.sizing, stack.um_per_px)

    def _tell(self, job: Job, error: Exception, page: int | None = None) -> None:
        of_page = "" if page is None else f"page {page + 1}: "
        reason = of_page + reason_of(error)
        self.report.failed.append((job.path, reason))
        if self.progress:
            named = reason if str(job.path) in reason else f"{job.path}: {reason}"
            tqdm.write(f"error: {printable(named)}", file=sys.stderr)

    def write(self, chosen: Sequence[_Candidate]) -> None:
        """Write crops and their outlines, then the tables."""
        rows: dict[int, tuple[list[Any], list[list[Any]]]] = {}
        order = sorted(range(len(chosen)), key=lambda k: (chosen[k].job.name, chosen[k].page))
        grouped = itertools.groupby(order, lambda k: (chosen[k].job, chosen[k].page))
        groups = [(page, list(numbers)) for page, numbers in grouped]
        bar = tqdm(groups, "write", unit="image", disable=not self.progress)
        for (job, page), numbers in bar:  # each image is predicted once
            try:
                with Stack(job.path) as stack:
                    image, result = self._find(stack, page)
                    um_per_px = self.sizing.um_per_px or stack.um_per_px
                reported = number_cells(result.filter(self.predictor.config.postprocess.report_score))
            except Exception as error:  # it was read before, and is gone or changed
                self._tell(job, error)
                continue
            for k in numbers:
                name, place = self._free_name(chosen[k]), chosen[k].part.place
                outlined, cells = self._cells(result, reported, place)
                _write_image(self.report.out / "images" / f"{name}.tif", image, place, um_per_px)
                with (
                    atomic_write(self.report.out / "masks" / f"{name}.tif") as temporary,
                    LabelPages(temporary, um_per_px=um_per_px) as labels,
                ):
                    labels.add(outlined)
                count = int(outlined.max(initial=0))
                row = [name, _key(job.path), page + 1, *place, count, len(cells)]
                rows[k] = row, [[name, *cell] for cell in cells]
                self.report.crops.append(name)
        self._write_tables([rows[k] for k in sorted(rows)])

    def _free_name(self, one: _Candidate) -> str:
        """Name of a crop: of its image, page and upper left corner; a/b.tif and a__b.tif stay apart."""
        page = f"_p{one.page + 1:04d}" if one.pages > 1 else ""
        top, left = one.part.place[:2]
        name = f"{fitting(one.job.name.replace('/', '__'))}{page}_y{top}_x{left}"
        while name in self.report.crops:
            name += "_"
        return name

    def _write_tables(self, rows: Sequence[tuple[list[Any], list[list[Any]]]]) -> None:
        out = self.report.out
        with open_csv(out / CROPS, CROP_COLUMNS) as add, open_csv(out / CELLS, CELL_COLUMNS) as add_cells:
            add(row for row, _ in rows)
            add_cells(cell for _, cells in rows for cell in cells)
        self.report.crops = [row[0] for row, _ in rows]
        self.report.cells = sum(row[-2] for row, _ in rows)
        self.report.in_doubt = sum(row[-1] for row, _ in rows)

    def _cells(
        self, result: Result, reported: NumberedCells, place: Place
    ) -> tuple[np.ndarray, list[list[Any]]]:
        """Label map of a place, and a row for each cell in doubt, the least sure first."""
        y0, x0, y1, x1 = place
        assert reported.labels is not None  # a network without masks was refused
        numbers, labels = np.unique(reported.labels[y0:y1, x0:x1], return_inverse=True)
        labels = labels.reshape(y1 - y0, x1 - x0) + (numbers[0] > 0)  # a place without background begins at 1
        new = {int(number): k + int(numbers[0] > 0) for k, number in enumerate(numbers)}
        weak = result.take(result.scores < self.predictor.config.postprocess.report_score)
        rows: list[list[Any]] = []
        for cells, outlined in ((reported.result, True), (weak, False)):
            unsure = doubts(cells.scores.astype(np.float64))
            for k in inside(cells, place):
                label = new.get(int(k) + 1, 0) if outlined else 0
                if unsure[k] >= _IN_DOUBT:
                    box = (cells.boxes[k] - (y0, x0, y0, x0)).round(1).tolist()
                    rows.append([label, round(float(cells.scores[k]), 4), round(float(unsure[k]), 4), *box])
        return labels, sorted(rows, key=lambda row: -row[2])


def _write_image(path: Path, image: np.ndarray, place: Place, um_per_px: float | None) -> None:
    """Write a part of an image `[H, W, C]` with the values that it has."""
    y0, x0, y1, x1 = place
    crop = image[y0:y1, x0:x1]
    crop = crop[..., 0] if crop.ndim == 3 and crop.shape[2] == 1 else crop
    options: dict[str, Any] = {"photometric": "rgb" if crop.ndim == 3 else "minisblack", "metadata": None}
    if um_per_px is not None:
        options |= {"resolution": (1e4 / um_per_px,) * 2, "resolutionunit": "CENTIMETER"}
    with atomic_write(path) as temporary:
        tifffile.imwrite(temporary, crop, compression="zlib", software=False, **options)
