"""Everything on synthetic cells, from the first pixel to the table: `python -m training.demo`.

It makes images, trains on them, evaluates and predicts with the very commands that a user would run, and
prints them. `python -m training.main` without options is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from effdet_tf import cli
from effdet_tf.commands.parser import Parser
from effdet_tf.data.manifest import MANIFEST_NAME
from effdet_tf.errors import UserError
from training.job import train
from training.options import DEFAULT_PRESET, add_options, training_exit_code, wanted_config
from training.steps import convert, run_step

SYNTHETIC = ("--train", 48, "--val", 8, "--size", 352, 480, "--cells", 15, 70)
MINUTES = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options = build_parser().parse_args(arguments)
    from effdet_tf.report.inventory import command_line

    options.command = command_line("training.demo", arguments)
    return training_exit_code(lambda: run_demo(options))


def run_demo(options: argparse.Namespace) -> None:
    """Make the data, train, evaluate and predict; what is already there is not made again.

    `options` are those of `add_options`, and the `command` that they were given to.

    Raises:
        UserError: for a wrong setting, when a step fails, or in a cluster.
    """
    if os.environ.get("TF_CONFIG"):
        advice = "the demo is for one process: give --data, or unset TF_CONFIG"
        raise UserError(f"TF_CONFIG names a cluster; {advice}")
    wanted_config(options)  # fail early, before the data are made
    out = options.out = options.out or Path("runs/demo")
    source, data, found = out / "images", out / "data", out / "predictions"
    if not (data / "val" / MANIFEST_NAME).exists():
        run_step("effdet_tf", cli.main, ["synthetic", source, *SYNTHETIC])
    for split in ("train", "val"):
        convert("livecell", source, data / split, "--split", split)
    chosen = options.preset or DEFAULT_PRESET
    words = ["check", data / "train", "--preset", chosen, "--out", out / "check.png"]
    run_step("effdet_tf", cli.main, words)
    options.data, options.val, options.pseudo = [data / "train"], [data / "val"], []
    if options.minutes is None and options.epochs is None:
        options.minutes = MINUTES
    # A short training needs many steps more than it needs quiet ones.
    options.batch = options.batch or 4
    options.devices = "1"  # too small for more
    options.set = ["train.evaluate_every=5", *(options.set or [])]
    train(options)
    words = ["predict", "--run", out, *validation_images(source), "--out", found, "--overwrite"]
    run_step("effdet_tf", cli.main, words, shown=6)
    print(
        f"\nLook at {out / 'report.html'} and {found}/*.overlay.png. Next, with images of your own:\n"
        "  python -m effdet_tf convert --help        LIVECell, Sartorius, COCO or label maps\n"
        "  python -m effdet_tf check DATA/train      what is in them, before training\n"
        "  python -m training.main --data DATA/train --val DATA/val --minutes 60 --out runs/mine\n"
        "  python -m effdet_tf predict --run runs/mine IMAGES --out OUT"
    )


def validation_images(source: Path) -> list[Path]:
    """The image files of the synthetic validation split."""
    annotations = source / "annotations" / "LIVECell" / "livecell_coco_val.json"
    names = {image["file_name"] for image in json.loads(annotations.read_text(encoding="utf-8"))["images"]}
    return sorted(path for path in source.rglob("*.tif") if path.name in names)


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m training.demo",
        description=__doc__,
        examples=[("trained for three minutes", "--minutes 3 --out runs/demo")],
    )
    add_options(parser, default_out="runs/demo")
    return parser


if __name__ == "__main__":
    sys.exit(main())
