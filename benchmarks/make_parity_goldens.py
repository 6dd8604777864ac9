"""Make the golden files of the parity tests with PyTorch's `effdet`.

Run `python -m benchmarks.make_parity_goldens` in the repository's root, in an environment of its own; nothing
of it is a dependency of this project:

    pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
    pip install effdet==0.4.1 timm==1.0.31 keras pyyaml

Keras is there for our table of names alone, and runs on PyTorch (KERAS_BACKEND=torch is set here). The files
of 2026-11-23 are from torch 2.13.0 on a CPU. `--state-dict FILE` writes a checkpoint of tf_efficientdet_d0
with the same weights in place of golden files. It also lists the names and shapes of the published
tf_efficientdet_d0 for the tests of the import.

effdet needs no change for an input that is no multiple of 128: its documentation asks for one, but the model
takes any `image_size` and sizes its levels by halving and rounding up.
"""

from __future__ import annotations

import argparse
import os

os.environ["KERAS_BACKEND"] = "torch"

import effdet
import numpy as np
import torch
from effdet.anchors import Anchors, decode_box_outputs, get_feat_sizes
from effdet.object_detection import BoxList, FasterRcnnBoxCoder

from benchmarks import parity_cases as cases
from effdet_tf.presets import preset
from effdet_tf.pretrained.effdet_names import rows

LISTING = cases.GOLDEN.parent.parent / "pretrained" / "tf_efficientdet_d0.txt"


def main() -> None:
    """Write every golden file, or one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state-dict", metavar="FILE", help="write this checkpoint instead")
    parser.add_argument("--only", choices=[*cases.SIZES, "boxes", "names"], help="write only these files")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    if args.state_dict:
        torch.save(reference("d0", (256, 256)).state_dict(), args.state_dict)
        return
    cases.GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, size in cases.CASES:
        if args.only in (None, name):
            write_outputs(name, size)
    if args.only in (None, "boxes"):
        write_boxes()
    if args.only in (None, "names"):
        state = effdet.create_model("tf_efficientdet_d0", pretrained_backbone=False).state_dict()
        lines = [f"{key} {'x'.join(map(str, value.shape))}".rstrip() for key, value in state.items()]
        LISTING.write_text("\n".join(lines) + "\n")


def write_outputs(name: str, size: tuple[int, int]) -> None:
    """Class and box outputs of one model for one input."""
    image = torch.from_numpy(cases.image(*size)).permute(0, 3, 1, 2).contiguous()
    found = dict(zip(cases.OUTPUTS, reference(name, size)(image), strict=True))
    kept = {}
    for output, levels in found.items():
        width = cases.OUTPUTS[output]
        flat = [level.permute(0, 2, 3, 1).reshape(-1, width).numpy() for level in levels]
        kept |= {f"{output}/{part}": value for part, value in cases.summary(flat).items()}
        print(name, size, output, "std by level:", kept[f"{output}/std"].round(2))
    np.savez_compressed(cases.golden_file(name, size), **kept)


def reference(name: str, size: tuple[int, int]) -> torch.nn.Module:
    """A model of effdet for one input, with the weights of the formula."""
    model = effdet.create_model(
        f"tf_efficientdet_{name}", num_classes=cases.CLASSES, pretrained_backbone=False, image_size=size
    ).eval()
    state = model.state_dict()
    filled = set()
    for row in rows(preset(name)):
        target = state[row.theirs]
        if row.element is not None:
            target[row.element] = float(cases.fill(name, row.ours, ()))
        else:
            array = cases.fill(name, row.ours, our_shape(target, row.ours))
            target.copy_(torch.from_numpy(to_torch(array, row.ours)))
        filled.add(row.theirs)
    rest = [key for key in state if key not in filled and not key.endswith("num_batches_tracked")]
    assert not rest, f"the table of names lacks {rest[:3]}"
    return model


def depthwise(ours: str) -> bool:
    """Whether a variable of ours is a depthwise kernel."""
    return ours.endswith(("depthwise_kernel", "_dw_conv/kernel"))


def our_shape(tensor: torch.Tensor, ours: str) -> tuple[int, ...]:
    """Shape of `ours` for a tensor of PyTorch."""
    if tensor.ndim != 4:
        return tuple(tensor.shape)
    out, into, rows_, columns = tensor.shape
    return (rows_, columns, out, 1) if depthwise(ours) else (rows_, columns, into, out)


def to_torch(array: np.ndarray, ours: str) -> np.ndarray:
    """Keras's layout to PyTorch's."""
    if array.ndim != 4:
        return array
    return np.ascontiguousarray(array.transpose((2, 3, 0, 1) if depthwise(ours) else (3, 2, 0, 1)))


def write_boxes() -> None:
    """Anchors, decoded and encoded boxes."""
    kept = {}
    for name, sizes in cases.ANCHORS.items():
        config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
        for size in sizes:
            levels = (config.min_level, config.max_level, config.num_scales)
            boxes = Anchors(*levels, cases.RATIOS, config.anchor_scale, size).boxes
            key = f"anchors/{name}_{size[0]}x{size[1]}"
            kept[f"{key}/count"] = np.array(len(boxes))
            kept[f"{key}/mean"] = boxes.double().mean(0).numpy()
            whole = name in cases.ALL_ANCHORS
            chosen = slice(None) if whole else cases.sample(len(boxes), cases.ANCHOR_SAMPLES)
            kept[key] = boxes.numpy()[chosen]
            rows_, columns = get_feat_sizes(size, config.max_level)[-1]
            kept[f"{key}/coarsest"] = boxes.numpy()[-9 * rows_ * columns :]
    anchors = torch.from_numpy(kept["anchors/d7_1536x1536"])
    decoded = decode_box_outputs(torch.from_numpy(cases.deltas(len(anchors))), anchors)
    kept["decoded"] = decoded.numpy()
    kept["encoded"] = FasterRcnnBoxCoder().encode(BoxList(decoded), BoxList(anchors)).numpy()
    np.savez_compressed(cases.GOLDEN / "boxes.npz", **kept)


if __name__ == "__main__":
    main()
