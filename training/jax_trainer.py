"""Training under JAX: one compiled step whose whole state goes in and comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from effdet_tf.config import Config
from effdet_tf.data.packed import PackedSet
from effdet_tf.model.network import Network
from effdet_tf.model.weights import named_variables
from training.arrays import training_batches
from training.losses import combine, detection_losses
from training.progress import FED, TERMS, Run

State = dict[str, list[jax.Array]]
Step = Callable[..., tuple[State, jax.Array]]


def make_loss(config: Config, network: Network) -> Callable[..., tuple[jax.Array, Any]]:
    """Return the loss of a network, built, as a pure function for `jax.value_and_grad(..., has_aux=True)`.

    Returns:
        A function of (trainable, others, batch, step number) -> (total loss, (figures float32 `[6]`, others
        after the step)); `others` are batch statistics and the states of random generators.
    """
    trainable, others = network.trainable_variables, untrained(network)

    def loss(
        weights: list[jax.Array], rest: list[jax.Array], batch: dict[str, jax.Array], number: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, list[jax.Array]]]:
        mapping = zip([*trainable, *others], [*weights, *rest], strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            outputs = network.dense(batch["image"], training=True)
            sums = detection_losses(config, network.mask_head, outputs, batch, number)
            terms = combine(config, sums, sums["positives"], sums["instances"])
        after = [scope.get_current_value(variable) for variable in others]
        figures = jnp.stack([*(terms[name] for name in TERMS), sums["positives"], sums["instances"]])
        return terms["total"], (figures, after)

    return loss


def untrained(network: Network) -> list[Any]:
    """The variables that no gradient moves, in the order of `network.variables`."""
    moved = {id(variable) for variable in network.trainable_variables}
    return [variable for variable in network.variables if id(variable) not in moved]


def make_step(config: Config, network: Network, optimizer: keras.optimizers.Optimizer) -> Step:
    """Compile one training step of a network with an optimizer built for it.

    Returns:
        A function of (state, batch, step int32, rate float32) -> (state, `FIGURES` float32 `[7]`). The state
        that goes in is used up.
    """
    differentiate = jax.value_and_grad(make_loss(config, network), has_aux=True)
    trainable, others = network.trainable_variables, untrained(network)
    rate_place = next(k for k, v in enumerate(optimizer.variables) if v is optimizer.learning_rate)
    place = {id(variable): k for k, variable in enumerate([*trainable, *others])}
    floats = [place[id(variable)] for variable in named_variables(network).values()]

    def step(
        state: State, batch: dict[str, jax.Array], number: jax.Array, rate: jax.Array
    ) -> tuple[State, jax.Array]:
        (_, (figures, rest)), gradients = differentiate(state["trainable"], state["others"], batch, number)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(gradient)) for gradient in gradients))
        shrink = config.train.clip_norm / jnp.maximum(norm, config.train.clip_norm)
        settings = list(state["optimizer"])
        settings[rate_place] = rate
        weights, settings = optimizer.stateless_apply(
            settings, [gradient * shrink for gradient in gradients], state["trainable"]
        )
        # Early on the average follows closely, or it would remember the random start.
        done = jnp.asarray(number, jnp.float32)
        keep = jnp.minimum(config.train.ema, (1 + done) / (10 + done))
        values = [*weights, *rest]
        pairs = zip(floats, state["average"], strict=True)
        average = [mean + (values[k] - mean) * (1 - keep) for k, mean in pairs]
        after = {"trainable": weights, "others": rest, "optimizer": settings, "average": average}
        return after, jnp.append(figures, norm)

    return jax.jit(step, donate_argnums=0)


class JaxTrainer(Run):
    """One run under JAX, from a packed data set. It does not validate: that takes TensorFlow's NMS."""

    AHEAD = 20

    def __init__(
        self, config: Config, store: PackedSet, folder: Path, strict: bool = False, workers: int = 0
    ) -> None:
        """As `Run`; `workers` processes make crops, with 0 threads of this one do.

        Raises:
            UserError: when the folder's state belongs to another network, or the start weights do not fit.
        """
        super().__init__(config, store, folder, strict)
        self.workers = workers
        self.step_function = make_step(config, self.network, self.optimizer)
        self.restore()

    def restore(self) -> None:
        """Go on from the folder's saved state, where there is one; see `Run.restore`."""
        super().restore()
        # The step uses its state up, so it gets copies: the variables keep arrays of their own.
        self._state: State = {
            name: [jnp.array(v.value, copy=True) for v in variables]
            for name, variables in self._variables().items()
        }

    def _variables(self) -> dict[str, list[Any]]:
        """The variables that hold what the state's arrays hold, as of the last `_settle`."""
        return {
            "trainable": self.network.trainable_variables,
            "others": untrained(self.network),
            "optimizer": self.optimizer.variables,
            "average": self.average,
        }

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        data, augment, train = self.config.data, self.config.augment, self.config.train
        place = (train.batch, train.seed, self.epoch, self.epoch_step)
        return training_batches(self.store, data, augment, *place, processes=self.workers)

    def _train(self, batch: dict[str, np.ndarray], number: int, rate: float) -> jax.Array:
        fed = {name: batch[name] for name in FED}
        self._state, figures = self.step_function(self._state, fed, np.int32(number), np.float32(rate))
        return figures

    def _settle(self) -> None:
        super()._settle()
        for name, variables in self._variables().items():
            for variable, array in zip(variables, self._state[name], strict=True):
                variable.assign(jnp.array(array, copy=True))
