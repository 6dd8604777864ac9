"""`python -m effdet_tf info`: versions, devices, presets, or what a run folder holds."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from effdet_tf.run_folder import find_run, model_names

PACKAGES = ("keras", "numpy", "opencv-python-headless", "pycocotools")


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `info` to the command line."""
    parser = subparsers.add_parser(
        "info", help="versions, devices, presets, trained networks; or what a run folder holds"
    )
    parser.add_argument(
        "run_folder", nargs="?", metavar="RUN", help="run folder, or network of the package, to describe"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    print("\n".join(_describe_run(find_run(args.run_folder)) if args.run_folder else _describe_machine()))
    return 0


def _describe_machine() -> list[str]:
    import tensorflow as tf

    from effdet_tf._version import __version__
    from effdet_tf.presets import PRESETS

    lines = [f"effdet_tf {__version__}, Python {platform.python_version()} on {platform.platform()}"]
    lines.append(f"  tensorflow {tf.__version__}")
    for name in PACKAGES:
        try:
            lines.append(f"  {name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"  {name} is not installed under this name")
    devices = [device.device_type for device in tf.config.list_physical_devices()]
    lines.append("devices: " + ", ".join(f"{devices.count(kind)} {kind}" for kind in sorted(set(devices))))
    lines.append("presets: " + ", ".join(PRESETS))
    lines.append("trained networks: " + ", ".join(model_names()))
    return lines


def _describe_run(folder: Path) -> list[str]:
    from effdet_tf.config import load_config
    from effdet_tf.run_folder import config_file, weights_file

    config = load_config(config_file(folder))
    weights = weights_file(folder)
    model, data = config.model, config.data
    masks = f"{model.mask.size} x {model.mask.size}" if model.mask.enabled else "off"
    return [
        f"{folder}: preset {config.preset}, weights {weights.name} ({weights.stat().st_size / 1e6:.1f} MB)",
        f"  classes     {', '.join(config.class_names)}",
        f"  network     {model.backbone}, P{model.min_level}-P{model.max_level}, "
        f"BiFPN {model.fpn_channels} x {model.fpn_repeats}, masks {masks}",
        f"  anchors     {[list(s) for s in config.anchors.sizes] or f'scale {config.anchors.scale}'} px, "
        f"ratios {list(config.anchors.ratios)}",
        f"  input       {data.channels} channel(s), normalised by "
        + (
            "each image's mean and deviation"
            if data.normalization == "image"
            else f"({data.mean}, {data.std})"
        ),
        f"  cells       at most {data.max_instances} an image, reported from score "
        f"{config.postprocess.report_score:.2f}",
    ]
