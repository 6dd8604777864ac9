"""Equal trainings that differ in one choice, evaluated on the same images, as a Markdown table.

    python benchmarks/ablations.py data/train data/val --out runs/ablations [--only "rate 4e-3; CIoU"]

A variant that is done already is only read. The table has the figures of `benchmarks/ablations.md`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ANCHORS = [
    "anchors.code=center",
    "anchors.ratios=[1,2,0.5]",
    "anchors.sizes=[[11,18],[28,40],[56,80],[112,160]]",
]
IOU = ["assign.method=iou", "assign.negative_iou=0.4"]
SLOW = ["train.learning_rate=1.2e-3"]
# name -> settings on top of the preset and of BASE
VARIANTS: dict[str, list[str]] = {
    "anchors, IoU": [*ANCHORS, *IOU, *SLOW, "data.zoom=1"],
    "points, ATSS": ["assign.method=atss", "assign.candidates=9", *SLOW, "data.zoom=1"],
    "points, task-aligned": [*SLOW, "data.zoom=1"],
    "CIoU": ["loss.box_loss=ciou", *SLOW, "data.zoom=1"],
    "rate 2.5e-3, zoom 1": ["train.learning_rate=2.5e-3", "data.zoom=1"],
    "rate 4e-3, zoom 1": ["data.zoom=1"],
    "rate 1.2e-3": SLOW,
    "rate 2.5e-3": ["train.learning_rate=2.5e-3"],
    "rate 4e-3": [],
    "rate 8e-3": ["train.learning_rate=8e-3"],
    "balance .5": [*SLOW, "data.balance=0.5"],
    "zoom 2, balance .5": [*SLOW, "data.balance=0.5", "data.zoom=2"],
    "mask 32 channels, 16 hidden": ["model.mask.channels=32", "model.mask.hidden=16"],
    "crops of 384, two a step": ["data.crop_size=[384,384]", "train.batch=2"],
    "Lite2": ["model.backbone=efficientnet-lite2"],
    "BiFPN and heads of 96 x 3": ["model.fpn_channels=96", "model.fpn_repeats=3", "model.head_repeats=3"],
}
CENTER = [word for word in ANCHORS if not word.startswith("anchors.sizes")]
# Six passes in place of eight, and what was not compared before.
SHORT: dict[str, list[str]] = {
    "606 steps": [],
    "shared convolutions": ["model.mask.head=convolution", "model.mask.hidden=16"],
    "shared convolutions of 32": ["model.mask.head=convolution", "model.mask.hidden=32"],
    "shared convolutions, mask feature of stride 4": [
        "model.mask.head=convolution",
        "model.mask.hidden=16",
        "model.mask.stride=4",
    ],
    "strides from 8": ["model.backbone_levels=[3,4]", "model.min_level=3", "model.max_level=6"],
    "stem of stride 1": ["model.stem_stride=1"],
    "reference anchors, IoU": [*CENTER, "anchors.sizes=[]", "anchors.from_data=false", *IOU],
    "sized anchors, IoU": [*ANCHORS, *IOU],
    "Huber": ["loss.box_loss=huber", "loss.box_weight=50"],
    "class alone": ["loss.class_loss=focal", "loss.gamma=1.5"],
    "BCE alone": ["loss.mask_dice=0"],
    "mask feature of stride 4": ["model.mask.stride=4"],
    "masks of 14": ["model.mask.size=14"],
    "masks of 56": ["model.mask.size=56"],  # of data converted with --mask-size 56
    "8 instances": ["model.mask.samples=8"],
    "128 instances": ["model.mask.samples=128"],
    "not pretrained": ["train.init=''"],
    "scale .85-1.18": ["augment.scale_range=[0.85,1.18]"],
    "only left and right": ["augment.flip_vertical=false", "augment.rot90=false"],
    "no brightness, no contrast": ["augment.brightness=0", "augment.contrast=[1,1]"],
    "no average": ["train.ema=0"],
    "batch 8": ["train.batch=8"],
    "batch 2": ["train.batch=2"],
}
# The same, but from the network of the package on.
CONTINUED: dict[str, list[str]] = {
    "continued": [],
    "continued, balance .5": ["data.balance=0.5"],
    "continued, never mirrored or turned": [
        "augment.flip=false",
        "augment.flip_vertical=false",
        "augment.rot90=false",
    ],
}
EVERY = {**VARIANTS, **SHORT, **CONTINUED}
START = ["--preset", "cells-lite0", "--init", "imagenet", "--epochs", "8"]
AGAIN = ["--preset", "cells-lite0", "--init", "cells", "--epochs", "20"]
AGAIN += ["--set", "train.learning_rate=2e-3", "--set", "train.ema=0.998"]
BASE = ["train.batch=4", "train.ema=0.995", "data.balance=0", "train.evaluate_every=1000000"]
BASE += ["postprocess.vote_iou=0"]
FILTERS = ["model.mask.head=filters", "model.mask.hidden=8"]  # the presets' mask head when most was measured


def train(name: str, options: argparse.Namespace) -> Path:
    """Train one variant, unless that is done; returns its report."""
    folder = options.out / f"{name.replace(' ', '_').replace(',', '')}-seed{options.seed}"
    report = folder / "metrics.json"
    if report.exists():
        return report
    head = [] if name in CONTINUED else FILTERS
    settings = [*BASE, *head, *EVERY[name], f"train.seed={options.seed}"]
    command = [sys.executable, "-m", "training.main", "--data", options.train, "--val", options.val]
    command += ["--out", folder, *[word for setting in settings for word in ("--set", setting)]]
    command += AGAIN if name in CONTINUED else START
    if name in SHORT:
        command += ["--epochs", "6"]
    elif "train.batch=2" in settings:  # as many steps, half the crops
        command += ["--epochs", "4"]
    command += options.more
    subprocess.run(list(map(str, command)), check=True)
    return report


def figures(report: dict) -> str:
    """The cells of the table that every report fills: APs, AFNR and the Sartorius metric."""
    group, cells = report["livecell"]["all"], report["cells"]
    box, mask = group["bbox"], group["segm"]
    kinds = ", ".join(f"{own['sartorius']:.3f}" for own in cells["by"].values())
    return (
        f"{100 * box['AP']:.1f} / {100 * box['AP50']:.1f} / {100 * box['AP75']:.1f} "
        f"| {100 * mask['AP']:.1f} / {100 * mask['AP50']:.1f} / {100 * mask['AP75']:.1f} "
        f"| {100 * mask['AFNR']:.1f} | {cells['all']['sartorius']:.3f} ({kinds})"
    )


def main() -> None:
    """Train what is asked for and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path, help="converted training images")
    parser.add_argument("val", type=Path, help="converted validation images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", help="names of variants, with semicolons between them (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--more", nargs=argparse.REMAINDER, default=[], help="further words for training.main"
    )
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(";")] if options.only else list(EVERY)
    unknown = sorted(set(names) - set(EVERY))
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; known: {'; '.join(EVERY)}")
    rows = [f"| {name} | {figures(json.loads(train(name, options).read_text()))} |" for name in names]
    print("| | box AP / AP50 / AP75 | mask AP / AP50 / AP75 | AFNR, mask | Sartorius metric (by kind) |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
