"""A step on vectors, and one that XLA compiles, lead where plain Keras leads."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.config import Config
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.model.network import Network, build_network
from effdet_tf.model.weights import named_variables
from training.devices import uses_xla
from training.optimizer import make_optimizer
from training.options import resolve
from training.trainer import Trainer, few_places
from training.vectors import Vectors


def copies(network: Network) -> list[keras.Variable]:
    return [keras.Variable(np.array(v), trainable=False) for v in named_variables(network).values()]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_vectors_move_as_single_variables_do(kind: str, tiny_config: Config) -> None:
    settings = [f"train.optimizer={kind}", "train.weight_decay=0.1", "train.learning_rate=0.01"]
    config = tiny_config.override([*settings, "model.fusion=fast"])
    keras.utils.set_random_seed(1)
    network = build_network(config)
    start = [np.array(v) for v in network.trainable_variables]
    rng, rounds = np.random.default_rng(0), 3
    gradients = [[rng.normal(size=v.shape).astype(np.float32) for v in start] for _ in range(rounds)]
    plain = make_optimizer(config)
    plain.build(network.trainable_variables)
    for own in gradients:
        plain.apply([tf.constant(g) for g in own], network.trainable_variables)
    expected = [np.array(v) for v in [*network.trainable_variables, *plain.variables]]

    for variable, value in zip(network.trainable_variables, start, strict=True):
        variable.assign(value)
    optimizer = make_optimizer(config)
    optimizer.build(network.trainable_variables)
    state, strategy = Vectors(network, copies(network), optimizer), tf.distribute.get_strategy()
    for number, own in enumerate(gradients):
        if number == 2:  # a run that was saved goes on from its variables
            state.settle()
            state = Vectors(network, copies(network), optimizer)
        state.optimizer.apply(state.gradients([tf.constant(g) for g in own]), state.weights)
        state.spread(strategy)
    state.settle()
    found = [np.array(v) for v in [*network.trainable_variables, *optimizer.variables]]
    assert len(found) == len(expected) > 50
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_averages_follow_weights_and_statistics(tiny_config: Config) -> None:
    network = build_network(tiny_config)
    optimizer = make_optimizer(tiny_config)
    optimizer.build(network.trainable_variables)
    average = copies(network)
    before = [np.array(v) for v in average]
    state = Vectors(network, average, optimizer)
    floats = list(named_variables(network).values())
    for variable in floats:
        variable.assign(tf.ones_like(variable) * 3)
    state.follow(tf.distribute.get_strategy(), 0.75, tf.constant(1000))
    assert all(np.array_equal(a, b) for a, b in zip(map(np.array, average), before, strict=True))
    state.settle()
    for old, new in zip(before, average, strict=True):
        np.testing.assert_allclose(new, old + (3 - old) * 0.25, rtol=1e-6)
    assert any("moving_mean" in v.path for v in floats)


@pytest.mark.parametrize("fullest", [0, 128, 129, 600])
def test_cells_of_a_compiled_step_have_one_of_a_few_numbers_of_places(fullest: int) -> None:
    room = 700
    classes = np.full((2, room), -1, np.int32)
    classes[1, :fullest] = 0
    batch = {
        "classes": tf.constant(classes),
        "boxes": tf.zeros((2, room, 4)),
        "image": tf.zeros((2, 8, 8, 1)),
    }
    found = few_places(batch)
    places = {0: 128, 128: 128, 129: 512, 600: room}[fullest]
    assert found["classes"].shape == (2, places) and found["boxes"].shape == (2, places, 4)
    assert found["image"].shape == (2, 8, 8, 1)
    assert int(tf.reduce_sum(tf.cast(found["classes"] >= 0, tf.int32))) == fullest


@pytest.mark.parametrize("kind", ["tiny_config", "tiny_points"])
def test_a_step_compiled_by_xla_leads_where_the_graph_leads(
    kind: str, request: pytest.FixtureRequest, train_data: Path, tmp_path: Path
) -> None:
    store = RecordStore(train_data)
    settings = ["train.batch=4", "train.optimizer=sgd", "train.ema=0.8"]
    config = resolve(request.getfixturevalue(kind).override(settings), store)
    found = {}
    for xla in ("off", "on"):
        trainer = Trainer(config.override([f"train.xla={xla}"]), store, tmp_path / xla, None)
        start = [np.array(v) for v in trainer.average]
        assert trainer.xla == (xla == "on")
        batches = trainer._batches()
        figures = [np.array(trainer._train(next(batches), k, 1e-3)) for k in range(2)]
        trainer.vectors.settle()
        found[xla] = (np.array(figures), [np.array(v) for v in trainer.average])
    np.testing.assert_allclose(found["on"][0], found["off"][0], rtol=2e-3)
    gap, moved = (
        np.sqrt(sum(float(np.sum((a - b) ** 2)) for a, b in zip(one, other, strict=True)))
        for one, other in ((found["on"][1], found["off"][1]), (start, found["off"][1]))
    )
    assert 0 < moved and gap < 5e-3 * moved


def test_xla_compiles_the_step_of_one_device_alone(tiny_config: Config) -> None:
    class Two:
        num_replicas_in_sync = 2

    train = tiny_config.train
    assert not uses_xla(train, tf.distribute.get_strategy())  # no GPU here
    assert not uses_xla(train, Two())
    wanted = tiny_config.override(["train.xla=on"]).train
    assert uses_xla(wanted, tf.distribute.get_strategy())
    with pytest.raises(UserError, match="give --devices 1"):
        uses_xla(wanted, Two())


def test_the_graph_of_a_step_has_few_operators(tiny_points: Config, train_data: Path, tmp_path: Path) -> None:
    store = RecordStore(train_data)
    trainer = Trainer(resolve(tiny_points.override(["train.batch=4"]), store), store, tmp_path, None)
    graph = trainer.step_function.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    updates = [node for node in nodes if node.op.startswith("Assign")]
    # Each variable once, and a few for vectors and counters; moments and averages have none of their own.
    assert len(trainer.network.variables) < len(updates) < len(trainer.network.variables) + 30
