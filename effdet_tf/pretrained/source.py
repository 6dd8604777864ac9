"""What every reader of foreign weights returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from effdet_tf.presets import IMAGENET_MEAN as IMAGENET_MEAN
from effdet_tf.presets import IMAGENET_STD as IMAGENET_STD
from effdet_tf.presets import LITE_MEAN as LITE_MEAN
from effdet_tf.presets import LITE_STD as LITE_STD

Pixels = tuple[float, ...]

UNIT_RANGE: Pixels = (127.5,)  # mean and deviation that take 0..255 to -1..1: AdvProp


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights under our names.

    Attributes:
        arrays: float32, by the variable path that `effdet_tf.model.weights.named_variables` uses, in
            Keras's layout: `[kh, kw, in, out]`, depthwise `[kh, kw, in, 1]`.
        origin: one line for people: format, names, and what was preferred (averages, for example).
        kind: whether the arrays are a whole detector, a backbone alone, or a run of our own.
        mean: subtracted from pixels 0..255 before the network, one value or one per channel; empty when
            unknown.
        std: what the difference is divided by, likewise.
        unused: tensor of the source -> why no variable of ours takes it (an ImageNet classifier, an
            optimizer's slots).
        notes: further lines for people.
    """

    arrays: dict[str, np.ndarray]
    origin: str
    kind: Literal["detector", "backbone", "run"]
    mean: Pixels = ()
    std: Pixels = ()
    unused: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
