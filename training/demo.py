"""The default job of `python -m training.main`: synthetic cells from the first pixel to the table.

It runs the very commands that a user would run, and prints them.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from effdet_tf import cli
from effdet_tf.errors import UserError

TRAIN_IMAGES, VALIDATION_IMAGES = 48, 8
SIZE = (352, 480)
CELLS = (15, 70)
MINUTES = 7.0


def run_demo(options: argparse.Namespace) -> None:
    """Make the data, train, evaluate and predict; what is already there is not made again.

    Args:
        options: of `training.main`; `--out`, `--preset`, `--set` and the limits are honoured.

    Raises:
        UserError: when a step fails.
    """
    from effdet_tf.data.manifest import MANIFEST_NAME
    from training.main import train
    from training.options import DEFAULT_PRESET, wanted_config

    wanted_config(options)  # a wrong setting must not come to light after the data are made
    source, data = options.out / "images", options.out / "data"
    if not (data / "val" / MANIFEST_NAME).exists():
        _command(
            "synthetic",
            source,
            "--train",
            TRAIN_IMAGES,
            "--val",
            VALIDATION_IMAGES,
            "--size",
            *SIZE,
            "--cells",
            *CELLS,
        )
        for split in ("train", "val"):
            _command("convert", "livecell", source, data / split, "--split", split, "--overwrite", "--quiet")
    chosen = options.preset or DEFAULT_PRESET
    _command("check", data / "train", "--preset", chosen, "--out", options.out / "check.png")
    options.data, options.val = [data / "train"], data / "val"
    if options.minutes is None and options.epochs is None:
        options.minutes = MINUTES
    # A short training needs many steps more than it needs quiet ones.
    options.batch = options.batch or 4
    options.devices = "1"  # too small for more
    options.set = ["train.evaluate_every=5", *(options.set or [])]
    train(options)
    out = options.out / "predictions"
    _command(
        "predict", "--run", options.out, *validation_images(source), "--out", out, "--overwrite", shown=6
    )
    print(
        f"\nLook at {options.out / 'report.html'} and {out}/*.overlay.png. Next, with images of your own:\n"
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


def _command(verb: str, *arguments: object, shown: int | None = None) -> None:
    """Print and run `python -m effdet_tf VERB ...`."""
    words = [verb, *map(str, arguments)]
    print(f"\n$ python -m effdet_tf {_shorten(words, shown)}", flush=True)
    if cli.main(words) != 0:
        raise UserError(f"the demo stopped at `{verb}`")


def _shorten(words: Sequence[str], shown: int | None) -> str:
    if shown is None or len(words) <= shown:
        return shlex.join(words)
    return f"{shlex.join(words[:shown])} ... {shlex.join(words[-3:])}"
