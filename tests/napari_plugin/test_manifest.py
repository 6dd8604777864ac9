"""The manifest, what it names, and what else knows of the plugin: nothing."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from effdet_tf.errors import UserError
from effdet_tf.napari_plugin.contributions import phase_contrast, write_cells

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "effdet_tf" / "napari_plugin" / "napari.yaml"


@pytest.fixture(scope="module")
def manifest():
    npe2 = pytest.importorskip("npe2", reason="napari is not installed")
    return npe2.PluginManifest.from_file(MANIFEST)


def test_the_manifest_is_valid(manifest):
    from npe2.cli import app
    from typer.testing import CliRunner

    assert manifest.name == "effdet_tf"
    done = CliRunner().invoke(app, ["validate", str(MANIFEST)])
    assert done.exit_code == 0, done.output


def test_every_command_exists_and_is_used(manifest, request):
    contributions = manifest.contributions
    used = [c.command for c in (*contributions.widgets, *contributions.sample_data, *contributions.writers)]
    assert sorted(used) == sorted(command.id for command in contributions.commands)
    for command in contributions.commands:
        module, name = command.python_name.split(":")
        if module.endswith("widget"):
            request.getfixturevalue("qt")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_sample_is_an_image_of_cells():
    ((image, attributes, kind),) = phase_contrast()
    assert kind == "image" and attributes["name"] == "synthetic"
    assert image.dtype == np.uint8 and image.ndim == 2 and image.std() > 5
    assert (phase_contrast()[0][0] == image).all()


def test_a_table_of_cells_is_written(tmp_path):
    table = pd.DataFrame({"index": [1, 2], "score": [0.5, 0.25]})
    path = str(tmp_path / "cells.csv")
    assert write_cells(path, None, {"features": table}) == [path]
    pd.testing.assert_frame_equal(pd.read_csv(path), table)


def test_labels_without_table_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="^painted: this layer has no table of cells; run Find cells first$"):
        write_cells(str(tmp_path / "cells.csv"), None, {"name": "painted"})


@pytest.mark.parametrize("module", ["effdet_tf", "effdet_tf.cli", "effdet_tf.prediction.network_process"])
def test_napari_is_imported_by_nothing_else(module):
    code = f"""import sys, {module}
if "{module}".endswith("cli"):
    effdet_tf.cli.build_parser()
print(sorted({{name.split(".")[0] for name in sys.modules}} & {{"napari", "qtpy", "PyQt6", "tensorflow"}}))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
