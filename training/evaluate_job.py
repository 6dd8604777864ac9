"""What `python -m training.evaluate` does: score a network or a file of predictions, and report on it."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from effdet_tf.commands.predict import with_views
from effdet_tf.config import PostprocessConfig, load_config
from effdet_tf.data.annotated import folder_text, open_annotated
from effdet_tf.errors import UserError
from effdet_tf.files import locked, write_json
from effdet_tf.metrics.bootstrap import compare
from effdet_tf.metrics.evaluation import CocoPredictions, Entries, annotated_images, evaluate_run
from effdet_tf.metrics.instances import image_instances
from effdet_tf.metrics.scores import Evaluator, format_table, score_text
from effdet_tf.metrics.tuning import settle, settle_trust
from effdet_tf.prediction.load import load
from effdet_tf.report.collect import examples_path
from effdet_tf.report.examples import FoundScratch, write_examples
from effdet_tf.report.inventory import describe_work
from effdet_tf.report.write import report_on_evaluation
from effdet_tf.runs import MODELS, config_file, find_run
from training.prediction_files import open_predictions, prediction_writer


def _warn_of_few(postprocess: PostprocessConfig) -> None:
    """Say where AP lacks the cells that it would also count."""
    if postprocess.min_score > float(postprocess.calibrated(postprocess.score_threshold)):
        few = f"gives cells of score {postprocess.min_score:g} and more, and AP counts no others"
        advice = "export with --min-score 0 for the figures of the run"
        print(f"warning: this network {few}; {advice}", file=sys.stderr)


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Do what the options of the command say; returns the content of its file `out`, or the tuned score."""
    if options.tune_score:
        return {"report_score": tune_score(find_run(options.run), options.data)}
    began, sets = time.monotonic(), open_annotated(options.data)
    settings = {"limit": options.limit, "score_threshold": options.score, "coco": options.coco}
    run = None if options.run is None else find_run(options.run)
    if run is not None:
        predictor = load(run)
        if options.score is None:
            settings["score_threshold"] = predictor.config.postprocess.report_score
        elif options.score == "best":
            settings["score_threshold"] = None
        _warn_of_few(predictor.config.postprocess)
        predictor = with_views(predictor, options)
        class_mismatch = CocoPredictions(predictor.class_names, sets.categories, sets.title).class_mismatch
        if class_mismatch and options.coco is None and not predictor.per_class:
            print(f"warning: {class_mismatch}; all count as one class", file=sys.stderr)
    else:
        settings["score_threshold"] = None if options.score == "best" else options.score
    out = options.out
    if out is None and run is not None and not run.is_relative_to(MODELS):
        # Named after the data: a second set must not replace the figures of the first.
        out = run / f"evaluation-{'+'.join(folder.resolve().name for folder in sets.folders)}.json"
    found = out.with_suffix(".predictions.json") if out is not None and run is not None else None
    with contextlib.ExitStack() as stack:
        writers: list[Callable[[Entries], None]] = []
        if out is not None:
            scratch = stack.enter_context(FoundScratch(settings["score_threshold"]))
            writers.append(scratch.add)
        if found is not None:
            writers.append(stack.enter_context(prediction_writer(found)))

        def keep(entries: Entries) -> None:
            for write in writers:
                write(entries)

        if run is None:
            report = _judge(options.predictions, sets.folders[0], keep, settings)
        else:
            report = evaluate_run(predictor, options.data, keep=keep, **settings)
        print(format_table(report))
        if out is None:
            return report
        write_examples(examples_path(out), report, scratch, options.data)
    report["evaluated"] = {
        "data": folder_text(options.data),
        "of": str(options.run or options.predictions[0]),
        "limit": options.limit,
    }
    report["about"] = describe_work(options.command, time.monotonic() - began)
    write_json(out, report)
    print(f"\nwritten: {out}")
    if found is not None:
        print(f"written: {found}")
    print(f"written: {report_on_evaluation(out)}")
    return report


def tune_score(run: Path, data: Sequence[Path]) -> float:
    """Choose the score that a run reports cells from on annotated images, and write it into the run.

    Raises:
        UserError: when this is no run folder, or one of the package, or the images tell no score.
    """
    path = config_file(run)
    if run.is_relative_to(MODELS):
        raise UserError(f"{run.name}: comes with the package, its score stays; tune that of a run of yours")
    with locked(run, "chooses its score"):
        before = load_config(path)
        after = settle(run, data)
        settle_trust(run, data)
    scores = [score_text(config.postprocess.report_score) for config in (after, before)]
    how = "calibrated, " if after.postprocess.calibration else ""
    print(f"{path}: {how}cells are reported from score {scores[0]} (it was {scores[1]})")
    return after.postprocess.report_score


def _judge(
    paths: Sequence[Path], data: Path, keep: Callable[[Entries], object], settings: dict[str, Any]
) -> dict[str, Any]:
    """The report of the first predictions, with "compared": the others against them."""
    coco, score = bool(settings["coco"]), settings["score_threshold"]
    categories = open_annotated(data).categories
    evaluators = [Evaluator(categories, score, coco=coco) for _ in paths]
    for path, evaluator in zip(paths, evaluators, strict=True):
        evaluate_predictions(path, data, evaluator, settings["limit"], keep if path is paths[0] else None)
    compared = []
    for path, evaluator in zip(paths[1:], evaluators[1:], strict=True):
        metrics = {name: one._asdict() for name, one in compare(evaluators[0], evaluator).items()}
        compared.append({"first": str(paths[0]), "second": str(path), "metrics": metrics})
    return evaluators[0].report() | ({"compared": compared} if compared else {})


def evaluate_file(
    path: str | Path,
    data_dir: str | Path,
    limit: int | None = None,
    score_threshold: float | None = None,
    coco: bool | None = None,
    keep: Callable[[Entries], object] | None = None,
) -> dict[str, Any]:
    """Score what any tool has found, see `open_predictions`; with `limit`, other images are left out.

    `keep` is given the results of each image.

    Raises:
        UserError: for predictions that cannot be read, or do not fit the images.
    """
    evaluator = Evaluator(open_annotated(data_dir).categories, score_threshold, coco=bool(coco))
    evaluate_predictions(path, data_dir, evaluator, limit, keep)
    return evaluator.report()


def evaluate_predictions(
    path: str | Path,
    data_dir: str | Path,
    evaluator: Evaluator,
    limit: int | None = None,
    keep: Callable[[Entries], object] | None = None,
) -> None:
    """Add predictions to an evaluator; the rest as of `evaluate_file`."""
    predictions = open_predictions(path, open_annotated(data_dir).categories)
    for one in annotated_images(data_dir, limit):
        found, numbers = predictions.take(one.image)
        evaluator.add(image_instances(one.image, one.cells, found, numbers))
        if keep is not None:
            keep(found)
    predictions.close(limit is None)
