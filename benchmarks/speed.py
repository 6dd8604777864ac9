"""Where the time of a prediction goes, and whether faster code finds the same cells.

python benchmarks/speed.py parts IMAGE ...            one image: network, what comes after it, all of it
python benchmarks/speed.py batch SAVED_MODEL IMAGE ... images of a request together, and one after the other
python benchmarks/speed.py save IMAGE ... --out F     the cells of the shipped networks, to a file
python benchmarks/speed.py compare F G                how many cells of F are in G, from other code
python benchmarks/speed.py start IMAGE                import, build, trace, first and second prediction

A folder is timed as a user would: `time effdet_tf predict FOLDER --out OUT`. To compare with other code, run
the same command there (`PYTHONPATH=OTHER_CHECKOUT`) in turn; `save` does with code that knows no score.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPEATS = 7


def median(run: Callable[[], Any]) -> str:
    """CPU seconds and seconds of a call, medians of `REPEATS`; the first call, which traces, is left out."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.process_time(), time.perf_counter()
        run()
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    cpu, wall = np.median(times, axis=0)
    return f"{cpu:.3f} CPU s, {wall:.3f} s"


def parts(images: Sequence[str], network: str) -> None:
    """Print the parts of each image's prediction."""
    import tensorflow as tf

    from effdet_tf.images.normalize import normalize
    from effdet_tf.images.read import read_image
    from effdet_tf.model.postprocess import detect
    from effdet_tf.prediction.run import Placement, load_run
    from effdet_tf.runs import find_run

    predictor = load_run(find_run(network))
    config, built = predictor.config, predictor.network
    score = config.postprocess.report_score
    for path in images:
        pixels = read_image(path)
        values = tf.constant(normalize(pixels, config, None))
        placement = Placement.of(config, built.stride, tf.shape(values)[:2])
        whole, shown = (tuple(map(int, size)) for size in (placement.whole, placement.shown))
        shape = (whole, shown)
        entered = placement.enter(values)[None]
        dense = tf.function(lambda x: built.dense(x, training=False), autograph=False)
        outputs = dense(entered)

        def after(outputs: Any, least: float, masks: bool, shape: tuple = shape) -> Any:
            found = detect(
                config, built.mask_head if masks else None, outputs, *shape, *([least] if least else [])
            )
            return {name: part for name, part in found._asdict().items() if part is not None}

        after = tf.function(after, autograph=False)
        print(f"{path}: {whole[0]} x {whole[1]} px")
        print(f"  network                  {median(lambda: dense(entered))}")  # noqa: B023 (called at once)
        try:
            for title, least, masks in (
                ("all cells", 0.0, True),
                ("all, without masks", 0.0, False),
                (f"from {score:g} on", score, True),
                ("those, without masks", score, False),
            ):
                count = int(after(outputs, least, masks)["count"])
                told = median(lambda: after(outputs, least, masks)["count"].numpy())  # noqa: B023
                print(f"  {title:24} {told}: {count} cells")
            print(f"  predict(image, {score:g})      {median(lambda: predictor.predict(pixels, score))}")  # noqa: B023
        except TypeError:  # before there was a score to ask
            print(f"  predict(image)           {median(lambda: predictor.predict(pixels))}")  # noqa: B023


def batch(folder: str, images: Sequence[str]) -> None:
    """Time one request with all images, and one request an image."""
    import tensorflow as tf

    from effdet_tf.images.read import encode_png, read_image

    ask = tf.saved_model.load(folder).signatures["serving_default"]
    files = tf.constant([encode_png(read_image(path)) for path in images])
    print(f"together: {median(lambda: ask(image_bytes=files))}")
    single = [files[k : k + 1] for k in range(len(images))]
    print(f"one after the other: {median(lambda: [ask(image_bytes=one) for one in single])}")


def save(images: Sequence[str], out: Path) -> None:
    """Write boxes, scores and masks of the reported cells of `cells` and `cells-large`."""
    from effdet_tf.images.read import read_image
    from effdet_tf.prediction.run import load_run
    from effdet_tf.runs import find_run

    found = {}
    for network in ("cells", "cells-large"):
        predictor = load_run(find_run(network))
        score = predictor.config.postprocess.report_score
        for path in images:
            try:
                result = predictor.predict(read_image(path), score)
            except TypeError:  # before there was a score to ask
                result = predictor.predict(read_image(path)).filter(score)
            found[network, Path(path).name] = (result.boxes, result.scores, result.masks)
    out.write_bytes(pickle.dumps(found))


def compare(first: Path, second: Path) -> None:
    """Print the share of cells that have their partner at IoU .9, and how much partners differ."""
    from effdet_tf.geometry.boxes import iou
    from export.agreement import mask_iou

    one, other = (pickle.loads(path.read_bytes()) for path in (first, second))  # noqa: S301 (of `save`)
    for network in ("cells", "cells-large"):
        cells = matched = others = 0
        scores, masks = [0.0], [1.0]
        for key in (key for key in one if key[0] == network):
            a, b = one[key], other[key]
            cells, others = cells + len(a[1]), others + len(b[1])
            if not len(a[1]) or not len(b[1]):
                continue
            overlap = np.asarray(iou(a[0][:, None], b[0][None]))
            same, partner = overlap.max(1) >= 0.9, overlap.argmax(1)
            matched += int(same.sum())
            scores.append(float(np.abs(a[1] - b[1][partner])[same].max(initial=0.0)))
            masks.append(float(mask_iou(a[2], b[2][partner])[same].min(initial=1.0)))
        told = f"{cells} and {others} cells, {matched} matched, scores within {max(scores):.1e}"
        print(f"{network}: {told}, masks at IoU {min(masks):.3f} at least")


def start(image: str) -> None:
    """Print the seconds of each step from nothing to the second prediction."""
    laps = [time.perf_counter()]

    def lap(title: str) -> None:
        laps.append(time.perf_counter())
        print(f"{title:20} {laps[-1] - laps[-2]:.2f} s")

    import tensorflow as tf

    assert tf.constant(0) is not None
    lap("TensorFlow")
    from effdet_tf.config import load_config
    from effdet_tf.model.network import build_network
    from effdet_tf.model.weights import assign_arrays, read_arrays
    from effdet_tf.prediction.run import RunPredictor
    from effdet_tf.runs import config_file, find_run, weights_file

    lap("Keras and the rest")
    folder = find_run("cells")
    config = load_config(config_file(folder))
    network = build_network(config)
    weights = weights_file(folder)
    assign_arrays(network, read_arrays(weights, network=network), str(weights))
    lap("building")
    predictor = RunPredictor(network, config)
    predictor._run.get_concrete_function()
    lap("tracing")
    for title in ("first prediction", "second prediction"):
        predictor.predict(image, config.postprocess.report_score)
        lap(title)


def main() -> None:
    """Do what the command line names."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("what", choices=("parts", "batch", "save", "compare", "start"))
    parser.add_argument("names", nargs="+")
    parser.add_argument("--network", default="cells")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.what == "parts":
        parts(args.names, args.network)
    elif args.what == "batch":
        batch(args.names[0], args.names[1:])
    elif args.what == "save":
        save(args.names, args.out or parser.error("save needs --out"))
    elif args.what == "compare":
        compare(*map(Path, args.names))
    else:
        start(args.names[0])


if __name__ == "__main__":
    main()
