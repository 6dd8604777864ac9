"""Writes weights that others trained as a folder of ours: a run, or a backbone to start from."""

from __future__ import annotations

from collections.abc import Iterable
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
from effdet_tf.pretrained.open import IMPORT_FILE
from effdet_tf.pretrained.source import Pretrained, list_faults, refuse
from effdet_tf.runs import CONFIG_FILE, LAST_FILE, PARTIAL_FILE

# COCO's category names by id, 1..90; ten ids were never used.
_NAMES = """
1 person,2 bicycle,3 car,4 motorcycle,5 airplane,6 bus,7 train,8 truck,9 boat,10 traffic light,
11 fire hydrant,13 stop sign,14 parking meter,15 bench,16 bird,17 cat,18 dog,19 horse,20 sheep,
21 cow,22 elephant,23 bear,24 zebra,25 giraffe,27 backpack,28 umbrella,31 handbag,32 tie,
33 suitcase,34 frisbee,35 skis,36 snowboard,37 sports ball,38 kite,39 baseball bat,
40 baseball glove,41 skateboard,42 surfboard,43 tennis racket,44 bottle,46 wine glass,47 cup,
48 fork,49 knife,50 spoon,51 bowl,52 banana,53 apple,54 sandwich,55 orange,56 broccoli,57 carrot,
58 hot dog,59 pizza,60 donut,61 cake,62 chair,63 couch,64 potted plant,65 bed,67 dining table,
70 toilet,72 tv,73 laptop,74 mouse,75 remote,76 keyboard,77 cell phone,78 microwave,79 oven,
80 toaster,81 sink,82 refrigerator,84 book,85 clock,86 vase,87 scissors,88 teddy bear,89 hair drier,
90 toothbrush
"""
_COCO_NAMES = {
    int(number): name
    for number, _, name in (entry.strip().partition(" ") for entry in _NAMES.replace("\n", "").split(","))
}


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
    names = _COCO_NAMES if classes == 90 else {}
    mean, std = (value[0] if len(value) == 1 else value for value in (source.mean, source.std))
    return base.replace(
        class_names=tuple(names.get(k, f"class {k}") for k in range(1, classes + 1)),
        category_ids=tuple(range(1, classes + 1)),
        model__mask__enabled=False,
        data__channels=3,
        data__normalization="fixed",
        data__mean=mean,
        data__std=std,
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
        if not Path(where).is_dir():
            raise UserError(
                f"{where}: weights alone do not say which network they are of; name the run folder"
            )
        config = load_config(Path(where) / CONFIG_FILE)
        shapes = {path: tuple(v.shape) for path, v in named_variables(build_network(config)).items()}
        refuse(list_faults(source.arrays, shapes), f"{where}: {source.origin} is not whole")
    else:  # its reader has held every tensor to the preset's list; building the network takes seconds
        config = detector_config(source, where, name)
    _save(out / LAST_FILE, source, source.arrays)
    config.save(out / CONFIG_FILE)
    fixed = f"mean {config.data.mean} and deviation {config.data.std}"
    scaling = fixed if config.data.normalization == "fixed" else "each image's own mean and deviation"
    return [
        f"{config.preset}, {len(config.class_names)} classes, {len(source.arrays)} tensors; pixels are "
        f"normalised by {scaling}",
        f"written: {out}; predict with `python -m effdet_tf predict --run {out} IMAGES --out FOUND`, or "
        f"train with --init {out}",
    ]


def _convert_backbone(source: Pretrained, where: str, out: Path) -> list[str]:
    name = recognise_backbone(source.arrays, where)
    image = keras.Input((None, None, source.arrays["stem_conv/kernel"].shape[2]))
    features = build_backbone(image, name, (3, 4, 5))
    model = keras.Model(image, features[5])
    shapes = {v.path: tuple(v.shape) for v in model.variables if "float" in str(v.dtype)}
    refuse(list_faults(source.arrays, shapes), f"{where}: {source.origin} is not whole")
    _save(out / PARTIAL_FILE, source, shapes)
    return [
        f"{name}, {len(shapes)} tensors; trained on pixels normalised by mean {list(source.mean)} and "
        f"deviation {list(source.std)}",
        f"written: {out}; train with --init {out}",
    ]


def _save(file: Path, source: Pretrained, names: Iterable[str]) -> None:
    """Write the arrays, and beside them what else is known of the source."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(file, {name: source.arrays[name] for name in names})
    about = {name: getattr(source, name) for name in ("origin", "kind", "mean", "std", "notes", "unused")}
    write_json(file.with_name(IMPORT_FILE), about)
