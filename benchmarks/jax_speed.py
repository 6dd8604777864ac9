"""Speed of training under JAX: `python benchmarks/jax_speed.py TRAIN.npz [--preset cells-lite2] [--grouped]`.

TRAIN.npz is what `effdet_tf pack` wrote. Prints the seconds until the first step is done, its compilation
too, and of the steps after it, with crops made beside them as in a training. Needs what `training.jax_main`
needs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import numpy as np

from effdet_tf.data.packed import load_packed
from effdet_tf.model import layers
from effdet_tf.presets import preset
from training.jax_main import crop_workers
from training.jax_trainer import JaxTrainer
from training.options import resolve, set_precision


def main() -> None:
    """Print one row of a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="file that `pack` wrote")
    parser.add_argument("--preset", default="cells-lite0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--grouped", action="store_true", help="XLA's own depthwise convolutions")
    args = parser.parse_args()
    if args.grouped:
        layers.DepthwiseConv2D.call = keras.layers.DepthwiseConv2D.call
        layers.SeparableConv2D.call = keras.layers.SeparableConv2D.call
    data = load_packed(args.data)
    config = resolve(preset(args.preset).override(args.set), data)
    device = jax.devices()[0]
    accelerated = device.platform != "cpu"
    set_precision(config, accelerated)
    with tempfile.TemporaryDirectory() as folder:
        trainer = JaxTrainer(config, data, Path(folder), workers=crop_workers(None, accelerated))
        batches = trainer._batches()
        begun = time.perf_counter()
        np.asarray(trainer._train(next(batches), 0, 1e-3))
        first = time.perf_counter() - begun
        figures = trainer._train(next(batches), 1, 1e-3)
        np.asarray(figures)
        begun = time.perf_counter()
        for number in range(args.steps):
            figures = trainer._train(next(batches), 2 + number, 1e-3)
        np.asarray(figures)
        step = (time.perf_counter() - begun) / args.steps
        batches.close()
    crop, batch = config.data.crop_size[0], config.train.batch
    print(
        "| device | network | crop | batch | depthwise | first step, s | step, ms | crops/s |\n"
        + "|---" * 8
        + "|"
    )
    kind = "grouped" if args.grouped else "products"
    row = (
        device.device_kind,
        args.preset,
        crop,
        batch,
        kind,
        f"{first:.0f}",
        f"{1000 * step:.0f}",
        f"{batch / step:.1f}",
    )
    print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
