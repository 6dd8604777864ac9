"""`python -m effdet_tf check DATA`: what a converted data set holds and what a preset needs for it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `check` to the command line."""
    parser = subparsers.add_parser(
        "check",
        help="look at a converted data set before training",
        description="Read every record of a data set that `convert` wrote and tell: images, cells per image, "
        "cell types, sizes, the faults that were found, and for a preset the anchor recall it can reach, "
        "suggested anchors and max_instances.",
        examples=[
            ("what is in there, and a picture of it", "data/train --out look.png"),
            ("does another preset suit these cells", "data/train --preset cells-lite2"),
        ],
        epilog="exit codes: 0 done, 1 the data set is missing or damaged, 2 wrong usage",
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder that `convert` wrote")
    add("--preset", default="cells-lite0", metavar="P", help="preset to check against (default: %(default)s)")
    picture = "also write a picture of a few images with their outlines"
    add("--out", type=Path, metavar="PNG", help=picture)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the report, then write the picture; returns the exit code."""
    from effdet_tf.data import check
    from effdet_tf.presets import preset

    config = preset(args.preset)
    report = check.read_report(args.data)
    print("\n".join(check.describe(report)), flush=True)
    print("\n".join(check.describe_preset(report, config)))
    if args.out is not None:
        names = check.write_overlay(args.data, args.out)
        print(f"wrote {args.out}: {', '.join(names)}")
    return 0
