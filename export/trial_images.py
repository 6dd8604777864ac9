"""The images that an export is tried and calibrated on: annotated, given as files, or synthetic."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from effdet_tf.data.manifest import MANIFEST_NAME
from effdet_tf.errors import UserError
from effdet_tf.images.read import read_image
from effdet_tf.outputs.jobs import find_images

CALIBRATION_IMAGES = 24
_SYNTHETIC_IMAGES = 4


@dataclass(frozen=True)
class TrialImages:
    """Images from one source, in a fixed order."""

    where: str  # what they are and where they come from, for people
    sizes: tuple[tuple[int, int], ...]  # height, width of every image, px
    data: Path | None = None  # folder of converted, annotated images
    paths: tuple[Path, ...] = ()  # files, or none

    def __len__(self) -> int:
        """Number of images."""
        return len(self.sizes)

    def most_frequent_size(self) -> tuple[int, int]:
        """Height and width, px; the larger one of two that are equally frequent."""
        counts = Counter(self.sizes)
        return max(counts, key=lambda size: (counts[size], size[0] * size[1]))

    def pixels(self) -> Iterator[np.ndarray]:
        """The images one after another, `[H, W, C]` in their own depth.

        Raises:
            UserError: for one that cannot be read.
        """
        if self.data is not None:
            from effdet_tf.data.ground_truth import decode_pixels
            from effdet_tf.data.record import iterate_records

            yield from (decode_pixels(record) for record in islice(iterate_records(self.data), len(self)))
        elif self.paths:
            yield from (read_image(path) for path in self.paths)
        else:
            yield from (_synthetic(number, size) for number, size in enumerate(self.sizes))


def labelled(data: Path, limit: int | None = None) -> TrialImages:
    """Converted, annotated images, all or the first `limit`.

    Raises:
        UserError: when the folder holds none, or a damaged one.
    """
    from effdet_tf.data.record import iterate_records

    sizes = tuple((record.height, record.width) for record in islice(iterate_records(data), limit))
    if not sizes:
        raise UserError(f"{data}: holds no image; convert annotated images first")
    return TrialImages(f"annotated images of {data}", sizes, data=data)


def given(inputs: Sequence[str | os.PathLike[str]], limit: int | None = None) -> TrialImages:
    """Image files, folders and patterns, all or the first `limit`.

    Raises:
        UserError: for what matches nothing, and for an image that cannot be read.
    """
    paths = tuple(job.path for job in find_images(inputs))[:limit]
    sizes = tuple(read_image(path).shape[:2] for path in paths)
    return TrialImages(f"images of {', '.join(map(str, inputs))}", sizes, paths=paths)


def synthetic(size: tuple[int, int], limit: int | None = None) -> TrialImages:
    """Synthetic phase-contrast images of one size: always the same ones."""
    number = min(limit or _SYNTHETIC_IMAGES, _SYNTHETIC_IMAGES)
    return TrialImages("synthetic images; use --data for AP", (size,) * number)


def calibration(
    inputs: Sequence[str | os.PathLike[str]], others: TrialImages | None
) -> tuple[list[np.ndarray], str]:
    """Images to calibrate an int8 network on: at most `CALIBRATION_IMAGES`, spread over all of them.

    Gives the images, `[H, W, C]` in their own depth, and what they are.

    Args:
        inputs: files and folders of images, or ONE folder of converted images; may be empty.
        others: what to take where `inputs` is empty.

    Raises:
        UserError: when there are none, or one cannot be read.
    """
    if not inputs and others is None:
        advice = "give training images with --calibration, or --data"
        raise UserError(f"tflite-int8 is calibrated on images: {advice}")
    if others is not None and not inputs:
        source = others
    elif len(inputs) == 1 and (Path(inputs[0]) / MANIFEST_NAME).is_file():
        source = labelled(Path(inputs[0]))
    else:
        paths = [job.path for job in find_images(inputs)]
        source = given([paths[number] for number in _spread(len(paths))])
    wanted = set(_spread(len(source)))
    pixels = [image for number, image in enumerate(source.pixels()) if number in wanted]
    where = source.where if not inputs else ", ".join(map(str, inputs))
    return pixels, f"{len(pixels)} images of {where.removeprefix('images of ')}"


def _spread(number: int) -> list[int]:
    return sorted({round(float(k)) for k in np.linspace(0, number - 1, min(number, CALIBRATION_IMAGES))})


def _synthetic(number: int, size: tuple[int, int]) -> np.ndarray:
    from effdet_tf.data.synthetic.phase_contrast import render_image
    from effdet_tf.data.synthetic.shapes import CELL_TYPES

    cells = max(round(100 * size[0] * size[1] / (520 * 704)), 1)
    return render_image(number, *size, cells, CELL_TYPES[number % len(CELL_TYPES)])[0]
