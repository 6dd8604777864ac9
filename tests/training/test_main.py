"""The command: a whole run, its repetition, and every refusal in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from effdet_tf.config import load_config
from effdet_tf.data.record import ImageRecord
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.files import locked
from effdet_tf.prediction.load import load
from effdet_tf.runs import ABOUT_FILE, FIGURES_FILE, LOG_FILE, REPORT_FILE
from training import main as command
from training.demo import MINUTES
from training.options import TrainingImages, open_run, resolve, wanted_config
from training.state import PREVIOUS_FILE, STATE_FILE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def arguments(train_data: Path, val_data: Path, run_config: Path) -> list[str]:
    return ["--data", str(train_data), "--val", str(val_data), "--config", str(run_config), "--epochs", "1"]


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert command.main([*arguments, "--out", str(folder)]) == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*") if "events" not in p.name}


def test_a_run_leaves_all_it_promises(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml",
        "best.npz",
        "last.npz",
        STATE_FILE,
        LOG_FILE,
        FIGURES_FILE,
        "metrics.examples.json",
        ABOUT_FILE,
        REPORT_FILE,
        "tensorboard",
    } == names - {PREVIOUS_FILE}
    report = json.loads((finished / "metrics.json").read_text())
    assert set(report["livecell"]["all"]) >= {"bbox", "segm"} and report["cells"]["all"]["sartorius"] >= 0
    predictor = load(finished)
    assert predictor.class_names == ("cell",) and predictor.category_ids == (5,)


def test_the_same_command_again_changes_nothing(finished: Path, arguments: list[str], capsys) -> None:
    before = content(finished)
    assert command.main([*arguments, "--out", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "trained to its end, 2 steps" in out and "mask" in out
    assert content(finished) == before


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--set", "train.learning_rate=0.5"], "train.learning_rate was 0.003, now 0.5"),
        (["--set", "model.fpn_channels=16"], "model.fpn_channels was 8, now 16"),
        (["--batch", "1"], "train.batch was 2, now 1"),
    ],
)
def test_other_settings_on_a_run_are_refused_by_name(
    finished: Path, arguments: list[str], extra: list[str], named: str, capsys
) -> None:
    before = content(finished)
    assert command.main([*arguments, *extra, "--out", str(finished)]) == 1
    assert named in one_error(capsys)
    assert content(finished) == before


def test_more_epochs_go_on_where_the_run_ended(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    shutil.copytree(finished, folder)
    past = load_config(folder / "config.yaml")
    config = open_run(past.override(["train.epochs=3", "train.save_minutes=1", "train.xla=off"]), folder)
    assert (config.train.epochs, config.train.save_minutes, config.train.xla) == (3, 1.0, "off")
    assert load_config(folder / "config.yaml") == config
    # The score for reports is tuned by the run: the command line asks for the default again.
    lines = ((0.0, 0.0), (0.3, 0.5), (1.0, 1.0))
    tuned = config.replace(postprocess__report_score=0.31, postprocess__calibration=lines)
    tuned = tuned.replace(trust__f1=(0.0, 1.0), trust__count=(0.0, 0.0, 1.0, 1.0))
    tuned.save(folder / "config.yaml")
    assert open_run(config, folder) == tuned


def test_a_damaged_state_is_one_clear_line(
    finished: Path, arguments: list[str], tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    state = folder / STATE_FILE
    state.write_bytes(state.read_bytes()[:5000])
    (folder / PREVIOUS_FILE).unlink(missing_ok=True)
    assert command.main([*arguments, "--out", str(folder)]) == 1
    assert f"{state}: not a readable checkpoint" in one_error(capsys)


def test_a_second_trainer_in_a_run_folder_is_refused(arguments: list[str], tmp_path: Path, capsys) -> None:
    with locked(tmp_path):
        assert command.main([*arguments, "--out", str(tmp_path)]) == 1
    assert f"{tmp_path}: process {os.getpid()} on " in one_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == []
    with locked(tmp_path):  # and free again
        pass


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The last thing on stderr: one line that starts with "error: "."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0]
    return errors[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--set", "train.lerning_rate=1"], "did you mean train.learning_rate"),
        (["--set", "train.batch=many"], "train.batch: 'many' is not a whole number"),
        (["--set", "train.batch"], "write it as section.key=value"),
        (["--set", "train.batch=0"], "train.batch 0"),
        (["--batch", "50"], "less than one batch of 50"),
        (["--data", "nowhere"], "nowhere: "),
        (["--val", "nowhere"], "nowhere: "),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--out", __file__], "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_refused_before_training(
    arguments: list[str], change: list[str], named: str, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "run"
    assert command.main([*arguments, "--out", str(folder), *change]) == 1
    assert named in one_error(capsys)
    assert not (folder / STATE_FILE).exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--epochs", "0"],
        ["--epochs", "three"],
        ["--minutes", "-1"],
        ["--epochs", "3", "--minutes", "5"],
        ["--preset", "d0", "--config", "x.yaml"],
        ["--val", "somewhere"],
        ["--unknown"],
    ],
    ids=" ".join,
)
def test_wrong_usage(wrong: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(wrong)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_several_sources_are_validated_as_one_set(
    arguments: list[str],
    val_data: Path,
    records: Sequence[ImageRecord],
    write_records: Callable[..., Path],
    tmp_path: Path,
    capsys,
) -> None:
    """The second source has images of the same ids as the first, the third other classes."""
    second = write_records(tmp_path / "second", records[3:])
    run = tmp_path / "run"
    assert command.main([*arguments, "--val", str(val_data), str(second), "--out", str(run)]) == 0
    report = json.loads((run / FIGURES_FILE).read_text())
    group = report["cells"]["by"]
    assert (group[val_data.name]["images"], group["second"]["images"], group["Round"]["images"]) == (2, 3, 5)
    assert report["cells"]["all"]["true_cells"] == sum(len(one.rles) for one in [*records[3:], *records[4:]])
    assert [image["id"] for image in report["images"]] == [1, 2, 3, 4, 5]
    assert json.loads((run / ABOUT_FILE).read_text())["validation"] == [str(val_data), str(second)]
    assert f"evaluated on {val_data}, {second}: 5 images" in (run / REPORT_FILE).read_text()
    other = write_records(tmp_path / "other", records[3:], [{"id": 1, "name": "nucleus"}])
    capsys.readouterr()
    assert command.main([*arguments, "--val", str(val_data), str(other), "--out", str(tmp_path / "x")]) == 1
    assert f"{other}: classes nucleus differ from cell of {val_data}; convert both alike" in one_error(capsys)


def test_an_interrupt_says_how_to_go_on(arguments: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.job.train", stop)
    assert command.main([*arguments, "--out", str(tmp_path)]) == 1
    assert "again to go on" in one_error(capsys)


def test_a_full_disk_is_one_line(arguments: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "state.npz")

    monkeypatch.setattr("training.trainer.Trainer.run", full)
    assert command.main([*arguments, "--out", str(tmp_path / "run")]) == 1
    assert "error: state.npz: No space left on device" in capsys.readouterr().err


def test_max_instances_rises_to_the_fullest_image(
    train_data: Path, run_config: Path, records: Sequence[ImageRecord], capsys
) -> None:
    config = load_config(run_config).replace(data__max_instances=2)
    most = max(len(record.rles) for record in records[:4])
    resolved = resolve(config, RecordStore(train_data))
    assert most > 2 and resolved.data.max_instances == most
    assert f"raised from 2 to {most}" in capsys.readouterr().out
    assert (resolved.class_names, resolved.category_ids) == (("cell",), (5,))


def test_few_images_make_an_epoch_of_some_steps(train_data: Path, run_config: Path, capsys) -> None:
    """Else an epoch of two images is over in two steps, or there is none, and all time goes to validation."""
    config, store = load_config(run_config), RecordStore(train_data)
    images, batch = store.images, 3 * store.images + 1
    large = config.replace(train__batch=batch, data__crops_per_image=1)
    assert resolve(large, store).data.crops_per_image == 4  # one batch
    assert f"data.crops_per_image raised from 1 to 4, for 1 steps an epoch on {images} images" in (
        capsys.readouterr().out
    )
    trained_on = config.replace(train__init="cells", train__batch=2, data__crops_per_image=1)
    assert resolve(trained_on, store).data.crops_per_image == -(-50 // images)  # 25 steps
    assert resolve(trained_on, store, {"data.crops_per_image"}).data.crops_per_image == 1
    # What the user says holds, where anchors are made of the data too.
    anchors = trained_on.replace(anchors__from_data=True)
    named = resolve(anchors, store, {"data.crops_per_image", "train.start_share"})
    assert (named.data.crops_per_image, named.train.start_share) == (1, 0)
    plenty = trained_on.replace(data__crops_per_image=1000)
    assert resolve(plenty, store).data.crops_per_image == 1000


@pytest.mark.parametrize(
    ("images", "init", "share"), [(20, "cells", 0.25), (21, "cells", 0), (2, "imagenet", 0)]
)
def test_few_images_keep_a_quarter_of_a_network(images, init, share, train_data, run_config) -> None:
    store = RecordStore(train_data)
    seen = SimpleNamespace(**{name: getattr(store, name) for name in TrainingImages.__annotations__})
    seen.images = images
    config = load_config(run_config).replace(train__init=init)
    assert resolve(config, seen).train.start_share == share


def test_the_sizes_of_the_cells_are_kept_with_the_run(
    finished: Path, train_data: Path, run_config: Path
) -> None:
    heights, widths = RecordStore(train_data).cell_sizes.T
    wanted = np.percentile(np.sqrt(heights * widths), (5, 50, 95)).round(1)
    assert wanted[0] < wanted[1] < wanted[2]
    assert resolve(load_config(run_config), RecordStore(train_data)).data.cell_size == tuple(wanted)
    assert load_config(finished / "config.yaml").data.cell_size == tuple(wanted)


def test_anchors_come_from_the_data_where_the_preset_wants_it(
    train_data: Path, run_config: Path, records: Sequence[ImageRecord]
) -> None:
    config = load_config(run_config)
    store = RecordStore(train_data)
    assert resolve(config, store).anchors == config.anchors
    wanted = resolve(config.replace(anchors__from_data=True), store).anchors
    assert len(wanted.sizes) == 2 and wanted.sizes != config.anchors.sizes

    zoomed = resolve(config.replace(anchors__from_data=True, data__zoom=2.0), store).anchors
    assert zoomed.sizes[0][0] > 1.5 * wanted.sizes[0][0]
    points = config.replace(anchors__from_data=True, anchors__code="sides", anchors__ratios=(1.0,))
    points = resolve(points.replace(anchors__sizes=((8.0,), (16.0,))), store).anchors
    assert points.code == "sides" and points.per_location == 1 and len(points.sizes) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [(["data.zoom=2", "data.resize=fit"], "leave it at 1"), (["data.zoom=0"], "take 0.1 to 10")],
)
def test_a_zoom_that_makes_no_sense_is_refused(train_data: Path, run_config: Path, settings, words) -> None:
    with pytest.raises(UserError, match=words):
        resolve(load_config(run_config).override(settings), RecordStore(train_data))


def options(*given: str):
    return command._parse(["--data", "x", *given])


def test_the_later_word_wins_among_preset_options_and_set(run_config: Path) -> None:
    config = wanted_config(options("--batch", "3", "--set", "train.batch=4", "--minutes", "2"))
    assert (config.preset, config.train.batch, config.train.minutes) == ("cells-lite0", 4, 2.0)
    config = wanted_config(options("--config", str(run_config), "--epochs", "7", "--set", "train.seed=5"))
    assert (config.train.epochs, config.train.minutes, config.train.batch, config.train.seed) == (
        7,
        0.0,
        2,
        5,
    )


@pytest.mark.slow
def test_mixed_precision_trains_and_its_run_loads(arguments: list[str], tmp_path: Path) -> None:
    settings = ["--set", "train.mixed_precision=on", "--set", "postprocess.score_threshold=0.001"]
    policy = keras.config.dtype_policy()
    try:
        assert command.main([*arguments, *settings, "--out", str(tmp_path)]) == 0
        assert keras.config.dtype_policy().compute_dtype == "bfloat16"
    finally:
        keras.config.set_dtype_policy(policy)
    found = load(tmp_path).predict(np.random.default_rng(0).integers(0, 255, (80, 80), np.uint8))
    assert len(found) > 0 and np.isfinite(found.boxes).all()


def run(*given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training.main", *given], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "given",
    [["--minutes", "3"], ["--preset", "d0"], ["--set", "train.seed=3"], ["--val", "x"], ["--devices", "all"]],
)
def test_options_of_a_training_without_data_are_no_demo(given: list[str], demo, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main([*given, "--out", "nowhere"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert all(word in error for word in (given[0], "--data", "demo", "python -m training.demo"))
    assert not Path("nowhere").exists()


def test_exit_codes_of_the_process() -> None:
    shown = run("--help")
    assert shown.returncode == 0 and "--minutes" in shown.stdout and not shown.stderr
    assert run("--epochs", "0").returncode == 2
    failed = run("--data", "x", "--preset", "cells-lite9")
    assert failed.returncode == 1 and not failed.stdout
    assert failed.stderr.startswith("error: unknown preset 'cells-lite9'") and failed.stderr.count("\n") == 1


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Run the demo with every command recorded in place of done."""
    from training import demo as demo_module

    def recorded(*given: str, fails: str | None = None) -> list[list[str]]:
        done: list[list[str]] = []

        def verb(words: list[str]) -> int:
            done.append(words)
            if words[0] == "convert":
                folder = Path(words[3])
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "manifest.json").write_text("{}")
            return int(words[0] == fails)

        def train(options) -> None:
            done.append(
                ["train", str(options.minutes), str(options.epochs), str(options.batch), *options.set]
            )

        monkeypatch.setattr(demo_module.cli, "main", verb)
        monkeypatch.setattr(demo_module, "validation_images", lambda source: [source / "a.tif"])
        monkeypatch.setattr(demo_module, "train", train)
        code = (demo_module if {"--epochs", "--set"} & set(given) else command).main(list(given))
        return [*done, [str(code)]]

    return recorded


def test_the_demo_does_the_whole_job_once(demo, tmp_path: Path, capsys) -> None:
    done = demo("--out", str(tmp_path))
    assert [words[0] for words in done] == [
        "synthetic",
        "convert",
        "convert",
        "check",
        "train",
        "predict",
        "0",
    ]
    assert done[4][1:4] == [str(MINUTES), "None", "4"]
    out = capsys.readouterr().out
    for verb in ("synthetic", "convert", "check", "predict"):
        assert f"$ python -m effdet_tf {verb} " in out
    again = demo("--out", str(tmp_path), "--epochs", "2", "--set", "train.seed=3")
    assert [words[0] for words in again] == ["check", "train", "predict", "0"]
    assert again[1][1:3] == ["None", "2"] and again[1][-1] == "train.seed=3"


def test_a_demo_step_that_fails_ends_the_demo(demo, tmp_path: Path, capsys) -> None:
    assert [words[0] for words in demo("--out", str(tmp_path), fails="convert")][-2:] == ["convert", "1"]
    assert "stopped at `python -m effdet_tf convert livecell " in one_error(capsys)


def test_the_demo_refuses_wrong_settings_before_it_makes_anything(demo, tmp_path: Path, capsys) -> None:
    assert demo("--out", str(tmp_path), "--set", "train.lerning_rate=1") == [["1"]]
    assert "did you mean train.learning_rate" in one_error(capsys)


def test_the_demo_trains_and_predicts(run_config: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Nothing is stood in for but the size: few small images, a tiny network, one epoch."""
    from training import demo as demo_module

    small = ("--train", 4, "--val", 2, "--size", 96, 96, "--cells", 3, 6)
    monkeypatch.setattr(demo_module, "SYNTHETIC", small)
    options = ["--config", str(run_config), "--epochs", "1", "--out", str(tmp_path)]
    assert demo_module.main(options) == 0, capsys.readouterr().err
    assert {"best.npz", "config.yaml", "report.html", "check.png"} <= {p.name for p in tmp_path.iterdir()}
    summary = (tmp_path / "predictions" / "summary.csv").read_text().splitlines()
    assert len(summary) == 3 and len(list((tmp_path / "predictions").glob("**/*.labels.tif"))) == 2
