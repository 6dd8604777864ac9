"""Well, site and time in the file names of Incucyte exports and of LIVECell."""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple

_NAME = re.compile(
    r"(?:^|_)(?P<row>[A-P])(?P<column>0?[1-9]|1\d|2[0-4])_(?P<site>\d{1,3})"
    r"(?:_(?:(?P<days>\d{1,3})d(?P<hours>\d\d)h(?P<minutes>\d\d)m"
    r"|(?P<year>\d{4})y(?P<month>\d\d)m(?P<day>\d\d)d_(?P<hour>\d\d)h(?P<minute>\d\d)m))?"
    r"(?:_\d+)?$"
)
_EPOCH = datetime.datetime(1970, 1, 1)


class Place(NamedTuple):
    """Where and when an image was taken.

    Attributes:
        well: row and column such as "A7", or "".
        site: place within the well, counted by the microscope; 0 where the name does not say.
        minutes: since the start of the experiment, or since 1970 where the name gives a date; None without a
            time.
    """

    well: str = ""
    site: int = 0
    minutes: int | None = None


def parse_name(name: str) -> Place:
    """Read `..._WELL_SITE_00d00h00m_CROP.tif` or `..._WELL_SITE_2021y04m07d_10h30m.tif`.

    Time and crop may lack.

    Wells are those of plates of up to 384 (A1 to P24). What is named otherwise is nowhere: `Place()`.

    Args:
        name: of a file, with or without folders and suffix.
    """
    stem = re.split(r"[\\/]", name)[-1]
    stem = stem.rsplit(".", 1)[0].removesuffix(".ome") if "." in stem else stem
    match = _NAME.search(stem)
    if match is None:
        return Place()
    minutes = None
    if match["days"] is not None:
        minutes = (int(match["days"]) * 24 + int(match["hours"])) * 60 + int(match["minutes"])
    elif match["year"] is not None:
        fields = (int(match[part]) for part in ("year", "month", "day", "hour", "minute"))
        try:
            minutes = int((datetime.datetime(*fields) - _EPOCH).total_seconds() // 60)
        except ValueError:  # the 31st of February
            return Place()
    return Place(match["row"] + str(int(match["column"])), int(match["site"]), minutes)
