"""Export a trained network and prove that the exports find the same cells: `python -m export.main`.

writes
  DIR/saved_model/N/         for TensorFlow Serving; N follows the highest number, nothing is overwritten
  DIR/SERVING.md, DIR/batching_parameters.txt
  DIR/tflite/{float32,float16,int8}.tflite
  DIR/parity.json, DIR/parity.md
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effdet_tf.commands.parser import called, exit_code
from effdet_tf.config import Config, load_config
from effdet_tf.errors import UserError
from effdet_tf.files import write_json
from effdet_tf.runs import config_file, weights_file
from export.arguments import FORMATS, build_parser
from export.layout import SAVED_MODEL, TFLITE, Staging, size_of, staging

if TYPE_CHECKING:
    import numpy as np

    from effdet_tf.prediction.run import RunPredictor
    from export.trial_images import TrialImages

PARITY_FILES = ("parity.json", "parity.md")
_SIZE = (512, 512)  # without images


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is loaded: no start-up messages
    options = build_parser(__doc__).parse_args(arguments)
    with _terminated_as_interrupted():
        return exit_code(lambda: _told(_run(options)[1]), on_os_error="; free space or choose another --out")


def _told(faults: Sequence[str]) -> int:
    """Say on stderr what is wrong; returns the exit code."""
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return int(bool(faults))


def export(**options: Any) -> dict[str, Path]:
    """Export a network, as `python -m export.main` does: `export(run="runs/mine", out="exports/mine")`.

    Args:
        options: those of the command, by name (`python -m export.main --help`).

    Returns:
        What was made: `saved_model`, `float32`, `float16`, `int8`, whichever `formats` names.

    Raises:
        UserError: for an option that is unknown or wrong, a run that cannot be exported, or an export that
            does not keep to its tolerance; it is there all the same, and `parity.md` tells why.
    """
    with called(build_parser(), (), options) as arguments:
        chosen = build_parser().parse_args(arguments)
    places, faults = _run(chosen)
    if faults:
        raise UserError("; ".join(faults))
    return places


def _run(options: argparse.Namespace) -> tuple[dict[str, Path], list[str]]:
    """Check everything that can be wrong, export, compare; what was made, and what is not as the run."""
    config = load_config(config_file(options.run))
    least = config.postprocess.report_score if options.min_score is None else options.min_score
    changes = {"data.max_instances": options.max_instances, "model.mask.size": options.mask_size}
    changes["postprocess.min_score"] = least
    settings = [f"{key}={value}" for key, value in changes.items() if value is not None]
    config = config.override(settings)
    weights_file(options.run)  # missing weights must be told before images are read
    images = _images(options)
    options.size = _size(options, config, images)
    options.formats = options.formats or _possible_formats(options, images)
    tflite = set(options.formats) - {SAVED_MODEL}
    if tflite and not options.no_parity and importlib.util.find_spec("ai_edge_litert") is None:
        advice = 'needs ai-edge-litert: pip install "effdet_tf[tflite]", or give --no-parity'
        raise UserError(f"comparing TFLite files with the run {advice}")
    calibration, calibrated_on = _calibration(options, images)
    print(f"cells of score {least:g} and more (--min-score)")
    if tflite:
        height, width = options.size
        print(f"TFLite files for images of {height}x{width}; larger ones are predicted in tiles")
    if calibration:
        print(f"int8 is calibrated on {calibrated_on}", flush=True)
    finished: list[Path] = []
    try:
        with staging(options.out) as stage:
            finished = stage.finished
            from effdet_tf.prediction.run import load_run

            predictor = load_run(options.run, settings=settings)
            places = _export(options, stage, predictor, calibration)
            if options.no_parity:
                return places, []
            report = _compare(options, stage, predictor, places, images, calibrated_on)
    except (UserError, OSError, KeyboardInterrupt):
        if finished:
            print(f"finished before, and kept: {', '.join(map(str, finished))}", file=sys.stderr)
        raise
    return places, _faults(report)


def _export(
    options: argparse.Namespace, stage: Staging, predictor: RunPredictor, calibration: Sequence[np.ndarray]
) -> dict[str, Path]:
    """Make every artifact and move it to its place; returns the places by the names of `TOLERANCES`."""
    places: dict[str, Path] = {}
    for form in options.formats:
        name, start = FORMATS[form], time.monotonic()
        made = stage.folder / (name if name == SAVED_MODEL else f"{name}.tflite")
        with _failures_told(form, stage.folder):
            if name == SAVED_MODEL:
                from export.saved_model import write_saved_model

                card = {"licence": options.licence, "run": options.run}
                write_saved_model(predictor, made, max_pixels=options.max_pixels, **card)
            else:
                from export.tflite import convert

                float_heads = options.float_heads
                made.write_bytes(convert(predictor, options.size, name, calibration, float_heads=float_heads))
        if not places:
            for old in PARITY_FILES:  # of earlier exports
                (options.out / old).unlink(missing_ok=True)
        if name == SAVED_MODEL:
            from export.serving_files import write

            places[name] = stage.add_version(made)
            write(options.out, predictor, options.max_pixels)
        else:
            places[name] = stage.put(made, f"{TFLITE}/{made.name}")
        seconds = time.monotonic() - start
        print(f"{places[name]}  {size_of(places[name]) / 1e6:.1f} MB  {seconds:.0f} s", flush=True)
    return places


def _compare(
    options: argparse.Namespace,
    stage: Staging,
    predictor: RunPredictor,
    places: dict[str, Path],
    images: TrialImages | None,
    calibrated_on: str,
) -> dict[str, Any]:
    """Compare the artifacts with the run, write and print the results; returns them."""
    from effdet_tf.prediction.load import load
    from export.parity import Artifact, circumstances, compare
    from export.parity_table import format_parity
    from export.tflite import keras_reference
    from export.trial_images import synthetic

    padded = keras_reference(predictor, options.size) if set(places) - {SAVED_MODEL} else predictor
    artifacts = []
    for name, place in places.items():
        path, reference = (
            place.relative_to(options.out).as_posix(),
            predictor if name == SAVED_MODEL else padded,
        )
        artifacts.append(Artifact(name, path, size_of(place), load(place), reference))
    images = images or synthetic(options.size, options.limit)
    about = {"calibration": calibrated_on or None, "float_heads": options.float_heads}
    report = circumstances(options.run, options.size, **about)
    report |= compare(predictor, artifacts, images, options.allow_drop)
    table = format_parity(report)
    write_json(stage.folder / PARITY_FILES[0], report)
    (stage.folder / PARITY_FILES[1]).write_text(table + "\n", encoding="utf-8")
    written = [str(stage.put(stage.folder / name, name)) for name in PARITY_FILES]
    print(f"\n{table}\n\nwritten: {', '.join(written)}")
    return report


def _faults(report: dict[str, Any]) -> list[str]:
    """What does not keep to its tolerance."""
    from export.parity import FAILED

    faults = []
    for name, metrics in report["artifacts"].items():
        if metrics["verdict"] == FAILED:
            advice = "; keep the heads in float with --float-heads, or accept it with --allow-drop"
            faults.append(f"{metrics['path']}: {metrics['why']}{advice * (name == 'int8')}")
    return faults


def _images(options: argparse.Namespace) -> TrialImages | None:
    """The images that the options name; None where they name none."""
    from export.trial_images import given, labelled

    if options.data is not None:
        return labelled(options.data, options.limit)
    return given(options.images, options.limit) if options.images else None


def _size(options: argparse.Namespace, config: Config, images: TrialImages | None) -> tuple[int, int]:
    """Height and width of the images that a TFLite file takes in one piece."""
    if config.data.resize == "fit":
        height, width = config.data.crop_size
        if options.size not in (None, (height, width)):
            fixed = f"this network scales every image to {height}x{width} itself"
            raise UserError(f"--size: {fixed}; leave --size out")
        return height, width
    return options.size or (images.most_frequent_size() if images else _SIZE)


def _possible_formats(options: argparse.Namespace, images: TrialImages | None) -> list[str]:
    """All formats that can be made with what was given; what is left out is told."""
    if options.calibration or images:
        return list(FORMATS)
    advice = "it is calibrated on images, give training images with --calibration"
    print(f"tflite-int8 is left out: {advice}", file=sys.stderr)
    return [name for name in FORMATS if name != "tflite-int8"]


def _calibration(options: argparse.Namespace, images: TrialImages | None) -> tuple[list[np.ndarray], str]:
    """The images to calibrate int8 on, and what they are; none where int8 is not asked for."""
    if "tflite-int8" not in options.formats:
        return [], ""
    from export.trial_images import calibration

    pixels, where = calibration(options.calibration or (), images)
    if not options.calibration and not options.no_parity:
        print(
            "int8 is calibrated and evaluated on the same images, its results are a little too good: give "
            "training images with --calibration",
            file=sys.stderr,
        )
    return pixels, where


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that what is half done is cleared away."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _failures_told(what: str, folder: Path) -> Iterator[None]:
    """Name what could not be made in `folder`, TensorFlow's own errors of a full disk included."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0].replace(f"{folder}/", "")
        raise UserError(f"{what}: {reason}; free space or choose another --out") from error
    except OSError as error:
        error.filename = what
        raise


if __name__ == "__main__":
    sys.exit(main())
