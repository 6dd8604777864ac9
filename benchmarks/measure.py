"""Time to measure the cells of a label image: ours against scikit-image's regionprops_table, same columns.

    python benchmarks/measure.py

Discs of 10 to 36 px lie over each other in 1408 x 1040 px; medians of five runs in turn.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from skimage.measure import regionprops_table

from effdet_tf.outputs.measurements import measure_cells

CELLS = 2000


def main() -> None:
    """Print both times and their ratio."""
    labels = make_labels()
    image = np.random.default_rng(1).integers(0, 65535, labels.shape).astype(np.uint16)
    names = [name for name in measure_cells(labels, image, CELLS) if not name.startswith("centroid")]
    ways = {
        "measure_cells": lambda: measure_cells(labels, image, CELLS),
        "regionprops_table": lambda: regionprops_table(labels, image, properties=["centroid", *names]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(seconds[name]) for name in ways)
    cells = len(np.unique(labels)) - 1
    print(f"{cells} cells, {len(names) + 2} columns: {ours:.2f} s, scikit-image {theirs:.2f} s")
    print(f"{theirs / ours:.1f} times as fast")


def make_labels() -> np.ndarray:
    """Discs, the later over the earlier: int32 `[1040, 1408]`."""
    draw, labels = np.random.default_rng(0), np.zeros((1040, 1408), np.int32)
    for number in range(1, CELLS + 1):
        y, x, radius = draw.uniform(0, 1040), draw.uniform(0, 1408), draw.uniform(5, 18)
        top, left = max(int(y) - 20, 0), max(int(x) - 20, 0)
        window = labels[top : top + 40, left : left + 40]
        rows, columns = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
        window[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = number
    return labels


if __name__ == "__main__":
    main()
