"""What a tif file says of its pixels' size and of what its pages are."""

from __future__ import annotations

import math
import re
from typing import Any

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


def stack_axis(file: tifffile.TiffFile) -> str:
    """What changes from page to page of a stack: "T" time (or not told), "Z" depth, "C" channel."""
    imagej: dict[str, Any] = (file.imagej_metadata or {}) if file.is_imagej else {}
    for key, axis in (("frames", "T"), ("slices", "Z"), ("channels", "C")):
        if int(imagej.get(key, 1)) > 1:
            return axis
    axes = file.series[0].axes if file.series else ""
    return next((axis for axis in "TZC" if axis in axes), "T")


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
