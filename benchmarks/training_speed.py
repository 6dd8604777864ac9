"""Time training steps, say where the time goes, and time PyTorch's effdet D0 on the same crops.

    python benchmarks/training_speed.py data/train [--peer-python PYTHON] [--cases "cells-lite0;cells-d0"]

Every network steps through crops of the data, 512 x 512 in batches of 4 (cells-lite0 also 256 x 256), in a
process of its own. The peer, run by an interpreter that has torch and effdet, gets the very images and boxes
of cells-d0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

BATCH, BATCHES, STEPS = 4, 4, 8
BOXES = ["model.mask.enabled=false", "data.resize=none", "augment.scale_range=[0.7,1.4]"]
CASES = {  # title -> preset, side of a crop, settings
    "cells-lite0, 256": ("cells-lite0", 256, []),
    "cells-lite0": ("cells-lite0", 512, []),
    "cells-d0": ("cells-d0", 512, []),
    "d0, boxes alone": (
        "d0",
        512,
        ["model.mask.enabled=false", "data.resize=none", "augment.scale_range=[0.7,1.4]"],
    ),
}
PEER = """
import sys, time, json, numpy as np, torch
try:
    import torchvision
except RuntimeError:  # a torchvision whose compiled part does not load: training needs nothing of it
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from effdet import get_efficientdet_config
from effdet.efficientdet import EfficientDet
from effdet.bench import DetBenchTrain
torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[2]))
config = get_efficientdet_config("tf_efficientdet_d0")
config.num_classes, config.image_size = 1, (512, 512)
bench = DetBenchTrain(EfficientDet(config, pretrained_backbone=False), create_labeler=True).train()
optimizer = torch.optim.AdamW(bench.parameters(), 1e-4)
batches = []
with np.load(sys.argv[1]) as file:
    for k in range(int(file["batches"])):
        image = torch.tensor(np.repeat(file[f"image{k}"].transpose(0, 3, 1, 2), 3, 1).copy())
        boxes, classes = file[f"boxes{k}"], file[f"classes{k}"]
        targets = {"bbox": [torch.tensor(b[c >= 0]) for b, c in zip(boxes, classes)],
                   "cls": [torch.ones(int((c >= 0).sum())) for c in classes],
                   "img_scale": torch.ones(len(image)),
                   "img_size": torch.tensor([[512.0, 512.0]] * len(image))}
        batches.append((image, targets))
times = []
for step in range(int(sys.argv[3]) + 2):
    image, targets = batches[step % len(batches)]
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = bench(image, targets)["loss"]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(bench.parameters(), 10.0)
    optimizer.step()
    float(loss)
    times.append(time.perf_counter() - start)
print(json.dumps(sorted(times[2:])))
"""
# Operators of TensorFlow -> what they are part of, first match counts.
PARTS = (
    ("depthwise convolutions, kernel gradient", ("DepthwiseConv2dNativeBackpropFilter",)),
    ("depthwise convolutions, input gradient", ("DepthwiseConv2dNativeBackpropInput",)),
    ("depthwise convolutions, forward", ("Depthwise",)),
    ("convolutions, gradients", ("Conv2DBackprop",)),
    ("convolutions, forward", ("Conv2D",)),
    ("batch normalisation", ("BatchNorm",)),
    ("sampling and scattering (masks, assignment)", ("Segment", "Gather", "TopK", "Scatter")),
    ("matrix products (masks)", ("MatMul",)),
)

# What surrounds the operators in a trace.
FRAMES = ("Process", "EagerExecute", "EagerKernelExecute", "Run", "ParallelFor", "TFE_Py_ExecuteCancelable")


def crops(data: Path, preset: str, side: int, settings: list[str]):
    """The configuration, the store and some batches."""
    from effdet_tf.data.store import RecordStore
    from effdet_tf.presets import preset as named
    from training.options import resolve
    from training.pipeline import training_dataset
    from training.progress import FED

    config = named(preset).override([*settings, f"data.crop_size=[{side},{side}]", f"train.batch={BATCH}"])
    store = RecordStore(data, config.data.cache_mb)
    config = resolve(config, store)
    batches = training_dataset(store, config.data, config.augment, BATCH, 0)
    return config, store, [{name: batch[name] for name in FED} for batch in islice(batches, BATCHES)]


def measure(data: Path, title: str) -> None:
    """Print the times of one network's steps, and the shares of its operators, as JSON."""
    import time

    import keras
    import numpy as np
    import tensorflow as tf

    from effdet_tf.model.network import build_network
    from effdet_tf.model.weights import named_variables
    from training.optimizer import make_optimizer
    from training.trainer import make_step
    from training.vectors import Vectors

    config, store, batches = crops(data, *CASES[title])
    network = build_network(config)
    optimizer = make_optimizer(config)
    optimizer.build(network.trainable_variables)
    average = [
        keras.Variable(np.asarray(v).copy(), trainable=False) for v in named_variables(network).values()
    ]
    state = Vectors(network, average, optimizer)
    step = make_step(config, network, state, store.mask_size)

    def run(number: int) -> float:
        start = time.perf_counter()
        np.asarray(step(batches[number % BATCHES], tf.constant(number), tf.constant(1e-4)))
        return time.perf_counter() - start

    times = [run(number) for number in range(STEPS + 2)]
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        run(0)
        run(1)
        tf.profiler.experimental.stop()
        shares = parts(next(Path(folder).rglob("*.xplane.pb")))
    print(json.dumps([sorted(times[2:]), shares]))


def parts(trace: Path) -> dict[str, float]:
    """Milliseconds a step of each part, of two steps that were traced."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(trace.read_bytes())
    spent: Counter[str] = Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name.split(":")[-1]
                if name not in FRAMES and (name[:1].isupper() or name.startswith("_Mkl")):
                    found = (title for title, words in PARTS if any(word in name for word in words))
                    spent[next(found, "all else")] += event.duration_ps / 1e9 / 2
    return {title: spent[title] for title in (*(title for title, _ in PARTS), "all else")}


def main() -> None:
    """Print the tables."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("data", type=Path, help="converted training images")
    parser.add_argument("--peer-python", help="interpreter with torch and effdet")
    parser.add_argument("--cases", default=";".join(CASES), help="titles, with semicolons between them")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.data, options.measure)
    rows, shares = [], {}
    if options.peer_python:
        rows.append(("effdet D0, PyTorch, boxes alone", *peer(options.data, options.peer_python)))
    for title in options.cases.split(";"):
        command = [sys.executable, __file__, str(options.data), "--measure", title]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        times, shares[title] = json.loads(done.stdout.splitlines()[-1])
        rows.append((title, times[0], times[len(times) // 2]))
    print("| network | fastest step, s | median step, s | images/s (median) |\n|---|---|---|---|")
    for title, fastest, middle in rows:
        print(f"| {title} | {fastest:.2f} | {middle:.2f} | {BATCH / middle:.2f} |")
    print("\n| ms a step, all cores added | " + " | ".join(shares) + " |\n|---" + "|---" * len(shares) + "|")
    for part in next(iter(shares.values())):
        print(f"| {part} | " + " | ".join(f"{own[part]:.0f}" for own in shares.values()) + " |")


def peer(data: Path, python: str) -> tuple[float, float]:
    """Fastest and median step of the peer on the crops of d0."""
    import numpy as np

    _, _, batches = crops(data, *CASES["cells-d0"])
    arrays = {f"{name}{k}": value.numpy() for k, batch in enumerate(batches) for name, value in batch.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "crops.npz")
        given = {k: v for k, v in arrays.items() if not k.startswith(("masks", "ignored"))}
        np.savez(file, batches=len(batches), **given)
        threads = str(len(os.sched_getaffinity(0)))
        command = [python, "-c", PEER, str(file), threads, str(STEPS)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    times = json.loads(done.stdout.splitlines()[-1])
    return times[0], times[len(times) // 2]


if __name__ == "__main__":
    main()
