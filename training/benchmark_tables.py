"""What the LIVECell paper published, and tables of ours beside it. Markdown; AP in %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from effdet_tf.metrics.published import PUBLISHED

_HEAD = (
    "| {what} | images | cells | box AP / AP50 | mask AP / AP50 | AFNR, mask "
    "| published anchor-free, box / mask | anchor-based |\n|---|---|---|---|---|---|---|---|"
)


def figures(group: Mapping[str, Any]) -> list[str]:
    """The cells of a row: images, cells, and the figures of one group of a LIVECell report."""
    row = [str(group["images"]), f"{group['cells']:,}"]
    for kind in ("bbox", "segm"):
        values = group.get(kind)
        row.append(f"{_percent(values['AP'])} / {_percent(values['AP50'])}" if values else "-")
    row.append(_percent(group["segm"]["AFNR"]) if "segm" in group else "-")
    return row


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _published(name: str) -> list[str]:
    if name not in PUBLISHED:
        return ["-", "-"]
    return [f"{box:.2f} / {mask:.2f}" for box, mask in PUBLISHED[name]]


def _row(name: str, group: Mapping[str, Any], published: str) -> str:
    return f"| {' | '.join([name, *figures(group), *_published(published)])} |"


def wide_table(report: Mapping[str, Any]) -> str:
    """One network for all types: all of the test set, and type by type.

    The paper has figures of the whole for such a network; those of a type are of networks for that type
    alone, and are left out.
    """
    groups = report["livecell"]
    rows = [_row("all", groups["all"], "all")]
    rows += [_row(name, group, "") for name, group in groups["by"].items()]
    return "\n".join([_HEAD.format(what="test images"), *rows])


def single_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A network for each type, each on the test images of its own type."""
    rows = [_row(name, report["livecell"]["all"], name) for name, report in reports.items()]
    return "\n".join([_HEAD.format(what="type"), *rows])


def transfer_matrix(reports: Mapping[tuple[str, str], Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
    """Mask AP (box AP of networks without masks): float `[trained on, tested on]`, NaN where undefined."""
    matrix = np.full((len(names), len(names)), np.nan)
    for row, trained in enumerate(names):
        for column, tested in enumerate(names):
            group = reports[trained, tested]["livecell"]["all"]
            value = group.get("segm", group["bbox"])["AP"]
            matrix[row, column] = np.nan if value is None else value
    return matrix


def transfer_table(matrix: np.ndarray, names: Sequence[str]) -> str:
    """The matrix; its diagonal is in bold."""
    lines = [f"| trained on \\ tested on | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row, trained in enumerate(names):
        cells = [_percent(None if np.isnan(v) else float(v)) for v in matrix[row]]
        cells[row] = f"**{cells[row]}**"
        lines.append(f"| {trained} | {' | '.join(cells)} |")
    return "\n".join(lines)


def size_table(reports: Mapping[int, Mapping[str, Any]], sizes: Mapping[int, tuple[int, int]]) -> str:
    """Networks trained on a share of the images, %, each on the whole test set; `sizes`: images, cells."""
    lines = ["| share, % | images | cells | box AP / AP50 | mask AP / AP50 | AFNR, mask |"]
    lines.append("|---|---|---|---|---|---|")
    for share, report in reports.items():
        images, cells = sizes[share]
        row = figures(report["livecell"]["all"])[2:]
        lines.append(f"| {share} | {images} | {cells:,} | {' | '.join(row)} |")
    return "\n".join(lines)


def count_figures(found: Sequence[int], marked: Sequence[int]) -> dict[str, float]:
    """How well counts agree, over the images.

    `mean_error` is the mean absolute difference of found cells and marked nuclei, `r2` the coefficient of
    determination of found = marked, `r2_line` that of the best line (the squared correlation).
    """
    x, y = np.asarray(marked, np.float64), np.asarray(found, np.float64)
    spread = float(((y - y.mean()) ** 2).sum())
    line = float(np.corrcoef(x, y)[0, 1] ** 2) if len(x) > 1 and x.std() > 0 and y.std() > 0 else float("nan")
    around = float(((x - x.mean()) ** 2).sum())
    return {
        "images": float(len(x)),
        "mean_marked": float(x.mean()),
        "mean_found": float(y.mean()),
        "mean_error": float(np.abs(y - x).mean()),
        "r2_line": line if spread else float("nan"),
        "r2": 1 - float(((y - x) ** 2).sum()) / around if around else float("nan"),
    }


def count_table(counts: Mapping[str, tuple[Sequence[int], Sequence[int]]]) -> str:
    """Counts against those by the fluorescent marker, type by type: (found, marked) of every image."""
    lines = [
        "| type | images | marked, mean | found, mean | mean absolute error | R2 of the best line "
        "| R2 of found = marked |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (found, marked) in counts.items():
        f = count_figures(found, marked)
        lines.append(
            f"| {name} | {f['images']:.0f} | {f['mean_marked']:.1f} | {f['mean_found']:.1f} "
            f"| {f['mean_error']:.1f} | {f['r2_line']:.3f} | {f['r2']:.3f} |"
        )
    return "\n".join(lines)
