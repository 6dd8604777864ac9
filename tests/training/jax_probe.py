"""What the tests run in an environment with JAX; figures go into .npz files that the tests compare.

`python jax_probe.py VERB ...`; imports nothing that is not needed to train there.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"

import shutil
import signal
import sys
from pathlib import Path

import jax
import keras
import numpy as np

from effdet_tf.config import load_config
from effdet_tf.data.packed import load_packed
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import assign_arrays, named_variables, read_arrays
from training.assignment import Predictions, assign
from training.jax_trainer import JaxTrainer, make_loss, make_step, untrained
from training.optimizer import make_optimizer


def outputs(config: str, weights: str, images: str, out: str) -> None:
    """Write the raw outputs of a network for the images in a file."""
    network = build_network(load_config(config))
    assign_arrays(network, read_arrays(weights), weights)
    found = network.dense(np.load(images), training=False)
    np.savez(out, **{name: np.asarray(value) for name, value in found.items()})


def learn(config: str, weights: str, batch: str, out: str) -> None:
    """Write figures and gradients for a batch, and everything that two steps on it lead to."""
    settings = load_config(config)
    network = build_network(settings)
    assign_arrays(network, read_arrays(weights), weights)
    fed = read_arrays(batch)
    names = [variable.path for variable in network.trainable_variables]
    others = untrained(network)
    state = {
        "trainable": [v.value for v in network.trainable_variables],
        "others": [v.value for v in others],
        "average": [v.value + 0 for v in named_variables(network).values()],
    }
    differentiate = jax.jit(jax.value_and_grad(make_loss(settings, network), has_aux=True))
    (_, (figures, _)), gradients = differentiate(state["trainable"], state["others"], fed, np.int32(0))
    result = {"figures": figures}
    result |= {f"gradient/{name}": value for name, value in zip(names, gradients, strict=True)}
    optimizer = make_optimizer(settings)
    optimizer.build(network.trainable_variables)
    state["optimizer"] = [v.value for v in optimizer.variables]
    step = make_step(settings, network, optimizer)
    for number in range(2):
        state, figures = step(state, fed, np.int32(number), np.float32(0.1 / (1 + number)))
    result["last"] = figures
    after = [*state["trainable"], *state["others"]]
    for variable, value in zip([*network.trainable_variables, *others], after, strict=True):
        result[f"after/{variable.path}"] = value
    for name, value in zip(named_variables(network), state["average"], strict=True):
        result[f"average/{name}"] = value
    np.savez(out, **{name: np.asarray(value) for name, value in result.items()})


def assigned(config: str, arrays: str, out: str) -> None:
    """Write the assignment of made-up cells by made-up predictions, in an image of 96 x 96 px."""
    settings, given = load_config(config), read_arrays(arrays)
    seen = Predictions(given["boxes"], given["scores"], given["classes"])
    levels = (settings.model.min_level, settings.model.max_level)
    found = assign(
        given["cells"],
        given["classes"] >= 0,
        (96, 96),
        settings.anchors,
        settings.assign,
        *levels,
        predictions=seen,
    )
    np.savez(out, **{name: np.asarray(value) for name, value in found._asdict().items()})


def stop(config: str, data: str, folder: str) -> None:
    """Train in one go into `folder/whole`, and with a Ctrl-C during a step into `folder/stopped`."""
    settings, packed = load_config(config), load_packed(data)
    trainer = JaxTrainer(settings, packed, Path(folder, "whole"))
    Path(folder, "stopped").mkdir(parents=True)
    trainer.save()
    shutil.copy(Path(folder, "whole", "state.npz"), Path(folder, "stopped"))
    trainer.run()
    trainer.folder = Path(folder, "stopped")
    trainer.restore()
    step, calls = trainer.step_function, iter(range(10**6))

    def interrupted(*arguments: object) -> object:
        result = step(*arguments)
        for variable in (*trainer.network.variables, *trainer.average):
            np.asarray(variable.value)  # the step has used up its state, not what the variables hold
        if next(calls) == 5:  # the second of the third epoch: steps are under way, figures unread
            os.kill(os.getpid(), signal.SIGINT)
        return result

    trainer.step_function = interrupted
    try:
        trainer.run()
    except KeyboardInterrupt:
        print("stopped at", trainer.step)
    trainer.step_function = step
    for variable in [*trainer.network.variables, *trainer.average, *trainer.optimizer.variables]:
        variable.assign(keras.ops.zeros_like(variable.value))  # nothing may survive in memory
    trainer.restore()
    trainer.run()


if __name__ == "__main__":
    {"outputs": outputs, "learn": learn, "assigned": assigned, "stop": stop}[sys.argv[1]](*sys.argv[2:])
