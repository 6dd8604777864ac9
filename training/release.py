"""Train the network that comes with the package, and pack it: `python -m training.release DATA --out OUT`.

DATA holds `sartorius/` and, for evaluation alone, `livecell/` and `usiigaci/`, as their publishers lay them
out. OUT gets the converted data, the run, and `model/`: what lies in `effdet_tf/models/cells`. Each step that
was done before is left as it is, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.commands.parser import Parser, exit_code, positive
from effdet_tf.commands.predict import share
from effdet_tf.config import load_config
from effdet_tf.data.manifest import MANIFEST_NAME, load_manifest
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write, write_json
from effdet_tf.model.weights import read_arrays, save_arrays
from effdet_tf.runs import BEST_FILE, CARD_FILE, CONFIG_FILE, FIGURES_FILE, config_file, weights_file
from training import main as training_main
from training.steps import convert, run_step

# What the shipped network was trained with beside its preset.
TRAINING: tuple[str, ...] = ("--preset", "cells-lite0", "--batch", "4", "--devices", "1")
TRAINING += ("--set", "train.evaluate_every=1000000")
# The people who annotated the Sartorius images drew half a pixel above what the images show
# (benchmarks/ablations.md). Mirrored and turned images hide that, so the last part goes without them.
UPRIGHT = (
    *("--set", "augment.flip=false", "--set", "augment.rot90=false"),
    *("--set", "train.learning_rate=3e-3"),
)
_EVALUATED = {  # folder of the converted data -> title in the card
    "val": "Sartorius validation images, never trained on",
    "livecell": "LIVECell, zero-shot",
    "usiigaci": "Usiigaci (T98G, 16 bit), zero-shot",
}


_HELP = {
    "upright": "of the parts that follow, without mirrored or turned images (default: one of 70); the "
    "weights at the ends of several are averaged",
    "score": "minimum score of a cell (default: tuned on the validation images)",
    "trained-by": "Markdown for the card that says how the runs of --run were trained (default: this "
    "command)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options = _parse(arguments)
    return exit_code(lambda: _run(options), on_os_error="; what was done before is unharmed")


def _run(options: argparse.Namespace) -> None:
    out = options.out
    _convert(options.data, out / "data")
    if options.run is None:
        data = ("--data", out / "data" / "train", "--val", out / "data" / "val")
        runs: list[Path] = []
        for number, minutes in enumerate([options.minutes, *options.upright]):
            before, own = (runs[-1] if runs else "imagenet"), out / f"part{number + 1}"
            words = [*data, *TRAINING, "--minutes", minutes, "--init", before, "--out", own]
            if number:  # with another seed: the same crops in the same order would teach less
                words += [*UPRIGHT, "--set", f"train.seed={number}"]
            run_step("training.main", training_main.main, [*words, *options.settings])
            runs.append(own)
        options.run = runs[1:]
    pack(options.run, out / "model", options.score)
    from effdet_tf.metrics.evaluation import evaluate_run
    from effdet_tf.prediction.run import load_run

    predictor = load_run(out / "model")
    score = predictor.config.postprocess.report_score
    reports = {}
    for name in _EVALUATED:
        if (out / "data" / name / MANIFEST_NAME).exists():
            print(f"\nevaluating on {name}, cells of score {score:.2f} and more", flush=True)
            reports[name] = evaluate_run(predictor, out / "data" / name, score_threshold=score)
    if "val" in reports:
        write_json(out / "model" / FIGURES_FILE, reports["val"])
    training = f"```\n{_command(options)}\n```"
    if options.trained_by is not None:
        training = options.trained_by.read_text(encoding="utf-8").strip()
    images = load_manifest(out / "data" / "train").images
    card = model_card(options.name, out / "model", reports, training, images)
    with atomic_write(out / "model" / CARD_FILE) as temporary:
        temporary.write_text(card, encoding="utf-8")
    print(f"\n{card}\nwritten: {out / 'model'}")


def _convert(source: Path, data: Path) -> None:
    """Convert the three data sets, those that are there and not converted yet."""
    sartorius, held_out = source / "sartorius", source / "sartorius" / "val_ids.txt"
    if not held_out.is_file():
        raise UserError(f"{held_out}: no such file; it names the images that are kept for validation")
    for name, words in (("train", ["--exclude-ids", held_out]), ("val", ["--ids", held_out])):
        convert("sartorius", sartorius, data / name, "--classes", "one", *words)
    for name, kind, more in (("livecell", "livecell", ["--split", "val"]), ("usiigaci", "labelmaps", [])):
        if (source / name).is_dir():
            convert(kind, source / name, data / name, *more)


def pack(runs: Sequence[Path], out: Path, score: float | None = None) -> None:
    """Copy the configuration of a run and its best weights, kernels in float16.

    The weights of several runs, each of which began where the one before had ended, are averaged: that
    generalises better than either end (Izmailov et al. 2018, arXiv:1803.05407). Biases and batch
    normalisation stay float32: they are small, and variances may leave float16's range.

    Args:
        runs: one trained run or several; the configuration is that of the last.
        out: folder to write.
        score: minimum score of a cell, in place of the last run's.

    Raises:
        UserError: when a run holds no weights, they are of different networks, or a kernel does not fit into
            float16.
    """
    # Where its start lay on the machine that trained it means nothing elsewhere.
    config = load_config(config_file(runs[-1])).replace(train__init="")
    if score is not None:
        config = config.replace(postprocess__report_score=score)
    sets = [read_arrays(weights_file(run)) for run in runs]
    shapes = [{name: value.shape for name, value in arrays.items()} for arrays in sets]
    if any(other != shapes[-1] for other in shapes):
        raise UserError(f"{', '.join(map(str, runs))}: weights of different networks have no mean")
    packed: dict[str, np.ndarray] = {}
    for name in sets[-1]:
        value = np.mean([arrays[name] for arrays in sets], axis=0, dtype=np.float64).astype(np.float32)
        packed[name] = np.asarray(value, np.float16 if value.ndim > 1 else np.float32)
        if not np.isfinite(packed[name]).all():
            raise UserError(f"{runs[-1]}: {name} holds values that float16 cannot; train it again")
    out.mkdir(parents=True, exist_ok=True)
    config.save(out / CONFIG_FILE)
    save_arrays(out / BEST_FILE, packed)


def _command(options: argparse.Namespace) -> str:
    """The command that makes this network again."""
    minutes = ["--minutes", f"{options.minutes:g}", "--upright", *(f"{m:g}" for m in options.upright)]
    score = [] if options.score is None else ["--score", f"{options.score:g}"]
    words = ["DATA", "--out", "release", *minutes, *score, *options.settings]
    return f"python -m training.release {shlex.join(words)}"


def model_card(name: str, model: Path, reports: dict[str, dict[str, Any]], training: str, images: int) -> str:
    """The card, Markdown, of the packed network `name` in the folder `model`.

    `reports` are those of `evaluate_run` by name of the data set, `training` says in Markdown how the network
    is made again, `images` is the number that it was trained on.
    """
    config = load_config(model / CONFIG_FILE)
    arrays = read_arrays(model / BEST_FILE)
    parameters = sum(v.size for name, v in arrays.items() if "moving_" not in name)
    megabytes = (model / BEST_FILE).stat().st_size / 1e6
    rows = []
    for data, report in reports.items():
        groups = report["livecell"]["all"]
        box, mask, cells = groups["bbox"], groups["segm"], report["cells"]
        kinds = ", ".join(f"{kind} {figures['sartorius']:.3f}" for kind, figures in cells["by"].items())
        rows.append(
            f"| {_EVALUATED[data]}: {groups['images']} images, {groups['cells']:,} cells "
            f"| {100 * box['AP']:.1f} / {100 * box['AP50']:.1f} "
            f"| {100 * mask['AP']:.1f} / {100 * mask['AP50']:.1f} / {100 * mask['AP75']:.1f} "
            f"| {100 * mask['AFNR']:.1f} % | {cells['all']['sartorius']:.3f}{f' ({kinds})' if kinds else ''} "
            f"| {cells['all']['f1']:.3f} "
            f"| {cells['all']['count_mean_error']:.1f} of {cells['all']['count_mean_true']:.0f} |"
        )
    template = Path(__file__).with_name("model_card.template").read_text(encoding="utf-8")
    return template.format(
        name=name,
        backbone=config.model.backbone.replace("efficientnet-", "EfficientNet-").replace("lite", "Lite"),
        parameters=f"{parameters:,}",
        megabytes=f"{megabytes:.1f}",
        preset=config.preset,
        zoom=config.data.zoom,
        training=training,
        images=images,
        score=f"{config.postprocess.report_score:.2f}",
        rows="\n".join(rows),
    )


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m training.release",
        description=__doc__,
        examples=[
            ("train, pack and evaluate", "DATA --out release"),
            ("pack the mean of two runs that were trained before", "DATA --out release --run runs/a runs/b"),
        ],
    )
    add, minutes = parser.add_argument, positive(float)
    add("data", type=Path, metavar="DATA", help="folder of the real images")
    add("--out", type=Path, required=True, metavar="OUT", help="folder to work in")
    add("--minutes", type=minutes, default=70.0, help="of the first part of training (%(default)g)")
    add("--upright", type=minutes, nargs="+", default=[70.0], metavar="MINUTES", help=_HELP["upright"])
    add("--score", type=share, metavar="X", help=_HELP["score"])
    add("--run", type=Path, nargs="+", help="trained runs to pack, their mean, in place of training")
    add("--name", default="cells", help="of the network, for the card (default: %(default)s)")
    add("--trained-by", type=Path, metavar="FILE", help=_HELP["trained-by"])
    settings: dict[str, Any] = {"dest": "settings", "action": "extend", "nargs": 1, "default": []}
    add("--set", metavar="KEY=VALUE", help="any setting of the training", **settings)
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = build_parser().parse_args(arguments)
    options.settings = [word for setting in options.settings for word in ("--set", setting)]
    return options


if __name__ == "__main__":
    sys.exit(main())
