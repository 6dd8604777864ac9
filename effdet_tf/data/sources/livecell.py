"""LIVECell (Edlund et al. 2021): COCO JSON with the cell type in the file name."""

from __future__ import annotations

import re
from pathlib import Path

from effdet_tf.data.faults import Faults
from effdet_tf.data.livecell_names import CELL_TYPES, SIZE_SPLITS
from effdet_tf.data.sources.base import ImageFinder, Source, number_categories, require_folder
from effdet_tf.data.sources.coco import ClassIds, coco_classes, coco_tasks
from effdet_tf.data.sources.coco_index import index_coco
from effdet_tf.errors import UserError

_BY_FOLDED = {name.casefold(): name for name in CELL_TYPES}
_FILE_NAME = re.compile(r"^([^_]+)_Phase_", re.IGNORECASE)


def cell_type_of(file_name: str) -> str:
    """The cell type in `TYPE_Phase_WELL_LOCATION_TIME_CROP.tif`, or that of the folder; "" when neither says.

    The eight types are recognised in any case and given in LIVECell's own spelling.
    """
    parts = file_name.replace("\\", "/").split("/")
    match = _FILE_NAME.match(parts[-1])
    if match:
        return _BY_FOLDED.get(match[1].casefold(), match[1])
    folder = parts[-2] if len(parts) > 1 else ""
    return _BY_FOLDED.get(folder.casefold(), "")


def find_annotations(root: Path, split: str, cell_type: str | None = None) -> Path:
    """The published annotation file of a split, in the published layout or flat in `annotations` or `root`.

    Args:
        root: the data set's folder.
        split: one of `SPLITS`.
        cell_type: one of the eight, for a single-type set; None for LIVECell-wide and the size splits.

    Returns:
        The file.

    Raises:
        UserError: when there is none; it names where it was looked for.
    """
    if split in SIZE_SPLITS:
        if cell_type:
            raise UserError(f"--split {split} has all cell types; leave --cell-type away")
        names = [f"LIVECell_dataset_size_split/{SIZE_SPLITS[split]}"]
    elif cell_type:
        low = cell_type.lower()
        folder = f"LIVECell_single_cells/{low}"
        names = [f"{folder}/{split}.json", f"{folder}/livecell_{low}_{split}.json"]
    else:
        names = [f"LIVECell/livecell_coco_{split}.json"]
    candidates = [root / "annotations" / name for name in names]
    candidates += [base / Path(name).name for base in (root / "annotations", root) for name in names]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{root}: has no {' or '.join('annotations/' + n for n in names)}; SRC is the folder that holds "
        "annotations/ and images/, or name the file by --annotations"
    )


def open_livecell(
    root: Path,
    scratch: Path,
    split: str = "train",
    cell_type: str | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    classes: str = "one",
) -> Source:
    """Open a LIVECell annotation set.

    Args:
        root: the data set's folder.
        scratch: folder for the scratch file; it must live until the conversion is over.
        split: one of `SPLITS`; unused when `annotations` is given.
        cell_type: one of the eight, for a single-type set.
        annotations: the JSON file instead of the published place.
        images: the image folder instead of `root/images`, or `root` where that is missing.
        classes: "one" takes the file's own categories, "type" the cell types: the eight, or those found
            when the file names hold none of the eight.

    Raises:
        UserError: when a file or folder is missing, or the file is no COCO JSON.
    """
    require_folder(root)
    annotations = annotations or find_annotations(root, split, cell_type)
    images = images or (root / "images" if (root / "images").is_dir() else root)
    faults = Faults()
    finder = ImageFinder(images)
    index = index_coco(annotations, scratch, faults)
    if classes == "one":
        categories, own_ids = coco_classes(index.categories, annotations, faults)
    else:
        found = {cell_type_of(str(entry.get("file_name", ""))) for entry in index.images} - {""}
        names = sorted(found, key=str.casefold) if found.isdisjoint(CELL_TYPES) else list(CELL_TYPES)
        if not names:
            raise UserError(f"{annotations}: no file name holds a cell type; use --classes one")
        categories = number_categories(names)
        by_type = {name.casefold(): class_id for class_id, name in enumerate(names)}

    def classify(file_name: str) -> tuple[str, ClassIds] | None:
        cell_type = cell_type_of(file_name)
        if classes == "one":
            return cell_type, own_ids
        if cell_type.casefold() in by_type:
            return cell_type, by_type[cell_type.casefold()]
        faults.drop("image without a known cell type in its name", file_name, cells=0)
        return None

    tasks = coco_tasks(index, finder, classify, faults)
    return Source("livecell", categories, tasks, faults, masks=not index.boxes_only)
