"""Label images as tif."""

from __future__ import annotations

import os

import numpy as np
import tifffile

from effdet_tf.files import atomic_write


def write_labels(path: str | os.PathLike[str], labels: np.ndarray) -> None:
    """Write a label image as zlib-compressed tif: uint16, or uint32 when there are more than 65,535 labels.

    Args:
        path: the tif.
        labels: integers `[H, W]`, 0 is background.
    """
    dtype = np.uint16 if labels.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32
    with atomic_write(path) as temporary:
        tifffile.imwrite(temporary, labels.astype(dtype), compression="zlib", photometric="minisblack")
