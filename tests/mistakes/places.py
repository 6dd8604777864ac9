"""Small good things to make mistakes with: images, pairs, COCO files, converted data, a run."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import tifffile

from effdet_tf import cli
from effdet_tf.config import Config
from effdet_tf.geometry.rle import encode_kaggle_rle
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import save_arrays, to_arrays
from effdet_tf.prediction.metadata import METADATA_FILE, describe
from effdet_tf.runs import BEST_FILE, CONFIG_FILE

SIDE = 64


def gray(seed: int) -> np.ndarray:
    """An image of noise, uint8 `[SIDE, SIDE]`."""
    return np.random.default_rng(seed).integers(60, 200, (SIDE, SIDE)).astype(np.uint8)


def labels() -> np.ndarray:
    """Two cells on background, uint16 `[SIDE, SIDE]`."""
    result = np.zeros((SIDE, SIDE), np.uint16)
    result[5:20, 5:20], result[30:50, 25:45] = 1, 2
    return result


def coco() -> dict[str, Any]:
    """A COCO document on a.tif and b.tif with a cell each."""
    return {
        "images": [
            {"id": k, "file_name": f"{name}.tif", "height": SIDE, "width": SIDE}
            for k, name in ((1, "a"), (2, "b"))
        ],
        "annotations": [
            {
                "id": k,
                "image_id": k,
                "category_id": 1,
                "bbox": [5, 5, 15, 15],
                "segmentation": [[5, 5, 20, 5, 20, 20, 5, 20]],
                "iscrowd": 0,
            }
            for k in (1, 2)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }


def write_run(folder: Path, config: Config) -> None:
    """An untrained network as a run."""
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(0)
    config.save(folder / CONFIG_FILE)
    save_arrays(folder / BEST_FILE, to_arrays(build_network(config)))


def write_tflite(path: Path, config: Config) -> None:
    """The head and the description of a TFLite file, without a network."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(METADATA_FILE, json.dumps(describe(config, "float32", (SIDE, SIDE))))
    path.write_bytes(b"\0\0\0\0TFL3" + archive.getvalue())


def build(root: Path, config: Config) -> None:
    """Fill a folder with good things; every mistake is made in a copy of it."""
    for folder in ("images", "cells/images", "cells/masks", "sartorius/train", "LIVECell/images", "empty"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate("ab"):
        tifffile.imwrite(root / "images" / f"{name}.tif", gray(seed))
        tifffile.imwrite(root / "cells" / "images" / f"{name}.tif", gray(seed))
        tifffile.imwrite(root / "cells" / "masks" / f"{name}.tif", labels())
        tifffile.imwrite(root / "LIVECell" / "images" / f"{name}.tif", gray(seed))
    (root / "train.json").write_text(json.dumps(coco()))
    annotations = root / "LIVECell" / "annotations" / "LIVECell" / "livecell_coco_train.json"
    annotations.parent.mkdir(parents=True)
    annotations.write_text(json.dumps(coco()))
    cv2.imwrite(str(root / "sartorius" / "train" / "a.png"), gray(0))
    write_sartorius(root / "sartorius" / "train.csv", SIDE)
    small = ["--workers", "1", "--quiet"]
    assert cli.main(["convert", "labelmaps", str(root / "cells"), str(root / "data"), *small]) == 0
    other = ["--ids", str(root / "ids.txt")]
    (root / "ids.txt").write_text("a")
    assert (
        cli.main(["convert", "sartorius", str(root / "sartorius"), str(root / "typed"), *other, *small]) == 0
    )
    write_run(root / "run", config)
    config.override(["train.batch=1", "train.epochs=1"]).save(root / "tiny.yaml")
    write_tflite(root / "cells.tflite", config)


def write_sartorius(path: Path, side: int) -> None:
    """A train.csv with one cell of image a, which it says to be `side` wide and high."""
    mask = np.zeros((side, side), bool)
    mask[5:20, 5:20] = True
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "annotation", "width", "height", "cell_type"])
        writer.writerow(["a", encode_kaggle_rle(mask), side, side, "shsy5y"])
