"""Score a trained network, or a file of predictions, on annotated images: `python -m training.evaluate`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from effdet_tf.commands.parser import Parser, exit_code, positive
from effdet_tf.commands.predict import add_view_options, share, with_views
from effdet_tf.data.manifest import load_manifest
from effdet_tf.files import write_json
from effdet_tf.metrics.evaluation import CocoPredictions, Entries, annotated_images, evaluate_run
from effdet_tf.metrics.instances import image_instances, unknown_image
from effdet_tf.metrics.scores import Evaluator, format_table
from effdet_tf.report.collect import examples_path
from effdet_tf.report.examples import FoundScratch, write_examples
from effdet_tf.report.inventory import command_line, describe_work
from effdet_tf.report.write import report_on_evaluation
from effdet_tf.runs import MODELS, find_run
from training.prediction_files import PredictionFile, prediction_writer

BEST = "best"
_HELP = {
    "run": "folder of a trained network, or cells: the network that comes with the package",
    "out": "report, JSON (RUN/evaluation-DATA.json; for a network of the package only where --out says); a "
    "network's predictions and a page with charts and pictures go beside it",
    "score": "minimum score of a cell, or best: the one that is best on these very images, an upper bound "
    "(default: the one that the network was saved with; best for --predictions)",
    "coco": "score by COCO's own protocol, class by class, too (default: for a network that tells classes "
    "apart)",
}


def evaluate_file(
    path: str | Path,
    data_dir: str | Path,
    limit: int | None = None,
    score_threshold: float | None = None,
    coco: bool | None = None,
    keep: Callable[[Entries], object] | None = None,
) -> dict[str, Any]:
    """Score a COCO results file; with `limit`, predictions on the other images are left out.

    `keep` is given the results of each image.

    Raises:
        UserError: for a file that is no COCO results list, or does not fit the images.
    """
    predictions = PredictionFile(path)
    evaluator = Evaluator(load_manifest(data_dir).categories, score_threshold, coco=bool(coco))
    images = 0
    for one in annotated_images(data_dir, limit):
        images += 1
        found, numbers = predictions.take(one.image["id"])
        evaluator.add(image_instances(one.image, one.cells, found, numbers))
        if keep is not None:
            keep(found)
    left = predictions.left()
    if left is not None and limit is None:
        raise unknown_image(*left, images)
    return evaluator.report()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options = _parse(arguments)
    return exit_code(lambda: _run(options), on_os_error="; choose another --out")


def _run(options: argparse.Namespace) -> None:
    began = time.monotonic()
    settings = {"limit": options.limit, "score_threshold": options.score, "coco": options.coco}
    run = None if options.run is None else find_run(options.run)
    if run is not None:
        import effdet_tf

        predictor = effdet_tf.load(run)
        if options.score is None:
            settings["score_threshold"] = predictor.config.postprocess.report_score
        elif options.score == BEST:
            settings["score_threshold"] = None
        predictor = with_views(predictor, options)
        class_mismatch = CocoPredictions(
            predictor.class_names, load_manifest(options.data).categories, options.data
        ).class_mismatch
        if class_mismatch and options.coco is None and not predictor.per_class:
            print(f"warning: {class_mismatch}; all count as one class", file=sys.stderr)
    else:
        settings["score_threshold"] = None if options.score == BEST else options.score
    out = options.out
    if out is None and run is not None and not run.is_relative_to(MODELS):
        # Named after the data: a second set must not replace the figures of the first.
        out = run / f"evaluation-{options.data.resolve().name}.json"
    found = out.with_suffix(".predictions.json") if out is not None and run is not None else None
    with contextlib.ExitStack() as stack:
        writers = []
        if out is not None:
            scratch = stack.enter_context(FoundScratch(settings["score_threshold"]))
            writers.append(scratch.add)
        if found is not None:
            writers.append(stack.enter_context(prediction_writer(found)))

        def keep(entries: Entries) -> None:
            for write in writers:
                write(entries)

        if run is None:
            report = evaluate_file(options.predictions, options.data, keep=keep, **settings)
        else:
            report = evaluate_run(predictor, options.data, keep=keep, **settings)
        print(format_table(report))
        if out is None:
            return
        write_examples(examples_path(out), report, scratch, options.data)
    report["evaluated"] = {
        "data": str(options.data),
        "of": str(options.run or options.predictions),
        "limit": options.limit,
    }
    report["about"] = describe_work(options.command, time.monotonic() - began)
    write_json(out, report)
    print(f"\nwritten: {out}")
    if found is not None:
        print(f"written: {found}")
    print(f"written: {report_on_evaluation(out)}")


def _score(text: str) -> float | str:
    return BEST if text == BEST else share(text)


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
            ("a file of predictions, COCO's results", "--predictions results.json --data data/test"),
        ],
    )
    what, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    what.add_argument("--run", help=_HELP["run"])
    what.add_argument("--predictions", type=Path, help="COCO results file to score instead of a network")
    add("--data", type=Path, required=True, help="folder of converted, annotated images")
    add("--out", type=Path, help=_HELP["out"])
    add("--limit", type=positive(int), help="evaluate on the first LIMIT images only")
    add("--score", type=_score, metavar="X", help=_HELP["score"])
    add("--coco", action=argparse.BooleanOptionalAction, help=_HELP["coco"])
    add_view_options(parser)
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.predictions is not None and (options.tta or tuple(options.tta_scales) != (1.0,)):
        parser.error("--tta and --tta-scales go with --run: predictions are as they are")
    options.command = command_line("training.evaluate", arguments)
    return options


if __name__ == "__main__":
    sys.exit(main())
