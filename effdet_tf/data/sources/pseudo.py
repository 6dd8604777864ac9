"""Images without annotation, labelled by a network: they train beside annotated ones, never evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import Cell, ImageTask, Source, encode_patch
from effdet_tf.geometry.masks import labels_to_patches

# image file -> label image int32 [H, W] and the class id of label k + 1, int [K]
Labeller = Callable[[Path], tuple[np.ndarray, np.ndarray]]


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
        ImageTask(path, name, number, partial(_read_cells, path, label))
        for number, (path, name) in enumerate(sorted(images, key=lambda pair: pair[1]), start=1)
    ]
    return Source("pseudo", categories, tasks, pseudo=about)


def _read_cells(
    path: Path, network: Labeller, height: int, width: int, file_name: str, faults: Faults
) -> list[Cell]:
    """Predict one image; see `CellReader`."""
    labels, classes = network(path)
    return [
        Cell(
            f"{file_name} (found {label})", patch, encode_patch(patch, height, width), int(classes[label - 1])
        )
        for label, patch in labels_to_patches(labels)
    ]
