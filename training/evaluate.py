"""Score a trained network, or a file of predictions, on annotated images: `python -m training.evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effdet_tf.commands.parser import Parser, called, exit_code, positive
from effdet_tf.commands.predict import add_view_options, share
from effdet_tf.report.inventory import command_line

_HELP = {
    "run": "folder of a trained network, or cells: the network that comes with the package",
    "predictions": "what any tool has found, in place of a network: COCO results, a submission (.csv), or a "
    "folder of label maps, Cellpose's _seg.npy, GeoJSON, YOLO or ImageJ files named as the images; of "
    "several the others are compared with the first",
    "out": "report, JSON (RUN/evaluation-DATA.json; for a network of the package only where --out says); a "
    "network's predictions and a page with charts and pictures go beside it",
    "score": "minimum score of a cell, or best: the one that is best on these very images, an upper bound "
    "(default: the one that the network was saved with; best for --predictions)",
    "data": "folder of converted, annotated images, or several of the same classes, evaluated as one set "
    "whose report is split by folder, too",
    "tune-score": "calibrate the scores anew, choose the one that cells are reported from, of the best F1 at "
    "IoU .5, mean over all images, learn what F1 and count to expect of an image, write it into the run and "
    "do nothing else",
    "coco": "score by COCO's own protocol, class by class, too (default: for a network that tells classes "
    "apart)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options = _parse(arguments)

    def run() -> None:
        from training.evaluate_job import evaluate

        evaluate(options)

    return exit_code(run, on_os_error="; choose another --out")


def evaluate(**options: Any) -> dict[str, Any]:
    """Evaluate a network or a file of predictions on annotated images, as `python -m training.evaluate` does.

    `evaluate(run="cells", data="data/test")["ap"]`.

    Args:
        options: those of the command, by name (`python -m training.evaluate --help`).

    Returns:
        The metrics, the content of the file `out`; with `tune_score` `{"report_score"}` alone.

    Raises:
        UserError: for an option that is unknown or wrong, or data that do not fit.
    """
    with called(build_parser(), (), options) as arguments:
        chosen = _parse(arguments)
    from training.evaluate_job import evaluate

    return evaluate(chosen)


def _score(text: str) -> float | str:
    return text if text == "best" else share(text)


_score.__name__ = "number"  # what argparse calls it in its message


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m training.evaluate",
        description=__doc__,
        examples=[
            ("a run on images that it was not trained on", "--run runs/mine --data data/test"),
            (
                "the network of the package, report where one likes",
                "--run cells --data data/test --out cells.json",
            ),
            (
                "two tools on the same images, and how sure their difference is",
                "--predictions cellpose_masks/ results.json --data data/test --out judged.json",
            ),
            (
                "the score that a run reports cells from, chosen on all its sources",
                "--run runs/mine --data data/val data/val2 --tune-score",
            ),
        ],
    )
    what, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    what.add_argument("--run", help=_HELP["run"])
    what.add_argument("--predictions", type=Path, nargs="+", metavar="FOUND", help=_HELP["predictions"])
    add("--data", type=Path, nargs="+", required=True, help=_HELP["data"])
    add("--out", type=Path, help=_HELP["out"])
    add("--limit", type=positive(int), help="evaluate on the first LIMIT images of each folder only")
    add("--score", type=_score, metavar="X", help=_HELP["score"])
    add("--tune-score", action="store_true", help=_HELP["tune-score"])
    add("--coco", action=argparse.BooleanOptionalAction, help=_HELP["coco"])
    add_view_options(parser)
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.predictions is not None and (options.tta or tuple(options.tta_scales) != (1.0,)):
        parser.error("--tta and --tta-scales go with --run: predictions are as they are")
    if options.predictions is not None and len(options.data) > 1:
        parser.error("--predictions goes with one folder: its image ids are those of one set")
    others = {**vars(options), "run": None, "data": None, "tune_score": False}
    if options.tune_score and others != {name: parser.get_default(name) for name in others}:
        parser.error("--tune-score goes with --run and --data alone: it evaluates nothing")
    options.command = command_line("training.evaluate", arguments)
    return options


if __name__ == "__main__":
    sys.exit(main())
