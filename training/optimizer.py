"""The optimizer that the configuration asks for."""

from __future__ import annotations

import keras

from effdet_tf.config import Config


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
