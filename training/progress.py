"""The course of a training, whatever the backend: counters, losses, log, checkpoints, resume."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import keras
import numpy as np
from tqdm import tqdm

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import named_variables, read_arrays, save_arrays, to_arrays
from effdet_tf.runs import LAST_FILE
from training.optimizer import learning_rate, make_optimizer
from training.order import PER_CELL, steps_per_epoch
from training.run_log import RunLog
from training.state import has_state, load_state, save_state, start_weights

if TYPE_CHECKING:
    from effdet_tf.data.packed import PackedSet
    from effdet_tf.data.store import RecordStore

START_FILE = "start.npz"  # what a run started from, where that has a share in its result
FED = ("image", *PER_CELL, "ignored")  # what a step is given of a batch
TERMS = ("total", "class", "box", "mask")
# What a step returns; finite figures are no proof of finite gradients, so their norm is among them.
FIGURES = (*TERMS, "positives", "instances", "gradient_norm")
_SHOWN: tuple[str, ...] = (
    *TERMS,
    "coco_box_AP",
    "coco_mask_AP",
    "box_AP",
    "mask_AP",
    "mask_AP50",
    "sartorius",
)
_SHOWN += ("images_per_second",)


class Pending(NamedTuple):
    """A step that the device was given and may still be at work on."""

    figures: Any  # float32 `[7]`: FIGURES, of the backend; reading them waits for the step
    image_ids: np.ndarray
    dropped: int  # cells that had no place in the batch
    rate: float


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back to the end of the block: a step that was made must be counted before a save."""
    if threading.current_thread() is not threading.main_thread():  # Ctrl-C does not reach it
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        raise KeyboardInterrupt


class Run(ABC):
    """One run: from a configuration and training data to a run folder; a backend says how a step is made.

    The counters tell of the steps whose losses were read and found finite, and weights are saved only then: a
    broken step reaches no file.
    """

    AHEAD: ClassVar[int] = 1  # steps given to the device before their results are read
    SECONDS_AHEAD: ClassVar[float] = 1.0  # but they are read at least this often
    TENSORBOARD: ClassVar[bool] = False

    def __init__(
        self,
        config: Config,
        store: RecordStore | PackedSet,
        folder: Path,
        strict: bool = False,
        backbone: keras.Model | None = None,
        own_folder: Path | None = None,
    ) -> None:
        """Build the network with its start weights, and the optimizer; `restore` comes when all is built.

        Args:
            config: resolved: classes, anchors and max_instances fit the data.
            store: the training images: `images`, `fingerprint`, and what the backend's batches need.
            folder: the run folder.
            strict: refuse start weights that do not fill the parts of the network that they cover.
            backbone: a Keras model of the caller's, for `model.backbone=custom`.
            own_folder: written in place of `folder`, from which the state is read all the same: for a process
                that is not to write there.

        Raises:
            UserError: when the start weights or the backbone do not fit, or there are fewer crops than one
                batch.
        """
        self.config, self.store = config, store
        self.folder = own_folder or folder
        self.shared = folder if own_folder else None
        self.steps = steps_per_epoch(store, config.data, config.train.batch)
        keras.utils.set_random_seed(config.train.seed)
        self.network = build_network(config, backbone=backbone)
        fresh = bool(config.train.init) and not has_state(folder)
        # Whether the network is one that was trained before, all of it, and not one step further.
        self.trained_before = fresh and start_weights(self.network, config, self.folder, strict)
        self.start = self._start_to_keep()
        self.optimizer = make_optimizer(config)
        self.optimizer.build(self.network.trainable_variables)
        # Running averages of the network's float variables, in their order. Copies: a Keras variable made of
        # another's value may be that variable again.
        self.average = [
            keras.Variable(np.asarray(v).copy(), trainable=False)
            for v in named_variables(self.network).values()
        ]

    def _start_to_keep(self) -> dict[str, np.ndarray]:
        """Weights of the start that have a share in the result, by path; a resumed run reads them again."""
        share, saved = self.config.train.start_share, self.state_folder / START_FILE
        if share and self.trained_before:
            start = to_arrays(self.network)
            save_arrays(self.folder / START_FILE, start)
            return start
        if share and has_state(self.state_folder) and saved.exists():
            return read_arrays(saved, "the weights that training started from")
        (self.folder / START_FILE).unlink(missing_ok=True)  # of another run that was here
        return {}

    @abstractmethod
    def _batches(self) -> Iterator[dict[str, Any]]:
        """The batches from `epoch` and `epoch_step` on, epoch after epoch."""

    @abstractmethod
    def _train(self, batch: dict[str, Any], number: int, rate: float) -> Any:
        """Give step `number` to the device; returns its `FIGURES` without waiting for them."""

    def _settle(self) -> None:
        """Wait for the steps under way; network, average and optimizer hold their result after that."""
        self._collect()

    def restore(self) -> None:
        """Go on from the folder's saved state, where there is one; a UserError for that of another run."""
        saved = load_state(self.state_folder, self._groups(), mend=self.shared is None) or {}
        if saved and saved["data"] != self.store.fingerprint:
            raise UserError(
                f"{self.state_folder} holds a run on other training data; give its own --data to go on, "
                "or choose another --out"
            )
        if saved.get("keeps_start") and not self.start:
            raise UserError(
                f"{self.state_folder / START_FILE}: is gone, of which the result keeps a share; put it back, "
                "or choose another --out"
            )
        self.epoch, self.epoch_step, self.step = (saved.get(k, 0) for k in ("epoch", "epoch_step", "step"))
        self.elapsed = saved.get("elapsed", 0.0)
        self.best = saved.get("best")
        self.report: dict[str, Any] | None = saved.get("report")  # of the weights in BEST_FILE
        # Figures of the start on the validation images, and the best of training; None without such a start.
        self.compared: dict[str, Any] | None = saved.get("compared")
        # Of the steps of this epoch, those before a stop included: `FIGURES` and the cells dropped.
        self.sums = np.array(saved.get("sums", [0.0] * (len(FIGURES) + 1)))
        self.log = RunLog(self.folder, saved.get("history", []), self.TENSORBOARD)
        self._pending: list[Pending] = []
        self._clock = self._read_at = self._saved_at = time.monotonic()

    @property
    def state_folder(self) -> Path:
        """Where the state is read from: the run folder, also of a process that does not write there."""
        return self.shared or self.folder

    def _groups(self) -> dict[str, list[Any]]:
        network, optimizer = self.network.variables, self.optimizer.variables
        return {"network": network, "average": self.average, "optimizer": optimizer}

    def announce(self) -> None:
        """Say what is trained, on what, and where it goes on."""
        config = self.config
        parameters = sum(math.prod(v.shape) for v in self.network.trainable_variables)
        print(
            f"{config.preset}: {parameters:,} parameters; {self.store.images} images, {self.steps} steps an "
            f"epoch; anchors {[list(s) for s in config.anchors.sizes] or 'as published'}; "
            f"run folder {self.state_folder}"
        )
        if share := config.train.start_share:
            kept = f"keeps {share:.0%} of its start (train.start_share)"
            why = (
                "so that more stays of what that knew" if self.start else "but that is no whole network: none"
            )
            print(f"the result {kept}, {why}")
        if self.progress() >= 1 and not self.epoch_step:
            print(f"trained to its end, {self.step} steps, before; for more, give more --epochs or --minutes")
        elif self.step:
            print(f"going on at epoch {self.epoch + 1}, step {self.step}")

    def progress(self) -> float:
        """Share of the training that is done: of the minutes where they limit it, else of the steps."""
        settings = self.config.train
        if settings.minutes > 0:
            return self._seconds() / (60 * settings.minutes)
        return (self.step + len(self._pending)) / max(self.steps * settings.epochs, 1)

    def _seconds(self) -> float:
        return self.elapsed + time.monotonic() - self._clock

    def run(self) -> None:
        """Train to the end, saving on the way; a UserError names a loss that is not finite and its images."""
        batches = self._batches()
        try:
            # Steps without an epoch's end: training was stopped while it was evaluated.
            while self.progress() < 1 or self.epoch_step or not self.step:
                row = self._epoch(batches)
                self._finish_epoch(row, last=self.progress() >= 1)
        except KeyboardInterrupt:
            self.save()
            raise

    def _epoch(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        config, started, before = self.config, time.monotonic(), self.epoch_step
        rate, batches = None, islice(batches, self.steps - before)
        title = f"epoch {self.epoch + 1}"
        bar = tqdm(batches, title, self.steps, initial=before, unit="step", file=sys.stderr)
        for batch in bar:
            rate = learning_rate(self.progress(), config.train.learning_rate, config.train.warmup)
            ids, dropped = np.asarray(batch["image_id"]), int(np.sum(batch["dropped"]))
            with uninterrupted():
                figures = self._train(batch, self.step + len(self._pending), rate)
                self._pending.append(Pending(figures, ids, dropped, rate))
            late = time.monotonic() - self._read_at > self.SECONDS_AHEAD
            if late or len(self._pending) >= self.AHEAD:
                shown = {k: f"{v:.3f}" for k, v in self._collect().items()}
                bar.set_postfix(shown | {"lr": f"{rate:.1e}"}, refresh=False)
            if time.monotonic() - self._saved_at > 60 * config.train.save_minutes:
                self.save()
            if config.train.minutes > 0 and self.progress() >= 1:
                break
        bar.close()
        self._settle()
        means = self.sums[:-1] / max(self.epoch_step, 1)
        images = (self.epoch_step - before) * config.train.batch
        return {
            "epoch": self.epoch + 1,
            "step": self.step,
            **{k: round(float(v), 5) for k, v in zip(FIGURES, means, strict=True)},
            "rate": rate,
            "cells_dropped": int(self.sums[-1]),
            "images_per_second": round(images / max(time.monotonic() - started, 1e-9), 2),
            "minutes": round(self._seconds() / 60, 2),
        }

    def _collect(self) -> dict[str, float]:
        """Read the results of the steps under way, check and count them; returns the last loss terms."""
        shown: dict[str, float] = {}
        while self._pending:
            figures, image_ids, dropped, rate = self._pending[0]
            values = np.asarray(figures)
            self._check(values, image_ids)
            del self._pending[0]
            self.step += 1
            self.epoch_step += 1
            self.sums += [*values, dropped]
            shown = {k: float(v) for k, v in zip(TERMS, values, strict=False)}
            if self.step % 20 == 0:
                self.log.step(self.step, {f"loss/{k}": v for k, v in shown.items()} | {"rate": rate})
        self._read_at = time.monotonic()
        return shown

    def _check(self, values: np.ndarray, image_ids: np.ndarray) -> None:
        if np.isfinite(values).all():
            return
        bad = [name for name, value in zip(FIGURES, values, strict=True) if not np.isfinite(value)]
        saved = has_state(self.state_folder)
        unharmed = f". The last checkpoint in {self.state_folder} is unharmed" if saved else ""
        raise UserError(
            f"step {self.step + 1}: the loss is not finite ({', '.join(bad)}) on images "
            f"{', '.join(map(str, image_ids))}; look at them, or lower train.learning_rate{unharmed}"
        )

    def _finish_epoch(self, row: dict[str, Any], last: bool) -> None:
        """Keep the averaged weights, log the row and save; `last` when training ends here."""
        save_arrays(self.folder / LAST_FILE, self.averaged_arrays())
        self.epoch, self.epoch_step, self.sums = self.epoch + 1, 0, np.zeros_like(self.sums)
        self.log.epoch(self.step, row)
        self.save()
        if row["cells_dropped"]:
            print(
                f"epoch {row['epoch']}: {row['cells_dropped']} cells did not fit into data.max_instances="
                f"{self.config.data.max_instances} and were not learned; raise it"
            )
        shown = "  ".join(f"{k} {row[k]:.3f}" for k in _SHOWN if row.get(k) is not None)
        print(f"epoch {row['epoch']}: {shown}")

    def averaged_arrays(self) -> dict[str, np.ndarray]:
        """The averaged weights, with the share of the start, float32, by the path of their variable."""
        names, share = named_variables(self.network), np.float32(self.config.train.start_share)
        means = {name: np.asarray(mean) for name, mean in zip(names, self.average, strict=True)}
        return means | {k: means[k] + share * (first - means[k]) for k, first in self.start.items()}

    def save(self) -> None:
        """Write the state that `--out RUN` resumes from."""
        self._settle()
        names = ("epoch", "epoch_step", "step", "best", "report", "compared")
        progress = {"data": self.store.fingerprint, **{name: getattr(self, name) for name in names}}
        progress |= {
            "keeps_start": bool(self.start),
            "elapsed": self._seconds(),
            "sums": self.sums.tolist(),
            "history": self.log.history,
        }
        save_state(self.folder, self._groups(), progress)
        self._saved_at = time.monotonic()
