"""Time and memory of the evaluation at thousands of cells; are its figures those of COCO's packages?

`python benchmarks/evaluation.py --images 2 --cells 100 500` compares with pycocotools and faster-coco-eval;
`--stream 98 391 1564` takes so many images of 500 cells and 2,000 detections one by one, as
`training.evaluate` does, each number in a process of its own. The images hold random ellipses; up to four
detections per cell: near ones, doubles and false ones. Twelve images are drawn, further ones are the same
under other ids.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import resource
import subprocess
import sys
import time
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from effdet_tf.geometry.masks import mask_to_patch, patch_box
from effdet_tf.geometry.rle import patch_to_rle
from effdet_tf.metrics.instances import image_instances
from effdet_tf.metrics.protocols import KINDS, PROTOCOLS, evaluate_coco
from effdet_tf.metrics.scores import Evaluator

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
    ground_truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "cell"}],
    }
    found = []
    for image in range(1, images + 1):
        ground_truth["images"].append({"id": image, "height": HEIGHT, "width": WIDTH})
        places = []
        for _ in range(cells):
            y, x = random.uniform((5, 5), (HEIGHT - 5, WIDTH - 5))
            radii, angle = random.uniform(4, 12, 2), random.uniform(0, 180)
            places.append((y, x, radii, angle))
            ground_truth["annotations"].append(
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
    return ground_truth, found


def package_figures(name: str, ground_truth: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    """AP and AR of one of the packages, by the LIVECell protocol."""
    rules, figures = PROTOCOLS["livecell"], {}
    index = importlib.import_module("pycocotools.coco" if name == "pycocotools" else name).COCO
    module = importlib.import_module("pycocotools.cocoeval" if name == "pycocotools" else name)
    evaluation = module.COCOeval if name == "pycocotools" else module.COCOeval_faster
    for kind in KINDS:
        sets = []
        for entries in (ground_truth["annotations"], found):
            coco = index()
            areas = [float(coco_mask.area(entry["segmentation"])) for entry in entries]
            if kind == "bbox" and entries is found:
                areas = [entry["bbox"][2] * entry["bbox"][3] for entry in entries]
            entries = [
                {"iscrowd": 0, **entry, "id": k, "area": area}
                for k, (entry, area) in enumerate(zip(entries, areas, strict=True), start=1)
            ]
            coco.dataset = {**ground_truth, "annotations": entries}
            coco.createIndex()
            sets.append(coco)
        run = evaluation(*sets, kind)
        run.params.maxDets, run.params.areaRng = list(rules.max_detections), rules.area_ranges
        run.evaluate()
        run.accumulate()
        precision, recall = np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])
        for name_, values in (
            ("AP", precision[..., 0, 2]),
            ("AP50", precision[0, ..., 0, 2]),
            ("AP75", precision[5, ..., 0, 2]),
            ("APs", precision[..., 1, 2]),
            ("AR", recall[..., 0, 2]),
        ):
            figures[kind, name_] = float(values[values > -1].mean())
    return figures


def compare(images: int, cells: int, packages: list[str]) -> None:
    """Print one row: seconds of each, largest difference of their figures from ours."""
    ground_truth, found = make_case(images, cells)
    start = time.perf_counter()
    report = evaluate_coco(ground_truth, found)["all"]
    ours = time.perf_counter() - start
    row = [images, len(ground_truth["annotations"]), len(found), f"{ours:.1f} s"]
    for name in ("faster_coco_eval", "pycocotools"):
        if name not in packages:
            row += ["-", "-", "-"]
            continue
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            figures = package_figures(name, ground_truth, found)
        took = time.perf_counter() - start
        worst = max(abs(value - report[kind][key]) for (kind, key), value in figures.items())
        row += [f"{took:.1f} s", f"{took / ours:.1f}", f"{worst:.0e}"]
    print("| " + " | ".join(map(str, row)) + " |", flush=True)


def stream(images: int) -> None:
    """Evaluate images one by one, all metrics; print time and memory."""
    ground_truth, found = make_case(12, 500)
    by_image = [
        [
            [e for e in entries if e["image_id"] == image["id"]]
            for entries in (ground_truth["annotations"], found)
        ]
        for image in ground_truth["images"]
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    evaluator, start = Evaluator(ground_truth["categories"], 0.3), time.perf_counter()
    for number in range(images):
        cells, entries = by_image[number % len(by_image)]
        image = {"id": number + 1, "height": HEIGHT, "width": WIDTH, "cell_type": f"type {number % 8}"}
        evaluator.add(image_instances(image, cells, entries))
    added = time.perf_counter()
    report = evaluator.report()
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = report["livecell"]["all"]["cells"]
    row = (images, f"{total:,}", f"{report['livecell']['all']['predictions']:,}", f"{done - start:.0f} s")
    row += (
        f"{done - added:.0f} s",
        f"{total / (done - start):,.0f}",
        f"{before / 1024:.0f}",
        f"{peak / 1024:.0f}",
    )
    print("| " + " | ".join(map(str, row)) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--cells", type=int, nargs="*", default=[100, 400], help="cells per image")
    parser.add_argument("--without-pycocotools", type=int, nargs="*", default=[], help="more of these")
    parser.add_argument("--stream", type=int, nargs="*", default=[], help="numbers of images")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        stream(options.measure)
        return
    columns = ["images", "cells", "found", "ours"]
    for name in ("faster-coco-eval", "pycocotools"):
        columns += [name, "times ours", "difference"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for cells in options.cells:
        compare(options.images, cells, ["faster_coco_eval", "pycocotools"])
    for cells in options.without_pycocotools:
        compare(options.images, cells, ["faster_coco_eval"])
    if options.stream:
        print(
            "\n| images | cells | found | time | of it the figures | cells/s | MiB before | peak MiB |\n"
            + "|---" * 8
            + "|"
        )
    for images in options.stream:
        subprocess.run([sys.executable, __file__, "--measure", str(images)], check=True)


if __name__ == "__main__":
    main()
