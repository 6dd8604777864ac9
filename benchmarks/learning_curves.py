"""Print the logs of several runs side by side, as a table.

python benchmarks/learning_curves.py random=runs/random imagenet=runs/imagenet
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

FIGURES = {"total": "loss", "mask_AP": "mask AP", "mask_AP50": "AP50", "sartorius": "Sartorius metric"}


def shown(name: str, text: str) -> str:
    """A figure as the other tables give it: APs in percent."""
    if not text:
        return ""
    return f"{100 * float(text):.1f}" if "AP" in name else f"{float(text):.3f}"


def main() -> None:
    """Read the logs and print one row per epoch."""
    runs = dict(argument.split("=", 1) for argument in sys.argv[1:])
    logs = {}
    for title, folder in runs.items():
        with open(Path(folder) / "log.csv", newline="") as file:
            logs[title] = list(csv.DictReader(file))
    columns = [(title, name) for name in FIGURES for title in runs]
    print("| epoch | steps | " + " | ".join(f"{FIGURES[name]}, {title}" for title, name in columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for rows in zip(*logs.values(), strict=True):
        row = dict(zip(logs, rows, strict=True))
        cells = [shown(name, row[title].get(name, "")) for title, name in columns]
        print(f"| {rows[0]['epoch']} | {rows[0]['step']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
