"""One image through the networks of other tools, beside ours: `python benchmarks/peers.py IMAGE ...`.

    --torch-python P      has torch, effdet and cellpose<4
    --stardist-python Q   has stardist, tensorflow<2.19 and tf-keras<2.19

Seconds of processor time and of the clock for one image, medians of seven calls, with one thread and two.
Their published weights cannot be downloaded everywhere, so their networks have random ones: what is timed is
the network alone, in the shape that the tool uses by default, which knows nothing of the weights. Ours is
timed alone, too, and as a user calls it, with decoding, NMS and masks of what is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TIMED = """
import json, sys, time
import numpy as np
image = np.load(sys.argv[1]); threads = int(sys.argv[2])
def told(name, run):
    run(); run()
    times = []
    for _ in range(7):
        start = time.process_time(), time.perf_counter()
        run()
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    print(json.dumps([name, *np.median(times, axis=0)]))
"""
OURS = """
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(threads)
tf.config.threading.set_inter_op_parallelism_threads(threads)
from effdet_tf.images.normalize import normalize
from effdet_tf.prediction.run import Placement, load_run
from effdet_tf.runs import find_run
for name in ("cells", "cells-large"):
    predictor = load_run(find_run(name))
    config, network = predictor.config, predictor.network
    values = tf.constant(normalize(image, config, None))
    entered = Placement.of(config, network.stride, tf.shape(values)[:2]).enter(values)[None]
    dense = tf.function(lambda x: network.dense(x, training=False), autograph=False)
    told(f"{name}, network alone", lambda: dense(entered))
    score = config.postprocess.report_score
    told(f"{name}, predict(image, score): {len(predictor.predict(image, score))} cells",
         lambda: predictor.predict(image, score))
"""
TORCH = """
import torch
try:
    import torchvision
except (ImportError, RuntimeError):  # one whose compiled part does not load: the network needs nothing of it
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.set_num_threads(threads)
torch.manual_seed(0)
from cellpose.resnet_torch import CPnet
height, width = image.shape[:2]
gray = torch.tensor(image[..., 0] if image.ndim == 3 else image).float()
with torch.inference_mode():
    network = CPnet([2, 32, 64, 128, 256], nout=3, sz=3).eval()
    sides = [-(-side // 16) * 16 for side in (height, width)]
    two = torch.zeros(1, 2, *sides)
    two[0, 0, :height, :width] = (gray - gray.mean()) / gray.std()
    told("Cellpose 3, network alone (cells of 30 px, not scaled)", lambda: network(two))
    from effdet import create_model_from_config, get_efficientdet_config
    config = get_efficientdet_config("tf_efficientdet_d0")
    config.image_size = [-(-side // 128) * 128 for side in (height, width)]
    d0 = create_model_from_config(config, pretrained=False, pretrained_backbone=False).eval()
    three = torch.zeros(1, 3, *config.image_size)
    three[0, :, :height, :width] = (gray - gray.mean()) / gray.std()
    told("effdet D0 (PyTorch), network alone, boxes", lambda: d0(three))
"""
STARDIST = """
import os, tempfile
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(threads)
tf.config.threading.set_inter_op_parallelism_threads(threads)
from stardist.models import Config2D, StarDist2D
gray = (image[..., 0] if image.ndim == 3 else image).astype(np.float32)
height, width = (-(-side // 16) * 16 for side in gray.shape)
padded = np.zeros((1, height, width, 1), np.float32)
padded[0, : gray.shape[0], : gray.shape[1], 0] = (gray - gray.mean()) / gray.std()
for grid in ((1, 1), (2, 2)):
    network = StarDist2D(Config2D(n_rays=32, grid=grid, n_channel_in=1), basedir=None).keras_model
    run = tf.function(lambda x: network(x, training=False))
    told(f"StarDist 2D, network alone, grid {grid[0]}", lambda: run(tf.constant(padded)))
"""


def main() -> None:
    """Print a table for each image."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--torch-python")
    parser.add_argument("--stardist-python")
    args = parser.parse_args()
    from effdet_tf.images.read import read_image

    scripts = [(sys.executable, OURS), (args.torch_python, TORCH), (args.stardist_python, STARDIST)]
    for image in args.images:
        print(f"\n{image.name}\n\n| | 1 thread: CPU s | s | 2 threads: CPU s | s |\n|---|---|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "image.npy")
            np.save(file, read_image(image))
            for python, script in scripts:
                if python:
                    tables = [measured(python, script, file, threads) for threads in (1, 2)]
                    for name, figures in tables[0].items():
                        row = [*figures, *tables[1][name]]
                        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in row) + " |", flush=True)


def measured(python: str, script: str, file: Path, threads: int) -> dict[str, tuple[float, float]]:
    """CPU seconds and seconds by title."""
    told = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": str(threads)}
    command = [python, "-c", TIMED + script, str(file), str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=told)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {name: (cpu, wall) for name, cpu, wall in rows}


if __name__ == "__main__":
    main()
