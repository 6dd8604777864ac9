"""What the training commands share before they load a backend: options, configuration, run folder."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from effdet_tf.commands.parser import exit_code, positive
from effdet_tf.config import Config, TrainConfig, TrustConfig, load_config
from effdet_tf.errors import UserError
from effdet_tf.presets import PRESETS, preset
from effdet_tf.runs import CONFIG_FILE, find_run

DEFAULT_PRESET = "cells-lite0"
# Settings that a resumed run may change: they do not touch what was learned so far.
FREE = ("epochs", "minutes", "evaluate_every", "evaluate_images", "save_minutes", "xla")
# Steps of an epoch, at least, where a start is trained on: an epoch of a few images would be over in two, and
# validation take most of the time.
_EPOCH = 25
# Training on from so few images keeps this share of the start (benchmarks/trust.md).
_FEW, _KEPT = 20, 0.25
_INIT = """weights to start from: imagenet, a run folder, what `python -m effdet_tf weights import` wrote, or
a checkpoint that it takes; whatever fits is loaded, and a table says what was not"""


class TrainingImages(Protocol):
    """What the configuration takes from the training data."""

    images: int
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # of the classes in the source
    max_cells: int  # in the fullest image
    cell_sizes: np.ndarray  # float [N, 2], height and width of a sample of the cells, px
    masks: bool  # False when cells are annotated by boxes alone


def add_options(parser: argparse.ArgumentParser, default_out: str) -> None:
    """Add the options that every training command has; `default_out` is the run folder without --out."""
    network, length = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    add = parser.add_argument
    default = f"the network of the run that --init names, else {DEFAULT_PRESET}"
    network.add_argument("--preset", help=f"one of {', '.join(PRESETS)} (default: {default})")
    network.add_argument("--config", type=Path, help="YAML file in place of a preset")
    length.add_argument("--epochs", type=positive(int), help="passes over the data")
    minutes = "train this long instead; validation included"
    length.add_argument("--minutes", type=positive(float), help=minutes)
    add("--batch", type=positive(int), help="crops in a step")
    add("--init", metavar="SOURCE", help=_INIT)
    strict = "with --init: refuse weights of which something does not fit"
    add("--strict", action="store_true", help=strict)
    add("--out", type=Path, help=f"run folder (default: {default_out})")
    example = "any setting, for example train.learning_rate=5e-4"
    add("--set", action="append", metavar="KEY=VALUE", help=example)


def training_exit_code(command: Callable[[], None]) -> int:
    """Run a training command; its exit code, with the words for a failing disk and for Ctrl-C."""
    return exit_code(
        command,
        on_os_error="; the last checkpoint is unharmed",
        on_interrupt="; run the same command again to go on",
        on_no_memory="lower --batch or data.crop_size; the last checkpoint is unharmed",
    )


def wanted_config(options: argparse.Namespace) -> Config:
    """The configuration that the options ask for, before it has met the data.

    Raises:
        UserError: for an unknown preset, key or value.
    """
    config = _starting_point(options)
    quick: dict[str, Any] = {name: getattr(options, name) for name in ("epochs", "minutes", "batch", "init")}
    quick = {key: value for key, value in quick.items() if value is not None}
    if options.epochs is not None:
        quick.setdefault("minutes", 0.0)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **quick))
    config = config.override(options.set or [])
    if options.strict and not config.train.init:
        raise UserError("--strict goes with --init: it says how to load the weights that --init names")
    if config.train.batch < 1 or config.train.epochs < 1:
        given = f"train.batch {config.train.batch}, train.epochs {config.train.epochs}"
        raise UserError(f"{given}: both must be 1 or more")
    return config


def chosen_settings(options: argparse.Namespace) -> set[str]:
    """Settings that the user gave by name, such as `train.batch`; all of them where a file was given."""
    if options.config:
        own = {f"train.{field.name}" for field in dataclasses.fields(TrainConfig)}
        return own | {"data.crops_per_image"}
    named = {setting.partition("=")[0].strip() for setting in options.set or []}
    return named | ({"train.batch"} if options.batch is not None else set())


def for_devices(config: Config, devices: int, chosen: Collection[str], run: Path | None = None) -> Config:
    """Fit batch and learning rate of a preset to several devices.

    A run that was begun keeps what it has, on however many devices it goes on. Else each takes the preset's
    batch. The rate grows in proportion for SGD (Goyal et al. 2017, arXiv:1706.02677)
    and with the root of the batch for AdamW (Malladi et al. 2022, arXiv:2205.10287); the warm-up of the
    schedule stays.

    Args:
        config: its batch and rate are those of one device, where they were not chosen.
        devices: that share a step.
        chosen: settings that are left as they are; a chosen batch is that of all devices, and leaves the rate
            too.
        run: the run folder, where there may be a run already.
    """
    from training.state import has_state

    if run is not None and has_state(run) and (run / CONFIG_FILE).is_file():
        past = load_config(run / CONFIG_FILE).train
        names = [name for name in ("batch", "learning_rate") if f"train.{name}" not in chosen]
        kept = {name: getattr(past, name) for name in names}
        return dataclasses.replace(config, train=dataclasses.replace(config.train, **kept))
    if devices == 1 or "train.batch" in chosen:
        return config
    batch, rate = config.train.batch, config.train.learning_rate
    train = dataclasses.replace(config.train, batch=batch * devices)
    text = f"{devices} devices: batch {train.batch}, {batch} on each"
    if "train.learning_rate" not in chosen:
        factor = float(devices) if config.train.optimizer == "sgd" else devices**0.5
        train = dataclasses.replace(train, learning_rate=rate * factor)
        text += f"; learning rate {rate:g} -> {train.learning_rate:.3g}"
    print(text)
    return dataclasses.replace(config, train=train)


def _starting_point(options: argparse.Namespace) -> Config:
    """The configuration before any setting: of a file, a preset, or the run that is to be trained on."""
    if options.config:
        return load_config(options.config)
    run = _run_of(options.init) if options.preset is None else None
    if run is None:
        return preset(options.preset or DEFAULT_PRESET)
    # Another network would not take its weights, another way to look at pixels would not suit them. How it
    # was trained, on how many crops of which sources, was a matter of its own data.
    config = load_config(run / CONFIG_FILE)
    usual = preset(config.preset if config.preset in PRESETS else DEFAULT_PRESET)
    config = config.replace(data__source_share={}, data__crops_per_image=usual.data.crops_per_image)
    # Nor do its scores mean what they meant before.
    plain, none = config.postprocess.as_given(), TrustConfig()
    return dataclasses.replace(config, train=usual.train, postprocess=plain, trust=none)


def _run_of(init: str | None) -> Path | None:
    """The folder of a network of ours that `--init` names; None where it names something else."""
    run = find_run(init) if init else None
    return None if run is None or not (run / CONFIG_FILE).is_file() or any(run.glob("*.index")) else run


def resolve(config: Config, data: TrainingImages, chosen: Collection[str] = ()) -> Config:
    """Fill in what the data decide: classes, anchors, sizes of cells, more places and crops where needed.

    Args:
        config: that is wanted.
        data: the training images.
        chosen: settings that the user gave by name, as of `chosen_settings`: they stay.

    Raises:
        UserError: for settings that the data cannot serve.
    """
    from effdet_tf.model.anchors import suggest_anchors

    if not data.max_cells:
        raise UserError(
            "the training images hold no cell at all; look at what `python -m effdet_tf check DATA` says was "
            "dropped, and convert again"
        )
    config = config.replace(class_names=tuple(data.class_names), category_ids=tuple(data.category_ids))
    if config.model.mask.enabled and not data.masks:
        advice = "add --set model.mask.enabled=false"
        raise UserError(f"the training data have boxes only, so no masks can be learned; {advice}")
    check_zoom(config)
    if config.anchors.from_data and config.data.resize == "fit":
        raise UserError(
            "anchors.from_data measures cells in the pixels of their images, data.resize=fit scales those; "
            "set data.resize=none, or leave anchors.from_data off"
        )
    if config.anchors.from_data and len(data.cell_sizes):
        levels = tuple(range(config.model.min_level, config.model.max_level + 1))
        scale = (1.0, 1.0) if config.augment.short_sides else config.augment.scale_range
        per_level = len(config.anchors.sizes[0]) if config.anchors.sizes else 2
        ratios = config.anchors.ratios if config.anchors.code == "sides" else None
        sizes = data.cell_sizes * config.data.zoom
        found = suggest_anchors(sizes, levels, per_level, ratios, scale)
        fitted = {"anchors__sizes": found.sizes, "anchors__ratios": found.ratios}
        config = config.replace(anchors__from_data=False, **fitted)
    if len(data.cell_sizes):
        config = config.replace(data__cell_size=known_sizes(data.cell_sizes))
    if data.max_cells > config.data.max_instances:
        change = f"from {config.data.max_instances} to {data.max_cells}"
        print(f"data.max_instances raised {change}, the cells of the fullest image")
        config = config.replace(data__max_instances=data.max_cells)
    few = data.images <= _FEW and _run_of(config.train.init) is not None
    if few and "train.start_share" not in chosen:
        config = config.replace(train__start_share=_KEPT)
    return config if "data.crops_per_image" in chosen else _with_enough_crops(config, data.images)


def _with_enough_crops(config: Config, images: int) -> Config:
    """With so many crops of each image that few images make an epoch all the same."""
    steps, given = _EPOCH if config.train.init else 1, config.data.crops_per_image
    needed = -(-steps * config.train.batch // max(images, 1))
    if needed <= given:
        return config
    print(
        f"data.crops_per_image raised from {given} to {needed}, for {steps} steps an epoch on {images} images"
    )
    return config.replace(data__crops_per_image=needed)


def known_sizes(cell_sizes: np.ndarray) -> tuple[float, ...]:
    """Diameters at 5, 50 and 95 % of cells, from their heights and widths `[N, 2]`, in one decimal."""
    diameters = np.sqrt(np.prod(np.asarray(cell_sizes, np.float64), axis=1))
    return tuple(round(float(value), 1) for value in np.percentile(diameters, (5, 50, 95)))


def check_zoom(config: Config) -> None:
    """Refuse a magnification that makes no sense, with a UserError."""
    zoom = config.data.zoom
    if config.data.resize == "fit" and zoom != 1:
        raise UserError(
            f"data.zoom {zoom}: with data.resize=fit every image is scaled to data.crop_size; leave it at 1"
        )
    if not 0.1 <= zoom <= 10:
        raise UserError(f"data.zoom {zoom}: take 0.1 to 10")


def open_run(config: Config, folder: Path, write: bool = True) -> Config:
    """Return the configuration to train with, and save it if `write`: a started run keeps its own.

    Raises:
        UserError: when the folder holds a run with other settings; names the first differences.
    """
    from training.state import has_state

    path = folder / CONFIG_FILE
    if has_state(folder) and path.exists():
        past = load_config(path)
        free = {key: getattr(config.train, key) for key in FREE}
        # The run tuned its scores, as they are made in it; one begun before sizes were kept goes on without.
        names = ("report_score", "calibration", "mask_sure")
        kept = {f"postprocess__{name}": getattr(past.postprocess, name) for name in names}
        config = config.replace(**kept, data__cell_size=past.data.cell_size)
        config = dataclasses.replace(config, trust=past.trust)
        same = dataclasses.replace(past, train=dataclasses.replace(past.train, **free))
        if differences := _differences(same, config):
            raise UserError(
                f"{folder} holds a run with other settings ({'; '.join(differences[:3])}); "
                "repeat its command to go on, or choose another --out"
            )
    if write:
        config.save(path)
    return config


def _differences(past: object, new: object, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(past):  # type: ignore[arg-type]
        a, b = getattr(past, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(a):
            found += _differences(a, b, f"{prefix}{field.name}.")
        elif a != b:
            found.append(f"{prefix}{field.name} was {a}, now {b}")
    return found


def set_precision(config: Config, has_accelerator: bool) -> None:
    """Mixed precision where the device gains from it: bfloat16 needs no loss scaling."""
    import keras

    wanted = config.train.mixed_precision
    if wanted == "on" or (wanted == "auto" and has_accelerator):
        keras.config.set_dtype_policy("mixed_bfloat16")
