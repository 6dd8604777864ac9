from __future__ import annotations

import io
import os
import pickle
import signal
import time

import numpy as np
import pytest

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.prediction import load as predictors
from effdet_tf.prediction.network_process import NetworkProcess, last_change, serve
from effdet_tf.prediction.sizing import AS_THEY_ARE
from tests.napari_plugin.stubs import StubNetwork


@pytest.fixture
def network():
    process = NetworkProcess()
    yield process
    process.close()


def answer(network, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = network.answer(0.1)
        if found is not None:
            return found
    raise AssertionError("no answer")


GONE = "gone.tflite: cannot be read"  # found out without TensorFlow


def test_a_wrong_network_is_told_in_one_line_and_the_next_can_be_tried(network, tmp_path):
    for _ in range(2):
        network.open(str(tmp_path / "gone.tflite"))
        assert network.waiting
        with pytest.raises(UserError, match=GONE):
            answer(network)
        assert not network.waiting


def test_a_process_that_dies_is_told_and_replaced(network, tmp_path):
    network.open(str(tmp_path / "gone.tflite"))
    with pytest.raises(UserError, match=GONE):
        answer(network)
    os.kill(network._process.pid, signal.SIGKILL)
    network.predict(np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match=r"process of the network ended \(code -9\)"):
        answer(network)
    network.open(str(tmp_path / "gone.tflite"))
    with pytest.raises(UserError, match=GONE):
        answer(network)


def test_closing_ends_the_process_at_once(network, tmp_path):
    network.open(str(tmp_path / "gone.tflite"))
    process = network._process
    network.close()
    assert process.returncode is not None and not network.waiting
    assert network.answer(0.5) is None  # no fault for a thread that still waits
    network.close()


def ask(questions, monkeypatch, load):
    monkeypatch.setattr(predictors, "load", load)
    answers = io.BytesIO()
    serve(io.BytesIO(b"".join(map(pickle.dumps, questions))), answers)
    answers.seek(0)
    return [pickle.load(answers) for _ in questions]


def test_a_fault_of_the_program_comes_with_its_traceback(monkeypatch):
    def load(source):
        raise ZeroDivisionError("as it happens")

    ((kind, text),) = ask([("open", "a")], monkeypatch, load)
    assert kind == "failed" and "ZeroDivisionError: as it happens" in text and "Traceback" in text


def test_a_network_is_opened_once(monkeypatch):
    opened = []

    class Predictor:
        config = Config().replace(postprocess__report_score=0.25)

        def predict(self, image, score=None):
            return int(image.sum())

    def load(source):
        opened.append(source)
        return Predictor()

    one = ("predict", (np.ones((2, 3)), None, AS_THEY_ARE))
    replies = ask([("open", "a"), one, ("open", "a"), ("open", "b"), one], monkeypatch, load)
    assert replies == [("done", value) for value in (0.25, 6, 0.25, 0.25, 6)]
    assert opened == ["a", "b"]


def test_the_stub_has_what_the_process_has():
    public = {name for name in dir(NetworkProcess()) if not name.startswith("_")}
    assert public <= set(dir(StubNetwork()))


def test_a_run_that_was_trained_on_is_another_one(tmp_path):
    file = tmp_path / "best.npz"
    file.touch()
    before = last_change(str(tmp_path))
    os.utime(file, ns=(before + 10**9,) * 2)
    assert last_change(str(tmp_path)) == before + 10**9
    assert last_change(str(tmp_path / "gone")) == 0
