"""One training, from the options of its command to its report."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effdet_tf.files import locked, write_json
from effdet_tf.runs import ABOUT_FILE, FIGURES_FILE
from training.options import chosen_settings, for_devices, open_run, resolve, set_precision, wanted_config


def train(options: argparse.Namespace) -> None:
    """Train as the options of `training.main` say, evaluate at the end, print metrics and write the report.

    Raises:
        UserError: for unusable data or settings.
    """
    began, config = time.monotonic(), wanted_config(options)
    from training.devices import cluster_task, make_strategy, uses_xla

    strategy = make_strategy(options.devices)  # before TensorFlow does anything else
    config = for_devices(config, strategy.num_replicas_in_sync, chosen_settings(options), options.out)
    from effdet_tf.data.annotated import folder_text, open_annotated
    from effdet_tf.data.record import shard_paths
    from effdet_tf.data.store import RecordStore

    if options.val:
        # Fail early: not after the first epoch.
        for folder in open_annotated(options.val, "validate on annotated images").folders:
            shard_paths(folder)
    even = config.data.normalization == "content"
    store = RecordStore(options.data, config.data.cache_mb, options.pseudo, even)
    config = resolve(config, store, chosen_settings(options))
    first = (cluster_task() or (0, 1))[0] == 0
    with locked(options.out) if first else contextlib.nullcontext():
        config = open_run(config, options.out, write=first)
        import tensorflow as tf

        # bfloat16 without XLA was the slower on a GPU (benchmarks/training_speed.md).
        gains = bool(tf.config.get_visible_devices("GPU")) and uses_xla(config.train, strategy)
        set_precision(config, has_accelerator=gains)
        from training.trainer import Trainer

        trainer = Trainer(config, store, options.out, options.val, options.strict, strategy=strategy)
        if first:
            _warn(options.data, options.val or [])
        trainer.announce()
        before = trainer.step
        trainer.run()
        if not first:  # the first worker of a cluster speaks for all
            return
        if trainer.step > before or not (options.out / ABOUT_FILE).exists():
            from effdet_tf.report.inventory import describe_work

            work = describe_work(options.command, time.monotonic() - began)
            work["data"] = [str(folder) for folder in options.data]
            work["validation"] = folder_text(options.val) if options.val else None
            write_json(options.out / ABOUT_FILE, work)
        if trainer.step > before and options.val:
            from effdet_tf.metrics.tuning import settle_trust, spread_images

            learned = [*options.data, *(options.pseudo or [])]
            settle_trust(options.out, options.val, map(spread_images, learned))
        _conclude(options, trainer.report)


def _warn(data: Sequence[Path], validation: Sequence[Path]) -> None:
    """Warn of validation images that are missing, trained on too, or of other classes."""
    from effdet_tf.data.manifest import load_manifest

    told = []
    if not validation:
        told = ["no --val: nothing tells when it is trained enough, and no score is tuned; keep images apart"]
    learned = [load_manifest(folder) for folder in data]
    shards = {shard["sha256"] for own in learned for shard in own.shards} - {""}
    classes = {name for own in learned for name in own.class_names}
    for val in validation:
        manifest = load_manifest(val)
        same = any(val.resolve() == folder.resolve() for folder in data)
        if same or any(shard["sha256"] in shards for shard in manifest.shards):
            told.append(f"--val {val}: is trained on as well, so its metrics say nothing of new images")
        elif classes.isdisjoint(manifest.class_names):
            told.append(
                f"--val {val}: its classes {', '.join(manifest.class_names)} are none of the trained ones "
                f"({', '.join(sorted(classes))}); it is evaluated without classes"
            )
    for line in told:
        print(f"warning: {line}", file=sys.stderr)


def _conclude(options: argparse.Namespace, report: dict[str, Any] | None) -> None:
    """Print and write the metrics of a finished training, and its report."""
    from effdet_tf.metrics.scores import format_table
    from effdet_tf.report.write import report_on_run

    if not options.val:
        print("no --val: the weights of the last step are kept, no metrics")
    elif report is not None:
        print(format_table(report))
        write_json(options.out / FIGURES_FILE, report)
    print(f"written: {report_on_run(options.out)}")
    print(f"done; predict with: python -m effdet_tf predict --run {options.out} IMAGES --out OUT")
