"""Processes that make crops: they end with their parent, and a killed one is no riddle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.errors import UserError
from training import crop_processes, jax_main
from training.crop_processes import CropProcesses, can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux alone")
ROOT = Path(__file__).resolve().parents[2]


def make(numbers: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
    if numbers[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"a": np.float32(numbers) / 2, "none": np.zeros((0, 3), np.uint8), "b": seeds[:, None] * 2}


def test_batches_come_back_whole_and_stay_when_the_memory_is_used_again() -> None:
    pool = CropProcesses(make, 2, room=2000)
    waiting = [pool.submit(np.arange(k, k + 5), np.arange(5) * k) for k in range(4)]
    first = [wait() for wait in waiting]
    waiting = [pool.submit(np.arange(5) + 100, np.arange(5)) for _ in range(4)]
    for wait in waiting:
        wait()
    for k, batch in enumerate(first):
        np.testing.assert_array_equal(batch["a"], np.float32(np.arange(k, k + 5)) / 2)
        np.testing.assert_array_equal(batch["b"], np.arange(5)[:, None] * k * 2)
        assert batch["none"].shape == (0, 3) and batch["none"].dtype == np.uint8
    pool.close()


def test_a_killed_process_is_told_of() -> None:
    pool = CropProcesses(make, 1, room=2000)
    with pytest.raises(UserError, match="killed, most likely for want of memory; .* fewer --workers"):
        pool.submit(np.int64([-1]), np.int64([0]))()
    pool.close()


def test_the_processes_end_when_their_parent_is_killed() -> None:
    source = (
        "import os, time; import numpy as np\n"
        "from training.crop_processes import CropProcesses\n"
        "pool = CropProcesses(lambda n, s: {'pid': np.int64([os.getpid()])}, 2, 1000)\n"
        "print(*pool._pool._processes, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as parent:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2 and all(running(pid) for pid in children)
        parent.kill()
    deadline = time.monotonic() + 20
    while any(running(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(pid) for pid in children)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie has ended; nobody may be there to collect it


def test_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = set(range(16))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    assert jax_main.crop_workers(None, has_accelerator=True) == 15
    assert jax_main.crop_workers(None, has_accelerator=False) == 0
    assert jax_main.crop_workers(3, has_accelerator=False) == 3
    cores = {0, 1}
    assert jax_main.crop_workers(None, has_accelerator=True) == 0
    monkeypatch.setattr(crop_processes, "can_fork", lambda: False)
    assert jax_main.crop_workers(None, has_accelerator=True) == jax_main.crop_workers(0, True) == 0
    with pytest.raises(UserError, match="on Linux alone"):
        jax_main.crop_workers(2, has_accelerator=True)
