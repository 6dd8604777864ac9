"""What it gains and costs to scale images to the size of cells that a network knows.

  python benchmarks/size.py RUN DATA... [--images 4] [--times 1 4] [--um-per-px .65] [--set KEY=VALUE]

For each converted data set and magnification: mask AP / AP50 and F1 of its images, shown as if a microscope
had magnified them so many times more, predicted as they are, by the look that `predict` takes on its own
(with the scales that it chose), by `--cell-size` with the median of the annotated cells, and by
`--um-per-px`. Cells are brought back to the pixels of the data set and compared with its own annotation.
Seconds are those of one image, as it is and by the look.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from effdet_tf.data.ground_truth import decode_pixels
from effdet_tf.data.manifest import load_manifest
from effdet_tf.metrics.evaluation import AnnotatedImage, CocoPredictions, annotated_images
from effdet_tf.metrics.instances import image_instances
from effdet_tf.metrics.scores import Evaluator
from effdet_tf.prediction.augmented import View
from effdet_tf.prediction.load import load
from effdet_tf.prediction.predictor import Predictor
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.sizing import Sizing, predict_sized


class Way:
    """One way to predict all images, and what it reached."""

    def __init__(self, predictor: Predictor, data: str) -> None:
        categories = load_manifest(data).categories
        self.entries = CocoPredictions(predictor.class_names, categories, data)
        self.evaluator = Evaluator(categories, predictor.config.postprocess.report_score, coco=False)
        self.scales: list[float] = []

    def add(self, one: AnnotatedImage, found: Result, view: View) -> None:
        """Count an image that was shown through a view."""
        self.scales.append(found.scale)
        found = view.leave(found, one.record.height, one.record.width)
        cells = self.entries.entries(one.image["id"], found)
        self.evaluator.add(image_instances(one.image, one.cells, cells))

    def told(self) -> str:
        """AP / AP50, F1."""
        report = self.evaluator.report(True)
        masks = report["livecell"]["all"]["segm"]
        return f"{100 * masks['AP']:.1f} / {100 * masks['AP50']:.1f}, {report['cells']['all']['f1']:.2f}"


def row(predictor: Predictor, data: str, chosen: list[AnnotatedImage], times: float, um: float | None) -> str:
    """The row of a data set at a magnification."""
    ways = [Way(predictor, data) for _ in range(4)]
    view, seconds, sizes = View(times, False, False, False), np.zeros(2), []
    for one in chosen:
        image = decode_pixels(one.record)
        image = image if times == 1 else view.enter(image)
        size = times * float(np.median([np.sqrt(c["bbox"][2] * c["bbox"][3]) for c in one.cells]))
        sizes.append(size)
        began = time.monotonic()
        plain = predictor.predict(image)
        middle = time.monotonic()
        looked = predict_sized(predictor, image, sizing=Sizing(), found=plain)
        seconds += middle - began, time.monotonic() - began
        found = [plain, looked, predict_sized(predictor, image, sizing=Sizing(cell_size=size))]
        if um:
            found.append(predict_sized(predictor, image, sizing=Sizing(um_per_px=um / times)))
        for way, result in zip(ways, found, strict=False):
            way.add(one, result, view)
    name = data.rstrip("/").rpartition("/")[2]
    scales = [", ".join(f"{scale:.2g}" for scale in sorted(set(way.scales))) for way in ways]
    parts = [f"{way.told()} ({text})" if text else "" for way, text in zip(ways, scales, strict=True)]
    took = " / ".join(f"{value:.1f}" for value in seconds / len(chosen))
    return f"| {name}, {len(chosen)} | {times:g} | {np.median(sizes):.0f} | {' | '.join(parts)} | {took} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--times", type=float, nargs="+", default=[1.0])
    parser.add_argument("--um-per-px", type=float, help="of all data sets")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    predictor = load(args.run, settings=args.set)
    print("| images | times | cells, px | as it is | by a look | --cell-size | --um-per-px | s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for data in args.data:
        every = list(annotated_images(data))
        chosen = every[:: max(len(every) // args.images, 1)][: args.images]
        for times in args.times:
            print(row(predictor, data, chosen, times, args.um_per_px), flush=True)


if __name__ == "__main__":
    main()
