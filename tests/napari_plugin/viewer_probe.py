"""Do in a real viewer what a person would do, and write down what there is to see.

A network in the same process as the canvas would crash it where Mesa renders: that is what this is for.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import napari
import pandas as pd
from npe2 import PluginManager, PluginManifest
from qtpy.QtWidgets import QApplication


def main(out: Path) -> None:
    manager = PluginManager.instance()
    manager.discover()
    if "effdet_tf" not in {manifest.name for manifest in manager.iter_manifests()}:  # it is not installed
        folder = Path(__file__).resolve().parents[2] / "effdet_tf" / "napari_plugin"
        manager.register(PluginManifest.from_file(folder / "napari.yaml"))
    viewer = napari.Viewer(show=False)
    dock, widget = viewer.window.add_plugin_dock_widget("effdet_tf", "Find cells")
    viewer.open_sample("effdet_tf", "phase_contrast")
    widget.run()
    wait(widget)
    widget.form.shapes.setCurrentText("outlines")
    wait(widget)
    viewer.screenshot(canvas_only=False, flash=False)
    viewer.layers["synthetic cells"].save(str(out / "cells.csv"), plugin="effdet_tf")
    seen = {
        "layers": [layer.name for layer in viewer.layers],
        "cells": int(viewer.layers["synthetic cells"].data.max()),
        "text": widget.form.text.text(),
        "rows": len(pd.read_csv(out / "cells.csv")),
        "dock": dock.name,
    }
    viewer.close()
    (out / "seen.json").write_text(json.dumps(seen))


def wait(widget: object) -> None:
    end = time.monotonic() + 120
    QApplication.processEvents()
    while widget.busy:
        assert time.monotonic() < end
        QApplication.processEvents()
        time.sleep(0.005)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
