"""Several devices and several processes train what one does."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from tests.training.states import read_state
from training import devices
from training.devices import check_batch, cluster_task, make_strategy, own_part
from training.options import add_options, chosen_settings, for_devices
from training.state import STATE_FILE

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("devices_probe.py")


def config_file(config: Config, folder: Path) -> Path:
    """SGD in small steps: what rounding makes of one step is not blown up by the next ones."""
    path = folder / "tiny.yaml"
    settings = ["train.batch=4", "train.epochs=3", "train.ema=0.8", "train.optimizer=sgd"]
    config.override([*settings, "train.learning_rate=3e-5", "data.crops_per_image=4"]).save(path)
    return path


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", **more}


@pytest.mark.parametrize(
    ("kind", "count"), [("tiny_config", 2), pytest.param("tiny_points", 4, marks=pytest.mark.slow)]
)
def test_several_devices_train_as_one_does(kind, count, request, train_data, tmp_path):
    path = config_file(request.getfixturevalue(kind), tmp_path)
    command = [sys.executable, PROBE, path, train_data, "20", "5e-6", str(count)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["moved"] > 1.5e-4, found
    # The cells are not spread evenly over the parts: mean losses of the parts would differ.
    assert len(set(found["positives"])) > 3
    assert found["weights"] < 1e-5 and found["statistics"] < 1e-5, found
    assert found["figures"] < 1e-3 and found["norm"] < 1e-4, found


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


class Workers:
    """The processes of one cluster on this machine."""

    def __init__(self, count: int, *words: object) -> None:
        hosts = [f"127.0.0.1:{port}" for port in free_ports(count)]
        self.processes = []
        for index in range(count):
            task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            command = [sys.executable, "-m", "training.main", *map(str, words)]
            self.processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment(TF_CONFIG=json.dumps(task)),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def ended(self) -> list[tuple[int, str]]:
        """Exit code and output of each, once all have ended."""
        return [(process.wait(300), process.communicate()[0]) for process in self.processes]


def apart(a: Path, b: Path) -> float:
    """The largest difference of the states of two runs; of what is above 1 (running variances) in parts."""
    one, other = read_state(a), read_state(b)
    assert one.keys() == other.keys()
    return max(
        float(np.abs(one[k].astype(float) - other[k]).max() / max(np.abs(one[k]).max(), 1))
        for k in one
        if one[k].size
    )


@pytest.fixture(scope="module")
def words(tiny_points, train_data, val_data, tmp_path_factory) -> list[object]:
    folder = tmp_path_factory.mktemp("cluster")
    return ["--config", config_file(tiny_points, folder), "--data", train_data, "--val", val_data]


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory) -> Path:
    """The run of one process."""
    return one_process(words, tmp_path_factory.mktemp("alone") / "run")


def one_process(words, out: Path) -> Path:
    command = [sys.executable, "-m", "training.main", *map(str, words), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_workers_train_as_one_process_does(words, alone, tmp_path, count):
    for code, text in Workers(count, *words, "--out", tmp_path / "run").ended():
        assert code == 0, text
    assert apart(alone, tmp_path / "run") < 1e-5
    figures = [json.loads((run / "metrics.json").read_text()) for run in (alone, tmp_path / "run")]
    assert figures[0]["livecell"]["all"]["cells"] == figures[1]["livecell"]["all"]["cells"] > 0
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == sorted(path.name for path in alone.iterdir())


@pytest.mark.slow
def test_three_workers_train_as_one_process_does(words, tmp_path):
    words = [*words, "--set", "train.batch=6"]  # two crops for each
    alone = one_process(words, tmp_path / "alone")
    for code, text in Workers(3, *words, "--out", tmp_path / "run").ended():
        assert code == 0, text
    assert apart(alone, tmp_path / "run") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 0])
def test_a_worker_that_is_killed_costs_no_more_than_the_last_checkpoint(words, alone, tmp_path, killed):
    out = tmp_path / "run"
    often = [*words, "--set", "train.save_minutes=0", "--out", out]
    workers = Workers(2, *often)
    deadline = time.monotonic() + 240
    while not (out / STATE_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers.processes[killed].send_signal(signal.SIGKILL)
    ended = workers.ended()
    assert ended[killed][0] == -signal.SIGKILL
    code, text = ended[1 - killed]
    assert code == 1, text
    assert "another worker was lost" in text and "the last checkpoint is unharmed" in text
    done = json.loads(np.load(out / STATE_FILE)["progress"].tobytes())["step"]
    assert 0 < done
    for code, text in Workers(2, *often).ended():
        assert code == 0, text
        assert f"step {done}" in text
    assert apart(alone, out) < 1e-5


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"cluster": {}}', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}']
)
def test_a_cluster_that_is_none_is_told(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG is not like"):
        cluster_task()


@pytest.mark.parametrize(("kind", "index"), [("chief", 0), ("worker", 2), ("worker", -1)])
def test_a_place_that_the_cluster_lacks_is_told(monkeypatch, kind, index):
    task = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": kind, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    with pytest.raises(UserError, match="every process is one of `worker`"):
        cluster_task()


def test_a_place_in_a_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert cluster_task() is None
    task = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    assert cluster_task() == (1, 2)


@pytest.mark.parametrize(("batch", "near"), [(4, "3 or 6"), (2, "3"), (7, "6 or 9")])
def test_a_batch_that_cannot_be_shared_is_told(batch, near):
    class Three:
        num_replicas_in_sync = 3

    with pytest.raises(UserError, match=f"train.batch {batch} cannot be shared by 3 devices; take {near}"):
        check_batch(batch, Three())
    check_batch(6, Three())


def test_more_devices_than_there_are_is_told(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["gpu"] * (kind == "GPU"))
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="--devices 2: this machine has 1 GPU$"):
        make_strategy("2")
    assert make_strategy("all").num_replicas_in_sync == 1


def test_one_replica_has_the_whole_batch():
    batch = {"image": tf.zeros((4, 2))}
    assert own_part(batch, 1) is batch
    assert devices.total([tf.constant(3.0)])[0] == 3.0


def test_the_command_refuses_what_devices_cannot_share(words, tmp_path):
    command = [sys.executable, "-m", "training.main", *map(str, words), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--devices", "3"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "train.batch 4 cannot be shared by 3 devices; take 3 or 6" in done.stderr
    done = subprocess.run(
        [*command, "--devices", "0"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "'0' is neither `all` nor a number of devices" in done.stderr


@pytest.mark.parametrize(
    ("settings", "chosen", "expected"),
    [
        ([], set(), (32, 6e-3)),
        (["train.optimizer=sgd"], {"train.optimizer"}, (32, 12e-3)),
        (["train.learning_rate=1e-3"], {"train.learning_rate"}, (32, 1e-3)),
        (["train.batch=8"], {"train.batch"}, (8, 3e-3)),
    ],
)
def test_batch_and_rate_of_a_preset_grow_with_the_devices(settings, chosen, expected, capsys):
    config = Config().override(["train.batch=8", "train.learning_rate=3e-3", *settings])
    train = for_devices(config, 4, chosen).train
    assert (train.batch, pytest.approx(train.learning_rate)) == expected
    told = capsys.readouterr().out
    assert told == "" if "train.batch" in chosen else "4 devices: batch 32, 8 on each" in told
    assert for_devices(config, 1, chosen) is config


def test_which_settings_were_chosen(tmp_path):
    def parsed(*words):
        parser = argparse.ArgumentParser()
        add_options(parser, "runs/x")
        return chosen_settings(parser.parse_args(words))

    assert parsed() == set()
    assert parsed("--batch", "4", "--set", "train.learning_rate=1") == {"train.batch", "train.learning_rate"}
    assert {"train.batch", "train.learning_rate"} <= parsed("--config", str(tmp_path / "c.yaml"))


def test_a_run_that_was_begun_keeps_its_batch_on_other_devices(tmp_path):
    config = Config().override(["train.batch=8", "train.learning_rate=3e-3"])
    config.save(tmp_path / "config.yaml")
    assert for_devices(config, 4, set(), tmp_path).train.batch == 32  # nothing was saved yet
    (tmp_path / STATE_FILE).touch()
    kept = for_devices(config.override(["train.batch=2", "train.learning_rate=1e-3"]), 4, set(), tmp_path)
    assert (kept.train.batch, kept.train.learning_rate) == (8, 3e-3)
    chosen = config.override(["train.batch=2"])
    assert for_devices(chosen, 4, {"train.batch"}, tmp_path).train.batch == 2


def test_the_demo_is_not_for_a_cluster(monkeypatch, capsys):
    from training import main as command

    monkeypatch.setenv("TF_CONFIG", "{}")
    assert command.main([]) == 1
    assert "the demo is for one process: give --data, or unset TF_CONFIG" in capsys.readouterr().err
