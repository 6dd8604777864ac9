"""Train a network: `python -m training.main`.

Without arguments it makes a small synthetic set, trains on it, evaluates and predicts: the whole
job in minutes on two cores. With --data it does the same on converted images of your own.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effdet_tf.command_line import exit_code, positive
from effdet_tf.config import Config, load_config
from effdet_tf.errors import UserError
from effdet_tf.files import write_json
from effdet_tf.presets import PRESETS, preset

if TYPE_CHECKING:
    from effdet_tf.data.store import RecordStore

# Settings that a resumed run may change: they do not touch what was learned so far.
FREE = ("epochs", "minutes", "evaluate_every", "evaluate_images", "save_minutes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options = _parse(arguments)
    return exit_code(
        lambda: _run(options),
        on_os_error="; the last checkpoint is unharmed",
        on_interrupt="; run the same command again to go on",
    )


def _run(options: argparse.Namespace) -> None:
    if options.data:
        options.out = options.out or Path("runs/train")
        train(options)
    else:
        from training.demo import run_demo

        options.out = options.out or Path("runs/demo")
        run_demo(options)


def train(options: argparse.Namespace) -> None:
    """Train as the options say, evaluate at the end, and print the figures.

    Raises:
        UserError: for unusable data or settings.
    """
    config = wanted_config(options)
    from effdet_tf.data.record import shard_paths
    from effdet_tf.data.store import RecordStore

    if options.val:
        shard_paths(options.val)  # a wrong folder must not come to light after the first epoch
    store = RecordStore(options.data, config.data.cache_mb)
    config = resolve(config, store, options.data)
    folder = options.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; name a folder that can be made") from error
    config = resumed(config, folder)
    _set_precision(config)
    from effdet_tf.metrics.report import format_table
    from training.trainer import Trainer

    trainer = Trainer(config, store, folder, options.val)
    parameters = sum(int(v.shape.num_elements()) for v in trainer.network.trainable_variables)
    print(
        f"{config.preset}: {parameters:,} parameters; {store.images} images, {trainer.steps} steps an epoch; "
        f"anchors {[list(s) for s in config.anchors.sizes] or 'as published'}; run folder {folder}"
    )
    if trainer.progress() >= 1 and not trainer.epoch_step:
        print(f"trained to its end, {trainer.step} steps, before; for more, give more --epochs or --minutes")
    elif trainer.step:
        print(f"going on at epoch {trainer.epoch + 1}, step {trainer.step}")
    trainer.run()
    if options.val is None:
        print("no --val: the weights of the last step are kept, no figures")
    elif trainer.report is not None:
        print(format_table(trainer.report))
        write_json(folder / "metrics.json", trainer.report)
    print(f"done; predict with: python -m effdet_tf predict --run {folder} IMAGES --out OUT")


def wanted_config(options: argparse.Namespace) -> Config:
    """The configuration that the options ask for, before it has met the data.

    Raises:
        UserError: for an unknown preset, key or value.
    """
    config = load_config(options.config) if options.config else preset(options.preset)
    quick = {"epochs": options.epochs, "minutes": options.minutes, "batch": options.batch}
    quick = {key: value for key, value in quick.items() if value is not None}
    if options.epochs is not None:
        quick.setdefault("minutes", 0.0)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **quick))
    config = config.override(options.set or [])
    if config.train.batch < 1 or config.train.epochs < 1:
        given = f"train.batch {config.train.batch}, train.epochs {config.train.epochs}"
        raise UserError(f"{given}: both must be 1 or more")
    return config


def resolve(config: Config, store: RecordStore, data: Sequence[Path]) -> Config:
    """Fill in what the data decide: classes, anchors, and a larger `max_instances` where needed."""
    import numpy as np

    from effdet_tf.anchors import suggest_anchors
    from effdet_tf.data.record import read_manifest

    config = config.replace(class_names=tuple(store.class_names), category_ids=tuple(store.category_ids))
    if config.anchors.from_data:
        levels = tuple(range(config.model.min_level, config.model.max_level + 1))
        sizes = np.concatenate([np.reshape(read_manifest(d).cell_sizes, (-1, 2)) for d in data])
        if len(sizes):
            scale = (1.0, 1.0) if config.augment.short_sides else config.augment.scale_range
            anchors = suggest_anchors(sizes, levels, len(config.anchors.sizes[0]) or 2, scale_range=scale)
            config = dataclasses.replace(config, anchors=anchors)
    if store.max_cells > config.data.max_instances:
        print(
            f"data.max_instances raised from {config.data.max_instances} to {store.max_cells}, "
            "the cells of the fullest image"
        )
        config = config.replace(data__max_instances=store.max_cells)
    return config


def resumed(config: Config, folder: Path) -> Config:
    """The configuration to go on with: a started run keeps its own.

    Raises:
        UserError: when the folder holds a run with other settings; names the first differences.
    """
    from effdet_tf.predict import CONFIG_FILE
    from training.state import STATE_FILE

    path = folder / CONFIG_FILE
    if (folder / STATE_FILE).exists() and path.exists():
        past = load_config(path)
        free = {key: getattr(config.train, key) for key in FREE}
        # The run itself tuned the reporting score.
        config = config.replace(postprocess__report_score=past.postprocess.report_score)
        same = dataclasses.replace(past, train=dataclasses.replace(past.train, **free))
        differences = _differences(same, config)
        if differences:
            raise UserError(
                f"{folder} holds a run with other settings ({'; '.join(differences[:3])}); "
                "repeat its command to go on, or choose another --out"
            )
    config.save(path)
    return config


def _differences(past: object, new: object, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(past):  # type: ignore[arg-type]
        a, b = getattr(past, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(a):
            found += _differences(a, b, f"{prefix}{field.name}.")
        elif a != b:
            found.append(f"{prefix}{field.name} was {a}, now {b}")
    return found


def _set_precision(config: Config) -> None:
    """Mixed precision where the device gains from it: bfloat16 needs no loss scaling."""
    import keras
    import tensorflow as tf

    wanted = config.train.mixed_precision
    if wanted == "on" or (wanted == "auto" and tf.config.list_physical_devices("GPU")):
        keras.config.set_dtype_policy("mixed_bfloat16")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.main",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m training.main --data data/train --val data/val --preset cells-lite0 "
        "--minutes 30 --out runs/first",
    )
    parser.add_argument("--data", type=Path, nargs="+", help="converted training data, one folder or several")
    parser.add_argument("--val", type=Path, help="converted data to validate on")
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--preset", default="cells-lite0", help=f"one of {', '.join(PRESETS)} (default: %(default)s)"
    )
    network.add_argument("--config", type=Path, help="YAML file in place of a preset")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive(int), help="passes over the data")
    length.add_argument(
        "--minutes", type=positive(float), help="train this long instead; validation included"
    )
    parser.add_argument("--batch", type=positive(int), help="crops in a step")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/train; runs/demo without --data)")
    parser.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="any setting, for example train.learning_rate=5e-4",
    )
    options = parser.parse_args(arguments)
    if options.val and not options.data:
        parser.error("--val needs --data: without it the demo makes data of its own")
    return options


if __name__ == "__main__":
    sys.exit(main())
