"""What a network learns from a few images of a new kind, what it forgets, and which are best annotated.

    python benchmarks/few_images.py keep --run without_u373 --data u373 --val data/u373_val \
        --known data/sartorius_val data/psc_val --images 2 5 10 --seeds 3 --out keep.jsonl
    python benchmarks/few_images.py suggest --run without_u373 --data u373 --val data/u373_val \
        --images 5 10 20 --seeds 3 --out suggest.jsonl
    python benchmarks/few_images.py tables keep.jsonl... suggest.jsonl...

DATA are folders with `images/` and `masks/`. `keep --hold 10` pulls the weights to the start at every step,
`keep --replay data/simulated_train` draws half of the crops from there. `keep` trains on so many of its
images, drawn at random, and evaluates the end of training, and its means with the start, on --val and on what
the start knew, --known. `suggest` trains on as many crops as `effdet_tf suggest` would take first, and on as
many drawn at random.
Every training is `training.main --init RUN --batch 4` of so many steps.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import tensorflow as tf
import tifffile

from effdet_tf.data.manifest import load_manifest
from effdet_tf.data.store import RecordStore
from effdet_tf.images.read import IMAGE_SUFFIXES, read_image, read_labels
from effdet_tf.metrics.evaluation import evaluate_run
from effdet_tf.metrics.scores import headline
from effdet_tf.model.weights import named_variables, read_arrays
from effdet_tf.prediction.run import load_run
from effdet_tf.prediction.sizing import Sizing, predict_sized
from effdet_tf.prediction.suggestion import Part, choose, parts_of, shown
from effdet_tf.runs import find_run, weights_file
from training import main as training_main
from training.options import open_run, resolve, wanted_config
from training.steps import convert
from training.trainer import Trainer
from training.vectors import Vectors

SHARES = (0.0, 0.25, 0.5)  # of the start's weights in those that are evaluated
KNOWN = 3  # images of each set that the start knows


class Crop(NamedTuple):
    """A part of an annotated image."""

    image: Path
    mask: Path
    part: Part


class StepTrainer(Trainer):
    """A trainer that ends after so many steps."""

    steps_in_all = 60

    def progress(self) -> float:
        """Share of the steps that is done."""
        return min((self.step + len(self._pending)) / self.steps_in_all, 1.0)


class HeldVectors(Vectors):
    """Weights that every step pulls back to where they began (L2-SP, Li et al. 2018, arXiv:1802.01483)."""

    pull = 0.0  # share of the distance, in units of the learning rate

    def take(self) -> None:
        """As `Vectors.take`, which comes before the first step."""
        super().take()
        self.start = [np.array(weights) for weights in self.weights]

    def spread(self, strategy: tf.distribute.Strategy) -> None:
        """As `Vectors.spread`, which comes after every step."""
        rate = self.pull * tf.cast(self.optimizer.learning_rate, tf.float32)
        for weights, start in zip(self.weights, self.start, strict=True):
            weights.assign_sub(rate * (weights - tf.constant(start)))
        super().spread(strategy)


def pairs(folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Images and their label maps."""
    found = []
    for folder in folders:
        masks = {path.stem: path for path in (folder / "masks").iterdir()}
        files = sorted(p for p in (folder / "images").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        found += [(path, masks[path.stem]) for path in files]
    return found


def train(
    options: argparse.Namespace, crops: Sequence[tuple[np.ndarray, np.ndarray]], seed: int, folder: Path
) -> Trainer:
    """Train a network on annotated images, pixels and label map of each."""
    run, steps = options.run, options.steps
    for number, (image, labels) in enumerate(crops):
        for name, pixels in (("images", image), ("masks", labels.astype(np.uint16))):
            (folder / "set" / name).mkdir(parents=True, exist_ok=True)
            pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
            tifffile.imwrite(folder / "set" / name / f"{number:03d}.tif", pixels)
    convert("labelmaps", folder / "set", folder / "data", "--workers", 1)
    words = ["--data", str(folder / "data"), "--init", run, "--batch", "4", "--out", str(folder / "run")]
    words += [
        "--set",
        f"train.seed={seed}",
        "--set",
        "train.minutes=10000",
        "--set",
        "train.evaluate_every=0",
    ]
    config = wanted_config(training_main.build_parser().parse_args(words))
    folders = [folder / "data", *([options.replay] if options.replay else [])]
    if options.replay:
        config = config.replace(data__source_share={load_manifest(options.replay).source: 0.5})
    store = RecordStore(folders, config.data.cache_mb, (), config.data.normalization == "content")
    per_image = -(-steps * config.train.batch // load_manifest(folders[0]).images)
    config = resolve(config.replace(data__crops_per_image=per_image), store, {"train.start_share"})
    (folder / "run").mkdir()
    HeldVectors.pull = options.hold
    with mock.patch("training.trainer.Vectors", HeldVectors):
        trainer = StepTrainer(open_run(config, folder / "run"), store, folder / "run", None)
    trainer.steps_in_all = steps
    trainer.run()
    trainer._take_average()
    return trainer


def mask_ap(predictor: Any, folder: Path, limit: int | None = None) -> float:
    """Mask AP by LIVECell's protocol on a set, or its first images."""
    return float(headline(evaluate_run(predictor, folder, limit, progress=False))["mask_AP"] or 0.0)


def keep(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every training on images drawn at random, and one for the start."""
    start = load_run(find_run(options.run))
    figures = {path.name: mask_ap(start, path, KNOWN) for path in options.known}
    yield {"images": 0, "share": 1.0, "ap": mask_ap(start, options.val[0]), "known": figures}
    first = read_arrays(weights_file(find_run(options.run)))
    for seed in range(options.seeds):
        order = pairs(options.data)
        random.Random(seed).shuffle(order)
        for count in options.images:
            with tempfile.TemporaryDirectory() as place:
                read = [(read_image(image), read_labels(mask)) for image, mask in order[:count]]
                trainer = train(options, read, seed, Path(place))
            variables = named_variables(trainer.averaged)
            end = {name: np.array(value) for name, value in variables.items()}
            for share in SHARES:
                for name, value in variables.items():
                    value.assign((1 - share) * end[name] + share * first[name].astype(np.float32))
                known = {path.name: mask_ap(trainer.predictor, path, KNOWN) for path in options.known}
                row = {"images": count, "seed": seed, "share": share, "known": known}
                yield row | {"ap": mask_ap(trainer.predictor, options.val[0])}


def suggest(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every training on crops that were suggested, or drawn at random."""
    start, crops = load_run(find_run(options.run)), list[Crop]()
    for image, mask in pairs(options.data):
        pixels = read_image(image)
        seen = predict_sized(start, pixels, None, Sizing())
        crops += [Crop(image, mask, part) for part in parts_of(pixels, seen, options.side)]
    best = choose([crop.part for crop in crops], [crop.image for crop in crops], max(options.images))
    for seed in range(options.seeds):
        drawn = draw(crops, max(options.images), seed)
        for count in options.images:
            for who, chosen in (("suggested", best), ("random", drawn)):
                cut = [cut_out(crops[k]) for k in chosen[:count]]
                with tempfile.TemporaryDirectory() as place:
                    trainer = train(options, cut, seed, Path(place))
                figures = {path.name: mask_ap(trainer.predictor, path) for path in options.val}
                cells = sum(len(np.unique(labels[labels > 0])) for _, labels in cut)
                yield {"images": count, "seed": seed, "who": who, "cells": cells, "ap": figures}


def draw(crops: Sequence[Crop], count: int, seed: int) -> list[int]:
    """Crops of images drawn at random, none much like another one of its image."""
    generator, chosen = random.Random(seed), list[int]()
    images = sorted({crop.image for crop in crops})
    while len(chosen) < count:
        image = generator.choice(images)
        one = generator.choice([k for k, crop in enumerate(crops) if crop.image == image])
        others = [crops[k].part.place for k in chosen if crops[k].image == image]
        if not any(shown(crops[one].part.place, other) for other in others):
            chosen.append(one)
    return chosen


def cut_out(crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and label map of a crop."""
    top, left, bottom, right = crop.part.place
    return read_image(crop.image)[top:bottom, left:right], read_labels(crop.mask)[top:bottom, left:right]


def tables(files: Sequence[Path]) -> None:
    """Print means over the seeds of all rows of some files, in %."""
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        groups = defaultdict(list)
        for row in rows:
            groups[row["images"], row.get("who", row.get("share"))].append(row)
        print(file)
        for key, own in groups.items():
            if "who" in own[0]:
                values = {name: [100 * row["ap"][name] for row in own] for name in own[0]["ap"]}
                values["cells"] = [row["cells"] for row in own]
            else:
                values = {"new": [100 * row["ap"] for row in own]}
                values |= {name: [100 * row["known"][name] for row in own] for name in own[0]["known"]}
            print(*key, *(f"{k} {np.mean(v):.1f} ({min(v):.1f}-{max(v):.1f})" for k, v in values.items()))


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, counts in (("keep", [2, 5, 10]), ("suggest", [5, 10, 20])):
        verb = verbs.add_parser(name)
        verb.add_argument("--run", required=True)
        for option in ("--data", "--val"):
            verb.add_argument(option, type=Path, nargs="+", required=True)
        verb.add_argument("--known", type=Path, nargs="*", default=[])
        verb.add_argument("--images", type=int, nargs="+", default=counts)
        verb.add_argument("--seeds", type=int, default=3)
        verb.add_argument("--steps", type=int, default=60)
        verb.add_argument("--side", type=int, default=256)
        verb.add_argument("--hold", type=float, default=0.0)
        verb.add_argument("--replay", type=Path)
        verb.add_argument("--out", type=Path, required=True)
    verbs.add_parser("tables").add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.verb == "tables":
        tables(options.files)
        return
    with options.out.open("w", encoding="utf-8") as file:
        rows = {"keep": keep, "suggest": suggest}[options.verb](options)
        while True:
            with contextlib.redirect_stdout(io.StringIO()):
                row = next(rows, None)
            if row is None:
                break
            print(row, flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
