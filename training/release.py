"""Train the network that comes with the package, and pack it: `python -m training.release DATA --out OUT`.

DATA holds `sartorius/` and, to be judged on alone, `livecell/` and `usiigaci/`, as their publishers lay them
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
from effdet_tf.data.manifest import MANIFEST_NAME
from effdet_tf.data.record import read_manifest
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write, write_json
from effdet_tf.model.weights import read_arrays, save_arrays
from effdet_tf.runs import BEST_FILE, CARD_FILE, CONFIG_FILE, FIGURES_FILE, config_file, weights_file
from training import main as training_main
from training.steps import convert, run_step

# What the shipped network was trained with beside its preset.
TRAINING = ("--preset", "cells-lite0", "--batch", "4", "--devices", "1")
TRAINING += ("--set", "train.evaluate_every=1000000")
# The people who annotated the Sartorius images drew half a pixel above what the images show
# (benchmarks/ablations.md). Mirrored and turned images hide that, so the last part goes without them.
UPRIGHT = (
    *("--set", "augment.flip=false", "--set", "augment.rot90=false"),
    *("--set", "train.learning_rate=3e-3"),
)
_JUDGED = {  # folder of the converted data -> title in the card
    "val": "Sartorius validation images, never trained on",
    "livecell": "LIVECell, zero-shot",
    "usiigaci": "Usiigaci (T98G, 16 bit), zero-shot",
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
    for name in _JUDGED:
        if (out / "data" / name / MANIFEST_NAME).exists():
            print(f"\njudging on {name}, cells of score {score:.2f} and more", flush=True)
            reports[name] = evaluate_run(predictor, out / "data" / name, score_threshold=score)
    if "val" in reports:
        write_json(out / "model" / FIGURES_FILE, reports["val"])
    training = f"```\n{_command(options)}\n```"
    if options.trained_by is not None:
        training = options.trained_by.read_text(encoding="utf-8").strip()
    images = read_manifest(out / "data" / "train").images
    card = model_card(options.name, out / "model", reports, training, images)
    with atomic_write(out / "model" / CARD_FILE) as temporary:
        temporary.write_text(card, encoding="utf-8")
    print(f"\n{card}\nwritten: {out / 'model'}")


def _convert(source: Path, data: Path) -> None:
    """Convert the three data sets, those that are there and not converted yet.

    Raises:
        UserError: when there are no Sartorius images, or a set cannot be converted.
    """
    sartorius, held_out = source / "sartorius", source / "sartorius" / "val_ids.txt"
    if not held_out.is_file():
        raise UserError(f"{held_out}: no such file; it names the images that are kept for validation")
    for name, words in (("train", ["--exclude-ids", held_out]), ("val", ["--ids", held_out])):
        convert("sartorius", sartorius, data / name, "--classes", "one", *words)
    for name, kind, words in (("livecell", "livecell", ["--split", "val"]), ("usiigaci", "labelmaps", [])):
        if (source / name).is_dir():
            convert(kind, source / name, data / name, *words)


def pack(runs: Sequence[Path], out: Path, score: float | None = None) -> None:
    """Copy the configuration of a run and its best weights, kernels in float16.

    The weights of several runs, each of which began where the one before had ended, are averaged: that
    generalises better than either end (Izmailov et al. 2018, arXiv:1803.05407). Biases and batch
    normalisation stay float32: they are small, and variances may leave float16's range.

    Args:
        runs: one trained run or several; the configuration is that of the last.
        out: folder to write.
        score: least score of a cell, in place of the last run's.

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
    packed = {}
    for name in sets[-1]:
        value = np.mean([arrays[name] for arrays in sets], axis=0, dtype=np.float64).astype(np.float32)
        packed[name] = value.astype(np.float16) if value.ndim > 1 else value.astype(np.float32)
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
    """The card of a packed network, Markdown.

    Args:
        name: of the network.
        model: its folder.
        reports: of `evaluate_run` by name of the data set.
        training: how it is made again, Markdown.
        images: that it was trained on.
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
            f"| {_JUDGED[data]}: {groups['images']} images, {groups['cells']:,} cells "
            f"| {100 * box['AP']:.1f} / {100 * box['AP50']:.1f} "
            f"| {100 * mask['AP']:.1f} / {100 * mask['AP50']:.1f} / {100 * mask['AP75']:.1f} "
            f"| {100 * mask['AFNR']:.1f} % | {cells['all']['sartorius']:.3f}{f' ({kinds})' if kinds else ''} "
            f"| {cells['all']['f1']:.3f} "
            f"| {cells['all']['count_mean_error']:.1f} of {cells['all']['count_mean_true']:.0f} |"
        )
    return _CARD.format(
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


_CARD = """\
# {name}

Finds and outlines every cell in label-free phase-contrast images: `effdet_tf.load("{name}")`, or
`python -m effdet_tf predict images/ --run {name} --out found`.

{preset}, {parameters} parameters, {megabytes} MB (kernels in float16); one class, `cell`; gray images, 8 or
16 bit, normalised by their own mean and standard deviation and magnified {zoom:g} times inside the network.

## Data and licence

Non-commercial research only, as the competition data that it was trained on.

Trained on the {images} annotated images of the Kaggle competition "Sartorius - Cell Instance Segmentation"
(2021) that were not kept for validation: SH-SY5Y neuroblastoma, astrocytes and cortical neurons, phase
contrast, 704 x 520 px. They are competition data for non-commercial research, and so are these weights. The
backbone started from the ImageNet weights of {backbone} (Apache-2.0). No LIVECell and no Usiigaci
image was trained on.

## Training

{training}

## Figures

| evaluated on | box AP / AP50 | mask AP / AP50 / AP75 | AFNR (mask) | Sartorius metric | F1 | count error |
|---|---|---|---|---|---|---|
{rows}

AP and AFNR by the LIVECell protocol, %. The last three at score {score}, which is saved with the network and
was chosen from a grid on the Sartorius validation images: there it flatters a little, on the others it does
not.

## Limits

- It knows cells of about 10-100 px at 10x magnification or similar, in phase contrast. Fluorescence,
  histology and bright-field images are foreign to it.
- Its outlines follow the annotation of the Sartorius images, which lies half a pixel above the cells.
- Cells of 60 px and more in confluent sheets, thin processes, and the densest neighbourhoods are its weak
  points: look at the overlays before you rely on counts. `training.main --init {name}` fine-tunes it on cells
  of your own.
"""


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m training.release",
        description=__doc__,
        examples=[
            ("train, pack and judge", "DATA --out release"),
            ("pack the mean of two runs that were trained before", "DATA --out release --run runs/a runs/b"),
        ],
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the real images")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder to work in")
    parser.add_argument(
        "--minutes", type=positive(float), default=70.0, help="of the first part of training (%(default)g)"
    )
    parser.add_argument(
        "--upright",
        type=positive(float),
        nargs="+",
        default=[70.0],
        metavar="MINUTES",
        help="of the parts that follow, without mirrored or turned images (default: one of 70); the weights "
        "at the ends of several are averaged",
    )
    parser.add_argument(
        "--score",
        type=share,
        metavar="X",
        help="least score of a cell (default: tuned on the validation images)",
    )
    parser.add_argument(
        "--run", type=Path, nargs="+", help="trained runs to pack, their mean, in place of training"
    )
    parser.add_argument("--name", default="cells", help="of the network, for the card (default: %(default)s)")
    parser.add_argument(
        "--trained-by",
        type=Path,
        metavar="FILE",
        help="Markdown for the card that says how the runs of --run were trained (default: this command)",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="extend",
        nargs=1,
        default=[],
        metavar="KEY=VALUE",
        help="any setting of the training",
    )
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = build_parser().parse_args(arguments)
    options.settings = [word for setting in options.settings for word in ("--set", setting)]
    return options


if __name__ == "__main__":
    sys.exit(main())
