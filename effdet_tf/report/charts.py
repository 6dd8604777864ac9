"""The charts of a report, as SVG to stand inside a page. The same numbers give the same text."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from effdet_tf.metrics.protocols import KIND_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart; light ones come last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444", "#B8A800")
REFERENCE = "#9aa1ad"  # of others' figures
MARKERS = "os^Dv<>P"
SIZES = {"APs": "small, below 18² px", "APm": "medium, to 31² px", "APl": "large, above 31² px"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "svg.hashsalt": "effdet_tf",
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
_SIZE = (4.6, 3.1)  # inches


def _chart(name: str, draw: Callable[[Axes], None], size: tuple[float, float] = _SIZE) -> str:
    """Draw on axes, and return the picture as an SVG element whose ids begin with `name`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that this machine's font lacks: the browser has another font for it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (?:width|height)="[0-9.]+pt"', "", text, count=2)
    for sign in (' id="', "url(#", ':href="#'):  # ids are of the whole page
        text = text.replace(sign, f"{sign}{name}-")
    return text.replace("<svg", f'<svg class="chart" id="{name}" role="img"', 1)


def lines(
    name: str,
    title: str,
    x: str,
    curves: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]],
    y: str = "",
    logarithmic: bool = False,
    limits: tuple[float, float | None] | None = None,
    end: float | None = None,
) -> str:
    """Curves over one axis.

    Args:
        name: of the chart, for its ids.
        title: above it.
        x: name of the axis.
        curves: x and y of the points, by label; a single point is drawn as a dot.
        y: name of the axis.
        logarithmic: whether the y axis is.
        limits: of the y axis; None for as high as the curves.
        end: of the x axis, which begins at 0; None for as far as the curves.
    """
    from matplotlib.ticker import LogLocator

    def draw(axes: Axes) -> None:
        for place, (label, (along, up)) in enumerate(curves.items()):
            marker = "o" if len(along) < 12 else None
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(along, up, color=colour, label=label, marker=marker, markersize=3.5)
        axes.set(title=title, xlabel=x, ylabel=y)
        if logarithmic:
            axes.set_yscale("log", subs=[])
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if limits:
            axes.set_ylim(*limits)
        if end is not None:
            axes.set_xlim(0, end)
        if len(curves) > 4:
            axes.figure.legend(fontsize=8, loc="outside lower center", ncols=4)
        elif len(curves) > 1:
            axes.legend(fontsize=8)

    return _chart(name, draw)


def precision_recall(name: str, kind: str, precision: Mapping[str, Sequence[float]]) -> str:
    """Precision over recall at IoU .5, at .75 and as the mean of all, of "bbox" or "segm"."""
    recalls = np.linspace(0, 100, 101)
    labels = {"50": "IoU .50", "75": "IoU .75", "mean": "mean, .50 to .95"}
    curves = {
        f"{labels[key]}: AP {100 * float(np.mean(values)):.1f}": (recalls, 100 * np.asarray(values))
        for key, values in precision.items()
        if key in labels
    }
    title = f"Precision and recall, {KIND_NAMES[kind]}"
    return lines(name, title, "recall, %", curves, "precision, %", limits=(0, 103))


def ap_by_iou(name: str, curves: Mapping[str, Any]) -> str:
    """AP over the IoU that a match must have."""
    steps = np.linspace(0.5, 0.95, 10)
    values = {KIND_NAMES[kind]: (steps, [100 * v for v in curve["AP"]]) for kind, curve in curves.items()}
    return lines(name, "AP by IoU threshold", "IoU of a match", values, "AP, %", limits=(0, 103))


def bars(name: str, title: str, groups: Sequence[str], values: Mapping[str, Sequence[float | None]]) -> str:
    """Bars of AP in %, lying, one group below the other; `values` has one of each group by label or None."""

    def draw(axes: Axes) -> None:
        thick = 0.8 / len(values)
        for place, (label, row) in enumerate(values.items()):
            at = np.arange(len(groups)) + (place + 0.5) * thick - 0.4
            lengths = [0.0 if v is None else v for v in row]
            colour = REFERENCE if label.startswith("published") else COLOURS[place % len(COLOURS)]
            axes.barh(at, lengths, thick * 0.92, color=colour, label=label)
            for y, value in zip(at, row, strict=True):
                shown = "not defined" if value is None else f"{value:.1f}"
                axes.text((value or 0.0) + 0.8, y, shown, va="center", fontsize=7.5, color="#333333")
        axes.set_yticks(range(len(groups)), groups)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(0, 100), xlabel="AP, %", title=title)
        axes.figure.legend(fontsize=8, loc="outside lower center", ncols=len(values))

    height = 1.1 + 0.17 * len(groups) * (len(values) + 1)
    return _chart(name, draw, (_SIZE[0], max(_SIZE[1], height)))


def reliability(name: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Share of matches over the score, a curve for each group; dots are as large as a bin has many cells."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--", label="a probability")
        for place, (label, group) in enumerate(groups.items()):
            score, share, cells = np.array(group["bins"], np.float64).reshape(-1, 3).T
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(score, share, color=colour, linewidth=1, label=label)
            size = 4 + 60 * cells / max(cells.max(initial=1), 1)
            axes.scatter(score, share, s=size, color=colour, linewidths=0, clip_on=False, zorder=3)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share of cells that match, IoU .5")
        axes.set_title("Scores as probabilities")
        axes.legend(fontsize=8, loc="upper left")

    return _chart(name, draw)


def counts(name: str, images: Sequence[Mapping[str, Any]]) -> str:
    """Found over true cells, an image a dot, in the colour and shape of its cell type."""
    from matplotlib.ticker import MaxNLocator

    types = sorted({str(image.get("cell_type") or "") for image in images})

    def draw(axes: Axes) -> None:
        top = max([1, *(max(image["true"], image["found"]) for image in images)]) * 1.04
        axes.plot([0, top], [0, top], color="#999999", linewidth=1, linestyle="--", label="as many")
        for place, kind in enumerate(types):
            own = [image for image in images if str(image.get("cell_type") or "") == kind]
            true, found = ([image[name] for image in own] for name in ("true", "found"))
            look: dict[str, Any] = {"s": 16, "alpha": 0.75, "linewidths": 0, "clip_on": False, "zorder": 3}
            look |= {"color": COLOURS[place % len(COLOURS)], "label": kind or "cell type unknown"}
            axes.scatter(true, found, marker=MARKERS[place // len(COLOURS) % len(MARKERS)], **look)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set(xlim=(0, top), ylim=(0, top), xlabel="true cells in an image", ylabel="found cells")
        axes.set_title("Counts, an image a dot")
        axes.legend(fontsize=8, loc="upper left")

    return _chart(name, draw)


def sizes(name: str, histogram: Mapping[str, Sequence[float]]) -> str:
    """How many true and found cells there are of each size."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    edges = np.asarray(histogram["edges"], np.float64)
    # What lies below or above all edges gets a bar of the same width there.
    edges = np.concatenate([[edges[0] ** 2 / edges[1]], edges, [edges[-1] ** 2 / edges[-2]]])
    true, found = np.asarray(histogram["true"]), np.asarray(histogram["found"])
    used = np.flatnonzero(true + found)

    def draw(axes: Axes) -> None:
        first, last = (used[0], used[-1] + 1) if len(used) else (0, 1)
        for label, values, colour in (("true", true, COLOURS[0]), ("found", found, COLOURS[1])):
            fill = label == "true"
            look: dict[str, Any] = {
                "fill": fill,
                "color": colour,
                "alpha": 0.35 if fill else 1,
                "linewidth": 1.6,
            }
            text = f"{label}: {int(values.sum()):,}"
            axes.stairs(values[first:last], edges[first : last + 1], label=text, **look)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set(xlabel="size, square root of the area, px", ylabel="cells", title="Sizes of the cells")
        axes.legend(fontsize=8)

    return _chart(name, draw)
