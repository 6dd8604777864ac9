"""The metrics of `export.parity` as a table that reads well as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_TITLES = {"saved_model": "SavedModel"}
_TITLES |= {name: f"TFLite {name}" for name in ("float32", "float16", "int8")}
_PROTOCOLS = {
    "livecell": "LIVECell protocol: IoU .50:.05:.95, classes as one",
    "coco": "COCO protocol: IoU .50:.05:.95, mean over classes",
}


def format_parity(report: Mapping[str, Any]) -> str:
    """The report of `compare` with `circumstances` as text: a heading, one column an artifact, footnotes."""
    artifacts = report["artifacts"]
    columns = [["", "Keras", *(_TITLES[name] for name in artifacts)]]
    for label, keras, cell in _rows(report):
        columns.append([label, keras, *(cell(figures) for figures in artifacts.values())])
    height, width = report["size"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    lines = [
        f"# Parity: the exports of {report['run']} against the run",
        "",
        f"{report['images']['number']} images: {report['images']['what']}",
        "",
        *_aligned(columns),
        "",
        "Matched: cells of the same class with a box IoU of .9 or more, of all that either returns; a cell "
        "within .001 of the minimum class score is not missed. Scores are compared before calibration.",
    ]
    if set(artifacts) - {"saved_model"}:
        lines.append(
            f"A TFLite file takes images of up to {height}x{width} in one piece, larger ones in tiles. It is "
            "compared with Keras on the same padding and tiles; the AP of Keras is of the run as it is."
        )
    if report["protocol"]:
        lines.append(f"AP: {_PROTOCOLS[report['protocol']]}.")
    if report.get("calibration"):
        heads = "; its heads are in float" if report.get("float_heads") else ""
        lines.append(f"int8 was calibrated on {report['calibration']}{heads}.")
    lines += [f"{_TITLES[name]}: {f['verdict']}: {f['why']}." for name, f in artifacts.items() if f["why"]]
    return "\n".join([*lines, "", f"{report['date'][:10]}, {versions}"])


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str, Callable[[Mapping[str, Any]], str]]]:
    """Label, value of the run itself, and how to get that of an artifact."""
    rows: list[tuple[str, str, Callable[[Mapping[str, Any]], str]]] = [
        ("path", "", lambda f: f["path"]),
        ("size, MB", "", lambda f: f"{f['bytes'] / 1e6:.1f}"),
        ("cells, Keras / export", "", lambda f: f"{f['reference_cells']} / {f['cells']}"),
        ("matched, %", "", lambda f: _percent(f["matched_share"], 2)),
        ("largest score difference", "", lambda f: _number(f["largest_score_difference"], ".1e")),
        ("mask IoU, mean", "", lambda f: _number(f["mean_mask_iou"], ".4f")),
        ("mask IoU, minimum", "", lambda f: _number(f["least_mask_iou"], ".3f")),
        ("cells to report, Keras / export", "", lambda f: f"{f['reference_reported']} / {f['reported']}"),
        ("their difference, sum of images", "", lambda f: str(f["count_difference"])),
    ]
    before = report["keras"]["AP"] or {}
    for kind, name in (("segm", "mask"), ("bbox", "box")):
        for key in ("AP", "AP50") if kind in before else ():

            def of_export(f: Mapping[str, Any], kind: str = kind, key: str = key) -> str:
                return _percent(f["AP"][kind][key], 2)

            rows.append((f"{name} {key}, %", _percent(before[kind][key], 2), of_export))
    return [*rows, ("asked", "", _asked), ("verdict", "", lambda f: f["verdict"])]


def _asked(figures: Mapping[str, Any]) -> str:
    tolerance = figures["tolerance"]
    if tolerance["ap_drop"] is not None:
        return f"AP lost <= {tolerance['ap_drop']:g}"
    text = f">= {100 * tolerance['matched_share']:g} %"
    return text if tolerance["score_difference"] is None else f"{text}, {tolerance['score_difference']:g}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        lines.append(f"| {' | '.join(cells)} |")
    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    return [lines[0], f"|{'|'.join(rule)}|", *lines[1:]]


def _percent(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form) if value else "0"
