"""`effdet_tf info`: versions, devices, presets, trained networks, or what a run or an export is."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `info` to the command line."""
    parser = subparsers.add_parser(
        "info",
        help="versions, devices, presets, trained networks; or what a run or an export is",
        description="Tell what is installed here, which devices there are, and which trained networks come "
        "with the package; or, of a run or an exported network, what it is and what it reaches.",
        examples=[
            ("what is here; put it into a bug report", ""),
            ("a run, a SavedModel or a TFLite file", "runs/mine"),
            ("the same for programs", "cells-large --json"),
        ],
    )
    what = "trained run, network of the package, folder of a SavedModel, or .tflite file"
    parser.add_argument("run_folder", nargs="?", metavar="RUN", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    from effdet_tf.report import inventory

    found = inventory.network(args.run_folder) if args.run_folder else inventory.machine()
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(describe_network(found) if args.run_folder else describe_machine(found)))
    return 0


def describe_machine(found: dict[str, Any]) -> list[str]:
    """What `inventory.machine` found, for people."""
    from effdet_tf.report.inventory import OPTIONAL

    devices, optional = found["devices"], found["optional"].items()
    memory = f", {devices['memory_gib']:g} GiB of memory" if devices["memory_gib"] else ""
    gpus = ", ".join(devices["gpus"]) or "no GPU"
    lines = [
        f"effdet_tf {found['effdet_tf']} in {found['folder']}",
        f"Python {found['python']} on {found['platform']}",
        f"devices: {devices['cpu_cores']} CPU cores{memory}; {gpus}",
        "packages:",
        *(f"  {name} {number or 'is not installed'}" for name, number in found["packages"].items()),
        "for some tasks only:",
        *(f"  {name} {number or 'is not installed'} ({OPTIONAL[name]})" for name, number in optional),
        f"presets: {', '.join(found['presets'])}",
        "trained networks (effdet_tf info NAME says more):",
    ]
    for network in found["networks"]:
        licence = f"; {_short(network['licence'])}" if network["licence"] else ""
        lines.append(
            f"  {network['name']}: {network['preset']}, {network['parameters']:,} parameters, "
            f"{network['megabytes']:.1f} MB; {_figures(network['figures'])}{licence}"
        )
        lines.append(f"    {network['path']}")
    return lines


def describe_network(found: dict[str, Any]) -> list[str]:
    """What `inventory.network` found, for people."""
    masks = f"{found['mask_size']} x {found['mask_size']}" if found["mask_size"] else "off"
    sizes = f"{found['anchor_sizes']} px" if found["anchor_sizes"] else "sizes as published"
    pixels = f"({found['mean']}, {found['std']})" if found["mean"] is not None else "each image's own values"
    size = f", {found['input_size'][0]}x{found['input_size'][1]} px" if found.get("input_size") else ""
    zoom = f", magnified {found['zoom']:g} times" if found["zoom"] != 1 else ""
    if found["kind"] == "run":
        what = f"run, weights {found['weights']} ({found['parameters']:,} parameters, "
    else:
        what = f"{found['kind']} ({found['precision']}, by effdet_tf {found['exported_by']}, "
    low, high = found["levels"]
    lines = [
        f"{found['path']}: {what}{found['megabytes']:.1f} MB)",
        f"  classes     {', '.join(found['classes'])}",
        f"  network     preset {found['preset']}: {found['backbone']}, P{low}-P{high}, BiFPN "
        f"{found['fpn']['channels']} x {found['fpn']['repeats']}, masks {masks}",
        f"  anchors     {sizes}, ratios {found['anchor_ratios']}",
        f"  input       {found['channels']} channel{'s' * (found['channels'] > 1)}{size}{zoom}, normalised "
        f"by {pixels}",
        f"  cells       at most {found['max_instances']} an image, reported from score "
        f"{found['report_score']:g}",
    ]
    if "figures" in found:
        lines.append(f"  figures     {_figures(found['figures'])}")
    if found.get("licence"):
        lines.append(f"  licence     {found['licence']}")
    return lines


def _figures(figures: dict[str, float]) -> str:
    if not figures:
        return "no figures: it was not validated"
    names = {"mask_AP": "mask AP", "mask_AP50": "mask AP50", "box_AP": "box AP", "coco_box_AP": "COCO box AP"}
    parts = [f"{name} {100 * figures[key]:.1f}" for key, name in names.items() if key in figures]
    if "sartorius" in figures:
        parts.append(f"Sartorius metric {figures['sartorius']:.3f}")
    return f"{', '.join(parts)} on {figures['images']} validation images with {figures['cells']:,} cells"


def _short(licence: str) -> str:
    """The first sentence."""
    return licence.partition(". ")[0].rstrip(".")
