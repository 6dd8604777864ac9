"""What breaks from outside while a network trains costs nothing that was saved and changes no result."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training.states import read_state
from training.state import PREVIOUS_FILE, STATE_FILE

ROOT = Path(__file__).resolve().parents[2]
# A process for every start. test_trainer.py has the same of crashes, full disks and damaged files within one.
pytestmark = pytest.mark.slow
EPOCHS = 30  # of two steps
Start = Callable[..., subprocess.Popen]


@pytest.fixture(scope="module")
def start(train_data: Path, run_config: Path) -> Start:
    """Start a training that saves after every step; `settings` and Popen's own words may differ."""

    def run(out: Path, settings: tuple[str, ...] = (), data: Path = train_data, **more):
        every = [word for s in ("train.save_minutes=0", *settings) for word in ("--set", s)]
        words = ["--config", run_config, "--data", data, "--epochs", EPOCHS, "--out", out, *every]
        return subprocess.Popen(
            [sys.executable, "-m", "training.main", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **more,
        )

    return run


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(out)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return out


def changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for_a_save(process: subprocess.Popen, out: Path, before: int) -> None:
    """Until the state is a newer one than `before`, or the process has ended."""
    deadline = time.monotonic() + 240
    while changed(out / STATE_FILE) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_after_saves(process: subprocess.Popen, out: Path, saves: int) -> None:
    for _ in range(saves):
        wait_for_a_save(process, out, changed(out / STATE_FILE))
    process.kill()
    process.communicate()


def assert_same(out: Path, other: Path) -> None:
    """Network, running average and optimizer are the same to the bit."""
    a, b = read_state(out), read_state(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("kills", [3, 20])
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_weights(
    start: Start, undisturbed: Path, tmp_path: Path, kills: int
) -> None:
    out, chance, done = tmp_path / "run", random.Random(kills), 0
    while True:
        before = changed(out / STATE_FILE)
        process = start(out)
        if done == kills:
            break
        wait_for_a_save(process, out, before)
        # A save takes most of a step of so small a network: many of these moments fall into one.
        time.sleep(chance.uniform(0, 0.6 * EPOCHS / kills / 10))
        process.kill()
        text, _ = process.communicate()
        assert process.returncode == -9, text
        done += 1
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "going on at epoch" in text
    assert_same(out, undisturbed)
    # Nothing half written is left behind.
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in undisturbed.iterdir())


def test_a_disk_that_fills_costs_no_more_than_the_steps_since_the_last_save(
    start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    kill_after_saves(start(out), out, 1)
    saved = (out / STATE_FILE).read_bytes()

    def small_disk() -> None:  # no file may grow beyond half of a state, which fails as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(saved) // 2, len(saved) // 2))

    process = start(out, preexec_fn=small_disk)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 1, text
    last = text.strip().splitlines()[-1]
    assert last.startswith(f"error: {out}") and "File too large; the last checkpoint is unharmed" in last, (
        text
    )
    assert (out / STATE_FILE).read_bytes() == saved
    assert start(out).wait(300) == 0
    assert_same(out, undisturbed)


def test_images_that_go_away_under_a_training_are_told_and_it_goes_on_once_they_are_back(
    start: Start, undisturbed: Path, train_data: Path, tmp_path: Path
) -> None:
    data, aside, out = tmp_path / "data", tmp_path / "aside", tmp_path / "run"
    shutil.copytree(train_data, data)
    process = start(out, settings=("data.cache_mb=0",), data=data)
    wait_for_a_save(process, out, 0)
    data.rename(aside)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 1, text
    last = text.strip().splitlines()[-1]
    assert "the training images cannot be read any more" in last and str(data) in last, text
    assert "Traceback" not in text
    aside.rename(data)
    assert start(out, settings=("data.cache_mb=0",), data=data).wait(300) == 0
    assert_same(out, undisturbed)


def test_images_in_memory_may_go_away(
    start: Start, undisturbed: Path, train_data: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(train_data, data)
    process = start(out, data=data)
    wait_for_a_save(process, out, 0)
    shutil.rmtree(data)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert_same(out, undisturbed)


def test_a_second_trainer_is_refused_and_disturbs_nothing(
    start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = start(out)
    wait_for_a_save(first, out, 0)
    second = start(out)
    text, _ = second.communicate(timeout=300)
    assert second.returncode == 1
    assert f"{out}: process {first.pid} on" in text.strip().splitlines()[-1] and "is training there" in text
    assert first.wait(300) == 0
    assert_same(out, undisturbed)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    kill_after_saves(start(out), out, 3)
    assert (out / PREVIOUS_FILE).exists()
    with open(out / STATE_FILE, "r+b") as file:
        file.truncate(1000)
    process = start(out)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert f"{out / STATE_FILE}: not a readable checkpoint" in text
    assert "going on from the checkpoint before it" in text
    assert_same(out, undisturbed)
