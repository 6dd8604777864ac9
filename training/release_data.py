"""The data of a release: converted sets by source, images kept for validation, and images to label."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from effdet_tf import cli
from effdet_tf.data.manifest import MANIFEST_NAME
from effdet_tf.errors import UserError
from effdet_tf.files import write_json
from effdet_tf.images.read import IMAGE_SUFFIXES, read_image
from effdet_tf.metrics.tuning import EACH
from training.steps import convert, run_step

# Simulated cells of every look and size, so that no polarity or size belongs to one source.
_SIMULATED = ("--looks", "varied", "--train", "160", "--val", "24", "--seed", "5")
_TEST = "livecell_test_images"  # LIVECell's folder of them
_KEPT = 7  # of so many images of a source of label maps, by name, the last is kept for validation


@dataclass
class ReleaseData:
    """What a release trains on, chooses its score by, and is judged on, each by the name of its source."""

    train: dict[str, Path] = field(default_factory=dict)  # converted, annotated by people or simulated
    val: dict[str, Path] = field(default_factory=dict)  # converted: never trained on
    apart: dict[str, Path] = field(default_factory=dict)  # converted: nothing is chosen by them either
    images: dict[str, Path] = field(default_factory=dict)  # folders of the images of `train`, for a network
    unlabelled: dict[str, Path] = field(default_factory=dict)  # folders of images without annotation

    def looks(self) -> Iterator[Iterator[np.ndarray]]:
        """Pixels of some real images that a network learns from, by source."""
        for folder in {**self.images, **self.unlabelled}.values():
            files = sorted(_files(folder))
            yield (read_image(path) for path in files[:: -(-len(files) // EACH)])


def prepare(source: Path, out: Path) -> ReleaseData:
    """Convert the data sets in `source` to `out`, those that are not converted yet.

    `sartorius/`, with `val_ids.txt`, is the competition's data; `general/NAME/` are label maps, or images
    alone; `livecell/` has LIVECell's layout and validation set, `usiigaci/` judges alone. All but the first
    may be missing.

    Raises:
        UserError: when the competition's data are missing, or something cannot be converted.
    """
    data = ReleaseData()
    _sartorius(source / "sartorius", out, data)
    for folder in sorted(path for path in (source / "general").glob("*") if path.is_dir()):
        if (folder / "masks").is_dir():
            _label_maps(folder, out, data)
        elif (folder / "images").is_dir():
            data.unlabelled[folder.name] = _gather(_files(folder / "images"), out / "images" / folder.name)
    if (source / "livecell").is_dir():
        _livecell(source / "livecell", out, data)
    if (source / "usiigaci").is_dir():
        data.apart["usiigaci"] = out / "usiigaci"
        convert("labelmaps", source / "usiigaci", out / "usiigaci")
    _simulated(out, data)
    return data


def _sartorius(folder: Path, out: Path, data: ReleaseData) -> None:
    held_out = folder / "val_ids.txt"
    if not held_out.is_file():
        raise UserError(f"{held_out}: no such file; it names the images that are kept for validation")
    for name, words in (("train", ["--exclude-ids", held_out]), ("val", ["--ids", held_out])):
        convert("sartorius", folder, out / name, "--classes", "one", *words)
    data.train["sartorius"], data.val["sartorius"] = out / "train", out / "val"
    known = set(held_out.read_text(encoding="utf-8").split())
    pictures = [path for path in _files(folder / "train") if path.stem not in known]
    data.images["sartorius"] = _gather(pictures, out / "images" / "sartorius")
    if (folder / "train_semi_supervised").is_dir():
        more = _gather(_files(folder / "train_semi_supervised"), out / "images" / "unlabelled")
        data.unlabelled["unlabelled"] = more


def _label_maps(folder: Path, out: Path, data: ReleaseData) -> None:
    """Convert a source of label maps; neighbours in time stay on one side, but where the two sides meet."""
    images = sorted(_files(folder / "images"))
    kept = max(len(images) // _KEPT, 1)
    for part, own in (("train", images[:-kept]), ("val", images[-kept:])):
        parted = out / "parted" / folder.name / part
        _gather(own, parted / "images")
        stems = {path.stem for path in own}
        _gather((path for path in _files(folder / "masks") if path.stem in stems), parted / "masks")
        convert("labelmaps", parted, out / f"{folder.name}_{part}", "--source", folder.name)
    data.train[folder.name] = out / f"{folder.name}_train"
    data.val[folder.name] = out / f"{folder.name}_val"
    data.images[folder.name] = out / "parted" / folder.name / "train" / "images"


def _livecell(folder: Path, out: Path, data: ReleaseData) -> None:
    """Part LIVECell as its makers did, or, where only its validation set is there, that one by wells.

    Images that nobody has annotated are labelled, but for test images and those of wells that validate.
    """
    annotations = folder / "annotations" / "LIVECell"
    files = {part: annotations / f"livecell_coco_{part}.json" for part in ("train", "val")}
    if not files["train"].is_file():
        files = _by_wells(files["val"], out / "parted")
    names: dict[str, set[str]] = {}
    for part, sets in (("train", data.train), ("val", data.val)):
        coco = json.loads(files[part].read_text(encoding="utf-8"))
        names[part] = {image["file_name"] for image in coco["images"]}
        if names[part]:
            sets["livecell"] = out / f"livecell_{part}"
            convert(
                "livecell", folder, sets["livecell"], "--annotations", files[part], "--source", "livecell"
            )
    kept = {_well(name) for name in names["val"]}
    pictures = [path for path in _files(folder / "images") if _TEST not in path.parts]
    annotated = [path for path in pictures if path.name in names["train"]]
    others = [path for path in pictures if _well(path.name) not in kept and path.name not in names["train"]]
    for name, found, places in (
        ("livecell", annotated, data.images),
        ("livecell_others", others, data.unlabelled),
    ):
        if found:
            places[name] = _gather(found, out / "images" / name)


def _by_wells(annotations: Path, out: Path) -> dict[str, Path]:
    """Part a COCO file of LIVECell: of each cell type the first half of the wells, by name, validates."""
    coco = json.loads(annotations.read_text(encoding="utf-8"))
    wells: dict[str, list[str]] = {}
    for well in sorted({_well(image["file_name"]) for image in coco["images"]}):
        wells.setdefault(well.split("_")[0], []).append(well)
    kept = {well for own in wells.values() for well in own[: (len(own) + 1) // 2]}
    out.mkdir(parents=True, exist_ok=True)
    files = {part: out / f"livecell_{part}.json" for part in ("train", "val")}
    for part, file in files.items():
        images = [image for image in coco["images"] if (_well(image["file_name"]) in kept) == (part == "val")]
        known = {image["id"] for image in images}
        cells = [cell for cell in coco["annotations"] if cell["image_id"] in known]
        write_json(file, {**coco, "images": images, "annotations": cells})
    return files


def _well(name: str) -> str:
    """TYPE_Phase_WELL of a name of LIVECell."""
    return "_".join(name.split("_")[:3])


def _simulated(out: Path, data: ReleaseData) -> None:
    drawn = out / "simulated"
    if not (out / "simulated_val" / MANIFEST_NAME).exists():
        run_step("effdet_tf", cli.main, ["synthetic", drawn, *_SIMULATED])
    for part in ("train", "val"):
        convert("livecell", drawn, out / f"simulated_{part}", "--split", part, "--source", "simulated")
    data.train["simulated"] = out / "simulated_train"
    # What is drawn must not choose the score from which real cells are reported.
    data.apart["simulated"] = out / "simulated_val"


def _files(folder: Path) -> Iterator[Path]:
    """The images below a folder."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _gather(files: Iterable[Path], folder: Path) -> Path:
    """Link files into a folder, or copy them where links cannot be made; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        place = folder / path.name
        if place.exists():
            continue
        try:
            os.symlink(path.resolve(), place)
        except OSError:
            shutil.copyfile(path, place)
    return folder
