"""Score a trained network, or a file of predictions, on annotated images: `python -m training.evaluate`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from effdet_tf.command_line import exit_code, positive
from effdet_tf.commands.predict import add_view_options, with_views
from effdet_tf.data.record import iterate_records, read_manifest
from effdet_tf.errors import UserError
from effdet_tf.evaluation import evaluate_run, truth_of
from effdet_tf.files import write_json
from effdet_tf.metrics.report import format_table, summarise
from effdet_tf.run_folder import MODELS, find_run

BEST = "best"


def evaluate_file(
    path: str | Path,
    data_dir: str | Path,
    limit: int | None = None,
    score_threshold: float | None = None,
    coco: bool | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score a COCO results file; with `limit`, predictions on the other images are left out.

    Raises:
        UserError: for a file that is no COCO results list, or does not fit the images.
    """
    predictions = read_predictions(path)
    records = islice(iterate_records(data_dir), limit)
    truth = truth_of(records, data_dir, read_manifest(data_dir).categories)
    if limit is not None:
        kept = {image["id"] for image in truth["images"]}
        predictions = [found for found in predictions if found.get("image_id") in kept]
    return summarise(truth, predictions, score_threshold, coco=bool(coco)), predictions


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """Read a COCO results list, or the annotations of a COCO dict.

    Raises:
        UserError: when the file is missing or holds something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if isinstance(found, dict):
        found = found.get("annotations")
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"{path}: not a COCO results file; it must hold a list of predictions")
    return [{"category_id": 1, **entry} for entry in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options = _parse(arguments)
    return exit_code(lambda: _run(options), on_os_error="; choose another --out")


def _run(options: argparse.Namespace) -> None:
    settings = {"limit": options.limit, "score_threshold": options.score, "coco": options.coco}
    run = None if options.run is None else find_run(options.run)
    if run is not None:
        import effdet_tf

        predictor = effdet_tf.load(run)
        if options.score is None:
            settings["score_threshold"] = predictor.config.postprocess.report_score
        elif options.score == BEST:
            settings["score_threshold"] = None
        report, predictions = evaluate_run(with_views(predictor, options), options.data, **settings)
    else:
        settings["score_threshold"] = None if options.score == BEST else options.score
        report, predictions = evaluate_file(options.predictions, options.data, **settings)
    print(format_table(report))
    out = options.out
    if out is None and run is not None and not run.is_relative_to(MODELS):
        # Named after the data: a second set must not replace the figures of the first.
        out = run / f"evaluation-{options.data.resolve().name}.json"
    if out is None:
        return
    report["evaluated"] = {
        "data": str(options.data),
        "of": str(options.run or options.predictions),
        "limit": options.limit,
    }
    write_json(out, report)
    print(f"\nwritten: {out}")
    if options.run is not None:
        found = out.with_suffix(".predictions.json")
        write_json(found, predictions, indent=None)
        print(f"written: {found}")


def _score(text: str) -> float | str:
    return BEST if text == BEST else float(text)


_score.__name__ = "number"  # what argparse calls it in its message


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--run", help="folder of a trained network, or cells: the network that comes with the package"
    )
    what.add_argument("--predictions", type=Path, help="COCO results file to score instead of a network")
    parser.add_argument("--data", type=Path, required=True, help="folder of converted, annotated images")
    parser.add_argument(
        "--out",
        type=Path,
        help="report, JSON (RUN/evaluation-DATA.json; for a network of the package only where --out says); a "
        "network's predictions go beside it",
    )
    parser.add_argument("--limit", type=positive(int), help="evaluate on the first LIMIT images only")
    parser.add_argument(
        "--score",
        type=_score,
        metavar="X",
        help="least score of a cell, or best: the one that is best on these very images, an upper bound "
        "(default: the one that the network was saved with; best for --predictions)",
    )
    parser.add_argument(
        "--coco",
        action=argparse.BooleanOptionalAction,
        help="score by COCO's own protocol, class by class, too (default: for a network that tells classes "
        "apart)",
    )
    add_view_options(parser)
    options = parser.parse_args(arguments)
    if options.predictions is not None and (options.tta or tuple(options.tta_scales) != (1.0,)):
        parser.error("--tta and --tta-scales go with --run: predictions are as they are")
    return options


if __name__ == "__main__":
    sys.exit(main())
