"""Train a network: `python -m training.main`.

Without arguments it makes a small synthetic set, trains on it, evaluates and predicts: the whole
job in minutes on two cores. With --data it does the same on converted images of your own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effdet_tf.commands.pack import add_pseudo_option
from effdet_tf.commands.parser import Parser
from effdet_tf.errors import UserError
from effdet_tf.files import locked, write_json
from effdet_tf.runs import ABOUT_FILE, FIGURES_FILE
from training.options import (
    add_options,
    chosen_settings,
    for_devices,
    open_run,
    resolve,
    set_precision,
    training_exit_code,
    wanted_config,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options = _parse(arguments)
    return training_exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if options.data:
        options.out = options.out or Path("runs/train")
        train(options)
    elif os.environ.get("TF_CONFIG"):
        raise UserError(
            "TF_CONFIG names a cluster; the demo is for one process: give --data, or unset TF_CONFIG"
        )
    else:
        from training.demo import run_demo

        options.out = options.out or Path("runs/demo")
        run_demo(options)


def train(options: argparse.Namespace) -> None:
    """Train as the options say, evaluate at the end, and print the figures.

    Raises:
        UserError: for unusable data or settings.
    """
    began, config = time.monotonic(), wanted_config(options)
    from training.devices import cluster_task, make_strategy

    strategy = make_strategy(options.devices)  # before TensorFlow does anything else
    config = for_devices(config, strategy.num_replicas_in_sync, chosen_settings(options), options.out)
    from effdet_tf.data.manifest import refuse_pseudo
    from effdet_tf.data.record import read_manifest, shard_paths
    from effdet_tf.data.store import RecordStore

    if options.val:
        # A wrong folder must not come to light after the first epoch.
        shard_paths(options.val)
        refuse_pseudo(options.val, read_manifest(options.val), "validate on annotated images")
    store = RecordStore(options.data, config.data.cache_mb, options.pseudo)
    config = resolve(config, store)
    first = (cluster_task() or (0, 1))[0] == 0
    with locked(options.out) if first else contextlib.nullcontext():
        config = open_run(config, options.out, write=first)
        import tensorflow as tf

        set_precision(config, has_accelerator=bool(tf.config.list_physical_devices("GPU")))
        from training.trainer import Trainer

        trainer = Trainer(config, store, options.out, options.val, options.strict, strategy=strategy)
        if first:
            _warn(options.data, options.val)
        trainer.announce()
        before = trainer.step
        trainer.run()
        if not first:  # the first worker of a cluster speaks for all
            return
        if trainer.step > before or not (options.out / ABOUT_FILE).exists():
            _write_about(options, time.monotonic() - began)
        _conclude(options, trainer.report)


def _write_about(options: argparse.Namespace, seconds: float) -> None:
    """Write down how a training was done, for its report."""
    from effdet_tf.report.inventory import describe_work

    work = describe_work(options.command, seconds)
    validation = None if options.val is None else str(options.val)
    work |= {"data": [str(folder) for folder in options.data], "validation": validation}
    write_json(options.out / ABOUT_FILE, work)


def _warn(data: Sequence[Path], val: Path | None) -> None:
    """Warn of validation that is missing, or tells nothing.

    Args:
        data: folders of training images.
        val: folder of validation images.
    """
    from effdet_tf.data.record import read_manifest

    if val is None:
        told = "no --val: nothing tells when it is trained enough, and no score is tuned; keep images apart"
    else:
        manifest = read_manifest(val)
        learned = [read_manifest(folder) for folder in data]
        shards = {shard["sha256"] for own in learned for shard in own.shards} - {""}
        classes = {name for own in learned for name in own.class_names}
        if any(val.resolve() == folder.resolve() for folder in data) or any(
            shard["sha256"] in shards for shard in manifest.shards
        ):
            told = f"--val {val}: is trained on as well, so its figures say nothing of new images"
        elif classes.isdisjoint(manifest.class_names):
            told = (
                f"--val {val}: its classes {', '.join(manifest.class_names)} are none of the trained ones "
                f"({', '.join(sorted(classes))}); it is judged without classes"
            )
        else:
            return
    print(f"warning: {told}", file=sys.stderr)


def _conclude(options: argparse.Namespace, report: dict[str, Any] | None) -> None:
    """Print and write the figures of a finished training, and its report."""
    from effdet_tf.metrics.scores import format_table
    from effdet_tf.report.write import report_on_run

    if options.val is None:
        print("no --val: the weights of the last step are kept, no figures")
    elif report is not None:
        print(format_table(report))
        write_json(options.out / FIGURES_FILE, report)
    print(f"written: {report_on_run(options.out)}")
    print(f"done; predict with: python -m effdet_tf predict --run {options.out} IMAGES --out OUT")


def devices(text: str) -> str:
    """An argparse type: `all`, or how many."""
    if text != "all" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is neither `all` nor a number of devices")
    return text


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m training.main",
        description=__doc__,
        examples=[
            ("everything on synthetic cells, ten minutes", "--out runs/demo"),
            (
                "on images of one's own, for an hour",
                "--data data/train --val data/val --preset cells-lite0 --minutes 60 --out runs/mine",
            ),
            (
                "from the network of the package",
                "--data data/train --val data/val --init cells --minutes 15 --out runs/tuned",
            ),
        ],
    )
    parser.add_argument("--data", type=Path, nargs="+", help="converted training data, one folder or several")
    add_pseudo_option(parser)
    parser.add_argument("--val", type=Path, help="converted data to validate on")
    parser.add_argument(
        "--devices",
        type=devices,
        default="all",
        help="GPUs that share every step: a number, or all (default). A batch that you give is that of all "
        "together; else each takes the batch of the preset, and the learning rate grows with them. Without a "
        "GPU a number splits the CPU, to see that devices do not change the result. With TF_CONFIG in the "
        "environment every process is one worker of a cluster",
    )
    add_options(parser, default_out="runs/train; runs/demo without --data")
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if (options.val or options.pseudo) and not options.data:
        parser.error("--val and --pseudo need --data: without it the demo makes data of its own")
    from effdet_tf.report.inventory import command_line

    options.command = command_line("training.main", arguments)
    return options


if __name__ == "__main__":
    sys.exit(main())
