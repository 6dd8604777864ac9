"""Pairs of an image and a label map, in two folders or side by side as Cellpose lays them out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import (
    Cell,
    ImageTask,
    Source,
    encode_patch,
    list_images,
    number_categories,
    page_names,
    require_folder,
)
from effdet_tf.errors import UserError
from effdet_tf.geometry.masks import labels_to_patches, largest_component
from effdet_tf.images.read import Stack, read_labels

_MASK_ENDINGS = (".labels", "_cp_masks", "_masks", "_mask", "_labels", "_label")
_IMAGE_ENDINGS = ("_img", "_image")
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
        files = [path for path in both if not path.stem.endswith(_MASK_ENDINGS)]
        labelled = [path for path in both if path.stem.endswith(_MASK_ENDINGS)]
    faults = Faults()
    image_files = _by_stem(files, _IMAGE_ENDINGS, faults)
    mask_files = _by_stem(labelled, _MASK_ENDINGS, faults)
    for stem in sorted(image_files.keys() - mask_files.keys()):
        faults.drop("image without a label map", image_files[stem].name)
    for stem in sorted(mask_files.keys() - image_files.keys()):
        faults.drop("label map without an image", mask_files[stem].name)
    pairs = sorted(image_files.keys() & mask_files.keys())
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
    if labels.min() > 0:
        faults.note("label map without background: no pixel is 0", file_name)
    cells = []
    patches = list(labels_to_patches(labels))
    for label, patch in patches:
        name = f"{file_name} (label {label})"
        patch, stray = largest_component(patch)
        if stray:
            one = "; all have one label: is this a mask and no label map?" if len(patches) == 1 else ""
            faults.note(f"label in several pieces: the largest is kept{one}", name)
        cells.append(Cell(name, patch, encode_patch(patch, height, width), 0))
    return cells


def _shared_pages(image: Path, labels: Path, faults: Faults) -> list[tuple[int | None, str]]:
    """The pages of an image and its label map; none, noted, where they have not as many."""
    try:
        pages, labelled = page_names(image, image.name), page_names(labels, labels.name)
    except UserError:  # said when the image is converted
        return [(None, image.name)]
    if len(pages) == len(labelled):
        return pages
    faults.drop(
        "stack and label stack of another number of pages", f"{image.name}: {len(pages)}, {len(labelled)}"
    )
    return []


def _by_stem(files: list[Path], endings: tuple[str, ...], faults: Faults) -> dict[str, Path]:
    """Files by stem without its ending; of two with the same stem the first is used."""
    found: dict[str, Path] = {}
    for path in files:
        if path.stem.endswith(_PICTURE_ENDING):
            continue
        ending = next((e for e in endings if path.stem.endswith(e) and path.stem != e), "")
        if found.setdefault(path.stem.removesuffix(ending), path) is not path:
            faults.drop("two files of one stem: the first is used", path.name)
    return found
