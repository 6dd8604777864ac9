"""The pictures of the LIVECell benchmark suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from effdet_tf.files import atomic_write


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")


def draw_transfer(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A heat map of AP `[trained on, tested on]`, 0 to 1, with the figures in %."""
    figure = Figure(figsize=(0.7 * len(names) + 2.2, 0.6 * len(names) + 1.6))
    axes = figure.add_subplot()
    picture = axes.imshow(100 * matrix, cmap="viridis", vmin=0)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("tested on")
    axes.set_ylabel("trained on")
    bright = np.nanmax(matrix) / 2 if np.isfinite(matrix).any() else 0
    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        if np.isfinite(value):
            colour = "black" if value > bright else "white"
            axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(picture, label="AP, %")
    _save(figure, path)


def draw_sizes(scores: Mapping[int, tuple[float, float]], path: Path) -> None:
    """Box and mask AP (0 to 1; NaN for no masks) over the share of the training images, %."""
    figure = Figure(figsize=(5, 3.6))
    axes = figure.add_subplot()
    shares = sorted(scores)
    for column, label in enumerate(("box", "mask")):
        values = [100 * scores[share][column] for share in shares]
        if np.isfinite(values).any():
            axes.plot(shares, values, marker="o", label=f"{label} AP")
    axes.set_xscale("log")
    axes.set_xticks(shares, [str(share) for share in shares])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share of the training images, %")
    axes.set_ylabel("AP on the whole test set, %")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def draw_counts(counts: Mapping[str, tuple[Sequence[int], Sequence[int]]], path: Path) -> None:
    """Found cells over marked nuclei, an image a dot; (found, marked) by type."""
    figure = Figure(figsize=(4.4 * len(counts), 4))
    for place, (name, (found, marked)) in enumerate(counts.items(), 1):
        axes = figure.add_subplot(1, len(counts), place)
        top = max([1, *found, *marked])
        axes.plot([0, top], [0, top], color="gray", linewidth=1)
        axes.scatter(marked, found, s=8, alpha=0.5)
        axes.set_title(name)
        axes.set_xlabel("nuclei by the fluorescent marker")
        axes.set_ylabel("cells found")
    _save(figure, path)
