"""Runs a network in a process of its own, apart from a viewer or a server.

TensorFlow and those OpenGL drivers of Mesa that compile shaders (software rendering, AMD) bring an LLVM each
and crash within one process. Apart from each other, the viewer also stays smooth while TensorFlow is
imported, and work can be cancelled at any time. A server outlives a crash, and an image without end.

Both sides speak in pickles, through the standard input and output of the process: it belongs to the program
that started it, and ends when its input does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.images.read import Stack
from effdet_tf.prediction.sizing import AS_THEY_ARE, Sizing, check_sizing, predict_sized
from effdet_tf.runs import find_run

if TYPE_CHECKING:
    from effdet_tf.config import Config
    from effdet_tf.prediction.results import Result

_DONE, _USER_ERROR, _FAILED = "done", "user error", "failed"
_OPENING = 300  # seconds that a network may take to open


def _questions(process: subprocess.Popen[bytes] | None) -> IO[bytes]:
    """Where the process reads."""
    assert process is not None and process.stdin is not None
    return process.stdin


class NetworkProcess:
    """The network that was used last: it stays open, so that the next image need not wait for it.

    `open` and `predict` send a question and return at once; `answer` has what comes of it.

    Attributes:
        waiting: whether a question is unanswered.
    """

    def __init__(self) -> None:
        self.waiting = False
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._key: tuple[str, int] | None = None

    def open(self, source: str) -> None:
        """Open a network, unless it is open and its files are as they were; the answer is its own score."""
        key = source, last_change(source)
        if self._process is not None and key != self._key:
            self.close()  # gives the memory of the former one back
        if self._process is None:
            self._start()
            self._key = key
        self._send("open", source)

    def predict(
        self, image: np.ndarray, um_per_px: float | None = None, sizing: Sizing = AS_THEY_ARE
    ) -> None:
        """Find the cells of an image `[H, W]` or `[H, W, 3]` by `predict_sized`; the answer is a `Result`."""
        self._send("predict", (image, um_per_px, sizing))

    def answer(self, seconds: float) -> Any | None:
        """The answer to the last question; None when it has not come within some seconds, or was closed.

        Raises:
            UserError: when the network cannot be opened, cannot take the image, or its process died.
            RuntimeError: when it failed otherwise, with the traceback.
        """
        try:
            found = self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
        process = self._process
        if process is None:
            return None
        self.waiting = False
        if found is None:
            code = process.wait()
            self.close()
            advice = "is there memory enough for an image of this size?"
            raise UserError(f"the process of the network ended (code {code}); {advice}")
        kind, value = found
        if kind == _DONE:
            return value
        if kind == _USER_ERROR:
            raise UserError(value)
        raise RuntimeError(f"the network failed:\n{value}")

    def close(self) -> None:
        """End the process, also in the middle of its work."""
        # Gone before it is killed: a thread that waits must not take that for a fault.
        process, self._process = self._process, None
        self._key, self.waiting = None, False
        if process is not None:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):  # what it had not read yet
                _questions(process).close()

    def _start(self) -> None:
        command = [sys.executable, "-m", __name__]
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=quiet)
        self._answers = queue.SimpleQueue()
        threading.Thread(target=_pump, args=(self._process.stdout, self._answers), daemon=True).start()

    def _send(self, question: str, value: Any) -> None:
        self.waiting = True
        with contextlib.suppress(BrokenPipeError):  # it died: `answer` will tell
            questions = _questions(self._process)
            pickle.dump((question, value), questions)
            questions.flush()


class ApartPredictor:
    """A network in a process of its own, asked by one thread; what takes too long is ended.

    Attributes:
        config: of the network.
    """

    def __init__(self, source: str | os.PathLike[str], seconds: float, sizing: Sizing = AS_THEY_ARE) -> None:
        """Open it.

        Args:
            source: as `effdet_tf.load` takes it.
            seconds: that reading or predicting one image may take.
            sizing: what is known of the size of cells.

        Raises:
            UserError: when it cannot be opened, or has no use for what is said of the size.
        """
        self._source, self._seconds, self._process = os.fspath(source), seconds, NetworkProcess()
        self._sizing = sizing
        self.config: Config = self._answer("config", None)
        check_sizing(self.config, sizing)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO's id of each class."""
        return self.config.category_ids

    def read(self, path: Path, max_pixels: int) -> tuple[np.ndarray, float | None]:
        """As `read_one`, in the other process; the side of a pixel that was said comes before the file's."""
        image, side = self._answer("read", (path, max_pixels))
        return image, self._sizing.um_per_px or side

    def predict(self, image: np.ndarray, um_per_px: float | None = None) -> Result:
        """As `predict_sized`, of an array and the side of its pixels, where it is known.

        Raises:
            UserError: when it is no image for this network, takes too long, or the network fails on it.
        """
        return self._answer("predict", (image, um_per_px, self._sizing))

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _answer(self, question: str, value: Any) -> Any:
        """What comes of a question, once the network is open, which it mostly is."""
        found = None
        try:
            self._process.open(self._source)
            if self._process.answer(max(self._seconds, _OPENING)) is not None:
                self._process._send(question, value)
                found = self._process.answer(self._seconds)
        except RuntimeError as error:  # with the traceback of the other process
            print(error, file=sys.stderr)
            raise UserError(str(error).strip().splitlines()[-1]) from None
        if found is None:
            self._process.close()
            raise UserError(f"took longer than {self._seconds:g} s and was given up")
        return found


def read_one(path: Path, max_pixels: int) -> tuple[np.ndarray, float | None]:
    """The pixels `[H, W, C]` of a file of one image, and micrometres of a pixel where it says so.

    Raises:
        UserError: when it cannot be read, is larger, or has several pages.
    """
    with Stack(path, max_pixels) as stack:
        if stack.pages > 1:
            advice = "save the page to be used, or use `effdet_tf predict`"
            raise UserError(f"{path}: is a stack of {stack.pages} pages; {advice}")
        return stack.read(), stack.um_per_px


def last_change(source: str) -> int:
    """When a file, or the newest file directly in a folder, was written, ns since 1970; 0 when missing."""
    path = find_run(source)
    files = [path, *path.iterdir()] if path.is_dir() else [path]
    return max(file.stat().st_mtime_ns for file in files) if path.exists() else 0


def _pump(answers: IO[bytes], into: queue.SimpleQueue) -> None:
    """Take answers as they come, so that waiting for one can end; None when there will be no more."""
    with answers, contextlib.suppress(EOFError, pickle.UnpicklingError):  # cut short: it was killed
        while True:
            into.put(pickle.load(answers))  # noqa: S301 (our own process)
    into.put(None)


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer questions, pickles `("open", source)`, `("predict", ...)` and others, until there are no more.

    The answers are pickles of "done", "user error" or "failed", and a value or message.
    """
    from effdet_tf.prediction.load import load

    opened: Any = None  # source and predictor
    with contextlib.suppress(EOFError):
        while True:
            question, value = pickle.load(questions)  # noqa: S301 (our own process)
            try:
                if question == "predict":
                    image, side, sizing = value
                    answer: Any = predict_sized(opened[1], image, sizing=sizing, um_per_px=side)
                elif question == "read":
                    answer = read_one(*value)
                elif question == "config":
                    answer = opened[1].config
                else:
                    if opened is None or opened[0] != value:
                        opened = value, load(value)
                    answer = opened[1].config.postprocess.report_score
                reply = _DONE, answer
            except UserError as error:
                reply = _USER_ERROR, str(error)
            except Exception:  # told on the other side
                reply = _FAILED, traceback.format_exc()
            pickle.dump(reply, answers)
            answers.flush()


def main() -> None:
    """Serve on the standard input and output; what libraries print goes to the standard error."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
