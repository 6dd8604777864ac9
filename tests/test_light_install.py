"""A TFLite file predicts where little else is installed: the packages that docs/exports.md lists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Name of the package to import, where it is not that of the distribution.
IMPORTED = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
# Top-level packages that our own code imports anywhere, and may not import then.
CODE = """
import sys
allowed = set(sys.argv[1].split(","))
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in HEAVY and top not in allowed:
            raise ModuleNotFoundError(f"{name} is not in the list of docs/exports.md", name=name)
HEAVY = {"tensorflow", "keras", "h5py", "ijson", "jinja2", "matplotlib", "starlette", "uvicorn", "requests",
         "grpc", "tensorboard", "google", "scipy", "skimage", "napari", "apache_beam", "pyarrow", "roifile",
         "shtab"}
sys.meta_path.insert(0, Only())
from effdet_tf.cli import main
import effdet_tf.outputs.batch, effdet_tf.prediction.tflite, effdet_tf.prediction.augmented
main(["--help"])
"""


def test_the_listed_packages_are_enough() -> None:
    text = (ROOT / "docs" / "exports.md").read_text()
    (listed,) = re.findall(r"^pip install (ai-edge-litert (?:[^\n]*\\\n)*[^\n]*)$", text, re.MULTILINE)
    names = ",".join(
        IMPORTED.get(name, name.replace("-", "_")) for name in listed.replace("\\\n", " ").split()
    )
    done = subprocess.run([sys.executable, "-c", CODE, names], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "predict" in done.stdout, done.stderr[-500:]
