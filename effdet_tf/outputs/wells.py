"""Well, site and time in the file names of Incucyte exports and of LIVECell, and counts by them."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from effdet_tf.outputs.table import write_table

_NAME = re.compile(
    r"(?:^|_)(?P<row>[A-P])(?P<column>0?[1-9]|1\d|2[0-4])_(?P<site>\d{1,3})"
    r"(?:_(?:(?P<days>\d{1,3})d(?P<hours>\d\d)h(?P<minutes>\d\d)m"
    r"|(?P<year>\d{4})y(?P<month>\d\d)m(?P<day>\d\d)d_(?P<hour>\d\d)h(?P<minute>\d\d)m))?"
    r"(?:_\d+)?$"
)
TRUST_COLUMNS = ("cells_low", "cells_high", "expected_f1", "unlike")  # see `outputs.summary`
KEYS = ("plate", "well", "minutes", "page")  # of `count_cells`
_EPOCH = datetime.datetime(1970, 1, 1)


class Acquisition(NamedTuple):
    """Where and when an image was taken."""

    well: str = ""  # row and column such as "A7", or ""
    site: int = 0  # place within the well, counted by the microscope; 0 where the name does not say
    # since the start of the experiment, or since 1970 where the name gives a date; None without a time
    minutes: int | None = None


def parse_name(name: str) -> Acquisition:
    """Read `..._WELL_SITE_00d00h00m_CROP.tif` or `..._WELL_SITE_2021y04m07d_10h30m.tif`.

    Time and crop may be missing. Wells are those of plates of up to 384 (A1 to P24). Another name
    gives `Acquisition()`.

    Args:
        name: of a file, with or without folders and suffix.
    """
    stem = re.split(r"[\\/]", name)[-1]
    stem = stem.rsplit(".", 1)[0].removesuffix(".ome") if "." in stem else stem
    match = _NAME.search(stem)
    if match is None:
        return Acquisition()
    row, column, site, *times = match.groups()
    since, date = ([int(part) for part in parts if part] for parts in (times[:3], times[3:]))
    minutes = None
    if since:
        minutes = (since[0] * 24 + since[1]) * 60 + since[2]
    elif date:
        try:
            day = datetime.datetime(*date)  # type: ignore[arg-type]
            minutes = int((day - _EPOCH).total_seconds() // 60)
        except ValueError:  # the 31st of February
            return Acquisition()
    return Acquisition(f"{row}{int(column)}", int(site), minutes)


def count_cells(images: pd.DataFrame) -> pd.DataFrame:
    """Count by plate (the image's folder), well, time and page of a stack.

    Args:
        images: a row for each, with image (its path), page, well, minutes, cells, mean_area, covered,
            `TRUST_COLUMNS`, and error, "" where it went well.

    Returns:
        One row for each: `KEYS`, hours since the first image of that plate, images, how many failed, cells,
        cells an image, the mean area of a cell in pixels, the share of the images under cells, the ends of
        the interval of the cells (sums of those of the images, which are off together), the mean expected F1,
        and how many images are unlike those that the network knows: columns that are there if any is known.
    """
    # Those of a plate that was begun before there was any have no such columns.
    images = images.assign(
        **{name: np.nan for name in TRUST_COLUMNS if name not in images},
        plate=[path.rpartition("/")[0] for path in images["image"]],
        done=images["error"] == "",
        failed=images["error"] != "",
        areas=images["mean_area"] * images["cells"].astype("float64"),
    )
    sums = images.groupby(list(KEYS), dropna=False, sort=True)
    table = sums.agg(
        images=("done", "sum"),
        failed=("failed", "sum"),
        cells=("cells", "sum"),
        areas=("areas", _sum),
        covered=("covered", "mean"),
        cells_low=("cells_low", _sum),
        cells_high=("cells_high", _sum),
        expected_f1=("expected_f1", "mean"),
        unlike=("unlike", _sum),
    ).reset_index()
    first = table.groupby("plate")["minutes"].transform("min")
    cells = table["cells"].astype("float64")
    with np.errstate(divide="ignore", invalid="ignore"):
        table.insert(4, "hours", ((table["minutes"] - first).astype("float64") / 60).round(3))
        table["cells_per_image"] = (cells / table["images"].where(table["images"] > 0)).round(3)
        table["mean_area"] = (table.pop("areas") / cells.where(cells > 0)).round(2)
    table["covered"] = table.pop("covered").round(4)
    table["expected_f1"] = table["expected_f1"].astype("float64").round(3)
    told = [name for name in TRUST_COLUMNS if table[name].notna().any()]
    return table.drop(columns=list(TRUST_COLUMNS)).join(table[told])


def _sum(values: pd.Series) -> float:
    """Of what is known; not known where none of it is."""
    return values.sum(min_count=1)


def write_wells(summary: Path, target: Path) -> int:
    """Count the cells of `summary.csv` by folder, well, time and page, where its images' names tell a well.

    Args:
        summary: the table of all images, see `outputs.summary`.
        target: the CSV to write; one of an earlier time is removed where no name tells of a well.

    Returns:
        The number of rows that were written.
    """
    whole = ("page", "minutes", "cells", "cells_low", "cells_high", "unlike")
    types = dict.fromkeys(("image", "well", "error"), "str") | dict.fromkeys(whole, "Int64")
    images = pd.read_csv(summary, dtype=types, keep_default_na=False, na_values=[""])
    images[["well", "error"]] = images[["well", "error"]].fillna("")
    placed = images[images["well"] != ""]
    if placed.empty:
        target.unlink(missing_ok=True)
        return 0
    table = count_cells(placed)
    write_table(target, table)
    return len(table)
