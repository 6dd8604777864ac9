"""Weights, their running averages and the optimizer's moments as a few long vectors under TensorFlow.

An update of some 300 variables, one after the other, is thousands of small operators, each of which a GPU has
to be told of; of a vector it is a dozen.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from effdet_tf.model.network import Network
from effdet_tf.model.weights import named_variables
from training.optimizer import is_spared


class Vectors:
    """The state that a step moves. The network's weights follow every step, all else when it `settle`s."""

    def __init__(self, network: Network, average: list[Any], optimizer: keras.optimizers.Optimizer) -> None:
        """Take over the state of variables.

        Args:
            network: its trainable variables are moved.
            average: running averages of the network's float variables, in their order.
            optimizer: built for the network; tells the rule, and keeps the moments.
        """
        weights = network.trainable_variables
        spared = [k for k, variable in enumerate(weights) if is_spared(variable)]
        learned = [k for k in range(len(weights)) if k not in set(spared)]
        self.floats = list(named_variables(network).values())
        self._order = [group for group in (learned, spared) if group]
        self.groups = [[weights[k] for k in group] for group in self._order]
        self.weights = [_vector(group) for group in self.groups]
        self.average = _vector(average)
        self.optimizer = type(optimizer).from_config(optimizer.get_config())
        self.optimizer.exclude_from_weight_decay(var_list=self.weights[-1:] if spared else [])
        self.optimizer.build(self.weights)
        kept = optimizer.variables
        slots = len(kept) // len(weights)  # moments of each weight
        shared = len(kept) - len(weights) * slots  # steps done, learning rate
        self._pairs = [([a], b) for a, b in zip(kept[:shared], self.optimizer.variables, strict=False)]
        for place, group in enumerate(self._order):
            for slot in range(slots):
                moments = [kept[shared + k * slots + slot] for k in group]
                self._pairs.append((moments, self.optimizer.variables[shared + place * slots + slot]))
        self._pairs.append((average, self.average))
        self.take()

    def take(self) -> None:
        """Fill the vectors from the variables, which were assigned to."""
        for variables, vector in [*self._pairs, *zip(self.groups, self.weights, strict=True)]:
            vector.assign(np.reshape(_joined(variables), vector.shape))

    def settle(self) -> None:
        """Bring averages and moments back into their variables."""
        for variables, vector in self._pairs:
            parts = np.split(np.ravel(vector), np.cumsum([np.prod(v.shape, dtype=int) for v in variables]))
            for variable, part in zip(variables, parts, strict=False):
                variable.assign(np.reshape(part, variable.shape))

    def gradients(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Gradients of the trainable variables, in their order, as vectors like `weights`."""
        return [tf.concat([tf.reshape(gradients[k], [-1]) for k in group], 0) for group in self._order]

    def spread(self, strategy: tf.distribute.Strategy) -> None:
        """Give the network's variables their part of the vectors, on every replica."""
        for group, vector in zip(self.groups, self.weights, strict=True):
            parts = strategy.run(lambda: _split(vector.value, [tuple(v.shape) for v in group]))  # noqa: B023
            for variable, part in zip(group, parts, strict=True):
                strategy.extended.update(variable.value, lambda v, new: v.assign(new), (part,))

    def follow(self, strategy: tf.distribute.Strategy, ema: float, number: tf.Tensor) -> None:
        """Move the running averages towards the network's variables after step `number`, int32."""
        done = tf.cast(number, tf.float32)
        # Early on the average follows closely, or it would remember the random start.
        keep = tf.minimum(ema, (1 + done) / (10 + done))
        now = strategy.run(lambda: tf.concat([tf.reshape(v.value, [-1]) for v in self.floats], 0))
        strategy.extended.update(
            self.average.value, lambda mean, v, k: mean.assign_add((v - mean) * (1 - k)), (now, keep)
        )


def _vector(variables: list[Any]) -> keras.Variable:
    return keras.Variable(_joined(variables), trainable=True)


def _joined(variables: list[Any]) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(v)) for v in variables])


def _split(vector: tf.Tensor, shapes: list[tuple[int, ...]]) -> list[tf.Tensor]:
    parts = tf.split(vector, [int(np.prod(shape, dtype=int)) for shape in shapes])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
