"""Read the formats of microscopes' makers, and OME-Zarr, through bioio, where that is installed."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.images.channels import Channel, named_channels
from effdet_tf.images.raster import check_pixels
from effdet_tf.images.tif_metadata import Axes

ZARR = ".zarr"  # of folders, each of which is an image
# What reads each format; bioio-czi is GPL-3, and users install it themselves.
_PLUGINS = {".nd2": "bioio_nd2", ".lif": "bioio_lif", ZARR: "bioio_ome_zarr", ".czi": "bioio_czi"}
# Those of which the plugin is installed.
SUFFIXES = tuple(suffix for suffix, plugin in _PLUGINS.items() if importlib.util.find_spec(plugin))
_MICROMETRES = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "meter": 1e6}


def is_bioio(path: Path) -> bool:
    """Whether bioio reads a path, by its name."""
    return path.suffix.lower() in _PLUGINS


def how_to_read(suffix: str) -> str:
    """What to do for a format that is not read here."""
    if suffix not in _PLUGINS or suffix in SUFFIXES:
        return "save as tif"
    package = "bioio bioio-czi" if suffix == ".czi" else "'effdet_tf[bioio]'"
    return f"pip install {package}, or save as tif"


def is_one_image(path: Path) -> bool:
    """Whether a path may be an image: a file, or a folder of OME-Zarr."""
    return path.is_file() or (path.suffix.lower() == ZARR and path.is_dir())


class BioioFile:
    """A file, or a folder of OME-Zarr, whose pages lie along positions (bioio's scenes), T, Z and C.

    Attributes:
        axes: along what the pages lie; scenes of other lengths follow each other along T.
        channels: where the pages lie along channels.
        um_per_px: side of a pixel in micrometres where the file says so, else None.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            UserError: when bioio's plugin for this format is not installed or cannot read it.
        """
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: is read by bioio alone; {how_to_read(path.suffix.lower())}")
        self._path, self._image = path, _open(path)
        sizes = []
        for scene in self._image.scenes:
            self._image.set_scene(scene)
            sizes.append(tuple(int(getattr(self._image.dims, axis)) for axis in "TZC"))
        self._pages = [(k, place) for k, size in enumerate(sizes) for place in np.ndindex(*size)]
        lengths = [("P", len(sizes)), *zip("TZC", sizes[0], strict=True)]
        kept = [(axis, length) for axis, length in lengths if length > 1]
        alike = len(set(sizes)) == 1
        self.axes = Axes("".join(axis for axis, _ in kept), tuple(n for _, n in kept)) if alike else Axes()
        if self.axes.pages != len(self._pages):
            self.axes = Axes("T", (len(self._pages),))
        self._image.set_scene(0)
        self._size = self._image.dims.Y, self._image.dims.X
        names = [str(name) for name in self._image.channel_names or ()]
        count = sizes[0][2] if "C" in self.axes.letters else 0
        self.channels: list[Channel] = named_channels(names if len(names) == count else [""] * count)
        self.um_per_px = self._side()

    def read(self, page: int, max_pixels: int) -> np.ndarray:
        """A page, from 0: `[H, W]`, or `[H, W, C]` of colours, in the file's own type.

        Raises:
            UserError: when it is too large, or of another size than the first.
        """
        scene, (t, z, c) = self._pages[page]
        self._image.set_scene(scene)
        size = self._image.dims.Y, self._image.dims.X
        if size != self._size:
            own, begun = (f"{height}x{width}" for height, width in (size, self._size))
            raise UserError(
                f"{self._path}: page {page + 1} is {own}, page 1 {begun}; save it as a file of its own"
            )
        check_pixels(self._path, *size, max_pixels)
        order = "YXS" if "S" in self._image.dims.order else "YX"
        return np.asarray(self._image.get_image_dask_data(order, T=t, Z=z, C=c).compute())

    def _side(self) -> float | None:
        sizes, units = self._image.physical_pixel_sizes, self._image.dimension_properties
        factor = _MICROMETRES.get(str(getattr(getattr(units, "X", None), "unit", None) or "micrometer"))
        if not sizes.X or not sizes.Y or factor is None or not math.isclose(sizes.X, sizes.Y, rel_tol=0.01):
            return None
        return float(sizes.X) * factor


def _open(path: Path) -> Any:
    import bioio
    from bioio_base.exceptions import UnsupportedFileFormatError

    try:
        return bioio.BioImage(path)
    except UnsupportedFileFormatError as error:
        raise UserError(f"{path}: is damaged, or none that bioio can read; copy it again") from error
