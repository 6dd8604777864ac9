"""Where a training starts: from random weights, or from others' that `--init` names."""

from __future__ import annotations

from pathlib import Path

from effdet_tf.config import Config
from effdet_tf.model.network import Network
from effdet_tf.pretrained.fit import start_from, summary, write_rows
from effdet_tf.pretrained.open import open_source

TABLE_FILE = "init.csv"  # in the run folder: what became of every weight


def start_weights(network: Network, config: Config, folder: Path, strict: bool = False) -> None:
    """Load what `train.init` names, print what was loaded, and write the whole table into the run folder.

    Args:
        network: fresh; its weights are overwritten where the source fits.
        config: of the run.
        folder: the run folder.
        strict: refuse a source that does not fill the parts of the network that it covers.

    Raises:
        UserError: when the source cannot be read, or does not fit.
    """
    source = open_source(config.train.init, config.model.backbone)
    rows = start_from(network, source, strict)
    print(f"start: {source.origin}")
    for note in source.notes:
        print(f"note: {note}")
    print(summary(rows))
    write_rows(folder / TABLE_FILE, rows)
    print(f"every weight: {folder / TABLE_FILE}")
