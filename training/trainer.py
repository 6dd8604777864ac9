"""The training loop: one compiled step, averaged weights, validation, checkpoints, resume."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from effdet_tf.config import Config
from effdet_tf.data.pipeline import steps_per_epoch, training_dataset
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.losses import combine, detection_losses
from effdet_tf.metrics.report import headline
from effdet_tf.model.efficientdet import Network, build_network
from effdet_tf.model.weights import save_arrays, to_arrays
from effdet_tf.predict import BEST_FILE, CONFIG_FILE, LAST_FILE, Predictor
from training.callbacks import RunLog
from training.evaluate import evaluate_run
from training.schedule import learning_rate
from training.state import STATE_FILE, load_state, save_state

TERMS = ("total", "class", "box", "mask")
# What a step returns; finite figures are no proof of finite gradients, so their norm is among them.
FIGURES = (*TERMS, "positives", "instances", "gradient_norm")
# Tracing an input pipeline takes as long as several steps of a small network: one serves many epochs.
EPOCHS_AHEAD = 20


def make_optimizer(config: Config) -> keras.optimizers.Optimizer:
    """AdamW, or SGD with momentum .9; weight decay spares biases and batch norm."""
    settings = config.train
    if settings.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
    else:
        optimizer = keras.optimizers.SGD(
            settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay
        )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "base", "weight_"])
    return optimizer


def make_step(
    config: Config, network: Network, average: list[tf.Variable], optimizer: Any, mask_size: int
) -> Any:
    """Compile one training step.

    Args:
        config: everything.
        network: its trainable variables are moved.
        average: running averages of the network's float variables, moved towards them.
        optimizer: built for the network.
        mask_size: side of the stored bitmaps.

    Returns:
        A function of (batch, step int32, rate float32) -> float32 `[7]`: `FIGURES`.
    """
    floats = [v for v in network.variables if "float" in str(v.dtype)]
    size = config.data.crop_size
    signature = {
        "image": tf.TensorSpec((None, *size, config.data.channels), tf.float32),
        "boxes": tf.TensorSpec((None, None, 4), tf.float32),
        "classes": tf.TensorSpec((None, None), tf.int32),
        "masks": tf.TensorSpec((None, None, mask_size, mask_size), tf.uint8),
    }
    scalar = [tf.TensorSpec((), tf.int32), tf.TensorSpec((), tf.float32)]

    @tf.function(input_signature=[signature, *scalar], autograph=False)
    def step(batch: dict[str, tf.Tensor], number: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        # Most crops hold far fewer cells than the fullest image: what is padding for all is cut.
        used = tf.maximum(tf.reduce_max(tf.reduce_sum(tf.cast(batch["classes"] >= 0, tf.int32), 1)), 1)
        batch = {k: v if k == "image" else v[:, :used] for k, v in batch.items()}
        with tf.GradientTape() as tape:
            outputs = network.dense(batch["image"], training=True)
            sums = detection_losses(config, network.mask_head, outputs, batch, number)
            terms = combine(config, sums, sums["positives"], sums["instances"])
        gradients = tape.gradient(terms["total"], network.trainable_variables)
        gradients, norm = tf.clip_by_global_norm(gradients, config.train.clip_norm)
        optimizer.learning_rate.assign(rate)
        optimizer.apply(gradients, network.trainable_variables)
        # Early on the average follows closely, or it would remember the random start.
        done = tf.cast(number, tf.float32)
        keep = tf.minimum(config.train.ema, (1 + done) / (10 + done))
        for variable, mean in zip(floats, average, strict=True):
            mean.assign_add((variable.value - mean) * (1 - keep))
        return tf.stack([*(terms[k] for k in TERMS), sums["positives"], sums["instances"], norm])

    return step


class Trainer:
    """One run: from a configuration and converted data to a run folder."""

    def __init__(self, config: Config, store: RecordStore, folder: Path, validation: Path | None) -> None:
        """Build the network and pick up a saved state.

        Args:
            config: resolved: classes, anchors and max_instances fit the data.
            store: the training images.
            folder: the run folder.
            validation: converted data to validate on, or None.

        Raises:
            UserError: when the folder's state belongs to another network.
        """
        self.config, self.store, self.folder, self.validation = config, store, folder, validation
        keras.utils.set_random_seed(config.train.seed)
        self.network = build_network(config)
        self.optimizer = make_optimizer(config)
        self.optimizer.build(self.network.trainable_variables)
        floats = [v for v in self.network.variables if "float" in str(v.dtype)]
        self.average = [tf.Variable(v.value, trainable=False) for v in floats]
        self.step_function = make_step(config, self.network, self.average, self.optimizer, store.mask_size)
        # A second network holds the averaged weights, so that validating never disturbs training.
        self.averaged = build_network(config)
        self.predictor = Predictor(self.averaged, config)
        self.steps = steps_per_epoch(store, config.data, config.train.batch)
        self.restore()

    def restore(self) -> None:
        """Go on from the folder's saved state, where there is one.

        Raises:
            UserError: when it is unreadable or belongs to another network or other data.
        """
        saved = load_state(self.folder, self._groups()) or {}
        if saved and saved["data"] != self.store.fingerprint:
            raise UserError(
                f"{self.folder} holds a run on other training data; give its own --data to go on, "
                "or choose another --out"
            )
        self.epoch = saved.get("epoch", 0)
        self.epoch_step = saved.get("epoch_step", 0)
        self.step = saved.get("step", 0)
        self.elapsed = saved.get("elapsed", 0.0)
        self.best = saved.get("best")
        self.report: dict[str, Any] | None = saved.get("report")  # of the weights in BEST_FILE
        # Of the steps of this epoch, those before a stop included: `FIGURES` and the cells dropped.
        self.sums = np.array(saved.get("sums", [0.0] * (len(FIGURES) + 1)))
        self.log = RunLog(self.folder, saved.get("history", []))
        self._clock = time.monotonic()
        self._saved_at = self._clock

    def _groups(self) -> dict[str, list[Any]]:
        return {
            "network": self.network.variables,
            "average": self.average,
            "optimizer": self.optimizer.variables,
        }

    def progress(self) -> float:
        """Share of the training that is done: of the minutes where they limit it, else of the steps."""
        settings = self.config.train
        if settings.minutes > 0:
            return self._seconds() / (60 * settings.minutes)
        return self.step / max(self.steps * settings.epochs, 1)

    def _seconds(self) -> float:
        return self.elapsed + time.monotonic() - self._clock

    def run(self) -> None:
        """Train to the end, validating and saving on the way.

        Raises:
            UserError: on a loss that is not finite; names step, terms and image ids.
        """
        batches = self._batches()
        try:
            # Steps without an epoch's end: training was stopped while it validated.
            while self.progress() < 1 or self.epoch_step or not self.step:
                row = self._epoch(batches)
                self._finish_epoch(row, last=self.progress() >= 1)
        except KeyboardInterrupt:
            self.save()
            raise

    def _batches(self) -> Iterator[dict[str, tf.Tensor]]:
        """The batches from here on, epoch after epoch."""
        config, epoch, done = self.config, self.epoch, self.epoch_step
        while True:
            left = EPOCHS_AHEAD if config.train.minutes > 0 else config.train.epochs - epoch
            epochs = max(min(left, EPOCHS_AHEAD), 1)
            yield from training_dataset(
                self.store, config.data, config.augment, config.train.batch, config.train.seed, epoch, epochs
            ).skip(done)
            epoch, done = epoch + epochs, 0

    def _epoch(self, batches: Iterator[dict[str, tf.Tensor]]) -> dict[str, Any]:
        config, started = self.config, time.monotonic()
        rate, before = None, self.epoch_step
        bar = tqdm(
            islice(batches, self.steps - self.epoch_step),
            f"epoch {self.epoch + 1}",
            self.steps,
            initial=self.epoch_step,
            unit="step",
            file=sys.stderr,
        )
        for batch in bar:
            rate = learning_rate(self.progress(), config.train.learning_rate, config.train.warmup)
            fed = {name: batch[name] for name in ("image", "boxes", "classes", "masks")}
            values = self.step_function(fed, tf.constant(self.step), tf.constant(rate, tf.float32)).numpy()
            self._check(values, batch["image_id"].numpy())
            self.step += 1
            self.epoch_step += 1
            self.sums += [*values, batch["dropped"].numpy().sum()]
            shown = dict(zip(TERMS, values, strict=False))
            bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()} | {"lr": f"{rate:.1e}"}, refresh=False)
            if self.step % 20 == 0:
                self.log.step(self.step, {f"loss/{k}": float(v) for k, v in shown.items()} | {"rate": rate})
            if time.monotonic() - self._saved_at > 60 * config.train.save_minutes:
                self.save()
            if config.train.minutes > 0 and self.progress() >= 1:
                break
        bar.close()
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

    def _check(self, values: np.ndarray, image_ids: np.ndarray) -> None:
        if np.isfinite(values).all():
            return
        bad = [name for name, value in zip(FIGURES, values, strict=True) if not np.isfinite(value)]
        saved = (self.folder / STATE_FILE).exists()
        raise UserError(
            f"step {self.step + 1}: the loss is not finite ({', '.join(bad)}) on images "
            f"{', '.join(str(i) for i in image_ids)}; look at them, or lower train.learning_rate"
            + (f". The last checkpoint in {self.folder} is unharmed" if saved else "")
        )

    def _finish_epoch(self, row: dict[str, Any], last: bool) -> None:
        self._copy_average()
        every = max(self.config.train.evaluate_every, 1)
        if self.validation is not None and (last or row["epoch"] % every == 0):
            limit = None if last else self.config.train.evaluate_images or None
            report, _ = evaluate_run(self.predictor, self.validation, limit, progress=last)
            figures = headline(report)
            row |= {name: None if v is None else round(v, 5) for name, v in figures.items()}
            score = figures["mask_AP" if self.network.mask_head is not None else "box_AP"] or 0.0
            # A figure on fewer images says nothing beside one on all of them: the last always counts.
            if self.best is None or score >= self.best or (last and self.config.train.evaluate_images):
                self.best, self.report = score, report
                save_arrays(self.folder / BEST_FILE, to_arrays(self.averaged))
                self._keep_threshold()
        save_arrays(self.folder / LAST_FILE, to_arrays(self.averaged))
        self.epoch, self.epoch_step, self.sums = self.epoch + 1, 0, np.zeros_like(self.sums)
        self.log.epoch(self.step, row)
        self.save()
        if row["cells_dropped"]:
            print(
                f"epoch {row['epoch']}: {row['cells_dropped']} cells did not fit into data.max_instances="
                f"{self.config.data.max_instances} and were not learned; raise it"
            )
        shown = (
            "total",
            "class",
            "box",
            "mask",
            "box_AP",
            "mask_AP",
            "mask_AP50",
            "sartorius",
            "images_per_second",
        )
        print(
            f"epoch {row['epoch']}: "
            + "  ".join(f"{k} {row[k]:.3f}" for k in shown if row.get(k) is not None)
        )

    def _keep_threshold(self) -> None:
        """Store the score that separates cells best on the validation images with the run."""
        cells = self.report["cells"] if self.report else None
        if cells is not None and cells["best_sartorius"] > 0:
            score = float(cells["best_score_threshold"])
            self.config = self.config.replace(postprocess__report_score=score)
            self.config.save(self.folder / CONFIG_FILE)

    def _copy_average(self) -> None:
        targets = [v for v in self.averaged.variables if "float" in str(v.dtype)]
        for variable, mean in zip(targets, self.average, strict=True):
            variable.assign(mean)

    def save(self) -> None:
        """Write the state that `--out RUN` resumes from."""
        progress = {
            "data": self.store.fingerprint,
            "epoch": self.epoch,
            "epoch_step": self.epoch_step,
            "step": self.step,
            "elapsed": self._seconds(),
            "best": self.best,
            "report": self.report,
            "sums": self.sums.tolist(),
            "history": self.log.history,
        }
        save_state(self.folder, self._groups(), progress)
        self._saved_at = time.monotonic()
