"""Sartorius Cell Instance Segmentation (Kaggle 2021): train.csv with row-major run-length encodings."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import (
    Cell,
    ImageFinder,
    ImageTask,
    Source,
    decode_patch,
    encode_patch,
    number_categories,
    require_folder,
)
from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import fill_holes
from effdet_tf.geometry.rle import kaggle_rle_to_patch

CELL_TYPES = ("shsy5y", "astro", "cort")

_COLUMNS = ("id", "annotation", "width", "height", "cell_type")
_LONGEST_FIELD = 1 << 27  # an encoding may be far longer than csv's limit of 128 KiB


@dataclass
class _Row:
    """What train.csv says about one image."""

    size: tuple[int, int]
    cell_type: str
    encodings: list[str] = field(default_factory=list)


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
    wanted = _read_ids(ids) if ids else None
    unwanted = _read_ids(exclude_ids) if exclude_ids else set()
    for name in sorted(((wanted or set()) | unwanted) - rows.keys()):
        faults.note("listed id is not in train.csv", name)
    by_type = {name: class_id for class_id, name in enumerate(CELL_TYPES)}
    tasks = []
    for number, name in enumerate(sorted(rows), start=1):
        if (wanted is not None and name not in wanted) or name in unwanted:
            continue
        row = rows[name]
        class_id = by_type.get(row.cell_type.casefold()) if classes == "type" else 0
        if class_id is None:
            faults.drop(f"unknown cell type {row.cell_type!r}", name, cells=0)
        file_name = f"{name}.png"
        path = finder.find(file_name, faults)
        if path is not None and class_id is not None:
            reader = partial(_read_cells, row.encodings, class_id)
            tasks.append(
                ImageTask(path, file_name, number, reader, None, row.size, row.cell_type, len(row.encodings))
            )
        elif row.encodings:
            faults.drop("cells of a dropped image", name, len(row.encodings))
    categories = number_categories(list(CELL_TYPES) if classes == "type" else ["cell"])
    return Source("sartorius", categories, tasks, faults)


def _read_cells(
    encodings: list[str], class_id: int, height: int, width: int, file_name: str, faults: Faults
) -> list[Cell]:
    """Decode the cells of one image and fill the pin holes of the training masks; see `CellReader`."""
    cells = []
    for number, encoding in enumerate(encodings, start=1):
        name = f"{file_name} (mask {number})"
        patch = decode_patch("segmentation", name, faults, kaggle_rle_to_patch, encoding, height, width)
        if patch is None:
            continue
        counts = encode_patch(patch, height, width)
        patch, filled = fill_holes(patch)
        if filled:
            faults.note("pin holes filled in the training mask", name)
        cells.append(Cell(name, patch, counts, class_id))
    return cells


def _read_csv(path: Path, faults: Faults) -> dict[str, _Row]:
    """Rows by image id; UserError when the file is missing, no csv, or lacks a column."""
    rows: dict[str, _Row] = {}
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = ", ".join(name for name in _COLUMNS if name not in (reader.fieldnames or ()))
            if missing:
                raise UserError(f"{path}: lacks the column {missing}; take the competition's train.csv")
            for line in reader:
                _add_row(rows, line, f"{path.name} line {reader.line_num}", faults)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{path}: cannot be read ({reason}); SRC is the folder that holds train.csv"
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no csv file ({error})") from error
    finally:
        csv.field_size_limit(before)
    return rows


def _add_row(rows: dict[str, _Row], line: dict[str, str | None], place: str, faults: Faults) -> None:
    name, encoding, width, height, cell_type = ((line[column] or "").strip() for column in _COLUMNS)
    try:
        size = (int(height), int(width))
    except ValueError:
        faults.drop("csv row without a size", place)
        return
    if not name:
        faults.drop("csv row without an id", place)
        return
    row = rows.setdefault(name, _Row(size, cell_type))
    if row.size != size:
        faults.drop("csv row with another image size than the rows before", place)
    elif encoding and encoding.casefold() != "nan":
        row.encodings.append(encoding)


def _read_ids(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of image ids ({error})") from error
