"""Train a network with JAX, on a machine without TensorFlow: `python -m training.jax_main`.

The data set is packed before, where TensorFlow is installed, and the trained run is evaluated there, too:

  python -m effdet_tf pack DATA/train train.npz
  python -m training.jax_main --data train.npz --minutes 60 --out runs/mine      (the machine with JAX)
  python -m training.evaluate --run runs/mine --data DATA/val

It needs keras, jax, numpy, pyyaml and tqdm. The run folder is that of `python -m training.main`, without
figures on validation images: those take TensorFlow.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from effdet_tf.commands.parser import Parser, count
from effdet_tf.errors import UserError
from effdet_tf.files import locked, usable_cores
from training.options import (
    add_options,
    chosen_settings,
    open_run,
    resolve,
    set_precision,
    training_exit_code,
    wanted_config,
)

BACKEND = "jax"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options = build_parser().parse_args(arguments)
    return training_exit_code(lambda: train(options))


def train(options: argparse.Namespace) -> None:
    """Train as the options say.

    Raises:
        UserError: for unusable data or settings, and where Keras does not run on JAX.
    """
    config = wanted_config(options)
    choose_backend()
    import jax

    from effdet_tf.data.packed import load_packed
    from training.jax_trainer import JaxTrainer

    data = load_packed(options.data)
    folder = options.out
    with locked(folder):
        config = open_run(resolve(config, data, chosen_settings(options)), folder)  # type: ignore[arg-type]
        device = jax.devices()[0]
        set_precision(config, has_accelerator=device.platform != "cpu")
        workers = crop_workers(options.workers, device.platform != "cpu")
        trainer = JaxTrainer(config, data, folder, options.strict, workers)
        trainer.announce()
        makers = f"{workers} processes" if workers else "threads"
        place = f"JAX {jax.__version__} on {device.device_kind}"
        print(f"{place}; {makers} make the crops; the first step is compiled, for minutes")
        trainer.run()
    print(
        "done; the weights of the last step are kept. Evaluate them where TensorFlow is installed: "
        f"python -m training.evaluate --run {folder} --data DATA"
    )


def choose_backend() -> None:
    """Let Keras run on JAX; to be called before Keras is imported.

    Raises:
        UserError: when JAX is not installed, or Keras was told, or has begun, to run on something else.
    """
    if importlib.util.find_spec("jax") is None:
        raise UserError(
            'training with JAX needs jax, which is not installed: pip install "effdet_tf[jax]", or train '
            "with `python -m training.main`"
        )
    if "keras" in sys.modules:  # what it runs on is settled
        import keras

        chosen = keras.backend.backend()
    else:
        chosen = os.environ.setdefault("KERAS_BACKEND", BACKEND)
    if chosen != BACKEND:
        raise UserError(f"this trains with JAX, Keras is set to {chosen}; set KERAS_BACKEND={BACKEND}")


def crop_workers(wanted: int | None, has_accelerator: bool) -> int:
    """Processes that make crops; 0 for threads of this one, which fill two cores about as well.

    Raises:
        UserError: when some are wanted where none can be forked.
    """
    from training.crop_processes import can_fork

    if wanted and not can_fork():
        raise UserError("--workers: processes can share the images on Linux alone; leave it out")
    if wanted is not None:
        return wanted
    cores = usable_cores() if has_accelerator and can_fork() else 0
    return cores - 1 if cores > 2 else 0


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m training.jax_main",
        description=__doc__,
        examples=[("an hour on a packed set", "--data train.npz --minutes 60 --out runs/mine")],
    )
    parser.add_argument("--data", type=Path, required=True, help="file that `effdet_tf pack` wrote")
    add_options(parser, default_out="runs/jax")
    parser.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="processes that make crops, 0 for threads of this one (default: beside a GPU or TPU on Linux "
        "one less than the cores, else 0)",
    )
    parser.set_defaults(out=Path("runs/jax"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
