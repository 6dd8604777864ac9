"""Make a folder of ours out of foreign weights: a run to predict with or start from, or a backbone."""

from __future__ import annotations

import re
from pathlib import Path

import keras

from effdet_tf.config import Config, load_config
from effdet_tf.errors import UserError
from effdet_tf.files import write_json
from effdet_tf.model.backbone import build_backbone
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import named_variables, save_arrays
from effdet_tf.presets import preset
from effdet_tf.pretrained.architecture import recognise_backbone, recognise_detector
from effdet_tf.pretrained.coco_names import class_names
from effdet_tf.pretrained.fit import to_json
from effdet_tf.pretrained.open import ABOUT_FILE
from effdet_tf.pretrained.source import Pretrained
from effdet_tf.runs import CONFIG_FILE, LAST_FILE, PARTIAL_FILE


def detector_config(source: Pretrained, where: str, name: str = "") -> Config:
    """The configuration that a published detector predicts with.

    Args:
        source: its weights.
        where: path of the source, for messages; a "d7" in it tells D7 from D6.
        name: of the preset, in place of the one read off the weights.

    Raises:
        UserError: when the weights make no published EfficientDet, or another than `name`.
    """
    found = recognise_detector(source.arrays, where, name or where)
    if name and name != found:
        raise UserError(f"{where}: holds a {found}, not a {name}; leave out --preset")
    base = preset(found)
    bias = source.arrays.get("class_predict/bias")
    if bias is None or len(bias) % base.anchors.per_location:
        raise UserError(f"{where}: tensor class_predict/bias is missing or does not fit {found}'s anchors")
    classes = len(bias) // base.anchors.per_location
    for head, outputs in (("class", len(bias)), ("box", 4 * base.anchors.per_location)):
        for tensor in (f"{head}_predict/pointwise_kernel", f"{head}_predict/bias"):
            if (shape := source.arrays[tensor].shape)[-1] != outputs:
                raise UserError(
                    f"{where}: tensor {tensor} has shape {shape}, its last side must be {outputs}"
                )
    return base.replace(
        class_names=class_names(classes),
        category_ids=tuple(range(1, classes + 1)),
        model__mask__enabled=False,
        data__channels=3,
        data__normalization="fixed",
        data__mean=source.mean[0] if len(source.mean) == 1 else source.mean,
        data__std=source.std[0] if len(source.std) == 1 else source.std,
    )


def convert(source: Pretrained, where: str, out: Path, name: str = "") -> list[str]:
    """Write a folder that `--init` and, where it holds a whole network, `predict --run` take.

    Args:
        source: the weights.
        where: what the user named.
        out: a new or empty folder.
        name: of the preset, see `detector_config`.

    Returns:
        Lines for people.

    Raises:
        UserError: for a folder in use, weights of an unknown network, or a tensor that is missing or has
            another shape than its network's; nothing is written then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; choose another OUT")
    if source.kind == "backbone":
        return _convert_backbone(source, where, out)
    if source.kind == "run":
        config = _run_config(Path(where))
        shapes = {path: tuple(v.shape) for path, v in named_variables(build_network(config)).items()}
        check_complete(source, shapes, where)
    else:  # its reader has held every tensor to the preset's list; building the network takes seconds
        config = detector_config(source, where, name)
    out.mkdir(parents=True, exist_ok=True)
    save_arrays(out / LAST_FILE, source.arrays)
    config.save(out / CONFIG_FILE)
    write_json(out / ABOUT_FILE, to_json(source))
    fixed = f"mean {config.data.mean} and deviation {config.data.std}"
    scaling = fixed if config.data.normalization == "fixed" else "each image's own mean and deviation"
    return [
        f"{config.preset}, {len(config.class_names)} classes, {len(source.arrays)} tensors; pixels are "
        f"normalised by {scaling}",
        f"written: {out}; predict with `python -m effdet_tf predict --run {out} IMAGES --out FOUND`, or "
        f"train with --init {out}",
    ]


def _run_config(folder: Path) -> Config:
    if not folder.is_dir():
        raise UserError(f"{folder}: weights alone do not say which network they are of; name the run folder")
    return load_config(folder / CONFIG_FILE)


def _convert_backbone(source: Pretrained, where: str, out: Path) -> list[str]:
    name = recognise_backbone(source.arrays, where)
    image = keras.Input((None, None, source.arrays["stem_conv/kernel"].shape[2]))
    features = build_backbone(image, name, (3, 4, 5))
    model = keras.Model(image, features[5])
    shapes = {v.path: tuple(v.shape) for v in model.variables if "float" in str(v.dtype)}
    check_complete(source, shapes, where)
    out.mkdir(parents=True, exist_ok=True)
    save_arrays(out / PARTIAL_FILE, {path: source.arrays[path] for path in shapes})
    write_json(out / ABOUT_FILE, to_json(source))
    return [
        f"{name}, {len(shapes)} tensors; trained on pixels normalised by mean {list(source.mean)} and "
        f"deviation {list(source.std)}",
        f"written: {out}; train with --init {out}",
    ]


def check_complete(source: Pretrained, shapes: dict[str, tuple[int, ...]], where: str) -> None:
    """Refuse weights that do not fill a network exactly.

    Raises:
        UserError: naming the first missing, wrongly shaped or superfluous tensors.
    """
    faults = [f"{name} is missing" for name in shapes if name not in source.arrays]
    faults += [
        f"{name} has shape {source.arrays[name].shape}, not {shape}"
        for name, shape in shapes.items()
        if name in source.arrays and source.arrays[name].shape != shape
    ]
    faults += [f"{name} has no place in it" for name in source.arrays if name not in shapes]
    if faults:
        network = re.sub(r"\s+", " ", source.origin)
        raise UserError(f"{where}: {network} is not whole: {'; '.join(faults[:3])} ({len(faults)} in all)")
