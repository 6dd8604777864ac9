"""What a tif file says of its pixels' size and of what its pages are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tifffile

# Micrometres in a unit, as ImageJ, OME and others write it.
_UNITS = {
    **dict.fromkeys(("micron", "microns", "um", "\u00b5m", "\u03bcm", "\\u00b5m", "\\u00B5m"), 1.0),
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micrometres"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    "m": 1e6,
}
_PLAUSIBLE = (0.005, 50.0)  # micrometres: from electron to low-power light microscopes
_SQUARE = 0.01  # sides may differ by this share


def um_per_px(file: tifffile.TiffFile) -> float | None:
    """Side of a pixel in micrometres, as the file has it.

    ImageJ's calibration, OME-XML, Zeiss LSM, MetaMorph and a resolution per centimetre are read. A resolution
    per inch is that of printing, and is not. None where the file does not say, where its pixels are not
    square, or where no microscope has such pixels.
    """
    for sides in (_ome(file), _imagej(file), _lsm(file), _metamorph(file), _per_centimetre(file)):
        if sides is None:
            continue
        y, x = sides
        if math.isfinite(y + x) and _PLAUSIBLE[0] <= x <= _PLAUSIBLE[1] and abs(y - x) <= _SQUARE * x:
            return x
    return None


class Axes(NamedTuple):
    """Along what the pages of a file lie, the slowest first.

    "P" is the position on the stage, "T" time or not told, "Z" depth, "C" channel.
    """

    letters: str = ""  # some of P, T, Z and C; none of one page
    lengths: tuple[int, ...] = ()

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return math.prod(self.lengths)

    def place(self, page: int, first: int = 0) -> dict[str, int]:
        """Where a page, from 0, lies along its axes, `{"t": 0, "c": 1}`; counted from `first`."""
        found = np.unravel_index(page, self.lengths) if self.lengths else ()
        return {axis.lower(): int(index) + first for axis, index in zip(self.letters, found, strict=True)}


def stack_axes(file: tifffile.TiffFile, numbers: Sequence[int]) -> tuple[Axes, list[int]]:
    """The axes of the pages of a file as OME, ImageJ or tifffile wrote them down, else time; and their order.

    Args:
        file: the open file.
        numbers: which of its directories the pages are, in the order in which they lie there.

    Returns:
        The axes, and the indices of `numbers` in the order of the axes: OME says of each page what it is.
    """
    as_they_lie = list(range(len(numbers)))
    if len(numbers) == 1:
        return Axes(), as_they_lie
    if file.is_ome and (found := _ome_axes(file, numbers)) is not None:
        return found
    series = file.series[0] if file.series else None
    sizes = [(axis, size) for axis, size in _beyond_page(series) if size > 1] if series else []
    letters, lengths = "".join(axis for axis, _ in sizes), tuple(size for _, size in sizes)
    if math.prod(lengths) != len(numbers) or not set(letters) <= set("TZC"):
        return Axes("T", (len(numbers),)), as_they_lie
    return Axes(letters, lengths), as_they_lie


def _ome_axes(file: tifffile.TiffFile, numbers: Sequence[int]) -> tuple[Axes, list[int]] | None:
    """As `stack_axes`, by what OME says of each page; None where it does not tell them apart.

    A set of several files names the pages of all; those of this file count.
    """
    every = [one for one in file.series if one.kind == "ome"]
    if not every or any(_beyond_page(one) != _beyond_page(every[0]) for one in every):
        return None
    letters = "P" + "".join(axis for axis, _ in _beyond_page(every[0]))
    lengths = tuple(size for _, size in _beyond_page(every[0]))
    if not set(letters) <= set("PTZC") or any(len(one) != math.prod(lengths) for one in every):
        return None
    places = {
        page.index: (position, *(int(index) for index in np.unravel_index(k, lengths)))
        for position, one in enumerate(every)
        for k, page in enumerate(one)
        if page is not None and page.parent is file
    }
    if places.keys() != set(numbers):
        return None
    steps = [sorted(set(along)) for along in zip(*places.values(), strict=True)]
    if math.prod(map(len, steps)) != len(set(places.values())) or len(places) != len(set(places.values())):
        return None
    kept = [(letter, len(along)) for letter, along in zip(letters, steps, strict=True) if len(along) > 1]
    order = sorted(range(len(numbers)), key=lambda k: places[numbers[k]])
    return Axes("".join(letter for letter, _ in kept), tuple(size for _, size in kept)), order


def _beyond_page(series: tifffile.TiffPageSeries) -> list[tuple[str, int]]:
    """The axes of a series beyond those of a page, and their lengths."""
    pairs = zip(series.axes, series.shape, strict=True)
    return [(str(axis), int(size)) for axis, size in pairs if axis not in "YXS"]


def _ome(file: tifffile.TiffFile) -> tuple[float, float] | None:
    if not file.is_ome:
        return None
    found = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", file.ome_metadata or "")
    if found is None:
        return None
    sides = []
    for axis in "YX":
        size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', found[0])
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', found[0])
        factor = _UNITS.get(unit[1] if unit else "um")
        if size is None or factor is None:
            return None
        try:
            sides.append(float(size[1]) * factor)
        except ValueError:
            return None
    return sides[0], sides[1]


def _imagej(file: tifffile.TiffFile) -> tuple[float, float] | None:
    if not file.is_imagej:
        return None
    return _resolution(file, _UNITS.get(str((file.imagej_metadata or {}).get("unit", ""))))


def _lsm(file: tifffile.TiffFile) -> tuple[float, float] | None:
    sizes: dict[str, Any] = (file.lsm_metadata or {}) if file.is_lsm else {}
    if "VoxelSizeX" not in sizes or "VoxelSizeY" not in sizes:
        return None
    return float(sizes["VoxelSizeY"]) * 1e6, float(sizes["VoxelSizeX"]) * 1e6


def _metamorph(file: tifffile.TiffFile) -> tuple[float, float] | None:
    tags: dict[str, Any] = (file.stk_metadata or {}) if file.is_stk else {}
    factor = _UNITS.get(str(tags.get("CalibrationUnits", "")).strip().lower())
    if factor is None or "XCalibration" not in tags or "YCalibration" not in tags:
        return None
    return float(tags["YCalibration"]) * factor, float(tags["XCalibration"]) * factor


def _per_centimetre(file: tifffile.TiffFile) -> tuple[float, float] | None:
    if file.is_imagej or int(_tag(file, "ResolutionUnit") or 0) != 3:
        return None
    return _resolution(file, _UNITS["cm"])


def _resolution(file: tifffile.TiffFile, unit_um: float | None) -> tuple[float, float] | None:
    """Sides of a pixel, from pixels for each unit."""
    sides = []
    for name in ("YResolution", "XResolution"):
        value = _tag(file, name)
        if unit_um is None or value is None or value[0] <= 0 or value[1] <= 0:
            return None
        sides.append(unit_um * value[1] / value[0])
    return sides[0], sides[1]


def _tag(file: tifffile.TiffFile, name: str) -> Any:
    page: Any = file.pages[0]
    tag = page.tags.get(name)
    return None if tag is None else tag.value
