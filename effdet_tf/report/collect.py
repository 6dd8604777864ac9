"""What a report is made of: the files of a run folder, or an evaluation's JSON and what lies beside it."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effdet_tf.config import Config, load_config
from effdet_tf.errors import UserError
from effdet_tf.files.untrusted import read_json
from effdet_tf.model.weights import learned_parameters, read_arrays
from effdet_tf.report.examples import read_examples
from effdet_tf.report.validation import is_evaluation, is_work
from effdet_tf.runs import (
    ABOUT_FILE,
    BEST_FILE,
    CONFIG_FILE,
    FIGURES_FILE,
    LAST_FILE,
    LOG_FILE,
    config_file,
    find_run,
)


@dataclass(frozen=True)
class Material:
    """Everything that a report may show; what is unknown is empty or None."""

    name: str  # of the run or the evaluation
    report: dict[str, Any] | None  # of `metrics.scores.Evaluator.report`; None when nothing was evaluated
    data: str = ""  # that it was evaluated on
    history: list[dict[str, float]] = field(default_factory=list)  # rows of the training's log
    config: Config | None = None  # of the network; None where a file of predictions was evaluated
    config_text: str = ""  # as it is written
    parameters: int | None = None  # learned ones of the network
    about: dict[str, Any] = field(default_factory=dict)  # see `inventory.describe_work`
    examples: dict[str, Any] | None = None  # see `examples.write_examples`


def examples_path(figures: Path) -> Path:
    """Where the examples of an evaluation lie, beside its figures."""
    return figures.with_suffix(".examples.json")


def from_run(folder: Path) -> Material:
    """What a run folder holds.

    Raises:
        UserError: when this is no run folder, or a file in it is damaged.
    """
    config = load_config(config_file(folder))
    figures, about_path = folder / FIGURES_FILE, folder / ABOUT_FILE
    about = _json(about_path) if about_path.exists() else {}
    if not is_work(about):
        raise UserError(f"{about_path}: is damaged; remove it")
    return Material(
        name=folder.resolve().name,
        report=_figures(figures) if figures.exists() else None,
        data=", ".join(_folders(about.get("validation"))),
        config=config,
        about=about,
        examples=read_examples(examples_path(figures)) if figures.exists() else None,
        **_of_network(folder),
    )


def from_evaluation(path: Path) -> Material:
    """What an evaluation's JSON holds, and the run that was evaluated where it is still there.

    Raises:
        UserError: when this is no evaluation, or a file is damaged.
    """
    report = _figures(path)
    evaluated = report.get("evaluated") or {}
    of, data = str(evaluated.get("of") or ""), _folders(evaluated.get("data"))
    run = find_run(of) if of else path.parent
    if not run.exists() and Path(of).name == path.parent.resolve().name:
        run = path.parent  # the run was moved, and its evaluation with it
    has_run = (run / CONFIG_FILE).is_file()
    return Material(
        name=f"{Path(of).name} on {', '.join(Path(one).name for one in data)}" if of and data else path.stem,
        report=report,
        data=", ".join(data),
        config=load_config(run / CONFIG_FILE) if has_run else None,
        about=report.get("about") or {},
        examples=read_examples(examples_path(path)),
        **(_of_network(run) if has_run else {}),
    )


def _folders(written: Any) -> list[str]:
    """What a file says of the folders that it is about: one as text, several as a list, or nothing."""
    return list(map(str, written if isinstance(written, list) else [written] if written else []))


def _of_network(folder: Path) -> dict[str, Any]:
    log = folder / LOG_FILE
    weights = [folder / name for name in (BEST_FILE, LAST_FILE) if (folder / name).exists()]
    return {
        "config_text": (folder / CONFIG_FILE).read_text(encoding="utf-8"),
        "history": read_log(log) if log.exists() else [],
        "parameters": learned_parameters(read_arrays(weights[0])) if weights else None,
    }


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a training's log; what is empty or no finite number is left out.

    Raises:
        UserError: when it is no such table.
    """
    rows = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                values = {name: float(value) for name, value in row.items() if name and value}
                rows.append({name: value for name, value in values.items() if math.isfinite(value)})
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: is no log of a training ({error}); remove it") from error
    return rows


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({' '.join(str(error).split())})") from error


def _figures(path: Path) -> dict[str, Any]:
    report = _json(path)
    if not is_evaluation(report):
        advice = "give a run folder, or what `python -m training.evaluate` wrote"
        raise UserError(f"{path}: holds no evaluation, or a damaged one; {advice}")
    return report
