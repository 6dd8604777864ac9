"""Predict, convert and TFLite files work where Windows and macOS lack what Linux has."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from effdet_tf.data.synthetic.phase_contrast import render_image
from tests.import_graph import read_sources

# What CPython has on POSIX alone, or on Linux alone.
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
NAMES = {
    "os": {
        *("sched_getaffinity", "sysconf", "sysconf_names", "fork", "getuid", "geteuid", "getpgid", "killpg"),
        *("uname", "statvfs", "chown", "mkfifo", "getloadavg", "nice", "O_DIRECTORY"),
    },
    "signal": {"pthread_sigmask", "SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "alarm", "sigwait"},
}
ASKED_BY_OTHERS = {"uname", "O_DIRECTORY"}  # numpy and shutil do, having looked at the system's name
SCRIPT = f"""
import os, signal, sys
for name in {sorted(MODULES - {"posix"})}:
    sys.modules[name] = None
for module, names in ((os, {sorted(NAMES["os"] - ASKED_BY_OTHERS)}), (signal, {sorted(NAMES["signal"])})):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
if __name__ == "__main__":
    from effdet_tf.cli import main
    sys.exit(main(sys.argv[1:]))
"""


def guarded(tree: ast.AST) -> set[int]:
    """Nodes that run only where `hasattr(os, NAME)`, `getattr(os, NAME, ...)` or the system's name allows."""
    tested = ("hasattr(os,", "getattr(os,", "hasattr(signal,", "os.name", "sys.platform")
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):  # an early return guards what follows
            tests = [ast.unparse(n.test) for n in ast.walk(node) if isinstance(n, ast.If)]
            if any(word in test for test in tests for word in tested):
                inner.update(map(id, ast.walk(node)))
        if isinstance(node, (ast.If, ast.IfExp)) and any(w in ast.unparse(node.test) for w in tested):
            inner.update(map(id, ast.walk(node)))
        if isinstance(node, ast.BoolOp) and any(w in ast.unparse(node.values[0]) for w in tested):
            inner.update(map(id, ast.walk(node)))
    return inner


def posix_only(text: str) -> list[str]:
    """What a source imports or calls that other systems lack, without asking first."""
    tree = ast.parse(text)
    free = guarded(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and id(node) not in free:
            if node.attr in NAMES.get(node.value.id, ()):
                found.append(f"{node.value.id}.{node.attr}")
    return found


def test_nothing_of_one_system_alone_is_used_unasked():
    found = {name: posix_only(text) for name, (text, _) in read_sources().items()}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize("text", ["import fcntl", "import os\nn = len(os.sched_getaffinity(0))"])
def test_what_is_used_unasked_is_found(text):
    assert posix_only(text)


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("portable") / "run.py"
    path.write_text(SCRIPT)
    return path


def run(script: Path, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_predict_convert_and_tflite_without_posix(script, tmp_path):
    pytest.importorskip("ai_edge_litert")
    image, cells = render_image(5, 128, 128, 16, "Round")
    tifffile.imwrite(tmp_path / "a.tif", image)
    out = tmp_path / "found"
    assert "1 images" in run(script, "predict", tmp_path / "a.tif", "--out", out)
    labels = tifffile.imread(out / "a.labels.tif")
    assert labels.max() > 5

    for part, pixels in (("images", image), ("masks", labels.astype(np.uint16))):
        for name in ("x.tif", "y.tif"):
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(tmp_path / "set" / part / name, pixels)
    told = run(script, "convert", "labelmaps", tmp_path / "set", tmp_path / "data", "--workers", 2, "--quiet")
    assert f"2 images, {2 * labels.max()} cells" in told

    before = Path(__file__).parent / "before" / "exports" / "float32.tflite"
    assert "1 images" in run(script, "predict", tmp_path / "a.tif", "--run", before, "--out", tmp_path / "t")
