"""What the LIVECell paper published of its test set; AP in %.

Edlund et al. 2021, Nature Methods 18, 1038. Source of the figures: model/README.md of
github.com/sartorius-research/LIVECell.
"""

from __future__ import annotations

# Box and mask AP of the anchor-free CenterMask2 and of the anchor-based Cascade Mask R-CNN (ResNeSt-200):
# "all" is one network for all types on the whole test set, a type is a network for that type alone on the
# test images of that type.
PUBLISHED: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "all": ((48.45, 47.78), (48.43, 47.89)),
    "A172": ((31.49, 34.57), (36.37, 38.02)),
    "BT474": ((42.12, 42.60), (43.25, 43.00)),
    "BV2": ((42.62, 45.69), (54.36, 52.60)),
    "Huh7": ((42.44, 45.85), (52.79, 51.83)),
    "MCF7": ((36.53, 37.30), (37.53, 37.94)),
    "SHSY5Y": ((25.20, 23.91), (27.87, 24.92)),
    "SkBr3": ((64.35, 65.85), (64.41, 65.39)),
    "SKOV3": ((46.43, 49.39), (53.29, 54.12)),
}
# Of the anchor-free network on the whole test set: box, mask.
PUBLISHED_ANCHOR_FREE: dict[str, tuple[float, float]] = {
    "AP": (48.45, 47.78),
    "AP50": (82.98, 81.63),
    "AP75": (50.44, 50.90),
    "APs": (48.32, 45.11),
    "APm": (49.45, 49.07),
    "APl": (50.74, 56.99),
    "AFNR": (43.1, 45.3),
}
