"""Pairs of an image and a label map, in two folders or side by side as Cellpose lays them out."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import (
    Cell,
    ImageTask,
    Source,
    annotated_pages,
    axes_of,
    encode_patch,
    list_images,
    number_categories,
    require_folder,
)
from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import labels_to_patches, largest_component
from effdet_tf.images.read import Stack, read_labels
from effdet_tf.images.tif_metadata import Axes

MASK_ENDINGS = (".labels", "_cp_masks", "_masks", "_mask", "_labels", "_label", "_instanseg_prediction")
IMAGE_ENDINGS = ("_img", "_image")
# How many labels fill 8 bits, and the share of them in several pieces that tells of two rounds of numbers.
_ALL_BYTES, _MANY_SPLIT = 250, 0.1
# Share of the largest piece that the others of an only label reach where it stands for several cells.
_ALL_CELLS = 0.5
_PICTURE_ENDING = ".overlay"  # what `predict` writes for people, beside its label maps


def open_labelmaps(root: Path, images: Path | None = None, masks: Path | None = None) -> Source:
    """Open a set of image and label-map pairs with the same stem.

    Without `images` and `masks`: `root/images` with `root/masks`, or, where there are no such folders, `root`
    with x_img.* or x.* beside x_masks.* or x.labels.*. Stacks are pairs of pages.

    Args:
        root: the data set's folder.
        images: folder of the images.
        masks: folder of the label maps.

    Returns:
        The source, of one class "cell".

    Raises:
        UserError: when a folder is missing, only one of two is given, or no pair is found.
    """
    require_folder(root)
    if (images is None) != (masks is None):
        raise UserError("--images and --masks belong together; name both folders, or neither")
    if images is None and (root / "images").is_dir() and (root / "masks").is_dir():
        images, masks = root / "images", root / "masks"
    if images is not None and masks is not None:
        files, labelled = list_images(images), list_images(masks)
    else:
        both = list_images(root)
        files = [path for path in both if not path.stem.endswith(MASK_ENDINGS)]
        labelled = [path for path in both if path.stem.endswith(MASK_ENDINGS)]
    faults = Faults()
    image_files = _by_stem(files, IMAGE_ENDINGS, faults)
    mask_files = _by_stem(labelled, MASK_ENDINGS, faults)
    for stem in sorted(image_files.keys() - mask_files.keys()):
        faults.drop("image without a label map", image_files[stem].name, cells=0)
    for stem in sorted(mask_files.keys() - image_files.keys()):
        faults.drop("label map without an image", mask_files[stem].name, cells=0)
    pairs = sorted(image_files.keys() & mask_files.keys())
    saved = sorted((images or root).glob("*_seg.npy"))
    if saved and not pairs:
        raise UserError(
            f"{saved[0]}: Cellpose's _seg.npy is a pickle, which could run code and is not read; in Cellpose "
            "save the masks as PNG or tif (File > Save masks as PNG/tif)"
        )
    if not pairs:
        raise UserError(
            f"{images or root}: no image has a label map of the same stem; lay them out as images/x.tif and "
            "masks/x.tif, or x_img.tif beside x_masks.tif"
        )
    tasks: list[ImageTask] = []
    for stem in pairs:
        path, labels = image_files[stem], mask_files[stem]
        for page, name in _shared_pages(path, labels, faults):
            tasks.append(ImageTask(path, name, len(tasks) + 1, partial(_read_cells, labels, page), page))
    return Source("labelmaps", number_categories(["cell"]), tasks, faults)


def _read_cells(
    path: Path, page: int | None, height: int, width: int, file_name: str, faults: Faults
) -> list[Cell]:
    """Cut a label map, or a page of one, into cells, each its largest connected piece; see `CellReader`."""
    if page is None:
        labels = read_labels(path)
    else:
        with Stack(path) as stack:
            labels = stack.read_labels(page)
    if labels.shape != (height, width):
        found = f"{labels.shape[0]}x{labels.shape[1]}"
        raise UserError(f"{path}: is {found}, its image {height}x{width}; save both in one size")
    background = 0
    if labels.min() > 0:
        background = _background(labels)
        taken = f": label {background}, on all four sides, is taken for it" if background else ""
        faults.note(f"label map without background: no pixel is 0{taken}", file_name)
    cells = []
    patches = [(label, patch) for label, patch in labels_to_patches(labels) if label != background]
    pieces = [(label, *largest_component(patch)) for label, patch in patches]
    split = sum(stray > 0 for *_, stray in pieces)
    if labels.dtype == np.uint8 and len(pieces) >= _ALL_BYTES and split > _MANY_SPLIT * len(pieces):
        raise UserError(
            f"{path}: has 8 bits and all labels up to 255, {split} of them in several pieces: there were "
            "more cells, whose numbers began again at 0 when it was saved; save it with 16 bits"
        )
    if len(pieces) == 1 and pieces[0][2] > _ALL_CELLS * pieces[0][1].mask.sum():
        raise UserError(
            f"{path}: has one label in several pieces, as a mask of all cells has; give each its own"
        )
    for label, patch, stray in pieces:
        name = f"{file_name} (label {label})"
        if stray:
            faults.note("label in several pieces: the largest is kept", name)
        cells.append(Cell(name, patch, encode_patch(patch, height, width), 0))
    return cells


def _background(labels: np.ndarray) -> int:
    """The label on all four sides of the image that covers most of it; 0 where none is on all of them."""
    sides = [set(np.unique(side).tolist()) for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1])]
    around = sorted(set.intersection(*sides))
    areas = [np.count_nonzero(labels == label) for label in around]
    return around[int(np.argmax(areas))] if around and max(areas) > labels.size / 4 else 0


def _shared_pages(image: Path, labels: Path, faults: Faults) -> list[tuple[int | None, str]]:
    """The pages of an image and its label map; none, noted, where they have not as many."""
    try:
        axes = axes_of(image)
        pages, labelled = axes.pages, axes_of(labels).pages
    except UserError:  # said when the image is converted
        return [(None, image.name)]
    if pages == labelled:
        return annotated_pages(image.name, axes, _marked(labels, axes), faults)
    faults.drop(
        "stack and label stack of another number of pages",
        f"{image.name}: {pages}, {labelled}",
        cells=0,
    )
    return []


def _marked(labels: Path, axes: Axes) -> set[int]:
    """The pages of an image with channels that have labels."""
    if "C" not in axes.letters:
        return set()
    with contextlib.suppress(UserError), Stack(labels) as stack:  # said when the image is converted
        return {page for page in range(axes.pages) if stack.read_labels(page).any()}
    return set()


def _by_stem(files: list[Path], endings: tuple[str, ...], faults: Faults) -> dict[str, Path]:
    """Files by stem without its ending; of two with the same stem the first is used."""
    found: dict[str, Path] = {}
    for path in files:
        if path.stem.endswith(_PICTURE_ENDING):
            continue
        ending = next((e for e in endings if path.stem.endswith(e) and path.stem != e), "")
        if found.setdefault(path.stem.removesuffix(ending), path) is not path:
            faults.drop("two files of one stem: the first is used", path.name, cells=0)
    return found
