"""Sartorius Cell Instance Segmentation (Kaggle 2021): train.csv with row-major run-length encodings."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import Cell, ImageFinder, ImageTask, Source, require_folder, type_classes
from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import fill_holes
from effdet_tf.geometry.rle import kaggle_rle_to_patch, patch_to_rle

CELL_TYPES = ("shsy5y", "astro", "cort")
_COLUMNS = ("id", "annotation", "width", "height", "cell_type")
_LONGEST_FIELD = 1 << 27  # an encoding may be far longer than csv's limit of 128 KiB


@dataclass(frozen=True)
class SartoriusCells:
    """Decodes the masks of one image and fills the pin holes of the training mask.

    Attributes:
        rles: one run-length encoding per cell.
        class_id: class of all of them.
    """

    rles: tuple[str, ...]
    class_id: int

    @property
    def annotated(self) -> int:
        """Number of masks."""
        return len(self.rles)

    def read(self, height: int, width: int, file_name: str, faults: Faults) -> list[Cell]:
        """Decode the masks; see `CellReader`."""
        cells = []
        for number, rle in enumerate(self.rles, start=1):
            name = f"{file_name} (mask {number})"
            try:
                patch = kaggle_rle_to_patch(rle, height, width)
            except ValueError:
                faults.drop("degenerate or unreadable segmentation", name)
                continue
            if patch is None:
                faults.drop("cell without a pixel inside the image", name)
                continue
            counts = patch_to_rle(patch, height, width)["counts"].encode("ascii")
            patch, filled = fill_holes(patch)
            if filled:
                faults.note("pin holes filled in the training mask", name)
            cells.append(Cell(name, patch, counts, None, self.class_id))
        return cells


@dataclass
class _Row:
    """What train.csv says about one image."""

    size: tuple[int, int]
    cell_type: str
    rles: list[str] = field(default_factory=list)


def open_sartorius(
    root: Path, ids: Path | None = None, exclude_ids: Path | None = None, classes: str = "type"
) -> Source:
    """Open the competition's training set.

    An image keeps its id (from 1, by name, over the whole csv) whatever `ids` and `exclude_ids` leave out.

    Args:
        root: folder of train.csv and train/.
        ids: file of the image ids to take, whitespace separated; None takes all.
        exclude_ids: file of image ids to leave out.
        classes: "type" for shsy5y, astro and cort, "one" for a single class "cell".

    Raises:
        UserError: when a file or folder is missing, or the csv lacks a column.
    """
    require_folder(root)
    faults = Faults()
    rows = _read_csv(root / "train.csv", faults)
    finder = ImageFinder(root / "train")
    wanted = _read_ids(ids) if ids else set(rows)
    unwanted = _read_ids(exclude_ids) if exclude_ids else set()
    for name in sorted((wanted | unwanted) - rows.keys()):
        faults.note("listed id is not in train.csv", name)
    categories, by_type = type_classes(list(CELL_TYPES) if classes == "type" else ["cell"])
    tasks = []
    for number, name in enumerate(sorted(rows), start=1):
        if name not in wanted - unwanted:
            continue
        row = rows[name]
        class_id = by_type.get(row.cell_type.casefold()) if classes == "type" else 0
        if class_id is None:
            faults.drop(f"unknown cell type {row.cell_type!r}", name)
        path = finder.find(f"{name}.png", faults)
        if path is None or class_id is None:
            if row.rles:
                faults.drop("cells of a dropped image", name, len(row.rles))
            continue
        cells = SartoriusCells(tuple(row.rles), class_id)
        tasks.append(ImageTask(path, f"{name}.png", number, row.size, row.cell_type, cells))
    return Source("sartorius", categories, tasks, faults)


def _read_csv(path: Path, faults: Faults) -> dict[str, _Row]:
    """Rows by image id."""
    rows: dict[str, _Row] = {}
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
                raise UserError(
                    f"{path}: lacks the column {', '.join(missing)}; take the competition's train.csv"
                )
            for line in reader:
                _add_row(rows, line, f"{path.name} line {reader.line_num}", faults)
    except OSError as error:
        told = f"cannot be read ({error.strerror or error}); SRC is the folder that holds train.csv"
        raise UserError(f"{path}: {told}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no csv file ({error})") from error
    finally:
        csv.field_size_limit(before)
    return rows


def _add_row(rows: dict[str, _Row], line: dict[str, str | None], place: str, faults: Faults) -> None:
    name, rle = (line["id"] or "").strip(), (line["annotation"] or "").strip()
    try:
        size = (int(line["height"] or ""), int(line["width"] or ""))
    except ValueError:
        faults.drop("csv row without a size", place)
        return
    if not name:
        faults.drop("csv row without an id", place)
        return
    row = rows.setdefault(name, _Row(size, (line["cell_type"] or "").strip()))
    if row.size != size:
        faults.drop("csv row with another image size than the rows before", place)
    elif rle and rle.casefold() != "nan":
        row.rles.append(rle)


def _read_ids(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of image ids ({error})") from error
