"""`python -m effdet_tf pseudo IMAGES... --out DIR`: label images with a network, to train on them as well."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from effdet_tf.commands.convert import report
from effdet_tf.commands.predict import add_view_options, share, with_views
from effdet_tf.errors import UserError
from effdet_tf.runs import DEFAULT_MODEL

if TYPE_CHECKING:
    from effdet_tf.prediction.results import Result

_HELP = {
    "ignore-from": "cells from this score on that are not labelled become regions that training ignores, so "
    "that what the labels miss is not taught as background (default: none do)",
    "soft": "teach scores and mask probabilities as the network gave them, in place of certain cells",
    "source": "name of the source, by which data.source_share gives it its part of training (default: "
    "%(default)s)",
}


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `pseudo` to the command line."""
    parser = subparsers.add_parser(
        "pseudo",
        help="label images without annotation by a network, to train on them beside annotated ones",
        description="Label images by a trained network and write them as a data set for "
        "`python -m training.main --data DATA --pseudo DIR`. Its manifest says that no person annotated it: "
        "it is refused as --data and --val.",
        examples=[
            (
                "labels by a network of one's own, in eight views",
                "unlabelled/ --out data/pseudo --run runs/mine --tta",
            ),
            (
                "what a large network sees, for a small one to learn from, weak cells too",
                "images/ --out data/taught --run cells-large --soft --score 0.05",
            ),
        ],
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="files, folders and quoted patterns")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    network = "trained network (default: the one that comes with the package, %(default)s)"
    add("--run", dest="run_folder", default=DEFAULT_MODEL, metavar="RUN", help=network)
    score = "label cells with this score or more (default: the one that the network was saved with)"
    add("--score", type=share, metavar="X", help=score)
    add("--ignore-from", type=share, metavar="X", help=_HELP["ignore-from"])
    add("--soft", action="store_true", help=_HELP["soft"])
    add("--source", default="pseudo", metavar="NAME", help=_HELP["source"])
    add_view_options(parser)
    add("--overwrite", action="store_true", help="replace a data set that lies in DIR")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Label, report, and return the exit code."""
    import numpy as np

    from effdet_tf.outputs.jobs import find_images

    jobs = find_images(args.images)  # a wrong name is told at once, not after the model has loaded
    from effdet_tf.data.sources.pseudo import Labeller, open_pseudo
    from effdet_tf.data.writer import WriteOptions, prepare_output, write_records
    from effdet_tf.prediction.load import load

    predictor = with_views(load(args.run_folder), args)
    score = predictor.config.postprocess.report_score if args.score is None else args.score

    lowest = score if args.ignore_from is None else args.ignore_from
    if lowest > score:
        raise UserError(f"--ignore-from {lowest:g} is above the score of a cell, {score:g}; give less")

    # Soft labels teach what the network itself learned, the IoU that it expects, not the chance of a match.
    own = predictor.config.postprocess.uncalibrated if args.soft else np.asarray

    def find(path: Path) -> Result:
        found = predictor.predict(path, lowest)
        return replace(found, scores=own(found.scores).astype(np.float32))

    pairs = zip(predictor.category_ids, predictor.class_names, strict=True)
    categories = [{"id": int(identity), "name": name} for identity, name in pairs]
    about = {
        "network": str(args.run_folder),
        "score": score,
        "flips": args.tta,
        "scales": list(args.tta_scales),
        **({"ignore_from": lowest} if lowest < score else {}),
        **({"soft": True} if args.soft else {}),
    }
    files = [(job.path, job.name + job.path.suffix) for job in jobs]
    labeller = Labeller(find, float(own(score)), args.soft)
    source = open_pseudo(files, labeller, categories, about, args.source)
    with prepare_output(args.out, args.overwrite):
        manifest = write_records(source, args.out, WriteOptions(workers=1))
    print(report(args.out, manifest))
    print(f"labelled by {args.run_folder} from score {score:g} on; train with --pseudo {args.out}")
    return 0
