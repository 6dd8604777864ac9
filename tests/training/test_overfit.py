"""The network learns masks at all: four real crops are learned by heart, judged at full resolution."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.cli import main as effdet_main
from effdet_tf.data.ground_truth import decode_pixels
from effdet_tf.data.record import ImageRecord, iterate_records
from effdet_tf.geometry import MASK_SIZE
from effdet_tf.geometry.masks import mask_to_patch, patch_box, patch_to_bitmap
from effdet_tf.geometry.rle import Patch, patch_to_rle, rle_to_patch
from effdet_tf.images.gray import image_statistics, to_gray
from effdet_tf.images.read import encode_png
from effdet_tf.runs import LOG_FILE
from training.main import main

# Two of cort, one of shsy5y (dense, long), one of astro (large, ragged).
IMAGES = ("01ae5a43a2ab", "053d61766edb", "042c17cd9143", "08f52aa2add3")
SIDE = 256
VISIBLE = 0.25  # of its area; a cell cut to less than this is a sliver that nobody would outline
STEPS = 300


def crop(record: ImageRecord) -> ImageRecord:
    """The middle of a record; the truth stays the annotated outline, pixel by pixel."""
    top, left = (record.height - SIDE) // 2, (record.width - SIDE) // 2
    image = np.ascontiguousarray(decode_pixels(record)[top : top + SIDE, left : left + SIDE])
    mean, std = image_statistics(to_gray(image))
    patches: list[Patch] = []
    for code in record.rles:
        whole = rle_to_patch({"size": [record.height, record.width], "counts": code})
        assert whole is not None
        frame = np.zeros((record.height, record.width), bool)
        h, w = whole.mask.shape
        frame[whole.y : whole.y + h, whole.x : whole.x + w] = whole.mask
        patch = mask_to_patch(frame[top : top + SIDE, left : left + SIDE])
        if patch is not None and patch.mask.sum() >= VISIBLE * whole.mask.sum():
            patches.append(patch)
    boxes = np.array([patch_box(patch) for patch in patches], np.float32).reshape(-1, 4)
    return replace(
        record,
        image=encode_png(image),
        height=SIDE,
        width=SIDE,
        mean=mean,
        std=std,
        boxes=boxes,
        annotated_boxes=boxes,
        classes=np.zeros(len(patches), np.int32),
        masks=np.array([patch_to_bitmap(patch, MASK_SIZE) for patch in patches], np.uint8),
        rles=[patch_to_rle(patch, SIDE, SIDE)["counts"].encode() for patch in patches],
        iscrowd=np.zeros(len(patches), np.uint8),
    )


@pytest.mark.slow
@pytest.mark.real_data
def test_four_real_crops_are_learned_by_heart(
    real_data: Path, write_records: Callable[[Path, Sequence[ImageRecord]], Path], tmp_path: Path
) -> None:
    ids, converted = tmp_path / "ids.txt", tmp_path / "converted"
    ids.write_text("\n".join(IMAGES))
    arguments = ["--ids", str(ids), "--classes", "one", "--workers", "1", "--quiet"]
    assert (
        effdet_main(["convert", "sartorius", str(real_data / "sartorius"), str(converted), *arguments]) == 0
    )
    crops = [crop(record) for record in iterate_records(converted)]
    assert len(crops) == len(IMAGES) and all(len(record.rles) >= 5 for record in crops)
    data, run = str(write_records(tmp_path / "crops", crops)), tmp_path / "run"
    settings = [
        f"data.crops_per_image={STEPS}",
        "augment.scale_range=[1, 1]",
        "augment.flip=false",
        "augment.rot90=false",
        "augment.brightness=0",
        "augment.contrast=[1, 1]",
        "train.learning_rate=2e-3",
        # In so few steps the slow averages of weights and statistics would still remember the start.
        "train.ema=0.9",
        "model.batch_norm_momentum=0.9",
    ]
    given = [word for setting in settings for word in ("--set", setting)]
    common = ["--preset", "cells-lite0", "--epochs", "1", "--batch", "4", "--out", str(run)]
    assert main(["--data", data, "--val", data, *common, *given]) == 0
    with open(run / LOG_FILE, newline="") as file:
        figures = list(csv.DictReader(file))[-1]
    assert int(figures["step"]) == STEPS
    assert float(figures["mask_AP50"]) > 0.9
    assert float(figures["box_AP50"]) > 0.9
