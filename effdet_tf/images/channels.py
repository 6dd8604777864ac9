"""Channels of a tif: their names, which shows the cells without a label, and the pages of one."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # only what tifffile has parsed as OME before is read with it
from collections.abc import Sequence
from typing import NamedTuple

import tifffile

from effdet_tf.errors import UserError
from effdet_tf.images.tif_metadata import Axes

_LABEL_FREE = re.compile(
    r"phase|\bphaco|\bph[1-3]?\b|\bpc\b|\bdic\b|bright|\bbf\b|trans|\bt-?pmt|\btl\b|\btd\b|hoffman|oblique|"
    r"polari[sz]|dark.?field|label.?free|holo|nomarski",
    re.IGNORECASE,
)
_FLUORESCENT = re.compile(
    r"fluo|dapi|hoechst|gfp|rfp|yfp|cfp|bfp|fitc|tritc|\bcy ?[357]|cherry|texas|alexa|\baf ?\d{3}|atto|"
    r"venus|tomato|crimson|draq|sytox|syto|calcein|\d{3} ?nm|\bex\d|\bem\d",
    re.IGNORECASE,
)


class Channel(NamedTuple):
    """A channel as the file describes it."""

    name: str  # empty where it has none
    label_free: bool | None  # transmitted light; False: fluorescence; None: the file does not say


def read_channels(file: tifffile.TiffFile, axes: Axes) -> list[Channel]:
    """The channels of a file whose pages lie along `axes`; none where that is not among them."""
    if "C" not in axes.letters:
        return []
    count = axes.lengths[axes.letters.index("C")]
    for read in (_ome, _imagej, _lsm, _micromanager):
        try:
            found = read(file, axes)
        except Exception:  # noqa: S112 (whatever is wrong with what it says of channels, its pixels are read)
            continue
        if len(found) == count:
            return [Channel(name, kind if kind is not None else _by_name(name)) for name, kind in found]
    return named_channels([""] * count)


def named_channels(names: Sequence[str]) -> list[Channel]:
    """Channels of which their names alone are known."""
    return [Channel(name, _by_name(name)) for name in names]


def channel_pages(
    channels: list[Channel], axes: Axes, which: str | int | None, path: object
) -> tuple[list[int], str]:
    """The pages, from 0, that are asked for.

    Args:
        channels: of the file.
        axes: along what its pages lie.
        which: number of a channel from 1, its name, "all", or None for the one that shows the cells without
            a label by what the file says, else the first.
        path: of the file, for messages.

    Returns:
        The pages, and what is left out, in words; empty where nothing is.

    Raises:
        UserError: when the file has no such channel.
    """
    every = list(range(axes.pages))
    if not channels:
        if which in (None, "all", 1, "1"):
            return every, ""
        raise UserError(f"{path}: has one channel, not {which}; leave out --channel")
    if which == "all":
        return every, ""
    shown = [f"{k} ({channel.name})" if channel.name else str(k) for k, channel in enumerate(channels, 1)]
    chosen = _chosen(channels, which)
    if chosen is None:
        raise UserError(f"{path}: has no channel {which}; it has {', '.join(shown)}")
    pages = [page for page in every if axes.place(page)["c"] == chosen]
    others = [text for k, text in enumerate(shown) if k != chosen]
    left = f"channel {shown[chosen]} is taken, {', '.join(others)} left out"
    return pages, left if which else f"{left}; --channel takes another one, or all"


def _chosen(channels: list[Channel], which: str | int | None) -> int | None:
    if which is None:
        for wanted in (True, None):  # without a label; else what is not said to be fluorescence
            for k, channel in enumerate(channels):
                if channel.label_free is wanted:
                    return k
        return 0
    names = [channel.name.casefold() for channel in channels]
    if str(which).casefold() in names:
        return names.index(str(which).casefold())
    number = int(which) if str(which).isdecimal() else 0
    return number - 1 if 1 <= number <= len(channels) else None


def _by_name(name: str) -> bool | None:
    if _LABEL_FREE.search(name):
        return True
    return False if _FLUORESCENT.search(name) else None


def _ome(file: tifffile.TiffFile, axes: Axes) -> list[tuple[str, bool | None]]:
    if not file.is_ome:
        return []
    try:
        root = ET.fromstring(file.ome_metadata or "")  # noqa: S314 (expat limits what grows)
    except ET.ParseError:
        return []
    pixels = next((one for one in root.iter() if one.tag.endswith("}Pixels")), root)
    found = []
    for channel in (one for one in pixels if one.tag.endswith("}Channel")):
        said = channel.attrib
        how = said.get("ContrastMethod", ""), said.get("IlluminationType", "")
        kind = None
        if (
            how[0] == "Fluorescence"
            or how[1] == "Epifluorescence"
            or {"Fluor", "EmissionWavelength"} & said.keys()
        ):
            kind = False
        elif how[0] not in ("", "Other") or how[1] == "Transmitted":
            kind = True
        found.append((said.get("Name") or said.get("Fluor") or "", kind))
    return found


def _imagej(file: tifffile.TiffFile, axes: Axes) -> list[tuple[str, bool | None]]:
    labels = (file.imagej_metadata or {}).get("Labels") if file.is_imagej else None
    if not isinstance(labels, (list, tuple)) or len(labels) != axes.pages:
        return []
    names = [
        (axes.place(page)["c"], str(label).splitlines()[0]) for page, label in enumerate(labels) if label
    ]
    first = {channel: name for channel, name in reversed(names)}
    return [(re.sub(r"^(\w:\d+/\d+ ?)+(- )?", "", first[k]), None) for k in sorted(first)]


def _lsm(file: tifffile.TiffFile, axes: Axes) -> list[tuple[str, bool | None]]:
    colors = (file.lsm_metadata or {}).get("ChannelColors") if file.is_lsm else None
    return [(str(name), None) for name in (colors or {}).get("ColorNames", [])]


def _micromanager(file: tifffile.TiffFile, axes: Axes) -> list[tuple[str, bool | None]]:
    summary = (file.micromanager_metadata or {}).get("Summary") if file.is_micromanager else None
    return [(str(name), None) for name in (summary or {}).get("ChNames", [])]
