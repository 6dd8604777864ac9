from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.data.synthetic.phase_contrast import render_image
from effdet_tf.model.weights import save_arrays, to_arrays
from effdet_tf.prediction.results import Result
from effdet_tf.runs import BEST_FILE, CONFIG_FILE
from export import main as command

SIZE = ["--size", "64x64"]


@pytest.fixture(scope="module")
def run(tiny_config, lively, tmp_path_factory):
    """A run with random weights that finds many cells."""
    config = tiny_config.override(["postprocess.score_threshold=0.2"])
    network = lively(config).network
    folder = tmp_path_factory.mktemp("run")
    config.save(folder / CONFIG_FILE)
    save_arrays(folder / BEST_FILE, to_arrays(network))
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), render_image(0, 48, 80, 5, "Round")[0])
    return path


class StandIn:
    """In place of a network, and of an artifact: always the same cells."""

    per_class = False
    class_names = ("cell",)
    category_ids = (1,)

    def __init__(self, config, score=0.9):
        self.config, self.score = config, score

    def predict(self, image):
        box = np.array([[0, 0, 9, 9]], np.float32)
        score = np.array([self.score], np.float32)
        return Result(
            box, score, np.zeros(1, np.int32), None, None, image.shape[0], image.shape[1], ("cell",)
        )


@pytest.fixture
def parts(monkeypatch, tiny_config):
    """In place of everything that takes long: what `main` called, and how it may be made to fail."""
    calls = SimpleNamespace(converted=[], settings=None, served=None, score=0.9, on_convert=lambda name: None)

    def load_run(folder, backbone=None, settings=()):
        calls.settings = list(settings)
        return StandIn(tiny_config)

    def write_saved_model(predictor, folder, *, max_pixels, licence, run):
        calls.served = (max_pixels, licence)
        (folder / "variables").mkdir(parents=True)
        (folder / "saved_model.pb").write_text("graph")
        calls.on_convert("saved_model")

    def convert(predictor, size, precision, calibration, float_heads=False):
        calls.converted.append((precision, size, len(calibration), float_heads))
        calls.on_convert(precision)
        return b"flat" + precision.encode()

    modules = {
        "export.saved_model": SimpleNamespace(write_saved_model=write_saved_model),
        "export.tflite": SimpleNamespace(convert=convert, keras_reference=lambda p, size: StandIn(p.config)),
        "export.serving_files": SimpleNamespace(
            write=lambda folder, predictor, max_pixels: (folder / "SERVING.md").write_text("how")
        ),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("effdet_tf.prediction.run.load_run", load_run)
    monkeypatch.setattr("effdet_tf.prediction.load.load", lambda path: StandIn(tiny_config, calls.score))
    return calls


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def export(run, out, *more):
    return command.main(["--run", str(run), "--out", str(out), *map(str, more)])


def only_error(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


ALL = {
    "saved_model/1/saved_model.pb",
    "SERVING.md",
    "tflite/float32.tflite",
    "tflite/float16.tflite",
    "tflite/int8.tflite",
    "parity.json",
    "parity.md",
}


def test_all_formats_by_default(run, parts, picture, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(run, out, "--images", picture, "--max-instances", 7, "--mask-size", 14) == 0
    assert files(out) == ALL
    precisions = ("float32", "float16", "int8")
    assert parts.converted == [(precision, (48, 80), 1, False) for precision in precisions]
    assert parts.settings == ["data.max_instances=7", "model.mask.size=14", "postprocess.min_score=0.3"]
    report = json.loads((out / "parity.json").read_text())
    assert report["passed"] and list(report["artifacts"]) == ["saved_model", "float32", "float16", "int8"]
    assert report["size"] == [48, 80] and report["versions"]["tensorflow"]
    assert report["artifacts"]["int8"]["verdict"] == "not judged"
    printed = capsys.readouterr()
    assert (out / "parity.md").read_text().strip() in printed.out
    for name in ("saved_model/1", "tflite/int8.tflite"):
        assert re.search(rf"{name}  \d+\.\d MB  \d+ s\n", printed.out)
    assert "calibrated and evaluated on the same images" in printed.err


def test_the_minimum_score_is_fixed_at_export(run, parts, picture, tmp_path):
    assert (
        export(run, tmp_path / "out", "--images", picture, "--min-score", 0, "--formats", "tflite-fp32") == 0
    )
    assert parts.settings == ["postprocess.min_score=0.0"]


def test_versions_count_up_and_files_are_replaced(run, parts, tmp_path):
    arguments = ("--formats", "tflite-fp32,saved_model", *SIZE)
    for _ in range(2):
        assert export(run, tmp_path / "out", *arguments) == 0
    assert {"saved_model/1/saved_model.pb", "saved_model/2/saved_model.pb"} <= files(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert report["artifacts"]["saved_model"]["path"] == "saved_model/2"
    assert report["images"]["what"].startswith("synthetic")


def test_no_parity_leaves_no_proof_of_earlier_exports(run, parts, tmp_path):
    assert export(run, tmp_path / "out", "--formats", "tflite-fp16", *SIZE) == 0
    assert "parity.json" in files(tmp_path / "out")
    assert export(run, tmp_path / "out", "--formats", "tflite-fp16", "--no-parity", *SIZE) == 0
    assert files(tmp_path / "out") == {"tflite/float16.tflite"}


def test_the_size_is_that_of_most_images_unless_given(run, parts, picture, tmp_path):
    formats = ("--formats", "tflite-fp16", "--no-parity")
    export(run, tmp_path / "out", *formats)
    export(run, tmp_path / "out", *formats, "--images", picture)
    export(run, tmp_path / "out", *formats, "--images", picture, "--size", "33x65")
    assert [size for _, size, _, _ in parts.converted] == [(512, 512), (48, 80), (33, 65)]


def test_a_network_that_fits_images_into_its_input_has_one_size(parts, tiny_config, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    tiny_config.override(["data.resize=fit"]).save(folder / CONFIG_FILE)
    (folder / BEST_FILE).write_text("")
    formats = ("--formats", "tflite-fp16", "--no-parity")
    assert export(folder, tmp_path / "out", *formats) == 0
    assert parts.converted[0][1] == (64, 64)
    assert export(folder, tmp_path / "out", *formats, "--size", "128x128") == 1
    assert "64x64" in only_error(capsys)


def test_a_missing_run_is_told(tmp_path, capsys):
    assert export(tmp_path / "nowhere", tmp_path / "out") == 1
    assert "nowhere: no such run folder" in only_error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_run_without_weights_is_told(run, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG_FILE).write_text((run / CONFIG_FILE).read_text())
    assert export(tmp_path / "run", tmp_path / "out") == 1
    assert "holds no weights yet" in only_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--formats", "saved_model,onnx"], "unknown format 'onnx'; known are saved_model, tflite-fp32"),
        (["--size", "520"], "wrong size '520'; give HEIGHTxWIDTH"),
        (["--size", "0x704"], "wrong size '0x704'"),
        (["--size", "520x-4"], "wrong size"),
        (["--limit", "0"], "0 is not above 0"),
        (["--data", "a", "--images", "b"], "not allowed with"),
    ],
)
def test_wrong_usage(run, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        export(run, tmp_path / "out", *arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


INT8 = ["--formats", "tflite-int8"]


@pytest.mark.parametrize("arguments", [["--images", "nowhere.png"], ["--data", "nowhere"], INT8])
def test_missing_images_are_told_before_anything_is_made(run, parts, tmp_path, capsys, arguments):
    """The last: int8 without images to calibrate on."""
    assert export(run, tmp_path / "out", *arguments) == 1
    assert ("--calibration" if arguments is INT8 else "nowhere") in only_error(capsys)
    assert parts.settings is None and not (tmp_path / "out").exists()


def test_without_images_all_but_int8_is_made_and_that_is_told(run, parts, tmp_path, capsys):
    assert export(run, tmp_path / "out", *SIZE) == 0
    assert files(tmp_path / "out") == ALL - {"tflite/int8.tflite"}
    assert "tflite-int8 is left out" in capsys.readouterr().err


def test_a_missing_runtime_is_told_before_anything_is_made(run, parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("export.main.importlib.util.find_spec", lambda name: None)
    assert export(run, tmp_path / "out", *SIZE) == 1
    assert 'pip install "effdet_tf[tflite]"' in only_error(capsys)
    assert parts.settings is None and not (tmp_path / "out").exists()
    assert export(run, tmp_path / "out", *SIZE, "--no-parity") == 0


def test_a_target_that_is_a_file(run, parts, picture, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert export(run, tmp_path / "out", "--images", picture) == 1
    assert "out: is a file" in only_error(capsys)
    assert (tmp_path / "out").read_text() == "mine" and parts.settings is None


def test_a_read_only_target(run, parts, picture, tmp_path, capsys, monkeypatch):
    def refuse(*arguments, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "some temporary name")

    monkeypatch.setattr("export.layout.tempfile.mkdtemp", refuse)
    assert export(run, tmp_path / "out", "--images", picture) == 1
    assert "out: Read-only file system; free space or choose another --out" in only_error(capsys)
    assert parts.settings is None


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_tensorflow(*arguments):
    raise tf.errors.ResourceExhaustedError(None, None, "variables: No space left on device\nmore")


@pytest.mark.parametrize(
    ("where", "failure", "kept"),
    [
        ("saved_model", full_for_tensorflow, set()),
        ("float16", full, {"saved_model/2/saved_model.pb", "tflite/float32.tflite", "SERVING.md"}),
    ],
)
def test_a_full_disk_leaves_nothing_half(run, parts, picture, tmp_path, capsys, where, failure, kept):
    out = tmp_path / "out"
    old = {"saved_model/1/saved_model.pb", "tflite/float16.tflite"}
    for name in old:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    parts.on_convert = lambda name: failure() if name == where else None
    assert export(run, out, "--images", picture) == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "No space left on device" in errors[0]
    assert files(out) == old | kept
    assert not list(out.glob(".*"))
    assert {(out / name).read_text() for name in old} == {"old"}
    assert ("kept: " in printed.err) == bool(kept)
    assert all(name.removesuffix("/saved_model.pb") in printed.err for name in kept - {"SERVING.md"})


def test_a_file_that_cannot_be_written_whole_does_not_appear(
    run, parts, picture, tmp_path, capsys, monkeypatch
):
    write = pathlib.Path.write_bytes

    def half(self, content):
        write(self, content[: len(content) // 2])
        full()

    monkeypatch.setattr(pathlib.Path, "write_bytes", half)
    assert export(run, tmp_path / "out", "--formats", "tflite-fp32", *SIZE) == 1
    assert "tflite-fp32: No space left on device; free space" in only_error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_export_leaves_nothing_half(run, parts, picture, tmp_path, capsys, number, request):
    # A process that a shell started in the background ignores Ctrl-C, and so would this one.
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, ctrl_c))

    def interrupt(name):
        if name == "float16":
            os.kill(os.getpid(), number)
            time.sleep(5)

    parts.on_convert = interrupt
    before = signal.getsignal(signal.SIGTERM)
    assert export(run, tmp_path / "out", "--images", picture) == 1
    printed = capsys.readouterr().err
    assert "error: interrupted" in printed and "kept: " in printed
    assert files(tmp_path / "out") == {
        "saved_model/1/saved_model.pb",
        "SERVING.md",
        "tflite/float32.tflite",
    }
    assert not list((tmp_path / "out").glob(".*"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_artifact_beyond_its_tolerance_stays_and_fails(run, parts, tmp_path, capsys):
    parts.score = 0.8
    assert export(run, tmp_path / "out", "--formats", "saved_model", *SIZE) == 1
    assert "saved_model/1: scores differ by up to 0.1000, 0.001 is allowed" in only_error(capsys)
    assert {"saved_model/1/saved_model.pb", "parity.json"} <= files(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["passed"] is False


def test_int8_beyond_its_tolerance_fails_unless_allowed(run, parts, tmp_path, capsys, monkeypatch):
    from export import parity
    from export import trial_images as images

    seen = []
    monkeypatch.setattr(images, "calibration", lambda inputs, others: ([], "nothing"))

    def score(scored, predicted, *more):
        seen.append(len(scored))
        return "livecell", [{"bbox": {"AP": 0.4, "AP50": 0.6}}, {"bbox": {"AP": 0.37, "AP50": 0.6}}]

    monkeypatch.setattr(parity, "_score", score)
    monkeypatch.setattr(
        images, "labelled", lambda data, limit: images.TrialImages("annotated", ((64, 64),), data=Path("x"))
    )
    arguments = ("--formats", "tflite-int8", "--data", "x")
    assert export(run, tmp_path / "out", *arguments) == 1
    error = only_error(capsys)
    assert "int8.tflite: lost 3.0 points of box AP, 1 are allowed" in error and "--float-heads" in error
    assert "tflite/int8.tflite" in files(tmp_path / "out")
    assert export(run, tmp_path / "out", *arguments, "--allow-drop", "3", "--float-heads") == 0
    assert [float_heads for *_, float_heads in parts.converted] == [False, True]
    assert seen == [2, 2]


@pytest.mark.slow
def test_all_formats_of_a_real_network_agree_with_it(run, tmp_path, capsys):
    for number in range(3):
        image = render_image(number, 64, 96, 8, "Round")[0]
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    out = tmp_path / "out"
    code = export(run, out, "--images", tmp_path / "*.png", "--size", "64x96", "--licence", "CC0")
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert {"SERVING.md", "batching_parameters.txt"} | {
        f"tflite/{p}.tflite" for p in ("float32", "int8")
    } <= (files(out))
    report = json.loads((out / "parity.json").read_text())
    assert set(report["artifacts"]) == {"saved_model", "float32", "float16", "int8"}
    for name in ("saved_model", "float32", "float16"):
        figures = report["artifacts"][name]
        assert figures["verdict"] == "passed", (name, figures)
        assert figures["reference_cells"] > 20
        assert figures["bytes"] > 10_000
    assert report["artifacts"]["saved_model"]["least_mask_iou"] > 0.9
    assert not list(out.glob(".*"))
