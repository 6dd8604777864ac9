"""Training under TensorFlow: one compiled step, validation, the best weights."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import keras
import tensorflow as tf

from effdet_tf.config import Config
from effdet_tf.data.annotated import Folders
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.metrics.evaluation import evaluate_run
from effdet_tf.metrics.scores import choosing_score, headline, score_text
from effdet_tf.metrics.tuning import as_reported, tuned
from effdet_tf.model.layers import depthwise_by_products
from effdet_tf.model.network import Network, build_network
from effdet_tf.model.weights import named_variables, save_arrays, to_arrays
from effdet_tf.prediction.run import RunPredictor
from effdet_tf.report.collect import examples_path
from effdet_tf.report.examples import FoundScratch, write_examples
from effdet_tf.runs import BEST_FILE, CONFIG_FILE, FIGURES_FILE, LAST_FILE
from training.devices import check_batch, cluster_task, local_replicas, own_part, total, uses_xla
from training.losses import combine, detection_losses
from training.order import PER_CELL
from training.pipeline import training_dataset
from training.progress import FED, TERMS, Run
from training.vectors import Vectors

Step = Callable[[dict[str, tf.Tensor], tf.Tensor, tf.Tensor], tf.Tensor]

FEWEST_PLACES = 128  # for cells, in a batch of a step that XLA compiles; else 4 or 16 times as many, or all
# What TensorFlow raises in the others when a worker of a cluster is gone.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)


def make_step(
    config: Config,
    network: Network,
    state: Vectors,
    mask_size: int,
    strategy: tf.distribute.Strategy | None = None,
    xla: bool = False,
) -> Step:
    """Compile one training step.

    Several replicas give what one gives: each has its part of the batch, batch normalisation spans all, the
    losses are divided by the positives of all, and the norm that gradients are clipped by is that of their
    sum.

    Args:
        config: everything.
        network: its trainable variables are moved.
        state: of the network; holds the rest of what is moved.
        mask_size: side of the stored bitmaps.
        strategy: that the variables were made under; None: one device.
        xla: compile it by XLA, for one replica: a few fused kernels in place of thousands of operators, for
            a minute of compiling at the first batch of each shape.

    Returns:
        A function of (this process's batch, step int32, rate float32) -> float32 `[7]`: `FIGURES`.
    """
    strategy = strategy or tf.distribute.get_strategy()
    replicas = local_replicas(strategy)
    signature = [_batch_spec(config, mask_size), tf.TensorSpec((), tf.int32), tf.TensorSpec((), tf.float32)]

    def learn(batch: dict[str, tf.Tensor], number: tf.Tensor) -> tf.Tensor:
        """One replica's share of a step."""
        context = tf.distribute.get_replica_context()
        batch = own_part(batch, replicas)
        if not xla:  # which needs to know the shape before
            batch = with_places(batch, tf.maximum(most_cells(batch), 1))
        first = context.replica_id_in_sync_group * tf.shape(batch["image"])[0]
        with tf.GradientTape() as tape:
            with depthwise_by_products(xla):
                outputs = network.dense(batch["image"], training=True)
            sums = detection_losses(config, network.mask_head, outputs, batch, number, first)
            positives, instances = total([sums["positives"], sums["instances"]])
            terms = combine(config, sums, positives, instances)
        zeros = tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(terms["total"], network.trainable_variables, unconnected_gradients=zeros)
        gradients, norm = tf.clip_by_global_norm(total(state.gradients(gradients)), config.train.clip_norm)
        # The optimizer sums over the replicas once more.
        share = 1.0 / context.num_replicas_in_sync
        state.optimizer.apply([g * share for g in gradients], state.weights)
        return tf.stack([*total([terms[k] for k in TERMS]), positives, instances, norm])

    @tf.function(input_signature=signature, autograph=False, jit_compile=xla or None)
    def step(batch: dict[str, tf.Tensor], number: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        state.optimizer.learning_rate.assign(rate)
        figures = strategy.run(learn, (batch, number))
        state.spread(strategy)
        state.follow(strategy, config.train.ema, number)
        return strategy.experimental_local_results(figures)[0]

    return step


def most_cells(batch: dict[str, tf.Tensor]) -> tf.Tensor:
    """Cells of the fullest crop of a batch, int32."""
    return tf.reduce_max(tf.reduce_sum(tf.cast(batch["classes"] >= 0, tf.int32), 1))


def with_places(batch: dict[str, tf.Tensor], places: int | tf.Tensor) -> dict[str, tf.Tensor]:
    """A batch without places for cells beyond the first `places`: most are padding for all crops."""
    return {k: v[:, :places] if k in PER_CELL else v for k, v in batch.items()}


def few_places(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """A batch with one of a few numbers of places for its cells, for a step that is compiled for each."""
    places, used = FEWEST_PLACES, int(most_cells(batch))
    while places < used:
        places *= 4
    return with_places(batch, places)


def _batch_spec(config: Config, mask_size: int) -> dict[str, tf.TensorSpec]:
    """Shapes and types of a batch of crops."""
    return {
        "image": tf.TensorSpec((None, *config.data.crop_size, config.data.channels), tf.float32),
        "boxes": tf.TensorSpec((None, None, 4), tf.float32),
        "classes": tf.TensorSpec((None, None), tf.int32),
        "masks": tf.TensorSpec((None, None, mask_size, mask_size), tf.uint8),
        "ignored": tf.TensorSpec((None, None, 4), tf.float32),
        "scores": tf.TensorSpec((None, None), tf.float32),
    }


def _line(error: tf.errors.OpError) -> str:
    return str(error.message).splitlines()[0]


class Trainer(Run):
    """One run under TensorFlow, from converted data."""

    TENSORBOARD = True

    def __init__(
        self,
        config: Config,
        store: RecordStore,
        folder: Path,
        validation: Folders | None,
        strict: bool = False,
        backbone: keras.Model | None = None,
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        """Build the network, and pick up a saved state or the weights that `train.init` names.

        Args:
            config: as the next, of `Run`.
            store: as the next.
            folder: of the run.
            validation: converted data to validate on, one folder or several; None for no validation.
            strict: of `Run`.
            backbone: of `Run`.
            strategy: the devices that share a step, see `devices.make_strategy`; None: one. Of the workers of
                a cluster the first validates and writes; the others write into a folder that goes with them.

        Raises:
            UserError: as `Run`, and when the devices cannot share the batch.
        """
        self.strategy = strategy or tf.distribute.get_strategy()
        check_batch(config.train.batch, self.strategy)
        self.worker, self.workers = cluster_task() or (0, 1)
        if self.workers > 1 and config.train.minutes > 0:
            raise UserError("train.minutes: the clocks of several workers differ; give --epochs")
        own = None
        if self.worker:
            self._scratch = tempfile.TemporaryDirectory()
            own = Path(self._scratch.name)
        try:
            with self.strategy.scope():  # in a cluster, variables take the first worker's values
                super().__init__(config, store, folder, strict, backbone, own)
                self.vectors = Vectors(self.network, self.average, self.optimizer)
        except LOST as error:
            if self.workers == 1:
                raise
            raise UserError(f"another worker was lost before training ({_line(error)})") from error
        self.validation = None if self.worker else validation
        self.xla = uses_xla(config.train, self.strategy)
        self.step_function = make_step(
            config, self.network, self.vectors, store.mask_size, self.strategy, self.xla
        )
        # A second network holds the averaged weights, so that validating never disturbs training.
        self.averaged = build_network(config, backbone=backbone)
        plain = dataclasses.replace(config, postprocess=config.postprocess.as_given())
        self.predictor = RunPredictor(self.averaged, plain)
        self.restore()

    def restore(self) -> None:
        """Go on from the folder's saved state, where there is one; see `Run.restore`."""
        super().restore()
        self.vectors.take()

    def _settle(self) -> None:
        super()._settle()
        self.vectors.settle()

    def run(self) -> None:
        """As `Run.run`; the workers of a cluster end together.

        Raises:
            UserError: as `Run.run`, and when another worker is lost.
        """
        if self.trained_before and self.validation is not None and self.config.train.keep_better:
            self._validate_start()
        super().run()
        self._tell_which_is_better()
        if self.workers > 1:  # one that leaves while the first validates would be taken for lost
            self.strategy.run(lambda: total([tf.constant(1.0)]))

    def _batches(self) -> Iterator[dict[str, tf.Tensor]]:
        try:
            yield from self._crops()
        except tf.errors.OpError as error:
            # Images that are not in memory are read while it trains, and files can go away under it.
            raise UserError(
                f"step {self.step + 1}: the training images cannot be read any more ({_line(error)}); the "
                "last checkpoint is unharmed: bring the data back and run the same command again"
            ) from error

    def _crops(self) -> Iterator[dict[str, tf.Tensor]]:
        train, store = self.config.train, cast(RecordStore, self.store)
        sets = (store, self.config.data, self.config.augment, train.batch, train.seed)
        part = (self.worker, self.workers)
        # One pipeline for the whole training: tracing one takes as long as many steps of a small network.
        yield from training_dataset(*sets, self.epoch, None, part=part).skip(self.epoch_step)

    def _train(self, batch: dict[str, tf.Tensor], number: int, rate: float) -> tf.Tensor:
        fed = {name: batch[name] for name in FED}
        if self.xla:
            fed = few_places(fed)
        try:
            return self.step_function(fed, tf.constant(number), tf.constant(rate, tf.float32))
        except LOST as error:
            if self.workers == 1:
                raise
            raise UserError(
                f"step {self.step + 1}: another worker was lost ({_line(error)}); the last checkpoint is "
                "unharmed: start all workers again to go on from it"
            ) from error
        except tf.errors.ResourceExhaustedError as error:
            raise UserError(
                f"step {self.step + 1}: out of memory ({_line(error)}); lower --batch or data.crop_size; the "
                "last checkpoint is unharmed"
            ) from error

    def _finish_epoch(self, row: dict[str, Any], last: bool) -> None:
        self._validate(row, last)
        super()._finish_epoch(row, last)

    def _validate(self, row: dict[str, Any], last: bool) -> None:
        """Add the metrics of the averaged weights to a row, and keep the weights when they are the best."""
        self._take_average()
        every = max(self.config.train.evaluate_every, 1)
        if self.validation is None or not (last or row["epoch"] % every == 0):
            return
        limit = None if last else self.config.train.evaluate_images or None
        with FoundScratch(None) as found:
            report = evaluate_run(self.predictor, self.validation, limit, progress=last, keep=found.add)
            figures = headline(report)
            row |= {name: None if v is None else round(v, 5) for name, v in figures.items()}
            score, fewer = choosing_score(figures), bool(self.config.train.evaluate_images)
            better = self.best is None or score >= self.best
            # A metric on fewer images does not compare with one on all of them: the last always counts, or
            # what it says against the start.
            if self.compared is not None:
                better = better and (last or not fewer)
                after = self.compared["after"]
                if (last or not fewer) and (after is None or score >= choosing_score(after)):
                    self.compared = {**self.compared, "after": figures}
            elif last and fewer:
                better = True
            if better:
                self._keep(report, found, last)

    def _take_average(self) -> None:
        """Give the averaged weights to the network that is validated."""
        means = self.averaged_arrays().values()
        for variable, mean in zip(named_variables(self.averaged).values(), means, strict=True):
            variable.assign(mean)

    def _validate_start(self) -> None:
        """Keep the weights that training starts from as the best so far, and what they score."""
        self._take_average()
        print("the start, on the validation images:")
        with FoundScratch(None) as found:
            report = evaluate_run(self.predictor, self.validation or (), keep=found.add)
            self.compared = {"before": headline(report), "after": None}
            self._keep(report, found, last=False)

    def _tell_which_is_better(self) -> None:
        """One line: what training made of its start, and which weights are kept."""
        if self.compared is None or self.compared["after"] is None:
            return
        before, after = self.compared["before"], self.compared["after"]
        kept = choosing_score(after) >= choosing_score(before)
        names = ("mask_AP", "box_AP", "f1", "count_mean_error")
        told = [
            f"{name.replace('_', ' ')} {before[name]:.3f} -> {after[name]:.3f}"
            for name in names
            if before.get(name) is not None and after.get(name) is not None
        ]
        which = "the trained weights are kept" if kept else f"the start is kept, {LAST_FILE} has the others"
        print(f"before and after training, on the validation images: {', '.join(told)}: {which}")

    def _keep(self, report: dict[str, Any], found: FoundScratch, last: bool) -> None:
        """Take the averaged weights as the best ones: store them and what their report says of scores."""
        self.best = choosing_score(headline(report))
        save_arrays(self.folder / BEST_FILE, to_arrays(self.averaged))
        after = tuned(self.predictor.config.postprocess, report)
        self.report = report if after is None else as_reported(report, after)
        examples = examples_path(self.folder / FIGURES_FILE)
        write_examples(examples, report, found, self.validation or (), after)
        if after is not None:
            self.config = dataclasses.replace(self.config, postprocess=after)
            self.config.save(self.folder / CONFIG_FILE)
        elif last:
            kept = self.config.postprocess.report_score
            why = "the validation images tell no minimum score (no cells, or none found)"
            print(f"{why}: it stays {score_text(kept)}")
