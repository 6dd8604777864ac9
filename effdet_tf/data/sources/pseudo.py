"""Images without annotation, labelled by a network: they train beside annotated ones, never evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import Cell, ImageTask, Source, encode_patch
from effdet_tf.geometry import MASK_SIZE
from effdet_tf.geometry.masks import labels_to_patches
from effdet_tf.geometry.resample import resample_bitmaps
from effdet_tf.geometry.rle import Patch

if TYPE_CHECKING:
    from effdet_tf.prediction.results import Result


class Labeller(NamedTuple):
    """A network, and what of the cells that it finds becomes a label."""

    find: Callable[[Path], Result]  # image file -> its cells of the lowest score that counts here, or more
    score: float  # a cell needs it to be taught
    soft: bool = False  # teach the score and the mask's probabilities, not a certain cell


def open_pseudo(
    images: Sequence[tuple[Path, str]],
    labeller: Labeller,
    categories: list[dict[str, Any]],
    about: dict[str, Any],
    name: str = "pseudo",
) -> Source:
    """Open images that a network is to label.

    Args:
        images: file and name in the data set of each.
        labeller: the network; it is asked image by image, in this process: convert with one worker. Cells
            below its score become regions that training ignores.
        categories: [{"id", "name"}] by class id of the network.
        about: of the network, for the manifest; not empty.
        name: of the source.
    """
    assert about, "a manifest without a word on the network would pass for annotated by people"
    tasks = [
        ImageTask(path, file_name, number, partial(_read_cells, path, labeller))
        for number, (path, file_name) in enumerate(sorted(images, key=lambda pair: pair[1]), start=1)
    ]
    return Source(name, categories, tasks, pseudo=about)


def _read_cells(
    path: Path, labeller: Labeller, height: int, width: int, file_name: str, faults: Faults
) -> list[Cell]:
    """Predict one image; see `CellReader`."""
    found = labeller.find(path)
    labels, kept = found.label_image()
    cells = []
    for label, patch in labels_to_patches(labels):
        number = int(kept[label - 1])
        score = float(found.scores[number])
        cell = Cell(
            f"{file_name} (found {label})",
            patch,
            encode_patch(patch, height, width),
            int(found.classes[number]),
            iscrowd=score < labeller.score,
        )
        if labeller.soft:
            cell = cell._replace(score=score, bitmap=_probabilities(found, number, patch))
        cells.append(cell)
    return cells


def _probabilities(found: Result, number: int, patch: Patch) -> np.ndarray:
    """Mask of a cell as the network gave it, uint8 `[m, m]`, over the box of its patch."""
    assert found.masks is not None and found.mask_boxes is not None  # or there were no patches
    height, width = patch.mask.shape
    box = np.array([[patch.y, patch.x, patch.y + height, patch.x + width]], np.float32)
    bitmap, over = found.masks[number].astype(np.float32), found.mask_boxes[number]
    return np.rint(resample_bitmaps(bitmap[None], over[None], box, MASK_SIZE)[0]).astype(np.uint8)
