"""What the parity test and the script that makes its golden files agree on; numpy alone.

Weights and images follow from a formula, so the golden files hold outputs only. Everything is drawn from
`RandomState`, whose stream numpy promises never to change.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "parity" / "golden"

# Of each preset: two inputs (height, width). The second is no multiple of 128: its features are odd at
# several levels, where "same" padding, pooling and upsampling differ between implementations.
SIZES = {
    "d0": ((256, 256), (200, 264)),
    "d1": ((256, 256), (203, 267)),
    "d6": ((256, 256), (203, 267)),
    "d7x": ((256, 256), (200, 264)),
    "lite0": ((256, 256), (200, 264)),
    "lite3": ((256, 256), (203, 267)),
}
CASES = tuple((preset, size) for preset, sizes in SIZES.items() for size in sizes)
CLASSES = 3
OUTPUTS = {"class_logits": CLASSES, "box_deltas": 4}  # values per anchor
SAMPLES = 200  # values kept per output and level

# Presets and inputs whose anchors are kept.
ANCHORS = {
    "d0": ((512, 512), (200, 264)),
    "d7": ((1536, 1536), (520, 704)),
    "d7x": ((1536, 1536), (520, 704)),
    "lite0": ((320, 320), (203, 267)),
    "lite3": ((512, 512), (203, 267)),
}
ALL_ANCHORS = ("d0",)  # of the others a sample, and all of the coarsest level
ANCHOR_SAMPLES = 400
RATIOS = (1.0, 2.0, 0.5)

NEGATIVE = "fpn1_bu5_fuse/weight_1"  # below 0, so that a missing relu shows
WEIGHTED = ("d0", "d1")  # presets with fusion "fast", a mean; the others add up


def fill(preset: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of one variable.

    Args:
        preset: one of `SIZES`.
        name: our path of the variable, such as `stem_conv/kernel`.
        shape: ours, so a depthwise kernel is `[h, w, in, 1]`.

    Returns:
        float32, the same wherever it is computed.
    """
    random = np.random.RandomState(zlib.crc32(name.encode()))
    layer, part = name.rsplit("/", 1)
    if part == "moving_variance":
        value = random.uniform(0.5, 1.5, shape)
    elif part == "gamma":
        value = random.uniform(0.8, 1.2, shape)
    elif part in ("beta", "bias", "moving_mean"):
        value = random.uniform(-0.2, 0.2, shape)
    elif part.startswith("weight_"):
        value = -0.7 if name == NEGATIVE else random.uniform(0.3, 1.3)
    else:
        depthwise = part == "depthwise_kernel" or layer.endswith("_dw_conv")
        inputs = np.prod(shape[:2] if depthwise else shape[:3])
        value = random.standard_normal(shape) * np.sqrt(_gain(preset, layer, part, shape) / inputs)
    return np.asarray(value, np.float32)


def _gain(preset: str, layer: str, part: str, shape: tuple[int, ...]) -> float:
    """Variance that a kernel gives to what it makes of inputs of variance 1.

    Chosen so that outputs are of the order of 1 through the whole depth of D7x: an activation takes some two
    thirds of the variance, a squeeze-and-excitation three quarters, and a residual branch adds little.
    """
    lite = preset.startswith("lite")
    activated = 2.0 if lite else 2.8
    if layer.endswith("_dw_conv"):
        return activated
    if layer.endswith("_project_conv"):
        residual = shape[2] in (shape[3], 6 * shape[3])
        return activated * (0.15 if residual else 1.0 if lite else 1.3)
    if part != "pointwise_kernel":
        return 1.0
    if layer.startswith("fpn"):
        return activated * (1.7 if preset in WEIGHTED else 0.25)
    return 0.5 if layer.endswith("_predict") else 0.8 * activated


def image(height: int, width: int) -> np.ndarray:
    """A normalised image `[1, H, W, 3]` float32: coarse patches, so that high levels vary, and noise."""
    random = np.random.RandomState(height * 10_000 + width)
    patches = random.standard_normal((-(-height // 32), -(-width // 32), 3))
    coarse = patches.repeat(32, axis=0).repeat(32, axis=1)[:height, :width]
    return (coarse + 0.5 * random.standard_normal((height, width, 3))).astype(np.float32)[None]


def sample(count: int, kept: int) -> np.ndarray:
    """Positions of a flattened array of `count` values that a golden file keeps; all of a short one."""
    if count <= kept:
        return np.arange(count)
    return np.random.RandomState(count).choice(count, kept, replace=False)


def summary(levels: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What a golden file keeps of one output.

    Args:
        levels: `[A_l, K]` of each level, finest first; anchors in the order of `model.anchors.grid`.

    Returns:
        `values`: the samples of all levels one after the other, float32; `mean`, `std` `[L]` float64 and
        `count` `[L]`: of every value of a level.
    """
    flat = [level.reshape(-1) for level in levels]
    return {
        "values": np.concatenate([level[sample(len(level), SAMPLES)] for level in flat]),
        "mean": np.array([level.mean(dtype=np.float64) for level in flat]),
        "std": np.array([level.std(dtype=np.float64) for level in flat]),
        "count": np.array([len(level) for level in flat]),
    }


def deltas(count: int) -> np.ndarray:
    """Box codes `[count, 4]` float32: dy, dx in anchor sides, log height, log width."""
    return (np.random.RandomState(7).standard_normal((count, 4)) * (0.5, 0.5, 1.0, 1.0)).astype(np.float32)


def golden_file(preset: str, size: tuple[int, int]) -> Path:
    """Where the outputs of one case lie."""
    return GOLDEN / f"{preset}_{size[0]}x{size[1]}.npz"
