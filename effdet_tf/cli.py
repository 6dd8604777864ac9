"""The command line: `python -m effdet_tf VERB ...`, one module in `effdet_tf.commands` for each verb."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from effdet_tf._version import __version__
from effdet_tf.command_line import exit_code
from effdet_tf.commands import (
    check,
    convert,
    download,
    info,
    pack,
    plate,
    predict,
    pseudo,
    serve,
    synthetic,
    weights,
)

VERBS = (synthetic, download, convert, check, pack, predict, serve, plate, pseudo, info, weights)
"""Each has `add_parser(subparsers)`, which sets `run(args) -> exit code`; heavy imports happen in `run`."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="python -m effdet_tf", description="Find and outline every cell in label-free microscopy."
    )
    parser.add_argument("--version", action="version", version=f"effdet_tf {__version__}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        0 done, 1 failed, 3 some files failed; usage faults leave by SystemExit 2.
    """
    args = build_parser().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is loaded: no start-up chatter
    return exit_code(lambda: args.run(args))
