"""Cells that stay where a microscope or its software adds something, by how images are normalised.

  python benchmarks/disturbed_images.py cells IMAGES... [--score .3] [--kinds clean "data bar"]

For each image and each kind: cells of the clean image that the added part does not touch, and how many of
them the disturbed image has at IoU .75, normalised by all pixels (image) and by what shows cells (content).
The first line holds clean images against `image`, at IoU .9.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import cv2
import numpy as np
from pycocotools import mask as coco

from effdet_tf.images.read import read_image
from effdet_tf.prediction.load import load
from effdet_tf.prediction.results import Result

# An image uint8 -> the disturbed one, and where its first pixel lies there.
Change = Callable[[np.ndarray], tuple[np.ndarray, int]]


def framed(value: int, noise: float = 0.0) -> Change:
    """A border; `noise` is the deviation of its pixels."""

    def change(image: np.ndarray) -> tuple[np.ndarray, int]:
        side = image.shape[0] // 10
        mask = cv2.copyMakeBorder(np.ones_like(image), *[side] * 4, cv2.BORDER_CONSTANT, value=0)
        whole = cv2.copyMakeBorder(image, *[side] * 4, cv2.BORDER_CONSTANT, value=value)
        grain = np.abs(np.random.default_rng(0).normal(0, noise, whole.shape)) if noise else 0
        return np.where(mask, whole, whole + grain).astype(np.uint8), side

    return change


def barred(ground: int) -> Change:
    """A bar below the image, with text."""

    def change(image: np.ndarray) -> tuple[np.ndarray, int]:
        bar = np.full((max(image.shape[0] // 14, 24), image.shape[1]), ground, np.uint8)
        place, font = (8, bar.shape[0] - 8), cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(bar, "20 um  10x  2021-03-04 phase", place, font, 0.7, 255 - ground, 2, cv2.LINE_AA)
        return np.concatenate([image, bar]), 0

    return change


def painted(value: int, blob: bool = False) -> Change:
    """A scale bar, or a blob, of one value."""

    def change(image: np.ndarray) -> tuple[np.ndarray, int]:
        image, (height, width) = image.copy(), image.shape
        if blob:
            cv2.circle(image, (width // 4, height // 3), min(image.shape) // 10, value, -1)
        else:
            image[height - 40 : height - 28, width - 160 : width - 20] = value
        return image, 0

    return change


def round_field(noise: float) -> Change:
    """An eyepiece's field of view."""

    def change(image: np.ndarray) -> tuple[np.ndarray, int]:
        y, x = np.ogrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j]
        dark = np.abs(np.random.default_rng(0).normal(0, 1, image.shape)) * noise
        return np.where(y * y + x * x < 0.9, image, dark.astype(np.uint8)), 0

    return change


def lit(light: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Change:
    """Uneven light."""

    def change(image: np.ndarray) -> tuple[np.ndarray, int]:
        y, x = np.ogrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j]
        return (image * light(y, x)).astype(np.uint8), 0

    return change


def hot(image: np.ndarray) -> tuple[np.ndarray, int]:
    """Pixels at the end of the scale of a camera of 16 bits."""
    image = image.astype(np.uint16) * 16 + 500
    image.flat[np.random.default_rng(0).integers(0, image.size, 200)] = 65535
    return image, 0


KINDS: dict[str, Change] = {
    "clean": lambda image: (image, 0),
    "black border, 10 %": framed(0),
    "white border": framed(255),
    "dark border with noise": framed(0, 1.7),
    "data bar": barred(0),
    "white data bar": barred(255),
    "scale bar": painted(255),
    "saturated blob": painted(255, blob=True),
    "200 hot pixels, 16 bit": hot,
    "round field": round_field(0),
    "round field with noise": round_field(2),
    "mosaic, half of it empty": lambda i: (np.block([[i, 0 * i], [0 * i, i[::-1]]]), 0),
    "corners 20 % darker": lit(lambda y, x: 1 - 0.1 * (y * y + x * x)),
    "corners 50 % darker": lit(lambda y, x: 1 - 0.25 * (y * y + x * x)),
    "one side 30 % darker": lit(lambda y, x: 0.85 + 0.15 * x + 0 * y),
}


def outlines(found: Result, offset: int, shape: tuple[int, int]) -> list[dict]:
    """The masks of cells in the clean image's frame."""
    encoded = []
    for patch in found.patches():
        if patch is None:
            continue
        canvas = np.zeros((found.height, found.width), np.uint8)
        height, width = patch.mask.shape
        canvas[patch.y : patch.y + height, patch.x : patch.x + width] = patch.mask
        part = np.zeros(shape, np.uint8)
        seen = canvas[offset : offset + shape[0], offset : offset + shape[1]]
        part[: seen.shape[0], : seen.shape[1]] = seen
        encoded.append(coco.encode(np.asfortranarray(part)))
    return encoded


def kept(expected: list[dict], found: list[dict], iou: float) -> int:
    """How many of the expected masks have one of the found ones at that IoU."""
    if not expected or not found:
        return 0
    return int((coco.iou(found, expected, [0] * len(expected)).max(0) >= iou).sum())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--score", type=float, default=0.3)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND")
    args = parser.parse_args()
    networks = [load(args.run, settings=[f"data.normalization={how}"]) for how in ("image", "content")]
    counts = {name: np.zeros(3, int) for name in args.kinds}
    for path in args.images:
        image = read_image(path)
        if image.dtype != np.uint8:
            continue
        image = image[..., 0]
        clean = outlines(networks[0].predict(image).filter(args.score), 0, image.shape)
        for name in args.kinds:
            disturbed, offset = KINDS[name](image)
            shown = disturbed[offset : offset + image.shape[0], offset : offset + image.shape[1]]
            # Light and hot pixels touch all cells alike: all of them count.
            everywhere = disturbed.dtype != np.uint8 or "darker" in name
            touched = np.zeros(image.shape, np.uint8) if everywhere else (shown != image).astype(np.uint8)
            cover = coco.encode(np.asfortranarray(touched))
            left = [one for one in clean if not coco.area(coco.merge([one, cover], intersect=True))]
            counts[name][0] += len(left)
            for k, network in enumerate(networks, 1):
                found = outlines(network.predict(disturbed).filter(args.score), offset, image.shape)
                counts[name][k] += kept(left, found, 0.9 if name == "clean" else 0.75)
    print(f"| {args.run} | cells | image, % | content, % |\n|---|---|---|---|")
    for name, (cells, *of) in counts.items():
        print(f"| {name} | {cells} | " + " | ".join(f"{100 * one / max(cells, 1):.1f}" for one in of) + " |")


if __name__ == "__main__":
    main()
