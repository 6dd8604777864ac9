"""The plugin in a real viewer with its canvas, in a process of its own under a virtual screen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("xvfb-run") is None, reason="a canvas needs a screen: apt-get install xvfb")
def test_the_plugin_in_a_real_viewer(tmp_path, qt):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "QT_QPA_PLATFORM": "offscreen",  # Qt's own plugin for X needs libraries that the canvas does not
        "NAPARI_CONFIG": str(tmp_path / "settings.yaml"),
    }
    probe = Path(__file__).with_name("viewer_probe.py")
    command = ["xvfb-run", "-a", sys.executable, "-X", "faulthandler", str(probe), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["layers"] == ["synthetic", "synthetic cells", "synthetic outlines"]
    assert seen["cells"] > 50 and seen["text"].startswith(f"{seen['cells']} cells; ")
    assert seen["rows"] == seen["cells"]  # of the table that the plugin's writer saved
    assert seen["dock"] == "Find cells (effdet_tf)"
