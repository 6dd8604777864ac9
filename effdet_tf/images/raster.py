"""Read png, jpg, bmp, webp, gif and jp2 files."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from effdet_tf.errors import UserError

_ORIENTATION = 0x0112  # tag of EXIF
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def check_pixels(path: Path, height: int, width: int, max_pixels: int) -> None:
    """Raise a UserError for an image without a pixel, or with more than it may have."""
    if height < 1 or width < 1:
        raise UserError(f"{path}: has no pixel ({height}x{width})")
    if height * width > max_pixels:
        raise UserError(f"{path}: {height}x{width} is more than {max_pixels} pixels; cut it into parts first")


def read_picture(path: Path, head: bytes, max_pixels: int, labels: bool) -> np.ndarray:
    """Pixels `[H, W]` or `[H, W, C]` in the file's own type.

    Args:
        path: the file.
        head: its first bytes.
        max_pixels: largest height x width that is read.
        labels: whether palettes stay indices.

    Raises:
        UserError: for too many pixels; for a damaged file Pillow's own errors.
    """
    deep_colour = False
    if head[:8] == _PNG_MAGIC and len(head) >= 26:
        # Pillow's own bomb check comes later and warns by a global setting; the size is in the header.
        width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
        check_pixels(path, height, width, max_pixels)
        deep_colour = depth == 16 and colour != 0
    with _any_size(), Image.open(path) as picture:
        check_pixels(path, picture.height, picture.width, max_pixels)
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":  # a camera's second picture is a preview
            raise UserError(
                f"{path}: is an animation of {frames} frames; save them as a tif stack, or one as png"
            )
        picture.load()  # raises for a file that is cut short, which OpenCV would pad
        if deep_colour:  # Pillow keeps only 8 of the 16 bits
            pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is None:
                raise OSError("OpenCV cannot read it")
            return pixels[..., 2::-1] if pixels.ndim == 3 else pixels
        if picture.getexif().get(_ORIENTATION, 1) != 1:  # a camera that was held upright
            ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode in ("P", "PA") and labels:
            return np.asarray(picture.getchannel(0) if picture.mode == "PA" else picture)
        if picture.mode == "1":
            return np.asarray(picture).astype(np.uint8) * np.uint8(1 if labels else 255)
        if picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa"):
            return np.asarray(picture.convert("RGB"))
        return np.asarray(picture)


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    """Without Pillow's own limit, which is below ours."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
