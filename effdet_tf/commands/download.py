"""`python -m effdet_tf download livecell`: bring a published data set here."""

from __future__ import annotations

import argparse
from pathlib import Path

from effdet_tf.data.livecell_names import LICENCE, PUBLISHED, SETS


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `download` to the command line."""
    parser = subparsers.add_parser(
        "download",
        help="bring a published data set here: LIVECell",
        description="Download LIVECell in the layout that `convert livecell` reads: the images (1.3 GB) and "
        "the wanted annotation sets. A broken download goes on where it stopped when the same command is run "
        "again; sizes are verified, and checksums where the server gives them.",
        examples=[
            ("the images and the annotation of all cell types", "livecell --out LIVECell"),
            (
                "annotations alone, of the single types, too",
                "livecell --annotations wide single --no-images --out LIVECell",
            ),
        ],
    )
    add = parser.add_argument
    add("dataset", choices=("livecell",), help="the data set")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    sets = (
        "wide: all types together (default); single: the eight single-type sets; size: 2 to 50 %% of "
        "the training images; counts: images of two types with counts by a fluorescent marker"
    )
    add("--annotations", choices=SETS, nargs="+", default=["wide"], metavar="SET", help=sets)
    add("--no-images", action="store_true", help="annotations alone")
    add("--keep-archives", action="store_true", help="do not remove archives once unpacked")
    add("--mirror", default=PUBLISHED, metavar="URL", help="in place of the publishers' server")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Download and say what is there; returns the exit code."""
    from effdet_tf.data.livecell_files import download_livecell

    print(LICENCE)
    kinds = list(dict.fromkeys(args.annotations))
    base = args.mirror.rstrip("/")
    print(*download_livecell(args.out, kinds, not args.no_images, base, args.keep_archives), sep="\n")
    split = {"wide": "train", "size": "train25percent", "single": "train --cell-type A172"}
    words = next((split[kind] for kind in kinds if kind in split), None)
    if words and not args.no_images:
        print(f"next: python -m effdet_tf convert livecell {args.out} data/train --split {words}")
    return 0
