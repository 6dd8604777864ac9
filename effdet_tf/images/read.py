"""Read microscope images and label maps as they are: 8/16 bit or float, gray or RGB, tif, png, jpg, bmp.

The format is taken from the file's first bytes, never from its name.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import UnidentifiedImageError

from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import MAX_PIXELS
from effdet_tf.images.bioio_file import SUFFIXES as BIOIO_SUFFIXES
from effdet_tf.images.bioio_file import BioioFile, is_bioio
from effdet_tf.images.channels import Channel, channel_pages, read_channels
from effdet_tf.images.raster import read_picture
from effdet_tf.images.tif_metadata import Axes, stack_axes, um_per_px
from effdet_tf.images.tif_pages import check_chain, read_tiff, tiff_places

IMAGE_SUFFIXES = (
    *BIOIO_SUFFIXES,
    *(".tif", ".tiff", ".lsm", ".stk", ".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".webp", ".gif"),
    *(".pgm", ".ppm"),
)
# What decoders say of files that lack bytes or have wrong ones.
# What decoders raise for bytes that they can make nothing of; the rest is a format that they do not know.
_DAMAGE = (OSError, EOFError, SyntaxError, struct.error, zlib.error, tifffile.TiffFileError)
_DAMAGED = re.compile(
    "truncat|premature|end of|incomplete|not enough|corrupt|crc|checksum|invalid|reshape|shape"
)
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# For noisy micrographs the run-length strategy is the fastest and the smallest of all.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image in its native depth.

    Palettes are expanded, alpha is dropped, 1-bit images become 0 and 255, and "white is zero" is turned
    round. Of a tif with thumbnails the first page is read.

    Args:
        path: the file.
        max_pixels: largest height x width that is read.

    Returns:
        [H, W, C], C 1 or 3: uint8, uint16, or float32 for float files and for integers that fit neither.

    Raises:
        UserError: when the file is missing, empty, truncated, no image, a stack of several pages,
            or larger than `max_pixels`.
    """
    image = _read(Path(path), max_pixels, labels=False)
    return _channels(_native_dtype(image, path), path)


class Stack:
    """The pages of a tif stack, read one at a time; a file of one image is a stack of one page.

    Attributes:
        pages: how many, thumbnails behind them not counted. A page of another size than the first is one that
            cannot be read.
        um_per_px: side of a pixel in micrometres where the file says so, else None.
        axes: along what the pages lie.
        channels: where the pages lie along channels, too.
        is_ome: whether the file is an OME-TIFF.
    """

    def __init__(self, path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> None:
        """Open a file, as a context manager.

        Args:
            path: the file.
            max_pixels: largest height x width of a page.

        Raises:
            UserError: when it cannot be read.
        """
        self.path, self._max_pixels = Path(path), max_pixels
        self._file: tifffile.TiffFile | None = None
        self.um_per_px: float | None = None
        self.axes = Axes()
        self.channels: list[Channel] = []
        self.is_ome = False
        self._bioio: BioioFile | None = None
        self._places: list[tuple[Any, int]] = [(None, 0)]
        if is_bioio(self.path) and self.path.exists():
            with _decoding(self.path):
                self._bioio = BioioFile(self.path)
            self.um_per_px, self.axes = self._bioio.um_per_px, self._bioio.axes
            self.channels, self.pages = self._bioio.channels, self.axes.pages
            return
        self._size, head = _head(self.path)
        if head[:4] in _TIFF_MAGICS:
            with _decoding(self.path):
                check_chain(self.path)
                self._file = tifffile.TiffFile(self.path)
                found = tiff_places(self._file)
                self.um_per_px, self.is_ome = um_per_px(self._file), bool(self._file.is_ome)
                self.axes, order = stack_axes(self._file, [page.index for page, _ in found])
                self._places = [found[k] for k in order]
                self.channels = read_channels(self._file, self.axes)
        self.pages = len(self._places)

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def chosen(self, channel: str | int | None) -> tuple[list[int], str]:
        """Numbers of the pages of a channel, and what is left out, in words; see `channel_pages`."""
        return channel_pages(self.channels, self.axes, channel, self.path)

    def read(self, page: int = 0) -> np.ndarray:
        """A page, counted from 0, as `read_image` gives an image.

        Raises:
            UserError: when the page is damaged, or the file has no such page.
        """
        self._check(page)
        if self._file is None and self._bioio is None:
            return read_image(self.path, self._max_pixels)
        return _channels(_native_dtype(self._pixels(page, False), self.path), self.path)

    def read_labels(self, page: int = 0) -> np.ndarray:
        """A page, counted from 0, as `read_labels` gives a label map.

        Raises:
            UserError: when the page is damaged or no label map, or the file has no such page.
        """
        self._check(page)
        if self._file is None and self._bioio is None:
            return read_labels(self.path, self._max_pixels)
        return _as_labels(self._pixels(page, True), self.path)

    def _check(self, page: int) -> None:
        if not 0 <= page < self.pages:
            raise UserError(f"{self.path}: has no page {page + 1}; it has {self.pages}")

    def _pixels(self, page: int, labels: bool) -> np.ndarray:
        with _decoding(self.path):
            if self._bioio is not None:
                return self._bioio.read(page, self._max_pixels)
            assert self._file is not None  # it is a tif
            return read_tiff(self._file, self.path, self._size, self._max_pixels, labels, self._places, page)


def read_labels(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a label map, integers [H, W] in the file's own type: 0 is background, other numbers are cells.

    Palette images give their indices, not their colours. RGB files are read when all channels are equal,
    float files, as int64, when they hold whole numbers.

    Raises:
        UserError: as `read_image`, and when the file holds colours, fractions or negative numbers.
    """
    return _as_labels(_read(Path(path), max_pixels, labels=True), Path(path))


def _as_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    """Check that pixels of a file are a label map; gives integers [H, W]."""
    if labels.ndim == 3:
        if labels.shape[2] > 1 and not (labels[..., :3] == labels[..., :1]).all():
            raise UserError(f"{path}: is a colour picture, not a label map; save the label numbers instead")
        labels = labels[..., 0]
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels != np.round(labels)).any():
            raise UserError(f"{path}: holds fractions; a label map holds whole numbers")
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path}: holds {labels.dtype} values; a label map holds whole numbers")
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise UserError(f"{path}: holds negative labels; labels are 0 for background and 1, 2, ... for cells")
    return np.ascontiguousarray(labels)


def encode_png(image: np.ndarray) -> bytes:
    """An image uint8 or uint16, [H, W] or [H, W, C], C 1 or 3 (RGB), as PNG; equal images, equal bytes.

    Raises:
        ValueError: for another type or shape.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"PNG holds uint8 or uint16, not {image.dtype}")
    if image.ndim == 3 and image.shape[2] == 3:
        image = image[..., ::-1]
    elif image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 1):
        raise ValueError(f"an image is [H, W], [H, W, 1] or [H, W, 3], not {list(image.shape)}")
    done, buffer = cv2.imencode(".png", np.ascontiguousarray(image), _PNG_OPTIONS)
    if not done:
        raise ValueError(f"an image of shape {list(image.shape)} could not be encoded as PNG")
    return buffer.tobytes()


def _read(path: Path, max_pixels: int, labels: bool) -> np.ndarray:
    """Pixels [H, W] or [H, W, C] in the file's own type; palettes stay indices when `labels`."""
    if is_bioio(path) and path.exists():
        with Stack(path, max_pixels) as stack:
            _refuse_stack(path, stack.pages)
            return stack._pixels(0, labels)
    size, head = _head(path)
    with _decoding(path):
        if head[:4] in _TIFF_MAGICS:
            check_chain(path)
            with tifffile.TiffFile(path) as file:
                places = tiff_places(file)
                _refuse_stack(path, len(places))
                return read_tiff(file, path, size, max_pixels, labels, places, 0)
        return read_picture(path, head, max_pixels, labels)


def _refuse_stack(path: Path, pages: int) -> None:
    if pages > 1:
        raise UserError(f"{path}: is a stack of {pages} pages; save the page to be used as an image")


def _head(path: Path) -> tuple[int, bytes]:
    """Size and first bytes of a file."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe waits for its other end
            what = "is a folder" if stat.S_ISDIR(found.st_mode) else "is no regular file"
            raise UserError(f"{path}: {what}; name an image file")
        size = found.st_size
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: cannot be read ({reason}); check the name and the rights") from error
    if size == 0:
        raise UserError(f"{path}: is empty (0 bytes); copy it again")
    return size, head


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn what decoders raise into one line."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: is no image that can be read here; use tif, png, jpg or bmp") from error
    except MemoryError as error:
        raise UserError(f"{path}: does not fit into memory") from error
    except Exception as error:  # each decoder raises errors of its own for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        told = f"is damaged or cut short ({reason}); copy it again"
        if not isinstance(error, _DAMAGE) and not _DAMAGED.search(reason.lower()):
            told = f"cannot be decoded ({reason}); where it opens elsewhere, save it again as tif or png"
        raise UserError(f"{path}: {told}") from error


def _native_dtype(image: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    if image.dtype in (np.uint8, np.uint16):
        return image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.dtype == bool:
        return image.astype(np.uint8) * np.uint8(255)
    if image.dtype.kind in "iu":
        if image.min() >= 0 and image.max() <= 65535:
            return image.astype(np.uint16)
        return image.astype(np.float32)
    if image.dtype.kind == "f":
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise UserError(f"{path}: holds NaN or infinite values; replace them first")
        return image
    raise UserError(f"{path}: holds {image.dtype} values; use 8 or 16 bit or float")


def _channels(image: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """Give [H, W, 1] or [H, W, 3], dropping alpha."""
    if image.ndim == 2:
        return np.ascontiguousarray(image[..., None])
    if image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4):
        raise UserError(f"{path}: has the shape {list(image.shape)}; use one gray channel or RGB")
    return np.ascontiguousarray(image[..., : 3 if image.shape[2] > 2 else 1])
