"""Compare our network with the golden files of PyTorch's `effdet`.

`python -m benchmarks.parity [preset ...]`, in the repository's root, prints the table of parity.md: the
largest absolute difference of any output, over the values that the golden files keep and over the mean and
the standard deviation of every level.
"""

from __future__ import annotations

import argparse

import numpy as np
from keras import ops

from benchmarks import parity_cases as cases
from effdet_tf.config import Config
from effdet_tf.model.anchors import feature_sizes
from effdet_tf.model.network import Network, build_network
from effdet_tf.model.weights import assign_arrays, named_variables
from effdet_tf.presets import preset

TOLERANCE = 1e-4  # absolute, float32


def main() -> None:
    """Print one row for each preset and input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", help=f"default: {' '.join(cases.SIZES)}")
    args = parser.parse_args()
    print("| model | input | levels | class logits | box deltas |\n|---|---|---|---|---|")
    for name in args.presets or cases.SIZES:
        network = filled_network(name)
        for size in cases.SIZES[name]:
            found = {output: max(worst) for output, worst in differences(network, name, size).items()}
            levels = len(feature_sizes(*size, 3, preset(name).model.max_level))
            shown = " | ".join(f"{found[output]:.1e}" for output in cases.OUTPUTS)
            print(f"| {name} | {size[0]} x {size[1]} | P3-P{2 + levels} | {shown} |", flush=True)


def plain_config(name: str) -> Config:
    """A reference preset as a plain detector of three classes on colour images."""
    config = preset(name).replace(model__mask__enabled=False, data__channels=3)
    ids = tuple(range(1, cases.CLASSES + 1))
    return config.replace(category_ids=ids, class_names=tuple(f"class {k}" for k in ids))


def filled_network(name: str) -> Network:
    """Our network with the weights of the formula."""
    network = build_network(plain_config(name))
    named = named_variables(network)
    assign_arrays(network, {path: cases.fill(name, path, tuple(v.shape)) for path, v in named.items()}, name)
    return network


def differences(network: Network, name: str, size: tuple[int, int]) -> dict[str, list[float]]:
    """Largest absolute difference from the golden file, by output and level."""
    found = network.dense(cases.image(*size), training=False)
    return {
        output: against_golden(ops.convert_to_numpy(found[output][0]), output, name, size)
        for output in cases.OUTPUTS
    }


def against_golden(values: np.ndarray, output: str, name: str, size: tuple[int, int]) -> list[float]:
    """Largest absolute difference of one output from its golden values, by level.

    Args:
        values: `[A, K]`.
        output: its name.
        name: of the preset.
        size: height, width of the input.
    """
    config = preset(name)
    cells = [r * c for r, c in feature_sizes(*size, config.model.min_level, config.model.max_level)]
    anchors = np.array(cells) * config.anchors.per_location
    ours = cases.summary(np.split(values, anchors.cumsum()[:-1]))
    with np.load(cases.golden_file(name, size), allow_pickle=False) as archive:
        golden = {part: archive[f"{output}/{part}"] for part in ours}
    if not np.array_equal(ours["count"], golden["count"]):
        raise ValueError(f"{name} {size}: {ours['count']} values by level, expected {golden['count']}")
    kept = np.minimum(golden["count"], cases.SAMPLES).cumsum()[:-1]
    by_value = [np.abs(d).max() for d in np.split(ours["values"] - golden["values"], kept)]
    statistics = [np.abs(ours[part] - golden[part]) for part in ("mean", "std")]
    return [float(max(row)) for row in zip(by_value, *statistics, strict=True)]


if __name__ == "__main__":
    main()
