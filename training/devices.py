"""The devices that share a training step: one, several in this machine, or several machines."""

from __future__ import annotations

import os
import sys

import tensorflow as tf

from effdet_tf.config import TrainConfig
from effdet_tf.errors import UserError
from effdet_tf.files.untrusted import parse_json

CLUSTER = "TF_CONFIG"  # where TensorFlow looks for the workers of a cluster and this process's place


def cluster_task() -> tuple[int, int] | None:
    """This process's number and the number of workers, by `TF_CONFIG`; None outside a cluster.

    Raises:
        UserError: when `TF_CONFIG` does not say that.
    """
    text = os.environ.get(CLUSTER)
    if not text:
        return None
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        value = parse_json(text)
        workers = list(value["cluster"]["worker"])
        kind, index = value["task"]["type"], int(value["task"]["index"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{CLUSTER} is not like {example}") from None
    if kind != "worker" or set(value["cluster"]) != {"worker"} or not 0 <= index < len(workers):
        raise UserError(f"{CLUSTER}: every process is one of `worker`, with its own index; like {example}")
    return index, len(workers)


def make_strategy(devices: str) -> tf.distribute.Strategy:
    """The strategy for `--devices`.

    Args:
        devices: "all" or a number. Without a GPU a number splits the CPU into as many logical devices, which
            is of use only to see that devices do not change the result.

    Returns:
        TensorFlow's default strategy for one device; a MirroredStrategy for several; with `TF_CONFIG` a
        MultiWorkerMirroredStrategy. Weights must be made in its scope.

    Raises:
        UserError: for more devices than there are, or a `TF_CONFIG` that cannot be read.
    """
    gpus = tf.config.list_physical_devices("GPU")
    wanted = max(len(gpus), 1) if devices == "all" else int(devices)
    if gpus and wanted > len(gpus):
        raise UserError(f"--devices {wanted}: this machine has {len(gpus)} GPU{'s' * (len(gpus) > 1)}")
    if cluster_task() is not None:
        if gpus:
            tf.config.set_visible_devices(gpus[:wanted], "GPU")
        elif wanted > 1:
            raise UserError(f"--devices {wanted}: a worker without a GPU trains on its one CPU")
        return tf.distribute.MultiWorkerMirroredStrategy()
    if 0 < wanted < len(gpus):
        tf.config.set_visible_devices(gpus[:wanted], "GPU")  # TensorFlow takes the memory of all that it sees
    if wanted == 1:
        return tf.distribute.get_strategy()
    if gpus:
        return tf.distribute.MirroredStrategy([f"GPU:{k}" for k in range(wanted)])
    print(
        f"warning: --devices {wanted}: TensorFlow sees no GPU here; the CPU is split into {wanted}, which is "
        "no faster",
        file=sys.stderr,
    )
    return tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(_split_cpu(wanted))])


def _split_cpu(parts: int) -> int:
    """Make logical CPU devices; returns their number."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or []) != parts:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * parts)
        except RuntimeError:
            reason = "TensorFlow is at work already; start a new process"
            raise UserError(f"--devices {parts}: {reason}") from None
    return parts


def uses_xla(train: TrainConfig, strategy: tf.distribute.Strategy) -> bool:
    """Whether the step is compiled by XLA, as `train.xla` says: "auto" means on one GPU.

    Raises:
        UserError: where it is wanted for several devices, whose sums XLA would not take part in.
    """
    alone = strategy.num_replicas_in_sync == 1
    if train.xla == "on" and not alone:
        raise UserError("train.xla=on: the step of one device alone can be compiled; give --devices 1")
    return alone and (
        train.xla == "on" or (train.xla == "auto" and bool(tf.config.get_visible_devices("GPU")))
    )


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Replicas of this process.

    Raises:
        UserError: when the processes of a cluster do not have as many each.
    """
    task = cluster_task()
    own = len(strategy.extended.worker_devices) if task else strategy.num_replicas_in_sync
    if task and own * task[1] != strategy.num_replicas_in_sync:
        raise UserError(
            f"this worker has {own} devices of {strategy.num_replicas_in_sync}: all {task[1]} workers need "
            "as many; give --devices N"
        )
    return own


def check_batch(batch: int, strategy: tf.distribute.Strategy) -> None:
    """Refuse a batch that cannot be shared evenly: batch normalisation and losses count every image once.

    Raises:
        UserError: naming the batches next to it.
    """
    count = strategy.num_replicas_in_sync
    if batch % count:
        low = batch // count * count
        near = f"{low} or {low + count}" if low else f"{count}"
        raise UserError(f"train.batch {batch} cannot be shared by {count} devices; take {near}")


def own_part(batch: dict[str, tf.Tensor], replicas: int) -> dict[str, tf.Tensor]:
    """The images of a process's batch that are this replica's; call it in the replica's context.

    Cut on the host, so that a device is sent its own part alone.

    Args:
        batch: name -> `[B, ...]`, on the host; B is a multiple of `replicas`.
        replicas: of this process.
    """
    if replicas == 1:
        return batch
    context = tf.distribute.get_replica_context()
    with tf.device("CPU:0"):
        number = context.replica_id_in_sync_group % replicas
        share = tf.shape(batch["image"])[0] // replicas
        return {name: value[number * share : (number + 1) * share] for name, value in batch.items()}


def total(values: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums over all replicas; call it in a replica's context. Gradients pass through."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)
