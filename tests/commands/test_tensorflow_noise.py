"""Commands that load TensorFlow write their own lines to stderr and no others."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from effdet_tf.commands.parser import exit_code
def work():
    import tensorflow
    assert tensorflow.loaded_devices
    print("after", file=sys.stderr)
sys.exit(exit_code(work))
"""
# Stands in for TensorFlow: writes to the file descriptor, as its C++ parts do.
NOISY = """
import os
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
os.write(2, b"I0000 00:00:1.0 1 port.cc:153] oneDNN custom operations are on.\\n")
os.write(2, b"E0000 00:00:1.0 1 cuda_platform.cc:52] failed call to cuInit: INTERNAL\\n")
os.write(2, b"E0000 00:00:1.0 1 other.cc:1] something is wrong\\n")
loaded_devices = False
class config:
    @staticmethod
    def list_physical_devices():
        global loaded_devices
        loaded_devices = True
        os.write(2, b"I0000 00:00:2.0 1 again.cc:1] noise\\n")
"""


def test_noise_goes_and_errors_stay(tmp_path):
    (tmp_path / "tensorflow.py").write_text(NOISY)
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0
    lines = [
        line for line in done.stderr.splitlines() if "cuInit" not in line
    ]  # it stays where there is a GPU
    assert lines == ["E0000 00:00:1.0 1 other.cc:1] something is wrong", "after"]


def test_what_was_written_before_a_failure_is_shown(tmp_path):
    (tmp_path / "tensorflow.py").write_text(NOISY + "raise ImportError('no such library')")
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "something is wrong" in done.stderr and "no such library" in done.stderr


def test_a_command_that_loads_tensorflow_is_quiet():
    done = subprocess.run(
        [sys.executable, "-m", "effdet_tf", "info", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0 and '"tensorflow"' in done.stdout
    assert [line for line in done.stderr.splitlines() if "0000 " in line or "absl" in line] == []


@pytest.mark.parametrize("module", ["effdet_tf", "training.main", "training.evaluate", "export.main"])
def test_commands_load_tensorflow_only_when_they_work(module):
    """Before that nothing holds its lines back, and `--help` would wait for it."""
    code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
