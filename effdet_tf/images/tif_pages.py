"""Read the pages of tif files: where they are, and their pixels as the file means them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from PIL import Image

from effdet_tf.errors import UserError
from effdet_tf.files.limits import allow
from effdet_tf.images.raster import check_pixels

_LARGE = 2**26  # values of a page from which it goes to a file
_GRAY = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)
_LIGHTNESS = (tifffile.PHOTOMETRIC.CIELAB, tifffile.PHOTOMETRIC.ICCLAB, tifffile.PHOTOMETRIC.ITULAB)


def check_chain(path: Path) -> None:
    """Follow the directories of a tif, of which each names the next, before they are read.

    Raises:
        UserError: when they lead in a circle, or are more than the limit of pages.
    """
    with path.open("rb") as file:
        head = file.read(16)
        order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
        big = int.from_bytes(head[2:4], order) == 43
        counted, sized, entry = (8, 8, 20) if big else (2, 4, 12)
        offset = int.from_bytes(head[8:16] if big else head[4:8], order)
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise UserError(f"{path}: is damaged (its pages lead back to each other); copy it again")
            seen.add(offset)
            allow("pages", len(seen), path)
            file.seek(offset)
            count = file.read(counted)
            if len(count) < counted:
                return  # cut short, which is told where its pages are read
            file.seek(int.from_bytes(count, order) * entry, 1)
            offset = int.from_bytes(file.read(sized), order)


def tiff_places(file: tifffile.TiffFile) -> list[tuple[Any, int]]:
    """Where the images of a file are: the page, and the number of the image behind it.

    They are channels, slices or times. The pages themselves are kept: once the file's series were looked at,
    tifffile gives frames in their place, which know little.
    """
    every: list[Any] = list(file.pages)
    if not every:
        raise EOFError("its first directory lies behind its end")
    first, last = every[0], every[-1]
    end = max(k for k, page in enumerate(every) if page.shape == first.shape) + 1
    small = [page.is_reduced or (k >= end and _is_thumbnail(page, first)) for k, page in enumerate(every)]
    pages = [page for page, left_out in zip(every, small, strict=True) if not left_out] or [first]
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
            return [(first, k) for k in range(stated)]
    if cut:
        raise UserError(f"{file.filehandle.path}: is cut short: pages are missing; copy it again")
    return [(page, 0) for page in pages]


def _is_thumbnail(page: Any, first: Any) -> bool:
    """Whether a page shows another one at about half its size or less."""
    height, width = first.imagelength, first.imagewidth
    factor = height / max(page.imagelength, 1)
    return factor >= 1.5 and abs(width / factor - page.imagewidth) <= 1


def read_tiff(
    file: tifffile.TiffFile,
    path: Path,
    size: int,
    max_pixels: int,
    labels: bool,
    places: list[tuple[Any, int]],
    number: int,
) -> np.ndarray:
    """The image at one of the `tiff_places`, counted from 0: `[H, W]` or `[H, W, C]` in the file's own type.

    Args:
        file: the open file.
        path: its path.
        size: its size in bytes.
        max_pixels: largest height x width that is read.
        labels: whether the values are labels, which stay as they are.
        places: those of the file.
        number: of the place.

    Raises:
        UserError: when it is cut short, too large, or of another size than the first.
    """
    (page, behind), keyframe = places[number], places[0][0]
    if page.shape != keyframe.shape:
        own, first = (f"{p.imagelength}x{p.imagewidth}" for p in (page, keyframe))
        raise UserError(
            f"{path}: page {number + 1} is {own}, page 1 {first}; save pages of different sizes as files of "
            "their own"
        )
    check_pixels(path, keyframe.imagelength, keyframe.imagewidth, max_pixels)
    allow("values", page.imagedepth * page.imagelength * page.imagewidth * page.samplesperpixel, path)
    if page.is_tiled:  # a tile is decoded whole, also where the image is smaller
        inks = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.CONTIG else 1
        allow("values", page.tiledepth * page.tilelength * page.tilewidth * inks, path)
    if keyframe.imagedepth > 1:
        raise UserError(f"{path}: is a volume of {keyframe.imagedepth} slices; save one slice as an image")
    start = behind * sum(page.databytecounts)
    ends = [begin + count for begin, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if not ends or start + max(ends) > size:
        raise UserError(
            f"{path}: is cut short ({size} of {start + max(ends, default=0)} bytes); copy it again"
        )
    if behind:
        stack = file.series[0].asarray(out="memmap")  # of which only this image is read
        pixels = np.array(stack.reshape(-1, *keyframe.shape)[behind])
    else:
        # A large page goes to a file, of which memory holds what is in use.
        pixels = page.asarray(out="memmap" if page.size >= _LARGE else None)
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise UserError(f"{path}: is damaged (a page without pixels); copy it again")
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels if labels else _as_meant(pixels, page, path, number == 0)


def _as_meant(pixels: np.ndarray, page: Any, path: Path, first: bool) -> np.ndarray:
    """Gray or RGB from what a page holds; `first` says whether to warn of what is left out."""
    photometric = page.photometric
    if pixels.ndim == 3 and photometric in _GRAY:
        if pixels.shape[2] > 1 and not _alpha(page) and first:
            text = "%s: has %d channels, which are no colours: the first is used, the rest left out"
            logging.getLogger("effdet_tf").warning(text, path, pixels.shape[2])
        pixels = pixels[..., :1]
    elif pixels.ndim == 3 and photometric in _LIGHTNESS:
        pixels = pixels[..., :1]  # L of Lab; the others are colour
    elif photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression == 1:  # decoders give RGB
        pixels = np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))
    elif pixels.ndim == 3 and photometric == tifffile.PHOTOMETRIC.SEPARATED and pixels.shape[2] >= 4:
        top = np.iinfo(pixels.dtype).max
        ink = pixels[..., :4].astype(np.float64) / top
        pixels = np.rint((1 - ink[..., :3]) * (1 - ink[..., 3:]) * top).astype(pixels.dtype)
    if photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        pixels = (np.moveaxis(page.colormap, 0, -1)[pixels] >> 8).astype(np.uint8)
    elif page.bitspersample == 1:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = np.nanmax(pixels) - pixels if pixels.dtype.kind == "f" else ~pixels
    return pixels


def _alpha(page: Any) -> bool:
    """Whether the sample behind the first of a gray page is its transparency."""
    return page.samplesperpixel == 2 and any(int(sample) in (1, 2) for sample in page.extrasamples)
