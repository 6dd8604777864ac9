"""Peak memory and time of dense images: `python benchmarks/memory.py [train] [predict] [--presets P ...]`.

Training: 512 x 512 crops, batch 4, 700 cells in each (`--cells`), ended by a validation. Prediction: one
704 x 520 image with 1,500 cells by the whole command, files included. Each row is measured in a process of
its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
KINDS = ("train", "predict")
HEADER = {
    "train": "| preset | cells an image | steps | median s/step | first step, s | the rest, s | peak RSS |",
    "predict": "| preset | cells found | cells written | first image, s | second image, s | peak RSS |",
}


def main() -> None:
    """Print one table for each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="train, predict (default: both)")
    parser.add_argument("--presets", nargs="+", default=["cells-lite0", "cells-d0"])
    parser.add_argument("--steps", type=int, default=8, help="of training (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=700, help="in a crop (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for training")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with tempfile.TemporaryDirectory() as folder:
            measure = {
                "train": lambda: train(args.presets[0], args.steps, Path(folder), args.cells, args.set)
            }
            measure["predict"] = lambda: predict(args.presets[0], Path(folder))
            measure[args.child]()
        return
    for kind in args.kinds or KINDS:
        header = HEADER[kind]
        print(f"\n{header}\n" + "|---" * (header.count("|") - 1) + "|", flush=True)
        for preset in args.presets:
            command = [sys.executable, __file__, "--child", kind, "--presets", preset]
            command += [word for setting in args.set for word in ("--set", setting)]
            command += ["--steps", str(args.steps), "--cells", str(args.cells)]
            subprocess.run(command, check=True)


def peak() -> str:
    """Most memory that this process ever held."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"


def scene(height: int, width: int, cells: int, seed: int) -> tuple[np.ndarray, list]:
    """An image uint8 of dark cells with bright rims on a jittered lattice, and their patches."""
    import cv2

    from effdet_tf.geometry.masks import mask_to_patch
    from effdet_tf.geometry.rle import Patch

    rng = np.random.default_rng(seed)
    columns = int(np.ceil(np.sqrt(cells * width / height)))
    rows = -(-cells // columns)
    pitch = np.array([height / rows, width / columns])
    image = rng.normal(128, 6, (height, width)).astype(np.float32)
    patches: list[Patch] = []
    for number in range(cells):
        y, x = (np.array(divmod(number, columns)) + 0.5 + rng.uniform(-0.1, 0.1, 2)) * pitch
        radii = tuple(int(r) for r in pitch[::-1] * rng.uniform(0.35, 0.48, 2))
        mask = np.zeros((height, width), np.uint8)
        cv2.ellipse(mask, (int(x), int(y)), radii, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        patch = mask_to_patch(mask.astype(bool))
        assert patch is not None
        patches.append(patch)
        image[mask > 0] -= 30
        cv2.ellipse(image, (int(x), int(y)), radii, 0, 0, 360, 190, 1)
    return np.clip(image, 0, 255).astype(np.uint8), patches


def write_data(folder: Path, images: int, side: int, cells: int) -> Path:
    """A converted data set of generated images."""
    import tensorflow as tf

    from effdet_tf.data.manifest import Manifest
    from effdet_tf.data.record import MASK_SIZE, ImageRecord, serialize
    from effdet_tf.geometry.masks import patch_box, patch_to_bitmap
    from effdet_tf.geometry.rle import patch_to_rle
    from effdet_tf.images.gray import image_statistics
    from effdet_tf.images.read import encode_png

    folder.mkdir()
    sizes: list[list[float]] = []
    with tf.io.TFRecordWriter(str(folder / "one.tfrecord")) as writer:
        for number in range(images):
            image, patches = scene(side, side, cells, number)
            boxes = np.array([patch_box(patch) for patch in patches], np.float32)
            sizes += (boxes[:, 2:] - boxes[:, :2]).tolist()
            mean, std = image_statistics(image.astype(np.float32))
            record = ImageRecord(
                image=encode_png(image),
                height=side,
                width=side,
                channels=1,
                bit_depth=8,
                mean=mean,
                std=std,
                boxes=boxes,
                annotated_boxes=boxes,
                classes=np.zeros(cells, np.int32),
                masks=np.array([patch_to_bitmap(patch, MASK_SIZE) for patch in patches]),
                rles=[patch_to_rle(patch, side, side)["counts"].encode() for patch in patches],
                iscrowd=np.zeros(cells, np.uint8),
                image_id=number + 1,
                file_name=f"{number}.png",
                source="generated",
                cell_type="",
            )
            writer.write(serialize(record))
    Manifest(
        source="generated",
        categories=[{"id": 1, "name": "cell"}],
        shards=[{"file": "one.tfrecord", "images": images, "cells": images * cells, "sha256": ""}],
        images=images,
        cells=images * cells,
        max_cells=cells,
        cells_per_image={},
        image_statistics={},
        cell_sizes=sizes[:4096],
        cell_types={},
        dropped={},
        notes={},
        mask_size=MASK_SIZE,
    ).save(folder)
    return folder


def train(name: str, steps: int, folder: Path, cells: int, settings: list[str]) -> None:
    """Print the row of a training with validation; scale 1, so that every crop holds all cells."""
    from effdet_tf.data.store import RecordStore
    from effdet_tf.presets import preset
    from training.options import resolve
    from training.trainer import Trainer

    data = write_data(folder / "data", 4, 512, cells)
    config = preset(name).override(
        [
            "data.crop_size=[512, 512]",
            f"data.crops_per_image={steps}",
            "data.zoom=1",
            "augment.scale_range=[1, 1]",
            "train.batch=4",
            "train.epochs=1",
            "postprocess.score_threshold=0",  # validation meets as many cells as it may
            *settings,
        ]
    )
    store = RecordStore(data)
    val = write_data(folder / "val", 1, 512, cells)
    trainer = Trainer(resolve(config, store), store, folder, val)
    step, seconds, used = trainer.step_function, [], []

    def timed(batch: dict, *rest: object) -> object:
        started = time.perf_counter()
        figures = step(batch, *rest)
        figures.numpy()
        seconds.append(time.perf_counter() - started)
        used.append(int((batch["classes"].numpy() >= 0).sum(1).min()))
        return figures

    trainer.step_function = timed
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # the table stands alone on stdout
        trainer.run()
    rest = time.perf_counter() - started - sum(seconds)
    print(
        f"| {name} | {min(used)} | {len(seconds)} | {np.median(seconds[1:]):.2f} | {seconds[0]:.0f} | "
        f"{rest:.0f} | {peak()} |",
        flush=True,
    )


def predict(name: str, folder: Path) -> None:
    """Print the row of two predictions of the same image.

    The network has random weights and a threshold of 0, so that it reports as many cells as it may; those
    that are written are the 1,500 of the image, as random outlines would hide each other.
    """
    import cv2

    from effdet_tf.geometry.masks import patch_box, patch_to_bitmap
    from effdet_tf.model.network import build_network
    from effdet_tf.outputs.batch import predict_files
    from effdet_tf.outputs.jobs import find_images
    from effdet_tf.prediction.results import Result
    from effdet_tf.prediction.run import RunPredictor
    from effdet_tf.presets import preset

    image, patches = scene(520, 704, 1500, 0)
    for number in range(2):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    config = preset(name).override(["postprocess.score_threshold=0", "postprocess.nms_iou=0.9"])
    boxes = np.array([patch_box(patch) for patch in patches], np.float32)
    written = Result(
        boxes=boxes,
        scores=np.linspace(1, 0.5, len(boxes), dtype=np.float32),
        classes=np.zeros(len(boxes), np.int32),
        masks=np.array([patch_to_bitmap(patch, 28) for patch in patches]),
        mask_boxes=boxes,
        height=520,
        width=704,
        class_names=("cell",),
    )

    class Dense(RunPredictor):
        found: list[int] = []

        def predict(self, image: np.ndarray) -> Result:  # type: ignore[override]
            result = super().predict(image)
            result.to_coco(1, [1])
            self.found.append(len(result))
            return written

    predictor = Dense(build_network(config), config)
    times, cells = [], 0
    for number in range(2):
        started = time.perf_counter()
        report = predict_files(predictor, find_images([folder / f"{number}.png"]), folder / f"out{number}")
        times.append(time.perf_counter() - started)
        cells = report.cells
    assert min(predictor.found) >= 1500, predictor.found
    row = [name, min(predictor.found), cells, *(f"{seconds:.1f}" for seconds in times), peak()]
    print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
