"""The files of LIVECell, brought here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from effdet_tf.data.download import fetch, unpack
from effdet_tf.data.livecell_names import CELL_TYPES, COUNTED, PUBLISHED, SIZE_SPLITS


def annotation_files(kind: str) -> list[str]:
    """The files of a set, relative to the published folder and to the local one.

    Args:
        kind: one of `SETS`; `counts` has archives of images too.
    """
    if kind == "wide":
        return [f"annotations/LIVECell/livecell_coco_{split}.json" for split in ("train", "val", "test")]
    if kind == "single":
        return [
            f"annotations/LIVECell_single_cells/{name.lower()}/{split}.json"
            for name in CELL_TYPES
            for split in ("train", "val", "test")
        ]
    if kind == "size":
        return [f"annotations/LIVECell_dataset_size_split/{name}" for name in SIZE_SPLITS.values()]
    return [f"nuclear_count_benchmark/{name}{end}" for name in COUNTED for end in ("_counts.json", ".zip")]


def download_livecell(
    out: Path, kinds: Sequence[str], images: bool = True, base: str = PUBLISHED, keep: bool = False
) -> list[Path]:
    """Bring LIVECell into a folder in the layout that `convert livecell` reads.

    What is there is left as it is, so the same call goes on where it was stopped.

    Args:
        out: the folder.
        kinds: of `SETS`.
        images: the images as well (1.3 GB).
        base: a mirror of the published folder.
        keep: keep archives after they were unpacked.

    Returns:
        The files and folders that are there now.

    Raises:
        UserError: see `fetch` and `unpack`.
    """
    names = [name for kind in kinds for name in annotation_files(kind)]
    if images:
        names.append("images.zip")
    result = []
    for name in names:
        path = out / name
        if path.suffix != ".zip":
            fetch(f"{base}/{name}", path)
            result.append(path)
            continue
        # images.zip holds a folder `images`; the others hold their images at the top.
        folder = out if name == "images.zip" else path.with_suffix("")
        done = path.with_name(path.name + ".unpacked")
        target = out / "images" if name == "images.zip" else folder
        if not (done.exists() and target.is_dir()):
            fetch(f"{base}/{name}", path)
            unpack(path, folder)
            done.touch()
        if not keep:
            path.unlink(missing_ok=True)
        result.append(target)
    return result
