"""What the plugin opens and saves: a synthetic sample, and the table of a layer's cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from effdet_tf import outputs
from effdet_tf.data.synthetic.phase_contrast import render_image
from effdet_tf.errors import UserError

_SEED, _SIZE, _CELLS, _TYPE = 7, (520, 704), 180, "Round"


def phase_contrast() -> list[tuple[np.ndarray, dict[str, Any], str]]:
    """One synthetic phase-contrast image, the same each time, as napari takes its samples."""
    image, _ = render_image(_SEED, *_SIZE, _CELLS, _TYPE)
    return [(image, {"name": "synthetic"}, "image")]


def write_cells(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save the features of a labels layer as CSV, one row per cell.

    Args:
        path: of the CSV.
        data: the labels, which are not written.
        meta: attributes of the layer; `features` are written.

    Returns:
        The path.

    Raises:
        UserError: when the layer has no features.
    """
    table = pd.DataFrame(meta.get("features", {}))
    if table.columns.empty:
        raise UserError(f"{meta.get('name', path)}: this layer has no table of cells; run Find cells first")
    outputs.write_table(path, table)
    return [path]
