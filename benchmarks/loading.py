"""Time what a user waits for before anything runs: building networks and importing a D0 checkpoint.

    python benchmarks/loading.py [SOURCE]

SOURCE is any detector that `weights import` takes. Each figure is of a fresh process, imports included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUILD = (
    "from effdet_tf.presets import preset; from effdet_tf.model.network import build_network; "
    "build_network(preset({name!r}).replace(model__mask__enabled=False))"
)


def seconds(*command: str) -> tuple[float, float]:
    """Run a process; wall and processor seconds."""
    before, started = os.times(), time.monotonic()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=environment)
    wall, after = time.monotonic() - started, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print a table."""
    print("| what | wall s | processor s |\n|---|---|---|")
    jobs = [("import TensorFlow and Keras alone", ("-c", "import keras"))]
    jobs += [(f"build {name}, not traced", ("-c", BUILD.format(name=name))) for name in ("d0", "d7x")]
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            out = str(Path(folder) / "out")
            jobs.append(
                (
                    f"weights import {Path(sys.argv[1]).name}",
                    ("-m", "effdet_tf", "weights", "import", sys.argv[1], out),
                )
            )
        for title, command in jobs:
            wall, processor = seconds(*command)
            print(f"| {title} | {wall:.1f} | {processor:.1f} |", flush=True)


if __name__ == "__main__":
    main()
