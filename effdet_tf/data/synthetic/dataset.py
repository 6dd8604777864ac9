"""A synthetic data set in LIVECell's layout: everything can be tried without a download."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile
from tqdm import tqdm

from effdet_tf.data.synthetic.phase_contrast import RenderedCell, render_image
from effdet_tf.data.synthetic.shapes import CELL_TYPES
from effdet_tf.data.synthetic.varied import LOOKS, MAX_CELLS, render_varied
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write

IMAGES = Path("images") / "livecell_train_val_images"
ANNOTATIONS = Path("annotations") / "LIVECell"
_LICENSE = {"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
# What each choice of looks draws in turn, one type an image, and the cells of an image unless told.
CHOICES = {"phase": CELL_TYPES, "varied": LOOKS}
_CELLS = {"phase": (30, 160), "varied": (0, MAX_CELLS)}
_MIN_SIDE = 32
_MAX_CELLS = 5000


class SyntheticReport(NamedTuple):
    """What `generate` wrote: number of images and of cells, by split."""

    images: dict[str, int]
    cells: dict[str, int]


def generate(
    out: str | os.PathLike[str],
    train: int = 48,
    val: int = 12,
    size: tuple[int, int] = (520, 704),
    cells_per_image: tuple[int, int] | None = None,
    seed: int = 0,
    progress: bool = False,
    looks: str = "phase",
) -> SyntheticReport:
    """Write images and annotations as LIVECell lays them out.

    `out/images/livecell_train_val_images/TYPE/TYPE_Phase_WELL_LOCATION_TIME_CROP.tif` (8-bit gray) and
    `out/annotations/LIVECell/livecell_coco_{train,val}.json` (COCO polygons, one category "cell"). The types
    take turns; no well is in both splits. The same arguments give the same bytes.

    Args:
        out: folder to write to; files of the same name in it are replaced.
        train: number of training images.
        val: number of validation images.
        size: height and width in pixels.
        cells_per_image: minimum and maximum of an image, 30 and 160 unless given; a cell that leaves the
            image may be missing. Of varied looks only the maximum counts, 600 unless given: empty fields
            are part of them.
        seed: of everything random.
        progress: show a progress bar on stderr.
        looks: "phase" for phase contrast on gray, or "varied" for rims, bright and dark cells, relief and
            bright field on any ground, of 8 to 120 pixels.

    Raises:
        UserError: when a number makes no sense, or `out` cannot be written to.
    """
    if looks not in CHOICES:
        raise UserError(f"synthetic: unknown looks {looks!r}; choose one of {', '.join(CHOICES)}")
    low, high = cells_per_image = cells_per_image or _CELLS[looks]
    if train < 0 or val < 0 or train + val == 0:
        raise UserError(f"synthetic: {train} train and {val} val images; give at least one image")
    if not 0 <= low <= high <= _MAX_CELLS:
        limits = f"give 0 <= minimum <= maximum <= {_MAX_CELLS}"
        raise UserError(f"synthetic: {low} to {high} cells per image; {limits}")
    if min(size) < _MIN_SIDE:
        raise UserError(f"synthetic: size {size[0]}x{size[1]} is too small; give at least {_MIN_SIDE} a side")
    if seed < 0:
        raise UserError(f"synthetic: seed {seed} is negative; give 0 or more")
    out = Path(out)
    images, cells = {}, {}
    with tqdm(total=train + val, desc="synthetic", unit="image", disable=not progress) as bar:
        for split, count in (("train", train), ("val", val)):
            try:
                annotations = _write_split(out, split, count, size, cells_per_image, seed, bar, looks)
            except OSError as error:
                reason = f"cannot write to {out}: {error.strerror or error}; choose another folder"
                raise UserError(f"synthetic: {reason}") from error
            images[split], cells[split] = count, annotations
    return SyntheticReport(images, cells)


def image_name(split: str, index: int, looks: str = "phase") -> str:
    """File name of an image, as LIVECell makes them: the type is its first token."""
    cell_types = CHOICES[looks]
    cell_type = cell_types[index % len(cell_types)]
    turn = index // len(cell_types)
    # Rows A-D are for training and E-H for validation: the splits share no well.
    row = ("ABCD" if split == "train" else "EFGH")[index % len(cell_types) % 4]
    crop, step = turn % 4 + 1, turn // 4
    column, step = step % 12 + 1, step // 12
    location, step = step % 2 + 1, step // 2
    return f"{cell_type}_Phase_{row}{column}_{location}_{step // 6:02d}d{4 * (step % 6):02d}h00m_{crop}.tif"


def _write_split(
    out: Path,
    split: str,
    count: int,
    size: tuple[int, int],
    cells_per_image: tuple[int, int],
    seed: int,
    bar: tqdm,
    looks: str,
) -> int:
    """Write the images of one split, then its JSON; return the number of cells."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = np.random.default_rng([seed, split == "val", index])
        name = image_name(split, index, looks)
        cell_type = name.split("_")[0]
        if looks == "varied":
            image, cells = render_varied(rng, *size, cell_type, cells_per_image[1])
        else:
            n_cells = int(rng.integers(cells_per_image[0], cells_per_image[1] + 1))
            image, cells = render_image(rng, *size, n_cells, cell_type)
        with atomic_write(out / IMAGES / cell_type / name) as temporary:
            tifffile.imwrite(temporary, image, compression="zlib", metadata=None, software=False)
        image_id = index + 1 + (split == "val") * 1_000_000
        images.append({"id": image_id, "width": size[1], "height": size[0], "file_name": name})
        annotations += annotate(cells, image_id, len(annotations) + 1 + (split == "val") * 100_000_000)
        bar.update()
    subject = "phase contrast" if looks == "phase" else "cells of varied looks"
    document = {
        "info": {"version": "1.0", "description": f"Synthetic {subject}, seed {seed}"},
        "licenses": [_LICENSE],
        "categories": [{"supercategory": "cell", "id": 1, "name": "cell"}],
        "images": images,
        "annotations": annotations,
    }
    with atomic_write(out / ANNOTATIONS / f"livecell_coco_{split}.json") as temporary:
        temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")
    return len(annotations)


def annotate(cells: list[RenderedCell], image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    """COCO annotations of the cells of one image, numbered from `first_id`."""
    for number, cell in enumerate(cells):
        x0, y0 = cell.polygon.min(0).tolist()
        x1, y1 = cell.polygon.max(0).tolist()
        yield {
            "segmentation": [cell.polygon.ravel().tolist()],
            "area": float(cv2.contourArea(cell.polygon)),
            "iscrowd": 0,
            "image_id": image_id,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "category_id": 1,
            "id": first_id + number,
        }
