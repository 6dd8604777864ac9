"""`python -m effdet_tf suggest IMAGES... --out DIR`: what to annotate next, as crops to correct."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from effdet_tf.commands.parser import between, positive
from effdet_tf.commands.predict import add_size_options, sizing_of
from effdet_tf.runs import DEFAULT_MODEL

_DESCRIPTION = """\
Choose the parts of images whose annotation would help a network most, and write them as crops with its
own outlines, to be corrected:
  images/NAME.tif   the crop, with the values of the image
  masks/NAME.tif    label map: 0 is background, cell k has the value k; correct it in napari or Fiji
  suggested.csv     a row for each crop, the most useful first: file, page, place, cells, cells in doubt
  cells.csv         the cells in doubt (scores of .15 to .85), least sure first: look at these; label 0
                    where the network sees something that is not in the mask

A crop is chosen where the network is in doubt of many cells, and where it looks like many other parts
that are not annotated yet. Correct every mask, cells that are missing too, before you train on them:
python -m effdet_tf convert labelmaps DIR data/mine
python -m training.main --data data/mine --val data/kept --init cells --out runs/mine
Then suggest again with --run runs/mine --done DIR. data/kept are images that you annotated apart from
those; without them scores are not calibrated, and doubts less sure."""
_NOT_CALIBRATED = (
    "note: the scores of this network are not calibrated, so its doubts are less sure; `python -m "
    "training.evaluate --run RUN --data VALIDATION --tune-score` calibrates them"
)
_HELP = {
    "run": "trained run or export, which is to learn (default: the network that comes with the package, "
    "%(default)s)",
    "count": "crops to write (default: %(default)s)",
    "side": "side of a crop, px; images up to a quarter larger are taken whole (default: %(default)s)",
    "done": "folders of earlier suggestions, annotated by now: what they show is not suggested again, "
    "but for crops whose mask was deleted",
    "channel": "of files with several: number from 1, name, or all, as for predict",
}


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `suggest` to the command line."""
    parser = subparsers.add_parser(
        "suggest",
        help="choose what to annotate next: crops with the network's outlines to correct",
        description=_DESCRIPTION,
        examples=[
            ("ten crops of a folder of images", "images/ --out next"),
            (
                "five more, for a network that was trained on those",
                "images/ --out more --count 5 --run runs/mine --done next",
            ),
        ],
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="files, folders and quoted patterns")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write, a new one")
    add("--run", dest="run_folder", default=DEFAULT_MODEL, metavar="RUN", help=_HELP["run"])
    add("--count", type=positive(int), default=10, metavar="N", help=_HELP["count"])
    add("--side", type=between(64, 8192, int), default=512, metavar="PX", help=_HELP["side"])
    add("--done", type=Path, nargs="+", default=(), metavar="DIR", help=_HELP["done"])
    add("--channel", metavar="N", help=_HELP["channel"])
    add_size_options(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Choose and write, say what and where, and return the exit code."""
    from effdet_tf.outputs.jobs import find_images

    jobs = find_images(args.images)  # a wrong name is told at once, not after the model has loaded
    sizing = sizing_of(args)
    from effdet_tf.outputs.suggested import CELLS, suggest_crops
    from effdet_tf.prediction.load import load

    predictor = load(args.run_folder)
    if not predictor.config.postprocess.calibration:
        print(_NOT_CALIBRATED, file=sys.stderr)
    report = suggest_crops(
        predictor,
        jobs,
        args.out,
        count=args.count,
        side=args.side,
        done=args.done,
        sizing=sizing,
        channel=args.channel,
        progress=True,
    )
    for folder in report.strangers:
        print(f"warning: {folder}: no crop of it is of these images; were they moved?", file=sys.stderr)
    if report.own:
        print(f"left out: {report.own} crops and masks of earlier suggestions", file=sys.stderr)
    if report.images:
        print(
            f"{len(report.crops)} crops of {report.images} images, {report.cells} cells outlined, "
            f"{report.in_doubt} in doubt: {report.out}"
        )
    if report.crops:
        print(f"correct {report.out / 'masks'}, {CELLS} says where to look first; then convert labelmaps")
    if len(report.crops) < args.count and report.images:
        few = f"{len(report.crops)} crops and no more"
        unread = ", or could not be read" if report.failed else ""
        print(f"warning: {few}: the rest overlaps those, or annotated ones{unread}", file=sys.stderr)
    if report.failed:
        print(f"error: {len(report.failed)} images could not be looked at", file=sys.stderr)
    return report.exit_code
