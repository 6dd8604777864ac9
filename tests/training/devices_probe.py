"""Train on one device and on several, from the same start and on the same batches, and compare.

    devices_probe.py CONFIG DATA STEPS RATE COUNT

Prints JSON: the largest difference between one and COUNT logical CPU devices, of a weight, of a running
statistic (above 1 in parts of the largest of its variable) and, in the first five steps, of a figure, and how
far the weights of one device came.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf


def main(config_file: str, data: str, steps: str, rate: str, count: str) -> None:
    # Rewriting the graph of all replicas takes longer than the steps.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(count))

    from effdet_tf.config import load_config
    from effdet_tf.data.store import RecordStore
    from effdet_tf.model.weights import named_variables
    from training.options import resolve
    from training.trainer import Trainer

    store = RecordStore(data)
    config = resolve(load_config(config_file), store)

    def values(trainer: Trainer, learned: bool) -> list[np.ndarray]:
        return [np.array(v) for v in named_variables(trainer.network).values() if v.trainable == learned]

    def trained(strategy: tf.distribute.Strategy | None) -> list:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(config, store, Path(folder), None, strategy=strategy)
            start, batches = values(trainer, True), trainer._batches()
            figures = [np.asarray(trainer._train(next(batches), k, float(rate))) for k in range(int(steps))]
            return [start, values(trainer, True), values(trainer, False), np.array(figures)]

    def apart(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))

    def shares(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return max(float(np.abs(x - y).max() / max(np.abs(x).max(), 1)) for x, y in zip(a, b, strict=True))

    start, one, statistics, figures = trained(None)
    # One strategy a process: another of a different size would join the collective groups of the first.
    _, several, own_statistics, own = trained(
        tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(int(count))])
    )
    differences = np.abs(own - figures) / np.maximum(np.abs(figures), 1)
    result = {
        "moved": apart(start, one),
        "positives": figures[:, 4].tolist(),
        "weights": apart(one, several),
        "statistics": shares(statistics, own_statistics),
        # Of the first steps: a rounding can change which points are assigned, and with that a figure. The
        # norm of the gradient is compared in the first alone: rounding moves it most.
        "figures": float(differences[:5, :6].max()),
        "norm": float(differences[0, 6]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
