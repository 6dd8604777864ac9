"""Training under TensorFlow: one compiled step, validation, the best weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from effdet_tf.config import Config
from effdet_tf.data.pipeline import training_dataset
from effdet_tf.data.store import RecordStore
from effdet_tf.evaluation import evaluate_run
from effdet_tf.losses import combine, detection_losses
from effdet_tf.metrics.report import choosing_score, headline, reporting_score
from effdet_tf.model.efficientdet import Network, build_network
from effdet_tf.model.weights import named_variables, save_arrays, to_arrays
from effdet_tf.predict import Predictor
from effdet_tf.run_folder import BEST_FILE, CONFIG_FILE
from training.callbacks import RunLog
from training.run import FED, TERMS, Run

# Tracing an input pipeline takes as long as several steps of a small network: one serves many epochs.
EPOCHS_AHEAD = 20


def make_step(config: Config, network: Network, average: list[Any], optimizer: Any, mask_size: int) -> Any:
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
    floats = list(named_variables(network).values())
    size = config.data.crop_size
    signature = {
        "image": tf.TensorSpec((None, *size, config.data.channels), tf.float32),
        "boxes": tf.TensorSpec((None, None, 4), tf.float32),
        "classes": tf.TensorSpec((None, None), tf.int32),
        "masks": tf.TensorSpec((None, None, mask_size, mask_size), tf.uint8),
        "ignored": tf.TensorSpec((None, None, 4), tf.float32),
    }
    scalar = [tf.TensorSpec((), tf.int32), tf.TensorSpec((), tf.float32)]

    @tf.function(input_signature=[signature, *scalar], autograph=False)
    def step(batch: dict[str, tf.Tensor], number: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        # Most crops hold far fewer cells than the fullest image: what is padding for all is cut.
        used = tf.maximum(tf.reduce_max(tf.reduce_sum(tf.cast(batch["classes"] >= 0, tf.int32), 1)), 1)
        batch = {k: v[:, :used] if k in ("boxes", "classes", "masks") else v for k, v in batch.items()}
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


class Trainer(Run):
    """One run under TensorFlow, from converted data."""

    LOG = RunLog

    def __init__(
        self,
        config: Config,
        store: RecordStore,
        folder: Path,
        validation: Path | None,
        strict: bool = False,
        backbone: keras.Model | None = None,
    ) -> None:
        """Build the network, and pick up a saved state or the weights that `train.init` names.

        Args:
            config: resolved: classes, anchors and max_instances fit the data.
            store: the training images.
            folder: the run folder.
            validation: converted data to validate on, or None.
            strict: refuse start weights that do not fill the parts of the network that they cover.
            backbone: a Keras model of the caller's, for `model.backbone=custom`.

        Raises:
            UserError: when the folder's state belongs to another network, or the start weights or the
                backbone do not fit.
        """
        super().__init__(config, store, folder, strict, backbone)
        self.validation = validation
        self.step_function = make_step(config, self.network, self.average, self.optimizer, store.mask_size)
        # A second network holds the averaged weights, so that validating never disturbs training.
        self.averaged = build_network(config, backbone=backbone)
        self.predictor = Predictor(self.averaged, config)
        self.restore()

    def _batches(self) -> Iterator[dict[str, tf.Tensor]]:
        config, epoch, done = self.config, self.epoch, self.epoch_step
        while True:
            left = EPOCHS_AHEAD if config.train.minutes > 0 else config.train.epochs - epoch
            epochs = max(min(left, EPOCHS_AHEAD), 1)
            yield from training_dataset(
                self.store, config.data, config.augment, config.train.batch, config.train.seed, epoch, epochs
            ).skip(done)
            epoch, done = epoch + epochs, 0

    def _train(self, batch: dict[str, tf.Tensor], number: int, rate: float) -> tf.Tensor:
        fed = {name: batch[name] for name in FED}
        return self.step_function(fed, tf.constant(number), tf.constant(rate, tf.float32))

    def _finish_epoch(self, row: dict[str, Any], last: bool) -> None:
        self._validate(row, last)
        super()._finish_epoch(row, last)

    def _validate(self, row: dict[str, Any], last: bool) -> None:
        """Add the figures of the averaged weights to a row, and keep the weights when they are the best."""
        for variable, mean in zip(named_variables(self.averaged).values(), self.average, strict=True):
            variable.assign(mean)
        every = max(self.config.train.evaluate_every, 1)
        if self.validation is None or not (last or row["epoch"] % every == 0):
            return
        limit = None if last else self.config.train.evaluate_images or None
        report, _ = evaluate_run(self.predictor, self.validation, limit, progress=last)
        figures = headline(report)
        row |= {name: None if v is None else round(v, 5) for name, v in figures.items()}
        score = choosing_score(figures)
        # A figure on fewer images says nothing beside one on all of them: the last always counts.
        if self.best is None or score >= self.best or (last and self.config.train.evaluate_images):
            self.best, self.report = score, report
            save_arrays(self.folder / BEST_FILE, to_arrays(self.averaged))
            self._keep_threshold()

    def _keep_threshold(self) -> None:
        """Store the score that separates cells best on the validation images with the run."""
        score = reporting_score(self.report) if self.report else None
        if score is not None:
            self.config = self.config.replace(postprocess__report_score=score)
            self.config.save(self.folder / CONFIG_FILE)
