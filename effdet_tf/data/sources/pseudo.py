"""Images without annotation, labelled by a network: for training, never for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import Cell, ImageTask, Source
from effdet_tf.geometry.masks import labels_to_patches
from effdet_tf.geometry.rle import patch_to_rle

# image file -> label image int32 [H, W] and the class id of label k + 1, int [K]
Labeller = Callable[[Path], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class PredictedCells:
    """Asks a network for the cells of one image when they are needed.

    Attributes:
        path: the image.
        label: the network.
        annotated: unknown before it was asked, so 0.
    """

    path: Path
    label: Labeller
    annotated: int = 0

    def read(self, height: int, width: int, file_name: str, faults: Faults) -> list[Cell]:
        """Predict the image; see `CellReader`."""
        labels, classes = self.label(self.path)
        cells = []
        for number, patch in labels_to_patches(labels):
            counts = patch_to_rle(patch, height, width)["counts"].encode("ascii")
            name = f"{file_name} (found {number})"
            cells.append(Cell(name, patch, counts, None, int(classes[number - 1])))
        return cells


def open_pseudo(
    images: Sequence[tuple[Path, str]],
    label: Labeller,
    categories: list[dict[str, Any]],
    about: dict[str, Any],
) -> Source:
    """Open images that a network is to label.

    Args:
        images: file and name in the data set of each.
        label: the network; it is asked image by image, in this process: convert with one worker.
        categories: [{"id", "name"}] by class id of the network.
        about: of the network, for the manifest; not empty.
    """
    assert about, "a manifest without a word on the network would pass for annotated by people"
    tasks = [
        ImageTask(path, name, number, None, "", PredictedCells(path, label))
        for number, (path, name) in enumerate(sorted(images, key=lambda pair: pair[1]), start=1)
    ]
    return Source("pseudo", categories, tasks, pseudo=about)
