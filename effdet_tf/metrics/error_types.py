"""What a person sees go wrong in one image: cells missed, false, merged and split."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from effdet_tf.metrics.box_metrics import ANY_AREA, IOU_STEP
from effdet_tf.metrics.instances import ImageCase
from effdet_tf.metrics.matching import ImageMatch
from effdet_tf.metrics.precision import assign_detections, box_cells, box_detections

FATES = ("right", "missed", "false", "merged", "split")


class Overlaps(NamedTuple):
    """True and found cells of one image, and what they share.

    Attributes:
        true_areas: `[G]`, px^2.
        found_areas: `[P]`, px^2.
        pair_true: int `[K]`, the true cell of each pair that overlaps.
        pair_found: int `[K]`, its found cell.
        shared: `[K]`, px^2.
        partners: int `[P]`, the true cell that each found one matches at IoU .5; -1 for none.
    """

    true_areas: np.ndarray
    found_areas: np.ndarray
    pair_true: np.ndarray
    pair_found: np.ndarray
    shared: np.ndarray
    partners: np.ndarray


def mask_overlaps(match: ImageMatch) -> Overlaps:
    """Of masks; the cells are numbered as in `match`."""
    return Overlaps(
        match.true_areas,
        match.found_areas,
        match.pair_true,
        match.pair_found,
        match.pair_overlap,
        match.partners(),
    )


def box_overlaps(case: ImageCase) -> tuple[Overlaps, np.ndarray, np.ndarray]:
    """Of boxes, crowd regions and what lies on them left out.

    Returns:
        The overlaps, and boxes float64 `[G, 4]` and `[P, 4]`, x, y, w, h, px, in their order.
    """
    given = assign_detections(box_cells(case.cells), box_detections(case.found), [ANY_AREA], len(case.found))
    judged = ~given.ignored[0, IOU_STEP]
    numbers = [place for place, cell in enumerate(case.cells) if not cell.crowd]
    place_of = np.full(len(case.cells) + 1, -1)  # one more: none is the last, and stays none
    place_of[numbers] = np.arange(len(numbers))
    true = np.array([case.cells[number].box for number in numbers], np.float64).reshape(-1, 4)
    found = np.array([case.found[k].box for k in given.order[judged]], np.float64).reshape(-1, 4)
    low = np.maximum(true[:, None, :2], found[None, :, :2])
    high = np.minimum((true[:, :2] + true[:, 2:])[:, None], (found[:, :2] + found[:, 2:])[None])
    shared = np.maximum(high - low, 0).prod(-1)
    pair_true, pair_found = np.nonzero(shared)
    return (
        Overlaps(
            true[:, 2:].prod(1),
            found[:, 2:].prod(1),
            pair_true,
            pair_found,
            shared[pair_true, pair_found],
            place_of[given.cells[0, IOU_STEP][judged]],
        ),
        true,
        found,
    )


def fates(overlaps: Overlaps) -> tuple[list[str], list[str]]:
    """Name what became of each cell.

    A found cell is `right` when it matches a true one at IoU .5; else `merged` when it covers two true cells
    or more, each by more than half; else `split` when it lies by more than half in a true cell in which
    another found cell lies so too; else `false`. A true cell is `right` when it is matched, else `missed`.

    Returns:
        One of `FATES` of each true and of each found cell.
    """
    partners, pair_true, pair_found = overlaps.partners, overlaps.pair_true, overlaps.pair_found
    covers = 2 * overlaps.shared > overlaps.true_areas[pair_true]
    inside = 2 * overlaps.shared > overlaps.found_areas[pair_found]
    covered = np.bincount(pair_found[covers], minlength=len(partners))
    held = np.bincount(pair_true[inside], minlength=len(overlaps.true_areas))
    shares = np.zeros(len(partners), bool)
    shares[pair_found[inside & (held[pair_true] > 1)]] = True
    found = np.select([partners >= 0, covered > 1, shares], ["right", "merged", "split"], "false")
    true = np.full(len(overlaps.true_areas), "missed")
    true[partners[partners >= 0]] = "right"
    return true.tolist(), found.tolist()
