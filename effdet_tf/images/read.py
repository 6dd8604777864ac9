"""Read microscope images and label maps as they are: 8/16 bit or float, gray or RGB, tif, png, jpg, bmp.

The format is taken from the file's first bytes, never from its name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import UnidentifiedImageError

from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import MAX_PIXELS
from effdet_tf.images.raster import check_pixels, read_picture
from effdet_tf.images.tif_metadata import stack_axis, um_per_px

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
_LARGE = 2**26  # values of a page from which it goes to a file
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
        pages: how many; pages of another size than the first are thumbnails and do not count.
        um_per_px: side of a pixel in micrometres where the file says so, else None.
        axis: what changes from page to page: "T" time, "Z" depth, "C" channel.
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
        self.axis = "T"
        self._size, head = _head(self.path)
        self._places = [(0, 0)]
        if head[:4] in _TIFF_MAGICS:
            with _decoding(self.path):
                self._file = tifffile.TiffFile(self.path)
                self._places = _places(self._file)
                self.um_per_px, self.axis = um_per_px(self._file), stack_axis(self._file)
        self.pages = len(self._places)

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, page: int = 0) -> np.ndarray:
        """A page, counted from 0, as `read_image` gives an image.

        Raises:
            UserError: when the page is damaged.
        """
        if self._file is None:
            return read_image(self.path, self._max_pixels)
        return _channels(_native_dtype(self._pixels(page, False), self.path), self.path)

    def read_labels(self, page: int = 0) -> np.ndarray:
        """A page, counted from 0, as `read_labels` gives a label map.

        Raises:
            UserError: when the page is damaged, or no label map.
        """
        if self._file is None:
            return read_labels(self.path, self._max_pixels)
        return _as_labels(self._pixels(page, True), self.path)

    def _pixels(self, page: int, labels: bool) -> np.ndarray:
        assert self._file is not None  # it is a tif
        with _decoding(self.path):
            place = self._places[page]
            return _read_tiff(self._file, self.path, self._size, self._max_pixels, labels, place)


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
    size, head = _head(path)
    with _decoding(path):
        if head[:4] in _TIFF_MAGICS:
            with tifffile.TiffFile(path) as file:
                places = _places(file)
                if len(places) > 1:
                    raise UserError(
                        f"{path}: is a stack of {len(places)} pages; save the page to be used as an image"
                    )
                return _read_tiff(file, path, size, max_pixels, labels)
        return read_picture(path, head, max_pixels, labels)


def _head(path: Path) -> tuple[int, bytes]:
    """Size and first bytes of a file."""
    try:
        size = path.stat().st_size
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
        raise UserError(f"{path}: is damaged or cut short ({reason}); copy it again") from error


def _places(file: tifffile.TiffFile) -> list[tuple[int, int]]:
    """Where the images of the first page's size are: number of the page, number of the image behind it.

    They are channels, slices or times; pages of another size are thumbnails.
    """
    first: Any = file.pages[0]
    pages = [k for k, page in enumerate(file.pages) if page.shape == first.shape]
    last: Any = file.pages[len(file.pages) - 1]
    handle, tiff = file.filehandle, file.tiff
    handle.seek(last.offset)
    tags = int.from_bytes(handle.read(tiff.tagnosize), "little" if tiff.byteorder == "<" else "big")
    handle.seek(last.offset + tiff.tagnosize + tags * tiff.tagsize)
    following = int.from_bytes(handle.read(tiff.offsetsize), "little" if tiff.byteorder == "<" else "big")
    cut = following >= handle.size
    if len(pages) == 1 and file.is_imagej and first.size and not cut:
        # ImageJ describes a large stack by its first page alone; the others follow it in one piece.
        stated = int((file.imagej_metadata or {}).get("images", 1))
        cut = first.dataoffsets[0] + stated * sum(first.databytecounts) > handle.size
        if stated > 1 and not cut:
            return [(0, k) for k in range(stated)]
    if cut:
        raise UserError(f"{file.filehandle.path}: is cut short: pages are missing; copy it again")
    return [(k, 0) for k in pages]


def _read_tiff(
    file: tifffile.TiffFile,
    path: Path,
    size: int,
    max_pixels: int,
    labels: bool,
    place: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """The image at one of the `_places`."""
    keyframe: Any = file.pages[0]
    check_pixels(path, keyframe.imagelength, keyframe.imagewidth, max_pixels)
    if keyframe.imagedepth > 1:
        raise UserError(f"{path}: is a volume of {keyframe.imagedepth} slices; save one slice as an image")
    page: Any = file.pages[place[0]]
    photometric, colormap = page.photometric, page.colormap
    one_bit, planar = page.bitspersample == 1, page.planarconfig
    start = place[1] * sum(page.databytecounts)
    ends = [begin + count for begin, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if not ends or start + max(ends) > size:
        raise UserError(
            f"{path}: is cut short ({size} of {start + max(ends, default=0)} bytes); copy it again"
        )
    if place[1]:
        stack = file.series[0].asarray(out="memmap")  # of which only this image is read
        pixels = np.array(stack.reshape(-1, *keyframe.shape)[place[1]])
    else:
        # A large page goes to a file, of which memory holds what is in use.
        pixels = page.asarray(out="memmap" if page.size >= _LARGE else None)
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise UserError(f"{path}: is damaged (a page without pixels); copy it again")
    if planar == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    if labels:
        return pixels
    if photometric == tifffile.PHOTOMETRIC.PALETTE and colormap is not None:
        pixels = (np.moveaxis(colormap, 0, -1)[pixels] >> 8).astype(np.uint8)
    elif one_bit:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
        pixels = np.iinfo(pixels.dtype).max - pixels
    return pixels


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
