"""Time one image through Keras, the SavedModel and each TFLite file, beside PyTorch's effdet D0.

    python -m benchmarks.export_latency [--run RUN] [--peer-python PYTHON] [--rounds 2] [--formats ...]

Every network gives 1,000 results (score threshold 0, at most 1,000 instances): random weights, or for the
cell preset of --run its own. The cell presets have their masks, D0 and Lite0 are plain detectors, as
published, fed without scaling. Ours are timed as a user calls them, `predict(array)`: normalisation, network,
decoding, NMS, masks. The peer, run by an interpreter that has torch and effdet, gets a tensor that is ready:
its network alone, and with decoding and NMS, boxes only, 1,000 results. Each figure is the median of seven
calls in each of --rounds rounds of fresh processes; rounds go over all of them in turn. --exports keeps the
exported files of a first start for the next.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

SIZES = ((512, 512), (520, 704))
THREADS = (1, 2)
PRESETS = ("d0", "lite0", "cells-d0", "cells-lite0", "cells-lite0@14")  # @: mask size
PRECISIONS = ("float32", "float16", "int8")
SETTINGS = ["postprocess.score_threshold=0.0", "data.max_instances=1000", "data.resize=none"]
CALLS = 7

# Runs in the peer's environment, which has neither TensorFlow nor this project.
PEER = """
import json, statistics, sys, time
import torch
from effdet import create_model_from_config, get_efficientdet_config
from effdet.bench import DetBenchPredict
threads, sizes = int(sys.argv[1]), json.loads(sys.argv[2])
torch.set_num_threads(threads)
torch.manual_seed(0)
for height, width in sizes:
    config = get_efficientdet_config("tf_efficientdet_d0")
    padded = [-(-side // 128) * 128 for side in (height, width)]
    config.image_size = padded
    config.max_det_per_image = 1000
    network = create_model_from_config(config, pretrained=False, pretrained_backbone=False).eval()
    bench = DetBenchPredict(network).eval()
    image = torch.randn(1, 3, *padded)
    with torch.inference_mode():
        for name, function in (("network", network), ("with decoding", bench)):
            times = []
            for _ in range({calls} + 2):
                start = time.perf_counter()
                found = function(image)
                times.append(time.perf_counter() - start)
            count = int(found.shape[1]) if torch.is_tensor(found) else 0
            print(json.dumps([f"effdet D0, PyTorch, {{name}}", [height, width], threads,
                              1000 * statistics.median(times[2:]), count]))
"""


def export(folder: Path, name: str, run: Path | None, formats: list[str]) -> None:
    """Write a preset's run, SavedModel and TFLite files."""
    import keras
    import numpy as np

    from effdet_tf.model.network import build_network
    from effdet_tf.model.weights import save_arrays, to_arrays
    from effdet_tf.prediction.run import load_run
    from effdet_tf.presets import preset
    from effdet_tf.runs import CONFIG_FILE, LAST_FILE
    from export.saved_model import write_saved_model
    from export.tflite import convert

    name, _, mask_size = name.partition("@")
    settings = [*SETTINGS, *([f"model.mask.size={mask_size}"] if mask_size else [])]
    if run is None:
        keras.utils.set_random_seed(0)
        config = preset(name).override(SETTINGS)
        if not name.startswith("cells"):
            config = config.override(["model.mask.enabled=false"])
        run = folder / "run"
        run.mkdir(parents=True)
        config.save(run / CONFIG_FILE)
        save_arrays(run / LAST_FILE, to_arrays(build_network(config)))
    predictor = load_run(run, settings=settings)
    (folder / "settings").write_text("\n".join(settings))
    (folder / "source").write_text(str(run))
    if "saved_model" in formats:
        write_saved_model(predictor, folder / "saved_model")
    noise = np.random.default_rng(0).integers(0, 255, (1, 704, 704, 1), np.uint8)
    for precision in PRECISIONS:
        for height, width in SIZES if precision in formats else ():
            content = convert(predictor, (height, width), precision, noise)
            (folder / f"{precision}_{height}.tflite").write_bytes(content)


def measure(folder: Path, what: str, threads: int) -> None:
    """Time one artifact of a preset in this process; a JSON line each."""
    import time

    import numpy as np

    if what in ("keras", "saved_model"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    for height, width in SIZES:
        if what == "keras":
            from effdet_tf.prediction.run import load_run

            settings = (folder / "settings").read_text().splitlines()
            predictor = load_run((folder / "source").read_text(), settings=settings)
        elif what == "saved_model":
            from effdet_tf.prediction.saved_model import SavedModelPredictor

            predictor = SavedModelPredictor(folder / "saved_model")
        else:
            from effdet_tf.prediction.tflite import TFLitePredictor

            predictor = TFLitePredictor(folder / f"{what}_{height}.tflite", threads=threads)
        image = np.random.default_rng(1).normal(120, 20, (height, width, 1)).clip(0, 255).astype(np.uint8)
        times = []
        for _ in range(CALLS + 2):
            start = time.perf_counter()
            found = predictor.predict(image)
            times.append(time.perf_counter() - start)
        print(json.dumps([what, [height, width], threads, 1000 * statistics.median(times[2:]), len(found)]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="trained run of cells-lite0")
    parser.add_argument("--peer-python", help="interpreter with torch and effdet")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--exports", type=Path, help="folder to keep the exports in, or to take them from")
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--formats", default=",".join(("keras", "saved_model", *PRECISIONS)))
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    formats = options.formats.split(",")
    if options.export:
        return export(Path(options.export[0]), options.export[1], options.run, formats)
    if options.measure:
        folder, what, threads = options.measure
        return measure(Path(folder), what, int(threads))
    times, counts, sizes = defaultdict(list), {}, {}
    presets = options.presets.split(",")

    def run(title: str, *command: str) -> None:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        for line in done.stdout.splitlines():
            if line.startswith("["):
                name, (height, width), threads, milliseconds, count = json.loads(line)
                key = (title, name, f"{height}x{width}", threads)
                times[key].append(milliseconds)
                counts[key] = count

    own = (sys.executable, "-m", "benchmarks.export_latency", "--formats", options.formats)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.exports or Path(temporary)
        for name in presets:
            extra = ("--run", str(options.run)) if options.run and name.startswith("cells-lite0") else ()
            folder = scratch / name
            if not folder.exists():
                folder.mkdir(parents=True)
                run(name, *own, *extra, "--export", str(folder), name)
            for path in sorted(folder.glob("*.tflite")):
                sizes[(name, path.stem)] = path.stat().st_size
            if (folder / "saved_model").is_dir():
                sizes[(name, "saved_model")] = sum(
                    path.stat().st_size for path in (folder / "saved_model").rglob("*") if path.is_file()
                )
        for _ in range(options.rounds):
            for threads in THREADS:
                if options.peer_python:
                    script = PEER.replace("{calls}", str(CALLS)).replace("{{", "{").replace("}}", "}")
                    run("peer", options.peer_python, "-c", script, str(threads), json.dumps(SIZES))
                for name in presets:
                    for what in formats:
                        run(name, *own, "--measure", str(scratch / name), what, str(threads))
    print(
        "| network | what | "
        + " | ".join(f"{h}x{w}, {t} thr." for h, w in SIZES for t in THREADS)
        + " | results |"
    )
    print("|---|---|" + "---|" * (len(SIZES) * len(THREADS) + 1))
    for title, name in dict.fromkeys(key[:2] for key in times):
        keys = [(title, name, f"{h}x{w}", t) for h, w in SIZES for t in THREADS]
        values = " | ".join(f"{statistics.median(times[key]):.0f}" for key in keys)
        found = "-".join(str(count) for count in sorted({counts[key] for key in keys}))
        print(f"| {title} | {name} | {values} | {found} |")
    print("\n| network | file | MB |\n|---|---|---|")
    for (name, what), size in sizes.items():
        print(f"| {name} | {what} | {size / 1e6:.2f} |")


if __name__ == "__main__":
    main()
