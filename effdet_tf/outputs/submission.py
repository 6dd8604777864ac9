"""Rows of a submission to the Sartorius competition."""

from __future__ import annotations

import numpy as np

from effdet_tf.errors import UserError


def submission_rows(image: str, labels: np.ndarray | None) -> list[tuple[str, str]]:
    """Rows of a Sartorius submission; no pixel is in two of them.

    Args:
        image: id of the image (its file name without suffix).
        labels: integers `[H, W]`, 0 is background; None of a network without mask head.

    Returns:
        `(image, "start length start length ...")` per cell, row-major and 1-based; one row with an empty
        run-length encoding when there is no cell.

    Raises:
        UserError: when there are no labels.
    """
    if labels is None:
        raise UserError("this model has no mask head, so it makes no submission; leave --sartorius out")
    flat = labels.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], edges])  # a run may go on in the next row of pixels, as the format allows
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    values = flat[starts]
    starts, lengths, values = starts[values > 0] + 1, lengths[values > 0], values[values > 0]
    order = np.argsort(values, kind="stable")
    starts, lengths, values = starts[order], lengths[order], values[order]
    pairs = np.stack([starts, lengths], 1)
    groups = np.split(pairs, np.flatnonzero(np.diff(values)) + 1) if len(values) else []
    return [(image, " ".join(map(str, group.ravel().tolist()))) for group in groups] or [(image, "")]
