"""A large generated image through `predict`: time, memory, and what the seams between tiles do.

    python benchmarks/large_image.py --side 20000 --out /tmp/large

Generated pictures of 2,000 px lie side by side, mirrored, so that every true cell is known. `predict` runs in
a process of its own. Cells that a seam runs through are held against those that none does: as many must be
found, and as much of them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile

import effdet_tf
from effdet_tf.data.synthetic.phase_contrast import render_image
from effdet_tf.prediction import predictor as large_images
from effdet_tf.prediction.tiling import make_tiles

BLOCK, CELLS, KIND = 2000, 3000, "Cluster"


def main() -> None:
    """Make the image, predict it, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=20000, help="px (default: 20000)")
    parser.add_argument("--run", default="cells", help="network (default: cells)")
    parser.add_argument("--out", type=Path, required=True, help="folder to work in")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "large.tif"
    true = make_image(path, options.side)
    words = ["predict", "--run", options.run, path, "--out", options.out / "found", "--overwrite"]
    seconds, peak, own = measure([sys.executable, "-m", "effdet_tf", *map(str, words)])
    found = pd.read_csv(options.out / "found" / "large.cells.csv")
    labels = tifffile.imread(options.out / "found" / "large.labels.tif")
    side, speed = options.side, options.side**2 / seconds / 1e6
    print(f"{side} x {side} px, {len(true)} true cells, {len(found)} found, {labels.max()} labels")
    print(f"{seconds:.0f} s ({speed:.2f} Mpx/s), peak RSS {peak:.2f} GiB, {own:.2f} GiB its own")
    for line in seams(true, found, options.side, options.run):
        print(line)


def make_image(path: Path, side: int) -> np.ndarray:
    """Write the image unless it is there; returns the true boxes `[N, 4]` yxyx px."""
    ground_truth = path.with_suffix(".npy")
    if path.exists() and ground_truth.exists():
        return np.load(ground_truth)
    blocks = []
    for seed in range(4):
        image, cells = render_image(seed, BLOCK, BLOCK, CELLS, KIND)
        corners = [(cell.polygon.min(0), cell.polygon.max(0)) for cell in cells]
        blocks.append((image, np.array([[y0, x0, y1, x1] for (x0, y0), (x1, y1) in corners])))
    whole = tifffile.memmap(path, shape=(side, side), dtype=np.uint8)
    draw, boxes = np.random.default_rng(0), []
    for top in range(0, side, BLOCK):
        for left in range(0, side, BLOCK):
            image, true = blocks[draw.integers(len(blocks))]
            if draw.random() < 0.5:
                image, true = (
                    image[:, ::-1],
                    np.stack([true[:, 0], BLOCK - true[:, 3], true[:, 2], BLOCK - true[:, 1]], axis=1),
                )
            height, width = min(BLOCK, side - top), min(BLOCK, side - left)
            whole[top : top + height, left : left + width] = image[:height, :width]
            inside = (true[:, 2] <= height) & (true[:, 3] <= width)
            boxes.append(true[inside] + [top, left, top, left])
    whole.flush()
    found = np.concatenate(boxes)
    np.save(ground_truth, found)
    return found


def measure(command: list[str]) -> tuple[float, float, float]:
    """Seconds, most memory, and most of it that no file backs, GiB, of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    most = [0, 0]

    def watch() -> None:
        while process.poll() is None:
            try:
                text = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            for k, name in enumerate(("VmRSS", "RssAnon")):
                match = re.search(rf"{name}:\s+(\d+)", text)
                most[k] = max(most[k], int(match[1]) if match else 0)
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait():
        raise SystemExit(f"predict ended with {process.returncode}")
    watcher.join()
    return time.perf_counter() - start, most[0] / 2**20, most[1] / 2**20


def seams(true: np.ndarray, found: pd.DataFrame, side: int, run: str) -> list[str]:
    """How cells fare that a seam runs through, and pairs of found cells that are one."""
    config = effdet_tf.load(run).config
    tiles = make_tiles(
        (side, side), (large_images.TILE,) * 2, large_images.tile_unit(config), large_images.OVERLAP
    )
    lines = np.unique([tile.core[0][0] for tile in tiles])[1:]
    boxes = found[["y0", "x0", "y1", "x1"]].to_numpy()
    index = Grid(boxes)
    best = np.array([index.best(box) for box in true])
    crossed = ((true[:, :2, None] < lines) & (true[:, 2:, None] > lines)).any((1, 2))
    report = [
        "",
        "| true cells | number | found at IoU .5 | at .75 | mean IoU of those found |",
        "|---|---|---|---|---|",
    ]
    for name, kept in (("through which a seam runs", crossed), ("all others", ~crossed)):
        mean = best[kept][best[kept] > 0.5].mean()
        shares = [f"{100 * (best[kept] > level).mean():.2f} %" for level in (0.5, 0.75)]
        report.append(f"| {name} | {kept.sum()} | {shares[0]} | {shares[1]} | {mean:.4f} |")
    over = ((boxes[:, :2, None] < lines) & (boxes[:, 2:, None] > lines)).any((1, 2))
    doubles = np.array([index.best(box, skip=k) > 0.5 for k, box in enumerate(boxes)])
    report.append(
        f"found cells that overlap another by IoU .5: {100 * doubles[over].mean():.2f} % at seams, "
        f"{100 * doubles[~over].mean():.2f} % elsewhere"
    )
    return report


class Grid:
    """Boxes by place, to look for the one that overlaps another most."""

    def __init__(self, boxes: np.ndarray, step: int = 128) -> None:
        self.boxes, self.step = boxes, step
        self.cells: dict[tuple[int, int], list[int]] = {}
        for k, (y, x) in enumerate(((boxes[:, :2] + boxes[:, 2:]) / 2 // step).astype(int).tolist()):
            self.cells.setdefault((y, x), []).append(k)

    def best(self, box: np.ndarray, skip: int = -1) -> float:
        """Largest IoU of `box` with any other than `skip`."""
        y, x = ((box[:2] + box[2:]) / 2 // self.step).astype(int).tolist()
        near = [
            k
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            for k in self.cells.get((y + dy, x + dx), [])
            if k != skip
        ]
        if not near:
            return 0.0
        other = self.boxes[near]
        shared = np.maximum(np.minimum(box[2:], other[:, 2:]) - np.maximum(box[:2], other[:, :2]), 0).prod(1)
        union = (box[2:] - box[:2]).prod() + (other[:, 2:] - other[:, :2]).prod(1) - shared
        return float((shared / union).max())


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
