"""How the situations of mistakes are made, in a copy of what `places.build` makes."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
import tifffile
from pytest import MonkeyPatch

import effdet_tf
from effdet_tf.runs import MODELS
from tests.mistakes import places
from tests.mistakes.mistake import Prepare, run

SMALL = "--workers 1 --quiet"


def masks(make: Any, suffix: str = "tif") -> Prepare:
    """Replace both label maps by `make()`."""

    def prepare(folder: Path, patch: MonkeyPatch) -> None:
        for name in "ab":
            (folder / "cells" / "masks" / f"{name}.tif").unlink()
            cv2.imwrite(str(folder / "cells" / "masks" / f"{name}.{suffix}"), make())

    return prepare


def document(**changes: Any) -> Prepare:
    """Change parts of the COCO document; None leaves one out."""

    def prepare(folder: Path, patch: MonkeyPatch) -> None:
        parts = {name: part for name, part in {**places.coco(), **changes}.items() if part is not None}
        (folder / "train.json").write_text(json.dumps(parts))

    return prepare


def write(name: str, content: Any) -> Prepare:
    """Write a file: bytes, text, or anything else as JSON."""

    def prepare(folder: Path, patch: MonkeyPatch) -> None:
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return prepare


def image(name: str, pixels: np.ndarray) -> Prepare:
    """Write an image; of a tif the pixels as they are."""

    def prepare(folder: Path, patch: MonkeyPatch) -> None:
        if name.endswith(".tif"):
            tifffile.imwrite(folder / name, pixels)
        else:
            cv2.imwrite(str(folder / name), pixels)

    return prepare


def remove(*names: str) -> Prepare:
    """Remove files and folders."""

    def prepare(folder: Path, patch: MonkeyPatch) -> None:
        for name in names:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return prepare


def rgb() -> np.ndarray:
    """A colour picture."""
    return np.stack([places.gray(k) for k in range(3)], axis=-1)


def colour_network(folder: Path, patch: MonkeyPatch) -> None:
    """A run that takes colour images."""
    from effdet_tf.config import load_config

    places.write_run(folder / "colour", load_config(folder / "run" / "config.yaml").replace(data__channels=3))


def cut_tif(folder: Path, patch: MonkeyPatch) -> None:
    """Half a tif."""
    whole = (folder / "images" / "a.tif").read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])


def full_disk(folder: Path, patch: MonkeyPatch) -> None:
    """A disk without room for one more file."""

    def replace(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr("os.replace", replace)


def no_memory(*args: Any, **options: Any) -> Any:
    """What TensorFlow does when a tensor does not fit."""
    raise tf.errors.ResourceExhaustedError(
        None, None, "OOM when allocating tensor with shape[64,256,256,64]\n\t [[a node]] [Op:step]"
    )


def no_memory_to_predict(folder: Path, patch: MonkeyPatch) -> None:
    patch.setattr("effdet_tf.prediction.predictor.Predictor.predict", no_memory)


def no_memory_to_train(folder: Path, patch: MonkeyPatch) -> None:
    patch.setattr("training.trainer.make_step", lambda *args: no_memory)


def missing(*modules: str) -> Prepare:
    """Packages that are not installed."""
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name in modules else found(name, package)

    def prepare(folder: Path, patch: MonkeyPatch) -> None:
        patch.setattr("importlib.util.find_spec", find)
        for module in modules:
            for loaded in [name for name in sys.modules if name.partition(".")[0] == module]:
                patch.delitem(sys.modules, loaded)
            patch.setitem(sys.modules, module, None)
        if hasattr(effdet_tf, "plates"):  # it is imported anew: put the one of now back in the end
            patch.setattr(effdet_tf, "plates", effdet_tf.plates)
        for ours in [name for name in sys.modules if name.startswith("effdet_tf.plates")]:
            patch.delitem(sys.modules, ours)
        patch.delattr("effdet_tf.plates.plate", raising=False)

    return prepare


class NoTraining:
    """Stands in for the trainer where the mistake is told before the first step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.report, self.step = None, 0

    def announce(self) -> None:
        """Say nothing."""

    def run(self) -> None:
        """Do nothing."""


def untrained(folder: Path, patch: MonkeyPatch) -> None:
    patch.setattr("training.trainer.Trainer", NoTraining)
    patch.setattr("training.job._conclude", lambda options, report: None)  # there is no run to report on


def no_gpu(folder: Path, patch: MonkeyPatch) -> None:
    untrained(folder, patch)
    patch.setattr("training.devices._split_cpu", lambda parts: 1)


def one_gpu(folder: Path, patch: MonkeyPatch) -> None:
    patch.setattr("tensorflow.config.list_physical_devices", lambda kind=None: ["a GPU"])


def without_cells(folder: Path, patch: MonkeyPatch) -> None:
    masks(lambda: np.zeros((places.SIDE, places.SIDE), np.uint8))(folder, patch)
    assert run(f"effdet_tf convert labelmaps cells blank {SMALL}") == 0


def renamed_masks(folder: Path, patch: MonkeyPatch) -> None:
    for name in "ab":
        path = folder / "cells" / "masks" / f"{name}.tif"
        path.rename(path.with_name(f"outlined-{name}.tif"))


def unknown_image() -> dict[str, Any]:
    parts = places.coco()
    parts["annotations"][1]["image_id"] = 99
    return parts


def other_names() -> dict[str, Any]:
    parts = places.coco()
    for entry in parts["images"]:
        entry["file_name"] = f"scan-{entry['file_name']}"
    return parts


def other_network(folder: Path, patch: MonkeyPatch) -> None:
    shutil.copy(MODELS / "cells" / "best.npz", folder / "run" / "best.npz")


def other_version(folder: Path, patch: MonkeyPatch) -> None:
    path = folder / "run" / "config.yaml"
    path.write_text(path.read_text().replace("fpn_repeats:", "fpn_layers:"))


def predictions_there(folder: Path, patch: MonkeyPatch) -> None:
    (folder / "found").mkdir()
    (folder / "found" / "summary.csv").write_text("image\n")


def exported(folder: Path, patch: MonkeyPatch) -> None:
    assert run("python -m export.main --run run --formats saved_model --no-parity --out exported") == 0


def other_codes(folder: Path, patch: MonkeyPatch) -> None:
    places.write_sartorius(folder / "sartorius" / "train.csv", 2 * places.SIDE)


FOREIGN = [{"image_id": 77, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}]
