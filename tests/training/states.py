"""The saved state of a run, for comparing runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.state import STATE_FILE


def read_state(run: Path) -> dict[str, np.ndarray]:
    """Network, running average and optimizer."""
    with np.load(run / STATE_FILE) as archive:
        return {name: archive[name] for name in archive.files if name != "progress"}
