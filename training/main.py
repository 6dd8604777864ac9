"""Train a network: `python -m training.main`.

Without arguments it makes a small synthetic set, trains on it, evaluates and predicts: the whole
job in minutes on two cores. With --data it does the same on converted images of your own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effdet_tf.commands.pack import add_pseudo_option
from effdet_tf.commands.parser import Parser, called
from training.options import add_options, training_exit_code

_VAL = """converted data to validate on, one folder or several of the same classes, evaluated as one set whose
report is split by folder, too: the score that cells are reported from is chosen on all of their images"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options = _parse(arguments)
    return training_exit_code(lambda: _run(options))


def train(**options: Any) -> Path:
    """Train a network, as `python -m training.main` does: `train(data="data/train", val="data/val")`.

    Args:
        options: those of the command, by name (`python -m training.main --help`): a path, a number or a text;
            a list where it takes several; a dict for `set`, `{"train.batch": 4}`. Without `data` the demo
            runs.

    Returns:
        The folder of the run, which `effdet_tf.load` opens.

    Raises:
        UserError: for an option that is unknown or wrong, unusable data, or a setting that does not fit.
    """
    with called(build_parser(), (), options) as arguments:
        chosen = _parse(arguments)
    _run(chosen)
    return chosen.out


def _run(options: argparse.Namespace) -> None:
    if options.data:
        from training.job import train

        options.out = options.out or Path("runs/train")
        train(options)
    else:
        from training.demo import run_demo

        run_demo(options)


def devices(text: str) -> str:
    """An argparse type: `all`, or how many."""
    if text != "all" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is neither `all` nor a number of devices")
    return text


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m training.main",
        description=__doc__,
        examples=[
            ("everything on synthetic cells, ten minutes", "--out runs/demo"),
            (
                "on images of one's own, for an hour",
                "--data data/train --val data/val --preset cells-lite0 --minutes 60 --out runs/mine",
            ),
            (
                "from the network of the package",
                "--data data/train --val data/val --init cells --minutes 15 --out runs/tuned",
            ),
        ],
    )
    parser.add_argument("--data", type=Path, nargs="+", help="converted training data, one folder or several")
    add_pseudo_option(parser)
    parser.add_argument("--val", type=Path, nargs="+", help=_VAL)
    parser.add_argument(
        "--devices",
        type=devices,
        default="all",
        help="GPUs that share every step: a number, or all (default). A batch that you give is that of all "
        "together; else each takes the batch of the preset, and the learning rate grows with them. Without a "
        "GPU a number splits the CPU, to see that devices do not change the result. With TF_CONFIG in the "
        "environment every process is one worker of a cluster",
    )
    add_options(parser, default_out="runs/train; runs/demo without --data")
    return parser


def _given(arguments: Sequence[str] | None) -> list[str]:
    """The options that were typed, one at its default too, but `--out`, which the demo takes as well."""
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return [f"--{name}" for name in vars(parser.parse_args(arguments)) if name != "out"]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not options.data and (given := _given(arguments)):
        parser.error(
            f"{', '.join(given)}: needs --data, the images to train on; without it only the demo runs, on "
            "images that it makes: `python -m training.demo` takes options for that"
        )
    from effdet_tf.report.inventory import command_line

    options.command = command_line("training.main", arguments)
    return options


if __name__ == "__main__":
    sys.exit(main())
