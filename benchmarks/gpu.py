"""Speed on a GPU (or on whatever there is): training steps of TensorFlow and of JAX, and batch prediction.

    python benchmarks/gpu.py train TRAIN.npz                                  TensorFlow
    KERAS_BACKEND=jax python benchmarks/gpu.py train TRAIN.npz                JAX, also without TensorFlow
    python benchmarks/gpu.py train TRAIN.npz --preset d0 --set model.mask.enabled=false --batch 16 32 64
    python benchmarks/gpu.py predict cells IMAGE [IMAGE ...] --batch 1 4 16   images of one shape

TRAIN.npz is what `effdet_tf pack` wrote. Both backends get the same crops, made before the clock starts; each
draws its own start weights, so that their last losses are near each other, not equal. `--kind` says what of
TensorFlow is measured: its graph, or its graph compiled by XLA, in float32 or bfloat16; JAX is always
compiled by XLA. One row for each kind and batch, each in a process of its own: where one fails, the row says
so. XLA keeps what it compiled, and the next first step is short, with

    TF_XLA_FLAGS=--tf_xla_persistent_cache_directory=DIR     JAX_COMPILATION_CACHE_DIR=DIR
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

KINDS = {  # of TensorFlow; JAX has those with xla
    "graph": ["train.xla=off", "train.mixed_precision=off"],
    "graph bfloat16": ["train.xla=off", "train.mixed_precision=on"],
    "xla": ["train.xla=on", "train.mixed_precision=off"],
    "xla bfloat16": ["train.xla=on", "train.mixed_precision=on"],
}
BATCHES = 4  # different ones, in turn


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one kind and one batch."""
    jax = os.environ.get("KERAS_BACKEND") == "jax"
    from effdet_tf.data.packed import load_packed
    from effdet_tf.presets import preset
    from training.arrays import training_batches
    from training.options import resolve, set_precision

    data = load_packed(args.data)
    wanted = [*args.set, *KINDS[args.kind[0]], f"train.batch={args.batch[0]}"]
    config = resolve(preset(args.preset).override(wanted), data)
    set_precision(config, has_accelerator=True)
    source = training_batches(data, config.data, config.augment, config.train.batch, seed=0)
    batches = list(islice(source, BATCHES))
    source.close()
    with tempfile.TemporaryDirectory() as folder:
        make = _jax_step if jax else _tensorflow_step
        step, device, memory = make(config, data, Path(folder))
        begun = time.perf_counter()
        step(batches[0], 0)
        first = time.perf_counter() - begun
        for number in range(BATCHES):  # a batch of another shape is compiled, too
            step(batches[number], 1 + number)
        begun, figures = time.perf_counter(), None
        for number in range(args.steps):
            figures = step(batches[number % BATCHES], BATCHES + 1 + number, wait=number == args.steps - 1)
        seconds = (time.perf_counter() - begun) / args.steps
    return {
        "device": device,
        "backend": "JAX" if jax else "TensorFlow",
        "network": args.preset,
        "crop": config.data.crop_size[0],
        "batch": config.train.batch,
        "kind": args.kind[0],
        "first step, s": round(first, 1),
        "step, ms": round(1000 * seconds, 1),
        "crops/s": round(config.train.batch / seconds, 1),
        "GPU memory, MB": memory(),
        "last loss": round(float(figures[0]), 3),
    }


def _tensorflow_step(config: Any, data: Any, folder: Path) -> tuple[Any, str, Any]:
    import numpy as np
    import tensorflow as tf

    from training.progress import FED
    from training.trainer import Trainer

    trainer = Trainer(config, data, folder, None)
    gpus = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU"

    def step(batch: dict[str, Any], number: int, wait: bool = True) -> Any:
        fed = {k: tf.constant(batch[k]) for k in FED}
        figures = trainer._train(fed, number, 1e-4)
        return np.asarray(figures) if wait else figures

    def memory() -> int | None:
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] // 10**6 if gpus else None

    return step, name, memory


def _jax_step(config: Any, data: Any, folder: Path) -> tuple[Any, str, Any]:
    import jax
    import numpy as np

    from training.jax_trainer import JaxTrainer

    trainer, device = JaxTrainer(config, data, folder), jax.devices()[0]

    def step(batch: dict[str, Any], number: int, wait: bool = True) -> Any:
        figures = trainer._train(batch, number, 1e-4)
        return np.asarray(figures) if wait else figures

    def memory() -> int | None:
        found = device.memory_stats() or {}
        return found["peak_bytes_in_use"] // 10**6 if "peak_bytes_in_use" in found else None

    return step, device.device_kind, memory


def predict(args: argparse.Namespace) -> dict[str, Any]:
    """Measure prediction with a number of images at once, and how far it is from one by one."""
    import numpy as np
    import tensorflow as tf

    from effdet_tf.images.read import read_image
    from effdet_tf.prediction.load import load

    network = load(args.data)
    images = [read_image(path) for path in args.images]
    batch, gpus = args.batch[0], tf.config.list_physical_devices("GPU")
    network.at_once = lambda shape: batch
    alone = [network.predict(image) for image in images]
    together = list(network.predict_batch(images))
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        list(network.predict_batch(images))
        times.append(time.perf_counter() - begun)
    same = all(a.boxes.shape == b.boxes.shape for a, b in zip(alone, together, strict=True))
    pairs = list(zip(alone, together, strict=True)) if same else []
    apart = max((float(np.abs(a.scores - b.scores).max(initial=0)) for a, b in pairs), default=0.0)
    return {
        "device": "GPU" if gpus else "CPU",
        "network": args.data,
        "at once": batch,
        "images/s (median of 7)": round(len(images) / sorted(times)[3], 2),
        "cells": sum(len(found.scores) for found in together),
        "scores apart from one by one": apart if same else "other cells",
    }


def main() -> int:
    """Print a table; 1 where a row failed."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("what", choices=["train", "predict"])
    parser.add_argument("data", help="file that `pack` wrote; for predict a run or the name of a network")
    parser.add_argument("images", nargs="*", type=Path, help="for predict")
    parser.add_argument("--preset", default="cells-lite2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--kind", nargs="+", choices=KINDS, help="default: all; JAX: those with xla")
    parser.add_argument("--batch", nargs="+", type=int, default=[16])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    measure = train if args.what == "train" else predict
    if args.one:
        print(json.dumps(measure(args)))
        return 0
    jax = os.environ.get("KERAS_BACKEND") == "jax"
    kinds = args.kind or [kind for kind in KINDS if not jax or "xla" in kind]
    titled = failed = False
    for kind in kinds if args.what == "train" else kinds[:1]:
        for batch in args.batch:
            words = [
                str(args.data),
                *map(str, args.images),
                "--preset",
                args.preset,
                "--steps",
                str(args.steps),
            ]
            words += [word for text in args.set for word in ("--set", text)]
            words += ["--kind", kind, "--batch", str(batch), "--one"]
            done = subprocess.run(
                [sys.executable, __file__, args.what, *words], stdout=subprocess.PIPE, text=True
            )
            if done.returncode:
                print(f"{kind}, batch {batch}: failed with exit code {done.returncode}", file=sys.stderr)
                failed = True
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            if not titled:
                print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
            titled = True
            print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
