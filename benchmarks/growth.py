"""Time and memory of conversion and evaluation from a small set to LIVECell's size, as a table and a picture.

`python benchmarks/livecell_like.py SET`, then `python benchmarks/growth.py SET --out OUT`. Converts 5, 25 and
100 % of the training images and the test images, then evaluates 98, 391 and 1,564 images of 500 cells and
2,000 detections each (`benchmarks/evaluation.py`). Writes OUT/growth.png.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from convert import measure
from matplotlib import pyplot as plt

SPLITS = ("train5percent", "train25percent", "train", "test")
IMAGES = (98, 391, 1564)


def numbers(row: str) -> list[str]:
    """The cells of a Markdown row."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def main() -> None:
    """Print both tables, draw the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", type=Path, help="what livecell_like.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to work in")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(
        "| converted | images | cells | s | CPU s | images/s | cells/s | peak GiB | MB |\n" + "|---" * 9 + "|"
    )
    curves: dict[str, list[tuple[float, float, float]]] = {"conversion": [], "evaluation": []}
    for split in SPLITS:
        folder = args.out / split
        shutil.rmtree(folder, ignore_errors=True)
        row = measure(split, ["livecell", str(args.set), str(folder), "--split", split], folder)
        print(row, flush=True)
        _, images, _, seconds, _, _, _, peak, _ = numbers(row)
        if split != "test":
            curves["conversion"].append((float(images.replace(",", "")), float(seconds), 1024 * float(peak)))
        shutil.rmtree(folder)
    print(
        "\n| evaluated | cells | found | time | of it the metrics | cells/s | MiB before | peak MiB |\n"
        + "|---" * 8
        + "|"
    )
    for count in IMAGES:
        command = [sys.executable, str(Path(__file__).with_name("evaluation.py")), "--measure", str(count)]
        row = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(row, end="", flush=True)
        images, _, _, seconds, _, _, _, peak = numbers(row)
        curves["evaluation"].append((float(images), float(seconds.split()[0]), float(peak)))
    figure, panes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, points in curves.items():
        for pane, index in zip(panes, (1, 2), strict=True):
            pane.plot([p[0] for p in points], [p[index] for p in points], "o-", label=name)
    for pane, label in zip(panes, ("time, s", "peak memory of all processes, MiB"), strict=True):
        pane.set_xlabel("images")
        pane.set_ylabel(label)
        pane.set_xlim(left=0)
        pane.set_ylim(bottom=0)
        pane.legend()
    figure.savefig(args.out / "growth.png", dpi=110)


if __name__ == "__main__":
    main()
