"""`python -m effdet_tf synthetic OUT`: write a synthetic data set in LIVECell's layout."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `synthetic` to the command line."""
    parser = subparsers.add_parser(
        "synthetic",
        help="write a synthetic data set in LIVECell's layout",
        description="Write synthetic microscopy images (8-bit tif) with COCO polygons, laid out as "
        "LIVECell is and ready for `convert livecell`. The same arguments give the same bytes.",
        examples=[
            (
                "a small set to try everything on, then its conversion: `convert livecell`",
                "made --train 24 --val 6",
            ),
            ("large images with many cells", "dense --train 4 --val 2 --size 1040 1408 --cells 800 1200"),
            ("rims, bright and dark cells, relief and bright field", "varied --looks varied --train 200"),
        ],
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--train", type=int, default=48, metavar="N", help="training images (default: %(default)s)"
    )
    parser.add_argument(
        "--val", type=int, default=12, metavar="N", help="validation images (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(520, 704), metavar=("H", "W"), help="pixels (default: 520 704)"
    )
    parser.add_argument(
        "--cells",
        type=int,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="cells per image (default: 30 160); of varied looks MAX is the upper bound (default: 600) and "
        "MIN does not count, since some of their fields are empty",
    )
    parser.add_argument(
        "--looks",
        default="phase",
        metavar="LOOKS",
        help="phase: phase contrast on gray; varied: dark cells with bright rims, bright cells, dark cells, "
        "relief (DIC) and bright field on any ground, of 8 to 120 pixels (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all chance (default: %(default)s)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Generate the set and say what was written; returns the exit code."""
    from effdet_tf.data.synthetic.dataset import generate

    report = generate(
        args.out,
        args.train,
        args.val,
        tuple(args.size),
        tuple(args.cells) if args.cells else None,
        seed=args.seed,
        progress=True,
        looks=args.looks,
    )
    splits = ", ".join(
        f"{split} {report.images[split]} images, {report.cells[split]} cells" for split in report.images
    )
    print(f"wrote {args.out}: {splits}")
    return 0
