"""Crops per second that the input pipeline delivers: `python benchmarks/pipeline.py DATA [--cores 1 2]`.

DATA is a folder that `convert` wrote, or a file that `pack` wrote: then it is the loader in numpy, by threads
and by processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
CASES = ((256, 8, 800), (256, 8, 2000), (512, 4, 800), (512, 4, 2000))  # crop, batch, max_instances


def main() -> None:
    """Measure each number of cores in a process of its own: TensorFlow fixes its threads at the start."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="folder that `convert` wrote, or file that `pack` wrote")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0, help="per row (default: %(default)s)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        os.sched_setaffinity(0, set(range(args.cores[0])))
        kind = measure_packed if args.data.endswith(".npz") else measure_records
        kind(args.data, args.cores[0], args.seconds)
        return
    print(
        "| cores | images | crop | batch | max_instances | crops/s | own CPU ms per crop |\n"
        + "|---" * 7
        + "|",
        flush=True,
    )
    for cores in args.cores:
        command = [sys.executable, __file__, args.data, "--cores", str(cores), "--measure"]
        subprocess.run([*command, "--seconds", str(args.seconds)], check=True)


def measure_packed(data: str, cores: int, seconds: float) -> None:
    """Print the rows of the loader in numpy."""
    from effdet_tf.config import AugmentConfig
    from effdet_tf.data.packed import load_packed
    from training.arrays import training_batches

    packed = load_packed(data)
    for where, processes in (("packed, threads", 0), ("packed, processes", cores)):
        print_rows(
            lambda config, batch, processes=processes: training_batches(
                packed, config, AugmentConfig(), batch, seed=0, threads=cores, processes=processes
            ),
            where,
            cores,
            seconds,
        )


def measure_records(data: str, cores: int, seconds: float) -> None:
    """Print the rows of the pipeline in TensorFlow, from memory and from the shards."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    from effdet_tf.config import AugmentConfig
    from effdet_tf.data.store import RecordStore
    from training.pipeline import training_dataset

    for cache_mb in (2000, 0):
        start = time.perf_counter()
        store = RecordStore(data, cache_mb)
        took = time.perf_counter() - start
        where = "in memory" if store.cached else "in shards"
        print(f"{store.images} {where}: opened in {took:.1f} s, {store.decoded_mb:.0f} MB", file=sys.stderr)
        print_rows(
            lambda config, batch, store=store: iter(
                training_dataset(store, config, AugmentConfig(), batch, seed=0, epochs=1000)
            ),
            where,
            cores,
            seconds,
        )


def print_rows(
    batches_of: Callable[[Any, int], Iterator[Any]], where: str, cores: int, seconds: float
) -> None:
    """Print one table row for each case; `batches_of(DataConfig, batch size)` opens the pipeline."""
    from effdet_tf.config import DataConfig

    for crop, batch, places in CASES:
        batches = batches_of(DataConfig(crop_size=(crop, crop), max_instances=places), batch)
        for _ in range(4):
            next(batches)
        done, start, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            next(batches)
            done += batch
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        if hasattr(batches, "close"):
            batches.close()
        row = (cores, where, crop, batch, places, f"{done / wall:.0f}", f"{1000 * cpu / done:.1f}")
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
