from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("effdet_tf", "training", "export", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    # A copy, so that no build folder or earlier build's leftover in the checkout gets into the wheel.
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, copy / part)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        folder,
        copy,
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"effdet_tf", "training", "export"}


def test_wheel_holds_every_module(wheel):
    shipped = {name for name in wheel.namelist() if name.endswith(".py")}
    written = {
        str(path.relative_to(ROOT))
        for package in ("effdet_tf", "training", "export")
        for path in (ROOT / package).rglob("*.py")
    }
    assert shipped == written


def test_wheel_holds_the_trained_network(wheel):
    held = {name for name in wheel.namelist() if name.startswith("effdet_tf/models/")}
    folder = ROOT / "effdet_tf" / "models"
    assert held == {str(path.relative_to(ROOT)) for path in folder.rglob("*") if path.is_file()}
    assert "effdet_tf/models/cells/best.npz" in held


def test_wheel_holds_the_files_of_the_page(wheel):
    held = {name for name in wheel.namelist() if name.startswith("effdet_tf/webapp/static/")}
    folder = ROOT / "effdet_tf" / "webapp" / "static"
    assert held == {str(path.relative_to(ROOT)) for path in folder.rglob("*") if path.is_file()}
    assert "effdet_tf/webapp/static/index.html" in held


def test_napari_finds_its_plugin(wheel):
    (points,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert (
        "[napari.manifest]\neffdet_tf = effdet_tf.napari_plugin:napari.yaml\n" in wheel.read(points).decode()
    )
    assert wheel.read("effdet_tf/napari_plugin/napari.yaml").startswith(b"name: effdet_tf\n")


def test_the_plugin_has_the_name_of_the_distribution(wheel):
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools is older than pyproject.toml asks for, and writes the name as effdet-tf")
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert "\nName: effdet_tf\n" in wheel.read(metadata).decode()  # else npe2 refuses the manifest


def test_wheel_brings_the_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert "[console_scripts]\neffdet_tf = effdet_tf.cli:main\n" in wheel.read(name).decode()


def test_wheel_holds_the_page_of_the_report(wheel):
    held = {name for name in wheel.namelist() if name.startswith("effdet_tf/report/template/")}
    folder = ROOT / "effdet_tf" / "report" / "template"
    assert held == {str(path.relative_to(ROOT)) for path in folder.iterdir()}
    assert "effdet_tf/report/template/page.html" in held


def test_wheel_says_what_it_is(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = wheel.read(name).decode()
    written = re.search(r'"(.+)"', (ROOT / "effdet_tf" / "_version.py").read_text().splitlines()[-1]).group(1)
    assert f"\nVersion: {written}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert re.search(r"\nRequires-Dist: tensorflow[<>=,.0-9]+\n", metadata)
    extras = set(re.findall(r"Provides-Extra: (\S+)", metadata))
    named = {"test", "tflite", "pretrained", "plates", "napari", "notebooks", "bioio", "jax"}
    assert extras == named | {"serve", "serving"}
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())
