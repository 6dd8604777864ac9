"""Train the networks that come with the package, and pack them: `python -m training.release DATA --out OUT`.

DATA holds folders of data sets: `sartorius/`, and where they are there `general/NAME/` (label maps, or images
without annotation), `livecell/`, and `usiigaci/`, which only judges. OUT gets the converted data, the runs,
and `model/NAME/`, what lies in `effdet_tf/models`. `cells-large` comes first and labels all images; `cells`
learns from those labels as well. Training goes in parts; each step that was done before is left as it is, so
the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from effdet_tf import cli
from effdet_tf.commands.parser import Parser, exit_code, positive
from effdet_tf.commands.predict import share
from effdet_tf.config import TrustConfig, load_config
from effdet_tf.data.manifest import MANIFEST_NAME, load_manifest
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write, write_json
from effdet_tf.metrics.scores import percent, score_text
from effdet_tf.model.weights import read_arrays, save_arrays
from effdet_tf.runs import BEST_FILE, CARD_FILE, CONFIG_FILE, FIGURES_FILE, config_file, weights_file
from training import main as training_main
from training.release_data import ReleaseData, prepare
from training.steps import run_step


class Recipe(NamedTuple):
    """How a network of the package is trained."""

    preset: str
    rate: str  # learning rate of the parts after the first
    sartorius: float  # share of the crops
    labels: tuple[str, ...]  # further options of `pseudo`, whose labels it learns from as well


# The large network comes first: it labels what the other learns from. To learn from itself, it looks in eight
# views at what nobody has annotated.
RECIPES = {
    "cells-large": Recipe("cells-lite2", "1e-3", 0.35, ("--tta",)),
    "cells": Recipe("cells-lite0", "3e-3", 0.3, ()),
}
# Shares of the simulated cells, of LIVECell, where colonies are learned, and of each further source.
_SIMULATED, _LIVECELL, _SOURCE = 0.1, 0.18, 0.055
# Crops that hold cells of 100 px, seen at half to nearly twice their size, as other microscopes might show
# them. The people who annotated the Sartorius images drew half a pixel above what the images show
# (benchmarks/ablations.md); turned images would hide that.
_SETTINGS = {
    "train.evaluate_every": 1000000,
    "train.keep_better": False,  # the validation images of a part are those of one source
    "train.evaluate_images": 1,  # the score is chosen afterwards, on the images of all sources
    "data.normalization": "content",
    "train.weight_decay": 0.01,
    "data.crop_size": [320, 320],
    "data.crops_per_image": 4,
    "data.balance": 0.25,
    "augment.scale_range": [0.5, 1.8],
    "augment.flip_vertical": False,
    "augment.rot90": False,
    "augment.gamma": [0.7, 1.5],
    "augment.blur": 1,
    "augment.noise": 0.25,
    "augment.jpeg": 40,
    "augment.vignette": 0.6,
}
_TITLES = {
    "sartorius": "Sartorius validation images",
    "livecell": "LIVECell",
    "usiigaci": "Usiigaci (T98G, 16 bit)",
}
_TERMS = {  # of the sources, for the card
    "sartorius": "Kaggle 2021: SH-SY5Y, astrocytes, neurons, phase contrast; non-commercial research",
    "unlabelled": "of the same competition, without annotation: non-commercial research",
    "psc": "Cell Tracking Challenge PhC-C2DL-PSC, phase contrast: research, with citation",
    "u373": "Cell Tracking Challenge PhC-C2DH-U373, phase contrast: research, with citation",
    "hela_dic": "Cell Tracking Challenge DIC-C2DH-HeLa, DIC: research, with citation",
    "cho_dic": "BBBC030 CHO cells, DIC: cite Koos et al. 2016",
    "livecell": "LIVECell: CC BY-NC 4.0",
    "livecell_unannotated": "LIVECell, without annotation: CC BY-NC 4.0",
    "livecell_others": "LIVECell, without annotation: CC BY-NC 4.0",
    "simulated": "drawn by `effdet_tf synthetic --looks varied`: CC0",
}
_HELP = {
    "large-minutes": "of the parts in which cells-large is trained; the weights at the ends of all but the "
    "first are averaged",
    "small-minutes": "likewise of cells",
    "large-init": "what cells-large starts from (default: %(default)s)",
    "small-init": "what cells starts from (default: %(default)s)",
    "score": "minimum score of a cell, without calibration (default: calibrated, and the best mean F1 on the "
    "validation images of all sources)",
    "run": "trained runs to pack as --name, their mean, in place of training",
    "trained-by": "Markdown for the card that says how the runs of --run were trained (default: this "
    "command)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options = _parse(arguments)
    return exit_code(lambda: _run(options), on_os_error="; what was done before is unharmed")


def _run(options: argparse.Namespace) -> None:
    data = prepare(options.data, options.out / "data")
    if options.run is not None:
        _finish(options.name, options.run, data, options)
        return
    plans = {"cells-large": (options.large_minutes, options.large_init)}
    plans["cells"] = (options.small_minutes, options.small_init)
    for name, (minutes, start) in plans.items():
        runs = _train(name, minutes, start, data, options)
        _finish(name, runs[1:] or runs, data, options)


def _train(
    name: str, minutes: Sequence[float], start: str, data: ReleaseData, options: argparse.Namespace
) -> list[Path]:
    """Train a network in parts, each from the end of the one before; returns their runs."""
    recipe, runs = RECIPES[name], list[Path]()
    for number, length in enumerate(minutes):
        before = str(runs[-1]) if runs else start
        own = options.out / f"{name}-part{number + 1}"
        known = before != "imagenet"
        if name == "cells":
            labels = _labelled(name, options.out / "model" / "cells-large", data, options.out)
        else:  # by itself, once it knows anything
            labels = _labelled(name, Path(before), data, options.out) if known else []
        # A part goes on with the network of the part before, anchors and all.
        words: list[object] = [] if known else ["--preset", recipe.preset]
        words += ["--batch", 4, "--devices", 1]
        words += ["--data", *data.train.values(), *(["--pseudo", *labels] if labels else [])]
        words += ["--val", data.val["sartorius"], "--minutes", length, "--init", before, "--out", own]
        settings: dict[str, Any] = {**_SETTINGS, "data.source_share": _shares(recipe, data)}
        settings["train.seed"] = number  # with the same one, the same crops would come in the same order
        if known:
            settings["train.learning_rate"] = recipe.rate
        for key, value in settings.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        run_step("training.main", training_main.main, [*words, *options.settings])
        runs.append(own)
    return runs


def _shares(recipe: Recipe, data: ReleaseData) -> dict[str, float]:
    """`data.source_share`: what a network labelled shares the rest."""
    own = {"sartorius": recipe.sartorius, "simulated": _SIMULATED, "livecell": _LIVECELL}
    return {name: own.get(name, _SOURCE) for name in data.train}


def _labelled(name: str, network: Path, data: ReleaseData, out: Path) -> list[Path]:
    """Images that a network has labelled for the one of this name, the annotated ones for the small one."""
    folders = []
    for source, images in {**data.unlabelled, **(data.images if name == "cells" else {})}.items():
        folder = out / f"{name}-labels" / source
        if not (folder / MANIFEST_NAME).exists():
            about = ["--run", network, "--source", f"labelled_{source}", "--out", folder, "--overwrite"]
            words = ["pseudo", images, *about, "--score", "0.05", "--soft", *RECIPES[name].labels]
            run_step("effdet_tf", cli.main, words)
        folders.append(folder)
    return folders


def _finish(name: str, runs: Sequence[Path], data: ReleaseData, options: argparse.Namespace) -> None:
    """Pack the mean of runs, choose its score, evaluate it on every set, and write its card."""
    model = options.out / "model" / name
    pack(runs, model)
    from effdet_tf.metrics.evaluation import evaluate_run
    from effdet_tf.metrics.tuning import settle, settle_trust
    from effdet_tf.prediction.run import load_run

    if options.score is None:
        settle(model, list(data.val.values()))
    else:
        load_config(model / CONFIG_FILE).replace(postprocess__report_score=options.score).save(
            model / CONFIG_FILE
        )
    settle_trust(model, list(data.val.values()), data.looks())
    predictor = load_run(model)
    score = predictor.config.postprocess.report_score
    reports = {}
    for source, folder in {**data.val, **data.apart}.items():
        print(f"\nevaluating {name} on {source}, cells of score {score_text(score)} and more", flush=True)
        reports[source] = evaluate_run(predictor, folder, score_threshold=score)
    write_json(model / FIGURES_FILE, reports["sartorius"])
    training = f"```\n{_command(options)}\n```"
    if options.trained_by is not None:
        training = options.trained_by.read_text(encoding="utf-8").strip()
    card = model_card(name, model, reports, training, data)
    with atomic_write(model / CARD_FILE) as temporary:
        temporary.write_text(card, encoding="utf-8")
    print(f"\n{card}\nwritten: {model}")


def pack(runs: Sequence[Path], out: Path) -> None:
    """Copy the configuration of a run and its best weights, kernels in float16.

    The weights of several runs, each of which began where the one before had ended, are averaged: that
    generalises better than either end (Izmailov et al. 2018, arXiv:1803.05407). Biases and batch
    normalisation stay float32: they are small, and variances may leave float16's range.

    Args:
        runs: one trained run or several; the configuration is that of the last.
        out: folder to write.

    Raises:
        UserError: when a run holds no weights, they are of different networks, or a kernel does not fit into
            float16.
    """
    # Its start, its sources and that it was judged afterwards are nothing to who trains it on.
    config = load_config(config_file(runs[-1])).replace(train__init="", data__source_share={})
    config = config.replace(train__keep_better=True)
    config = replace(config, postprocess=config.postprocess.as_given(), trust=TrustConfig())
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
    """The command that makes the networks again."""
    words = []
    for size in ("large", "small"):
        words += [f"--{size}-minutes", *(f"{m:g}" for m in getattr(options, f"{size}_minutes"))]
        words += [f"--{size}-init", str(getattr(options, f"{size}_init"))]
    score = [] if options.score is None else ["--score", f"{options.score:g}"]
    words += [*score, *options.settings]
    return f"python -m training.release {shlex.join(['DATA', '--out', 'release', *words])}"


def model_card(
    name: str, model: Path, reports: Mapping[str, dict[str, Any]], training: str, data: ReleaseData
) -> str:
    """The card, Markdown, of the packed network `name` in the folder `model`.

    `reports` are those of `evaluate_run` by name of the source, `training` says in Markdown how the network
    is made again, `data` what it was trained on.
    """
    config = load_config(model / CONFIG_FILE)
    arrays = read_arrays(model / BEST_FILE)
    parameters = sum(v.size for name, v in arrays.items() if "moving_" not in name)
    rows = [_row(source, report, source in data.apart) for source, report in reports.items()]
    counts = {source: load_manifest(folder).images for source, folder in data.train.items()}
    counts |= {source: sum(1 for _ in folder.iterdir()) for source, folder in data.unlabelled.items()}
    terms = [f"| {source} | {count} | {_TERMS.get(source, 'its own')} |" for source, count in counts.items()]
    template = Path(__file__).with_name("model_card.template").read_text(encoding="utf-8")
    return template.format(
        name=name,
        backbone=config.model.backbone.replace("efficientnet-", "EfficientNet-").replace("lite", "Lite"),
        parameters=f"{parameters:,}",
        megabytes=f"{(model / BEST_FILE).stat().st_size / 1e6:.1f}",
        preset=config.preset,
        zoom=config.data.zoom,
        training=training,
        sources="\n".join(terms),
        score=score_text(config.postprocess.report_score),
        rows="\n".join(rows),
    )


def _row(source: str, report: dict[str, Any], apart: bool) -> str:
    """A line of the card's figures."""
    groups = report["livecell"]["all"]
    box, mask, cells = groups["bbox"], groups["segm"], report["cells"]
    kinds = ", ".join(f"{kind} {_three(own['sartorius'])}" for kind, own in cells["by"].items() if kind)
    title = _TITLES.get(source, source) + (", nothing chosen by it" if apart else "")
    return (
        f"| {title}: {groups['images']} images, {groups['cells']:,} cells "
        f"| {percent(box['AP'])} / {percent(box['AP50'])} "
        f"| {percent(mask['AP'])} / {percent(mask['AP50'])} / {percent(mask['AP75'])} "
        f"| {percent(mask['AFNR'])} % | {_three(cells['all']['sartorius'])}{f' ({kinds})' if kinds else ''} "
        f"| {_three(cells['all']['f1'])} "
        f"| {cells['all']['count_mean_error']:.1f} of {cells['all']['count_mean_true']:.0f} |"
    )


def _three(value: float | None) -> str:
    """A figure with three digits; a dash stands for "not defined"."""
    return "-" if value is None else f"{value:.3f}"


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m training.release",
        description=__doc__,
        examples=[
            ("train, pack and evaluate both networks", "DATA --out release"),
            ("pack the mean of two runs that were trained before", "DATA --out release --run runs/a runs/b"),
        ],
    )
    add, minutes = parser.add_argument, positive(float)
    add("data", type=Path, metavar="DATA", help="folder of the data sets")
    add("--out", type=Path, required=True, metavar="OUT", help="folder to work in")
    for size in ("large", "small"):
        words: dict[str, Any] = {"nargs": "+", "default": [120.0, 120.0], "metavar": "MINUTES"}
        add(f"--{size}-minutes", type=minutes, help=_HELP[f"{size}-minutes"], **words)
        add(f"--{size}-init", default="imagenet", metavar="SOURCE", help=_HELP[f"{size}-init"])
    add("--score", type=share, metavar="X", help=_HELP["score"])
    add("--run", type=Path, nargs="+", help=_HELP["run"])
    add("--name", default="cells", help="of the network that --run gives (default: %(default)s)")
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
