"""Reads every kind of weights that `--init` and `weights import` take."""

from __future__ import annotations

from pathlib import Path

from effdet_tf.errors import UserError
from effdet_tf.files.untrusted import read_json
from effdet_tf.model.weights import read_arrays
from effdet_tf.pretrained.automl_names import from_automl
from effdet_tf.pretrained.effdet_names import from_effdet
from effdet_tf.pretrained.imagenet import from_keras_applications, from_lite, imagenet
from effdet_tf.pretrained.source import Pretrained
from effdet_tf.pretrained.tensorflow_checkpoint import read_variables
from effdet_tf.pretrained.torch_file import read_state_dict
from effdet_tf.runs import CONFIG_FILE, PARTIAL_FILE, find_run, weights_file

IMAGENET = "imagenet"
IMPORT_FILE = "import.json"
SOURCES = (
    "`imagenet` (or `imagenet:BACKBONE`), `cells` (the network that comes with the package), a run folder, "
    "what `weights import` wrote, an EfficientDet TensorFlow checkpoint (folder, .tar.gz, .h5), or a PyTorch "
    "state dict (.pth, .pt, .bin)"
)


def open_source(text: str, backbone: str = "", advprop: bool | None = None) -> Pretrained:
    """Read weights of any known kind.

    Args:
        text: `imagenet`, `imagenet:BACKBONE`, the name of a network of the package, or a file or folder.
        backbone: which one plain `imagenet` means.
        advprop: whether an EfficientDet checkpoint was trained with AdvProp; None reads it off its path.

    Raises:
        UserError: when it does not exist, is damaged, or holds no network that we know.
    """
    if text == IMAGENET or text.startswith(f"{IMAGENET}:"):
        name = text.partition(":")[2] or backbone
        if not name:
            raise UserError("`imagenet` does not say which backbone; write, say, imagenet:efficientnet-b0")
        return imagenet(name)
    path = find_run(text)
    if path.is_dir() and (run := _run_weights(path)) is not None:
        return run
    if path.suffix.lower() == ".npz":
        return Pretrained(read_arrays(path), f"weights {path}", "run")
    if path.suffix.lower() in (".pth", ".pt", ".bin"):
        state = read_state_dict(path)
        if any(name.endswith("_conv_stem.weight") for name in state):
            return from_lite(state, str(path))
        return from_effdet(state, str(path), advprop)
    if not path.exists() and not path.with_name(path.name + ".index").exists():
        raise UserError(f"{text}: no such file or folder; weights may be {SOURCES}")
    variables = read_variables(path)
    if any(name.startswith("block1a_dwconv/") for name in variables):
        return from_keras_applications(variables, str(path))
    return from_automl(variables, str(path), advprop)


def _run_weights(folder: Path) -> Pretrained | None:
    """Read a folder of ours; None when it is none."""
    about = folder / IMPORT_FILE
    if (folder / PARTIAL_FILE).exists():
        try:
            known = read_json(about)
            mean, std = (tuple(map(float, known[name])) for name in ("mean", "std"))
            return Pretrained(read_arrays(folder / PARTIAL_FILE), str(known["origin"]), "backbone", mean, std)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{about}: not what `weights import` wrote ({error}); import again") from None
    # The original EfficientDet, too, keeps a config.yaml beside its checkpoints.
    if not (folder / CONFIG_FILE).exists() or any(folder.glob("*.index")):
        return None
    weights = weights_file(folder)
    return Pretrained(read_arrays(weights), f"run {folder} ({weights.name})", "run")
