"""`python -m effdet_tf pack DATA ... OUT.npz`: a converted data set for training without TensorFlow."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `pack` to the command line."""
    parser = subparsers.add_parser(
        "pack",
        help="write a converted data set as one file for training without TensorFlow",
        description="Write one or several data sets that `convert` wrote as one compressed .npz of plain "
        "arrays: decoded images, boxes, classes and bitmaps. `python -m training.jax_main` trains on it on a "
        "machine that has JAX and no TensorFlow. All of it is in memory then, and in training.",
        examples=[
            ("one set in one file", "data/train train.npz"),
            ("two sets, and images that a network labelled", "data/a data/b train.npz --pseudo data/pseudo"),
        ],
    )
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="folders that `convert` wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write, .npz")
    add_pseudo_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the file OUT")
    parser.set_defaults(run=run)
    return parser


def add_pseudo_option(parser: argparse.ArgumentParser) -> None:
    """Give a command the option `--pseudo`."""
    text = "images that `python -m effdet_tf pseudo` labelled, to train on as well"
    parser.add_argument("--pseudo", type=Path, nargs="+", default=[], metavar="DIR", help=text)


def run(args: argparse.Namespace) -> int:
    """Read the shards, write the file and say what is in it; returns the exit code."""
    from effdet_tf.data.packed import SUFFIX
    from effdet_tf.errors import UserError

    if args.out.suffix != SUFFIX:
        raise UserError(f"{args.out}: the last name is the file to write, and it must end in {SUFFIX}")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out}: exists already; name another file, or add --overwrite")
    from effdet_tf.files import locked

    with locked(args.out.parent, "packs there", args.out.name):
        return _write(args)


def _write(args: argparse.Namespace) -> int:
    from effdet_tf.data.packed import PackedSet, save_packed
    from effdet_tf.data.store import RecordStore

    store = RecordStore(args.data, sys.maxsize, args.pseudo)
    about = store.class_names, store.category_ids, store.fingerprint, store.masks, store.source_names
    packed = PackedSet(store.to_arrays(), *about)
    save_packed(args.out, packed)
    print(
        f"wrote {args.out}: {packed.images} images, {len(packed.arrays['classes'])} cells, classes "
        f"{', '.join(packed.class_names)}; {args.out.stat().st_size / 1e6:.1f} MB, "
        f"{store.decoded_mb:.0f} MiB in memory"
    )
    return 0
