"""Images of other sizes than a TFLite file's input, against the run, which takes any size whole.

    python -m benchmarks.export_sizes RUN FILE.tflite IMAGES...

IMAGES are four of one size. Their middle parts are padded by the file, mosaics of them are cut into tiles.
Only cells that would be reported (postprocess.report_score) count. The run gets candidates
(postprocess.top_k) and cells (data.max_instances) in proportion to the mosaic, as the tiles do.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from effdet_tf.images.read import read_image
from effdet_tf.prediction.run import load_run
from effdet_tf.prediction.tflite import TFLitePredictor
from export.agreement import match


def middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle `height` x `width` pixels."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def main() -> None:
    """Print a table."""
    run, file, *paths = sys.argv[1:]
    config = load_run(run).config
    room = [f"postprocess.top_k={4 * config.postprocess.top_k}", f"data.max_instances={4 * 2000}"]
    whole, tiled = load_run(run, settings=room), TFLitePredictor(file)
    images = [read_image(path) for path in paths]
    rows = [np.concatenate(images[k : k + 2], axis=1) for k in (0, 2)]
    mosaic = np.concatenate(rows, axis=0)
    height, width = images[0].shape[:2]
    cases = {
        "128 x 128": [middle(image, 128, 128) for image in images],
        "256 x 256": [middle(image, 256, 256) for image in images],
        "400 x 500": [middle(image, 400, 500) for image in images],
        f"{height} x {width}": images,
        f"{2 * height} x {2 * width}, mosaic": [mosaic],
        f"{2 * height - 36} x {2 * width - 77}, cut mosaic": [mosaic[:-36, :-77]],
    }
    columns = ("image", "cells of the run", "of the file", "matched, %", "largest score difference", "s")
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|")
    for name, pictures in cases.items():
        cells, matched, worst, seconds = [0, 0], 0, 0.0, 0.0
        for picture in pictures:
            start = time.perf_counter()
            found = tiled.predict(picture)
            seconds += time.perf_counter() - start
            results = [r.filter(config.postprocess.report_score) for r in (whole.predict(picture), found)]
            a, b = match(*results)
            cells = [total + len(result) for total, result in zip(cells, results, strict=True)]
            matched += len(a)
            if len(a):
                worst = max(worst, float(np.abs(results[0].scores[a] - results[1].scores[b]).max()))
        share = 200 * matched / max(sum(cells), 1)
        figures = (*cells, f"{share:.1f}", f"{worst:.1e}", f"{seconds / len(pictures):.2f}")
        print(f"| {name} | {' | '.join(map(str, figures))} |")


if __name__ == "__main__":
    main()
