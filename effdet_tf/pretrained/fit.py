"""Loads pretrained weights into a network where they fit, and lists the outcome of every variable."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write
from effdet_tf.model.network import Network
from effdet_tf.model.weights import named_variables
from effdet_tf.pretrained.source import Pretrained

Outcome = Literal["loaded", "adapted", "fresh", "skipped"]
STEM = "stem_conv/kernel"
_PARTS = (
    ("backbone", r"(stem|block\d+)_|backbone/"),
    ("BiFPN", r"(p\d+_resample|fpn\d+)_"),
    ("class head", r"class_"),
    ("box head", r"box_"),
    ("mask head", r"mask_"),
)
_SHOWN = 12  # reasons printed; the file has all


class FitRow(NamedTuple):
    """Outcome of one variable of the network, or of one array of the source that has no place in it."""

    name: str
    part: str
    outcome: Outcome  # loaded, adapted: from the source; fresh: keeps its start value; skipped: not used
    reason: str


def plan(
    shapes: Mapping[str, tuple[int, ...]], source: Pretrained
) -> tuple[dict[str, np.ndarray], list[FitRow]]:
    """Decide which array is loaded into which variable, by the shapes of the network's variables.

    Gives the arrays to assign, in the network's shapes, and a row for every variable of the network and every
    array of the source.
    """
    chosen: dict[str, np.ndarray] = {}
    rows = []
    for name, shape in shapes.items():
        value = source.arrays.get(name)
        outcome: Outcome = "loaded"
        reason = ""
        if value is None:
            outcome, reason = "fresh", "not in the source"
        elif name == STEM and value.shape != shape == (*value.shape[:2], *shape[2:3], *value.shape[3:]):
            chosen[name], reason = fold_channels(value, shape[2])
            outcome = "adapted"
        elif value.shape != shape:
            outcome, reason = "fresh", f"shape {shape} here, {value.shape} in the source"
        else:
            chosen[name] = value
        rows.append(FitRow(name, part(name), outcome, reason))
    rows += [
        FitRow(name, part(name), "skipped", "this network has no such variable")
        for name in source.arrays
        if name not in shapes
    ]
    rows += [FitRow(name, "", "skipped", reason) for name, reason in source.unused.items()]
    return chosen, rows


def fold_channels(kernel: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
    """Make the first convolution fit another number of input channels.

    The response to an image whose channels are all equal stays the same, whatever the numbers. From
    `[kh, kw, in, out]` to `[kh, kw, channels, out]`, and a line that says what was done.
    """
    total = kernel.sum(axis=2, keepdims=True)
    done = f"{kernel.shape[2]} input channels folded into {channels}: exact for gray images"
    return np.repeat(total / channels, channels, axis=2), done


def part(name: str) -> str:
    """The part of the network that a variable belongs to."""
    return next((title for title, pattern in _PARTS if re.match(pattern, name)), "other")


def start_from(network: Network, source: Pretrained, strict: bool = False) -> list[FitRow]:
    """Load whatever fits into a network; gives the rows of `plan`.

    Raises:
        UserError: when nothing fits; with `strict`, when a variable in a part of the network that the source
            covers stays fresh, or an array of the source has another shape than here.
    """
    variables = named_variables(network)
    chosen, rows = plan({name: tuple(v.shape) for name, v in variables.items()}, source)
    if not chosen:
        raise UserError(f"nothing of {source.origin} fits this network; choose another --init or preset")
    covered = {part(name) for name in source.arrays}
    left = [row for row in rows if row.outcome == "fresh" and row.part in covered]
    if strict and left:
        shown = "; ".join(f"{row.name}: {row.reason}" for row in left[:3])
        raise UserError(
            f"strict: {len(left)} variables that {source.origin} should fill stay fresh: {shown}; "
            "drop --strict to load the rest"
        )
    for name, value in chosen.items():
        variables[name].assign(value.astype("float32"))
    return rows


def summary(rows: Sequence[FitRow]) -> str:
    """A table of outcomes by part, and the reasons for what was left out."""
    lines = [f"{'':12} {'variables':>9} {'loaded':>7} {'adapted':>8} {'fresh':>6}"]
    for title in (*(title for title, _ in _PARTS), "other"):
        here = [row.outcome for row in rows if row.part == title]
        if here:
            counts = [here.count(outcome) for outcome in ("loaded", "adapted", "fresh")]
            lines.append(f"{title:12} {sum(counts):9} {counts[0]:7} {counts[1]:8} {counts[2]:6}")
    # That a backbone brings no heads needs no line: the table shows it.
    brought = {row.part for row in rows if row.outcome in ("loaded", "adapted")}
    for outcome in ("adapted", "fresh", "skipped"):
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row.outcome == outcome and (outcome != "fresh" or row.part in brought):
                reasons.setdefault(row.reason, []).append(row.name)
        for reason, names in list(reasons.items())[:_SHOWN]:
            few = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
            lines.append(f"{outcome}: {few}: {reason}")
        if len(reasons) > _SHOWN:
            lines.append(f"{outcome}: {len(reasons) - _SHOWN} further reasons")
    return "\n".join(lines)


def write_rows(path: Path, rows: Sequence[FitRow]) -> None:
    """Write all rows as CSV, atomically."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FitRow._fields)
        writer.writerows(rows)
