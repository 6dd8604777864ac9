"""`python -m effdet_tf report RUN`: one HTML file with the figures, charts and pictures of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from effdet_tf.errors import UserError
from effdet_tf.runs import MODELS, find_run


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `report` to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="one HTML file with the figures, charts and pictures of a run or an evaluation",
        description="Write the report of a run folder (RUN/report.html), or of an evaluation "
        "(evaluation-DATA.html beside its JSON), anew; training and evaluation write it at their end. The "
        "file needs nothing else, and can be sent to others; it shows images of the data.",
        examples=[
            ("a run: RUN/report.html", "runs/mine"),
            (
                "an evaluation, whose images lie elsewhere by now",
                "runs/mine/evaluation-test.json --data data/test",
            ),
        ],
    )
    parser.add_argument("source", metavar="RUN", help="run folder, or the JSON of an evaluation")
    parser.add_argument("--out", type=Path, help="HTML to write, in place of the one beside what it tells of")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        help="folder or folders of the converted images of the evaluation, in the order in which they were "
        "evaluated, where they lie elsewhere by now",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write it."""
    source = find_run(args.source)
    if not source.exists():
        raise UserError(
            f"{args.source}: no such file or folder; give a run folder, or the JSON of an evaluation"
        )
    if args.out is None and source.is_relative_to(MODELS):
        raise UserError(f"{args.source}: comes with the package; name a file to write with --out")
    for folder in args.data or []:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of converted images")
    from effdet_tf.report.write import report_on_evaluation, report_on_run

    make = report_on_run if source.is_dir() else report_on_evaluation
    print(f"written: {make(source, args.out, args.data)}")
    return 0
