"""Let the original EfficientDet write checkpoints, and record their names and the network's outputs.

It runs from the repository, in an environment of its own, outside our dependencies (Python 3.11):

    pip install tensorflow==2.15.1 tensorflow-addons==0.23.0 tensorflow-model-optimization==0.8.1 \
        tensorflow-hub==0.16.1 tf-keras==2.15.1 numpy==1.26.4 h5py PyYAML pycocotools pillow matplotlib six \
        absl-py opencv-python-headless

and expects the folder `efficientdet` of https://github.com/google/automl on this machine:

    python -m benchmarks.make_checkpoint_goldens AUTOML/efficientdet OUT [CASE ...] [--keep FOLDER]

OUT gets `CASE.npz`: the variables of the checkpoint (one `name TAB dtype TAB shape` per line; in HDF5 the
name is `layer|name`) and sampled outputs for two image sizes. Every variable is filled from its name in the
checkpoint by `tests/pretrained/checkpoints/formula.py`, so a test writes the same checkpoint again. `--keep`
leaves the checkpoints and the whole outputs in a folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parity_cases import image, summary
from tests.pretrained.checkpoints.formula import fill

SIZES = ((256, 256), (203, 267))  # the second makes odd features on most levels
STEPS = 300
ANCHORS = 9  # per location

Outputs = Callable[[np.ndarray], tuple[list[Any], list[Any]]]


def value(name: str, shape: Any, model: str) -> np.ndarray:
    """What a variable of a model gets."""
    return fill(name, tuple(shape), original_config(model).fpn_weight_method == "sum")


def original_config(model: str) -> Any:
    """The published settings, for inference."""
    import hparams_config

    config = hparams_config.get_efficientdet_config(model)
    config.is_training_bn = False
    return config


def write_tf1(model: str, folder: Path, through_keras: bool) -> str:
    """Let the estimator's model function build the training graph, and save all it made."""
    import det_model_fn
    import tensorflow as tf

    tf1, size = tf.compat.v1, 128
    params = original_config(model).as_dict()
    params |= dict(image_size=size, use_keras_model=through_keras, batch_size=1, num_examples_per_epoch=100)
    params |= dict(
        iterations_per_loop=1, model_dir=str(folder), testdev_dir=None, val_json_file=None, ckpt=None
    )
    params |= dict(backbone_ckpt=None, profile=False)
    with tf.Graph().as_default(), tf1.Session() as session:
        labels = {"mean_num_positives": tf.ones([1, 1])}
        for level in range(params["min_level"], params["max_level"] + 1):
            side = -(-size // 2**level)
            labels[f"cls_targets_{level}"] = tf.zeros([1, side, side, 9], tf.int32)
            labels[f"box_targets_{level}"] = tf.zeros([1, side, side, 36])
        det_model_fn.efficientdet_model_fn(
            tf.zeros([1, size, size, 3]), labels, tf1.estimator.ModeKeys.TRAIN, params
        )
        feeds = {}
        for variable in tf1.global_variables():
            start = variable.initializer.inputs[1]
            feeds[start] = (
                STEPS if variable.op.name == "global_step" else value(variable.op.name, variable.shape, model)
            )
        session.run([variable.initializer for variable in tf1.global_variables()], feeds)
        return tf1.train.Saver().save(session, str(folder / "model.ckpt"), global_step=STEPS)


def tf1_outputs(model: str, prefix: str) -> Outputs:
    """The TF1 graph, restored as the original evaluates: with the averages in place of the weights."""
    import efficientdet_arch
    import tensorflow as tf
    import utils

    tf1, config = tf.compat.v1, original_config(model)

    def run(pixels: np.ndarray) -> tuple[list[Any], list[Any]]:
        config.image_size = pixels.shape[1:3]
        with tf.Graph().as_default(), tf1.Session() as session:
            classes, boxes = efficientdet_arch.efficientdet(tf.constant(pixels), config=config)
            average = tf1.train.ExponentialMovingAverage(decay=0.9998)
            tf1.train.Saver(average.variables_to_restore(utils.get_ema_vars())).restore(session, prefix)
            return session.run([[levels[k] for k in sorted(levels)] for levels in (classes, boxes)])

    return run


def keras_model(model: str, build_another_first: bool = False) -> Any:
    """The Keras network with all variables."""
    from tf2 import efficientdet_keras

    for _ in range(1 + build_another_first):
        network = efficientdet_keras.EfficientDetNet(config=original_config(model))
        network.build((1, 128, 128, 3))
    return network


def fill_keras(network: Any, model: str, folder: Path) -> None:
    """Fill every variable by its name in a checkpoint; the names are found by writing one of numbers."""
    import tensorflow as tf

    variables = [*network.variables, *(network.optimizer.weights if network.optimizer else [])]
    floating = [variable for variable in variables if variable.dtype == tf.float32]
    for number, variable in enumerate(floating):
        variable.assign(tf.fill(variable.shape, float(number)))
    network.save_weights(str(folder / "numbered"))
    reader = tf.train.load_checkpoint(str(folder / "numbered"))
    filled = set()
    for name, dtype in reader.get_variable_to_dtype_map().items():
        if dtype != tf.float32 or "/hyper/" in name or name.startswith("optimizer/") and "SLOT" not in name:
            continue
        number = int(reader.get_tensor(name).ravel()[0])
        floating[number].assign(value(name, floating[number].shape, model))
        filled.add(number)
    assert len(filled) >= len(network.variables)


def train_one_step(network: Any, model: str) -> None:
    """Give the network the original's optimizer, and its slots."""
    import tensorflow as tf
    from tf2 import train_lib, util_keras

    # The original and tensorflow-addons know the optimizers of TensorFlow up to 2.10 only.
    tf.keras.optimizers.SGD = tf.keras.optimizers.legacy.SGD
    params = original_config(model).as_dict()
    params |= dict(batch_size=1, steps_per_epoch=100, model_dir=None)
    params |= dict(adjusted_learning_rate=0.08, lr_warmup_init=0.008, lr_warmup_step=10, total_steps=100)
    network.compile(optimizer=train_lib.get_optimizer(params))
    # As after a start from a TF1 checkpoint: batch-norm statistics get averages too, which no step updates.
    network.optimizer.shadow_copy(list(util_keras.get_ema_vars(network).values()))
    gradients = [(tf.zeros_like(v), v) for v in network.trainable_variables]
    network.optimizer.apply_gradients(gradients)


def keras_outputs(network: Any) -> Outputs:
    """The Keras network as it is, run without training."""

    def run(pixels: np.ndarray) -> tuple[list[Any], list[Any]]:
        classes, boxes = network(pixels, training=False)
        return [c.numpy() for c in classes], [b.numpy() for b in boxes]

    return run


def write_keras(model: str, folder: Path, optimizer: bool) -> tuple[str, Outputs]:
    """A checkpoint of the Keras network; with the optimizer, its averages are what the original evaluates."""
    network = keras_model(model)
    if optimizer:
        train_one_step(network, model)
    with tempfile.TemporaryDirectory() as numbered:
        fill_keras(network, model, Path(numbered))
    prefix = str(folder / f"ckpt-{STEPS}")
    network.save_weights(prefix)
    if optimizer:
        network.optimizer.assign_average_vars(network.trainable_variables)
    return prefix, keras_outputs(network)


def write_h5(model: str, folder: Path) -> tuple[str, Outputs]:
    """An HDF5 file of the second network of a process, whose unnamed layers get numbers."""
    network = keras_model(model, build_another_first=True)
    for variable in network.variables:
        variable.assign(value(variable.name, variable.shape, model))
    network.save_weights(str(folder / f"{model}.h5"))
    return str(folder / f"{model}.h5"), keras_outputs(network)


def listing(path: str) -> str:
    """The variables of a checkpoint or HDF5 file, one per line."""
    lines = []
    if path.endswith(".h5"):
        import h5py

        with h5py.File(path) as file:
            for layer in file.attrs["layer_names"]:
                for name in file[layer].attrs["weight_names"]:
                    dataset = file[layer][name]
                    lines.append(f"{layer}|{name}\t{dataset.dtype}\t{','.join(map(str, dataset.shape))}")
        return "\n".join(lines)
    import tensorflow as tf

    reader = tf.train.load_checkpoint(path)
    types = reader.get_variable_to_dtype_map()
    for name, shape in sorted(reader.get_variable_to_shape_map().items()):
        lines.append(f"{name}\t{types[name].name}\t{','.join(map(str, shape))}")
    return "\n".join(lines)


def make_case(case: str, folder: Path) -> tuple[str, Outputs]:
    """Write one checkpoint; return its path and the original's outputs for it."""
    model = f"efficientdet-{case.split('_')[0]}"
    scheme = case.split("_", 1)[1]
    if scheme in ("tf1", "tf1_through_keras"):
        prefix = write_tf1(model, folder, scheme == "tf1_through_keras")
        return prefix, tf1_outputs(model, prefix)
    if scheme == "h5":
        return write_h5(model, folder)
    if scheme not in ("keras", "keras_optimizer"):
        raise SystemExit(f"{case}: unknown scheme {scheme}")
    return write_keras(model, folder, scheme == "keras_optimizer")


CASES = ("d0_tf1", "d0_keras_optimizer", "d0_h5", "lite0_keras", "d1_tf1", "d7x_keras")
NAMES_ONLY = ("d7x_keras",)  # so deep that weights by this formula make its outputs noise


def main() -> None:
    """Run the cases, each in a process of its own: Keras numbers layers through a whole process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("original", type=Path, help="folder efficientdet of google/automl")
    parser.add_argument("out", type=Path, help="folder of the .npz files")
    parser.add_argument(
        "cases", nargs="*", default=CASES, help="such as d0_tf1; all schemes are in make_case"
    )
    parser.add_argument("--keep", type=Path, help="folder that keeps the checkpoints")
    options = parser.parse_args()
    if len(options.cases) != 1:
        command = [sys.executable, "-m", "benchmarks.make_checkpoint_goldens", options.original, options.out]
        for case in options.cases:
            subprocess.run([*command, case, *(["--keep", options.keep] if options.keep else [])], check=True)
        return
    sys.path.insert(0, str(options.original))
    case = options.cases[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)) / case
        folder.mkdir(parents=True, exist_ok=True)
        path, run = make_case(case, folder)
        golden = {"variables": np.array(listing(path))}
        for height, width in () if case in NAMES_ONLY else SIZES:
            classes, boxes = run(image(height, width))
            for part, levels in (("class_logits", classes), ("box_deltas", boxes)):
                flat = [level.reshape(-1, level.shape[-1] // ANCHORS) for level in levels]
                kept = summary(flat)
                golden |= {f"{height}x{width}/{part}/{key}": value for key, value in kept.items()}
                spread = [float(level.std(axis=0).mean().round(2)) for level in flat]
                print(case, part, height, width, "largest", np.abs(kept["values"]).max(), "spread", spread)
                if options.keep:
                    np.save(folder / f"{height}x{width}_{part}.npy", np.concatenate(flat))
        options.out.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(options.out / f"{case}.npz", **golden)


if __name__ == "__main__":
    main()
