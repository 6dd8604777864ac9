"""Every network on every set of images, each network at the ONE score that it was saved with.

`python benchmarks/generalist.py --run cells cells-large --data sartorius=data/val livecell=data/livecell`
prints one Markdown table a figure: mask AP / AP50 by the LIVECell protocol (%), the Sartorius metric, F1 at
IoU .5, and the mean |found - true| of an image with the mean number of true cells. `--out FILE` keeps all
figures as JSON; a run and set that are in it are not evaluated again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from effdet_tf.files import write_json
from effdet_tf.metrics.evaluation import evaluate_run
from effdet_tf.prediction.load import load


def figures(report: dict[str, Any], score: float) -> dict[str, Any]:
    """What the tables show of one evaluation."""
    group, cells = report["livecell"]["all"], report["cells"]
    return {
        "images": group["images"],
        "cells": group["cells"],
        "score": score,
        "AP": group["segm"]["AP"],
        "AP50": group["segm"]["AP50"],
        **{name: cells["all"][name] for name in ("sartorius", "f1", "count_mean_error", "count_mean_true")},
        "by": {kind: own["sartorius"] for kind, own in cells["by"].items()},
    }


def evaluated(runs: list[str], sets: dict[str, str], out: Path | None) -> dict[str, dict[str, Any]]:
    """Figures by run, then by name of the set."""
    known: dict[str, dict[str, Any]] = {}
    if out is not None and out.is_file():
        known = json.loads(out.read_text(encoding="utf-8"))
    for run in runs:
        missing = {name: folder for name, folder in sets.items() if name not in known.get(run, {})}
        predictor = load(run) if missing else None
        for name, folder in missing.items():
            assert predictor is not None
            score = predictor.config.postprocess.report_score
            print(f"{run} on {name}", file=sys.stderr, flush=True)
            report = evaluate_run(predictor, folder, score_threshold=score, progress=False)
            known.setdefault(run, {})[name] = figures(report, score)
            if out is not None:
                write_json(out, known)
    return known


def _ap(row: dict[str, Any]) -> str:
    return " / ".join("-" if row[name] is None else f"{100 * row[name]:.1f}" for name in ("AP", "AP50"))


def _metric(row: dict[str, Any]) -> str:
    kinds = (
        ", ".join(f"{kind} {value:.3f}" for kind, value in row["by"].items()) if len(row["by"]) > 1 else ""
    )
    return f"{row['sartorius']:.3f}" + (f" ({kinds})" if kinds else "")


TABLES = {
    "Mask AP / AP50, %": _ap,
    "Sartorius metric (by cell type)": _metric,
    "F1 at IoU .5": lambda row: f"{row['f1']:.3f}",
    "Mean |found - true| an image, of how many": lambda row: (
        f"{row['count_mean_error']:.1f} of {row['count_mean_true']:.0f}"
    ),
}


def tables(found: dict[str, dict[str, Any]], runs: list[str], names: list[str]) -> str:
    """The Markdown tables."""
    first = found[runs[0]]
    scores = ", ".join(f"{Path(run).name} {next(iter(found[run].values()))['score']:g}" for run in runs)
    lines = [f"Minimum score of a cell: {scores}."]
    for title, show in TABLES.items():
        lines += ["", f"| {title} | images, cells | {' | '.join(Path(run).name for run in runs)} |"]
        lines.append("|---" * (2 + len(runs)) + "|")
        for name in names:
            size = f"{first[name]['images']}, {first[name]['cells']:,}"
            lines.append(f"| {name} | {size} | {' | '.join(show(found[run][name]) for run in runs)} |")
    return "\n".join(lines)


def main() -> None:
    """Evaluate what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", nargs="+", required=True, help="networks: names of the package, run folders")
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=FOLDER", help="converted sets")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    sets = dict(entry.split("=", 1) for entry in options.data)
    print(tables(evaluated(options.run, sets, options.out), options.run, list(sets)))


if __name__ == "__main__":
    main()
