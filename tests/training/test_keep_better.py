"""Training on from a network keeps the better of the two, and says so; what scores mean is learned anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from effdet_tf.config import load_config
from effdet_tf.model.weights import read_arrays
from effdet_tf.runs import BEST_FILE, CONFIG_FILE, FIGURES_FILE, LAST_FILE
from training import main as command
from training import trainer as trainer_lib
from training.progress import START_FILE, Run


@pytest.fixture(scope="module")
def arguments(train_data: Path, val_data: Path, run_config: Path) -> list[str]:
    short = ["--batch", "2", "--set", "data.crops_per_image=1"]  # epochs of two steps
    return ["--data", str(train_data), "--val", str(val_data), *short]


@pytest.fixture(scope="module")
def start(arguments: list[str], run_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch that pretends to be calibrated."""
    folder = tmp_path_factory.mktemp("runs") / "start"
    assert command.main([*arguments, "--config", str(run_config), "--epochs", "1", "--out", str(folder)]) == 0
    config = load_config(folder / CONFIG_FILE)
    lines = ((0.0, 0.0), (0.3, 0.6), (1.0, 1.0))
    config = config.replace(postprocess__calibration=lines, postprocess__report_score=0.6)
    config.replace(trust__f1=(0.0, 1.0), trust__count=(0.0, 0.0, 1.0, 0.0)).save(folder / CONFIG_FILE)
    return folder


def scored(monkeypatch: pytest.MonkeyPatch, *values: float) -> list[int | None]:
    """Each validation in turn is told to have these mask AP; gives the limits that were asked for."""
    left, limits = list(values), []
    evaluate, headline = trainer_lib.evaluate_run, trainer_lib.headline
    told: dict[int, float] = {}

    def evaluated(predictor, data, limit=None, **options):
        limits.append(limit)
        report = evaluate(predictor, data, limit, **options)
        told[id(report)] = left.pop(0)
        report["told"] = told[id(report)]
        return report

    monkeypatch.setattr(trainer_lib, "evaluate_run", evaluated)
    monkeypatch.setattr(
        trainer_lib, "headline", lambda report: headline(report) | {"mask_AP": report["told"]}
    )
    return limits


@pytest.mark.parametrize(
    ("figures", "kept"),
    [((0.5, 0.3, 0.4), "start"), ((0.5, 0.3, 0.6), "last"), ((0.2, 0.6, 0.5), "first")],
)
def test_the_better_is_kept(figures, kept, arguments, start, tmp_path, monkeypatch, capsys):
    scored(monkeypatch, *figures)
    out = tmp_path / "on"
    assert command.main([*arguments, "--init", str(start), "--epochs", "2", "--out", str(out)]) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("before and after"))
    assert f"mask AP {figures[0]:.3f} -> {max(figures[1:]):.3f}" in told
    assert told.endswith(
        "the start is kept, last.npz has the others" if kept == "start" else "weights are kept"
    )
    best, last, first = (read_arrays(path) for path in (out / BEST_FILE, out / LAST_FILE, start / BEST_FILE))
    same = {
        name: all(np.array_equal(best[k], own[k]) for k in best)
        for name, own in (("last", last), ("start", first))
    }
    assert same == {"last": kept == "last", "start": kept == "start"}
    assert json.loads((out / FIGURES_FILE).read_text())["told"] == max(figures)
    # What scores meant before is nothing that is known of these weights.
    config = load_config(out / CONFIG_FILE)
    assert config.postprocess.calibration != load_config(start / CONFIG_FILE).postprocess.calibration
    assert config.trust.f1 != (0.0, 1.0)


def test_fewer_images_do_not_compare_with_all(arguments, start, tmp_path, monkeypatch, capsys):
    limits = scored(monkeypatch, 0.5, 0.9, 0.4)
    out, few = tmp_path / "on", ["--set", "train.evaluate_images=1"]
    assert command.main([*arguments, "--init", str(start), "--epochs", "2", "--out", str(out), *few]) == 0
    assert limits == [None, 1, None]
    assert "mask AP 0.500 -> 0.400" in capsys.readouterr().out
    best, first = read_arrays(out / BEST_FILE), read_arrays(start / BEST_FILE)
    assert all(np.array_equal(best[name], first[name]) for name in best)


def test_it_can_be_left_out_and_other_starts_have_no_before(arguments, start, run_config, tmp_path, capsys):
    words = [*arguments, "--init", str(start), "--epochs", "1"]
    assert command.main([*words, "--set", "train.keep_better=false", "--out", str(tmp_path / "a")]) == 0
    other = shutil.copytree(start, tmp_path / "other")
    config = load_config(other / CONFIG_FILE)
    wider = config.replace(model__mask__hidden=config.model.mask.hidden + 2)
    wider.save(tmp_path / "wider.yaml")
    words = [*arguments, "--init", str(other), "--config", str(tmp_path / "wider.yaml"), "--epochs", "1"]
    assert command.main([*words, "--out", str(tmp_path / "b")]) == 0
    assert "before and after" not in capsys.readouterr().out


def test_few_images_leave_a_share_of_the_start_in_the_result(arguments, start, tmp_path, capsys):
    """A quarter by default, none where that is asked for; the trained weights themselves are the same."""
    made, words = {}, [*arguments, "--init", str(start), "--epochs", "1"]
    for name, setting in (("by default", []), ("half", ["0.5"]), ("none", ["0"])):
        out = tmp_path / name
        settings = [word for value in setting for word in ("--set", f"train.start_share={value}")]
        assert command.main([*words, *settings, "--out", str(out)]) == 0
        made[name] = read_arrays(out / LAST_FILE)
        told = capsys.readouterr().out
        assert ("of its start (train.start_share)" in told) == (name != "none")
        assert (out / START_FILE).exists() == (name != "none")
    first, end = read_arrays(start / BEST_FILE), made["none"]
    assert any(not np.array_equal(first[name], end[name]) for name in end)
    for share, name in ((0.25, "by default"), (0.5, "half")):
        for path, value in made[name].items():
            np.testing.assert_allclose(value, share * first[path] + (1 - share) * end[path], atol=1e-6)


def test_a_resumed_run_keeps_the_share_of_its_start(arguments, start, tmp_path, capsys):
    words = [*arguments, "--init", str(start)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command.main([*words, "--epochs", "2", "--out", str(whole)]) == 0
    own = shutil.copytree(start, tmp_path / "moved")
    on = [*arguments, "--init", str(own)]
    assert command.main([*on, "--epochs", "1", "--out", str(parts)]) == 0
    shutil.rmtree(own / "tensorboard", ignore_errors=True)
    (own / BEST_FILE).write_bytes((whole / LAST_FILE).read_bytes())  # the start may be another one by now
    assert command.main([*on, "--epochs", "2", "--out", str(parts)]) == 0
    state, first = read_arrays(parts / "state.npz", "state"), read_arrays(start / BEST_FILE)
    averages = [state[f"average/{k}"] for k in range(len(first))]
    for (path, value), mean in zip(read_arrays(parts / LAST_FILE).items(), averages, strict=True):
        np.testing.assert_allclose(value, 0.25 * first[path] + 0.75 * mean, atol=1e-6)
    (parts / START_FILE).unlink()
    capsys.readouterr()
    assert command.main([*on, "--epochs", "3", "--out", str(parts)]) == 1
    assert "start.npz: is gone, of which the result keeps a share" in capsys.readouterr().err


def test_every_worker_of_a_resumed_run_knows_the_start(start, tmp_path):
    """All but the first write to a folder of their own, which is a new one each time."""
    run = shutil.copytree(start, tmp_path / "run")
    shutil.copyfile(run / BEST_FILE, run / START_FILE)
    (tmp_path / "own").mkdir()
    worker = SimpleNamespace(folder=tmp_path / "own", state_folder=run, trained_before=False)
    worker.config = load_config(run / CONFIG_FILE).replace(train__start_share=0.25)
    first = read_arrays(run / BEST_FILE)
    kept = Run._start_to_keep(worker)
    assert set(kept) == set(first) and all(np.array_equal(kept[name], first[name]) for name in first)
