"""Time of the two COCO evaluators at thousands of cells, and whether their figures are the same.

`python benchmarks/evaluation.py --images 4 --cells 50 250 --fast-only 1000` prints a Markdown table. The
images hold random ellipses; up to four detections per cell: near ones, doubles and false ones.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import cv2
import numpy as np

from effdet_tf.masks import mask_to_patch, patch_box, patch_to_rle
from effdet_tf.metrics.cells import score_cells
from effdet_tf.metrics.coco import evaluate_coco

HEIGHT, WIDTH = 520, 704


def draw_cell(
    random: np.random.Generator, y: float, x: float, radii: np.ndarray, angle: float
) -> dict[str, Any]:
    """An ellipse as COCO box and RLE."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, (int(x), int(y)), tuple(int(r) for r in radii), angle, 0, 360, 1, -1)
    patch = mask_to_patch(mask.astype(bool))
    assert patch is not None
    y0, x0, y1, x1 = (float(v) for v in patch_box(patch))
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": patch_to_rle(patch, HEIGHT, WIDTH)}


def make_case(images: int, cells: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and detections: `cells` per image, four detections per cell up to 2,000 an image."""
    random = np.random.default_rng(seed)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    found = []
    for image in range(1, images + 1):
        truth["images"].append({"id": image, "height": HEIGHT, "width": WIDTH})
        places = []
        for _ in range(cells):
            y, x = random.uniform((5, 5), (HEIGHT - 5, WIDTH - 5))
            radii, angle = random.uniform(4, 12, 2), random.uniform(0, 180)
            places.append((y, x, radii, angle))
            truth["annotations"].append(
                {"image_id": image, "category_id": 1, "iscrowd": 0} | draw_cell(random, y, x, radii, angle)
            )
        for number in range(min(4 * cells, 2000)):
            y, x, radii, angle = places[number % cells]
            good = random.random()
            dy, dx = random.normal(0, 1 + 8 * (1 - good) * (number >= cells), 2)
            y, x = np.clip(y + dy, 2, HEIGHT - 2), np.clip(x + dx, 2, WIDTH - 2)
            radii = np.maximum(radii + random.normal(0, 1, 2), 3)
            detection = draw_cell(random, y, x, radii, angle + random.normal(0, 5))
            found.append({"image_id": image, "category_id": 1, "score": float(good)} | detection)
    return truth, found


def largest_difference(one: Any, two: Any) -> float:
    """Largest difference between two nested dicts of figures; infinite when they differ in anything else."""
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return float("inf")
        return max((largest_difference(one[key], two[key]) for key in one), default=0.0)
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two)
    return 0.0 if one == two else float("inf")


def main() -> None:
    """Print one row per density."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 400], help="cells per image")
    parser.add_argument("--fast-only", type=int, nargs="*", default=[], help="densities without pycocotools")
    options = parser.parse_args()
    columns = (
        "images",
        "cells",
        "found",
        "faster-coco-eval",
        "pycocotools",
        "ratio",
        "difference",
        "cell scores",
    )
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for cells in [*options.cells, *options.fast_only]:
        truth, found = make_case(options.images, cells)
        seconds, figures = {}, {}
        names = ["faster-coco-eval", "pycocotools"] if cells in options.cells else ["faster-coco-eval"]
        for name in names:
            start = time.perf_counter()
            figures[name] = evaluate_coco(truth, found, evaluator=name)["all"]
            seconds[name] = time.perf_counter() - start
        start = time.perf_counter()
        score_cells(truth, found)
        cell_seconds = time.perf_counter() - start
        fast = seconds["faster-coco-eval"]
        if len(names) == 2:
            slow = seconds["pycocotools"]
            difference = largest_difference(*figures.values())
            rest = f"{slow:.1f} s | {slow / fast:.0f} | {difference:.1g}"
        else:
            rest = "- | - | -"
        print(
            f"| {options.images} | {len(truth['annotations'])} | {len(found)} | {fast:.1f} s | {rest} "
            f"| {cell_seconds:.1f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
