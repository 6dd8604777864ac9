"""The command line: `effdet_tf VERB ...`, one module in `effdet_tf.commands` for each verb."""

from __future__ import annotations

import os
from collections.abc import Sequence

from effdet_tf._version import __version__
from effdet_tf.commands import (
    check,
    completion,
    convert,
    download,
    info,
    pack,
    plate,
    predict,
    pseudo,
    report,
    serve,
    suggest,
    synthetic,
    weights,
)
from effdet_tf.commands.parser import Parser, exit_code

VERBS = (
    synthetic,
    download,
    convert,
    check,
    pack,
    predict,
    serve,
    plate,
    pseudo,
    suggest,
    report,
    info,
    weights,
    completion,
)
"""Each has `add_parser(subparsers)`, which sets `run(args) -> exit code`; heavy imports happen in `run`."""


PROGRAM = "effdet_tf"  # the console script; `python -m effdet_tf` does the same
ELSEWHERE = {
    "train": "python -m training.main",
    "evaluate": "python -m training.evaluate",
    "export": "python -m export.main",
}


def build_parser(prog: str = PROGRAM) -> Parser:
    """The parser of all verbs; `prog` is how the user called it, for usage and examples."""
    parser = Parser(
        prog=prog,
        description="Find and outline every cell in label-free microscopy.",
        epilog=f"`{prog} VERB --help` tells of a verb. Training is `python -m training.main`, exporting is "
        "`python -m export.main`.",
    )
    parser.elsewhere = ELSEWHERE
    parser.set_defaults(build_parser=build_parser)  # `completion` describes all of it
    parser.add_argument("--version", action="version", version=f"effdet_tf {__version__}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROGRAM) -> int:
    """Run one verb.

    Args:
        argv: the arguments; None takes those of the process.
        prog: how the command was called.

    Returns:
        0 done, 1 failed, 3 some files failed; usage faults leave by SystemExit 2.
    """
    args = build_parser(prog).parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is loaded: no start-up chatter
    return exit_code(lambda: args.run(args))
