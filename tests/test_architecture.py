from __future__ import annotations

import ast

import pytest

from tests.import_graph import PACKAGES, imports, modules, read_sources

# The arrows: a module imports from its own layer and from layers below, never from one above.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "_version",
        "errors",
        "near",
        "files",
        "lock",
        "command_line",
        "config",
        "presets",
        "run_folder",
        "metadata",
        "boxes",
        "rle",
        "masks",
        "kernels",
        "wells",
        "tensorflow_noise",
    ),
    ("anchors", "data.tif_metadata", "data.pictures", "data.image_io", "data.manifest", "data.record"),
    ("data", "model"),
    ("pretrained",),
    ("assignment", "targets", "losses", "postprocess", "metrics", "results", "measure"),
    ("tiling",),
    ("large_images",),
    ("served", "framed_predictor"),
    (
        "predict",
        "augmented_predictor",
        "evaluation",
        "saved_model_predictor",
        "tflite_predictor",
        "outputs",
        "inputs",
    ),
    ("predictors", "batch_predict"),
    ("about",),
    ("",),  # effdet_tf/__init__.py: the public names, for those who stand outside or above
    ("plates", "napari_plugin", "report", "page"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
# TensorFlow kernels of the network: imported inside a function, after asking for the backend.
TENSORFLOW_DOOR = "effdet_tf.kernels"
WITHOUT_TENSORFLOW = ("boxes", "anchors", "assignment", "targets", "losses", "model")
MAX_LINES = 400


def layer(module: str) -> int:
    """Layer of a module of effdet_tf, by the longest name that has a place."""
    parts = module.removeprefix("effdet_tf").removeprefix(".").split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for number, names in enumerate(LAYERS):
            if name in names:
                return number
    raise AssertionError(f"{module} has no place in LAYERS: give it one")


def violations(sources: dict[str, tuple[str, bool]]) -> list[str]:
    """Every import against the arrows. `sources`: module -> (text, whether it is a package's __init__)."""
    known = set(sources)
    found = []
    for module, (text, is_package) in sources.items():
        package = module.split(".")[0]
        for target in imports(text, module, is_package, known):
            other = target.split(".")[0]
            if other not in PACKAGES:
                continue
            if package == "effdet_tf" and other != "effdet_tf" or package != other and other != "effdet_tf":
                found.append(f"{module} imports {target}")
            elif package == "effdet_tf" and layer(target) > layer(module):
                found.append(f"{module} imports {target}, which is above it")
    return found


def reached(start: str, sources: dict[str, tuple[str, bool]]) -> set[str]:
    """All modules, ours and others, that importing `start` brings in."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if module == TENSORFLOW_DOOR:
            continue
        if module in sources and module.startswith("effdet_tf."):
            text, is_package = sources[module]
            waiting += imports(text, module, is_package, set(sources))
    return seen


@pytest.fixture(scope="module")
def sources() -> dict[str, tuple[str, bool]]:
    return read_sources()


def test_imports_follow_the_arrows(sources):
    assert len(sources) > 20
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("effdet_tf.boxes", "from effdet_tf.model import heads"),
        ("effdet_tf.boxes", "from . import anchors"),
        ("effdet_tf.data.record", "from effdet_tf.data.writer import write"),
        ("effdet_tf.model.heads", "from ..losses import total"),
        ("effdet_tf.losses", "def f():\n    import effdet_tf.predict"),
        ("effdet_tf.predict", "import training.trainer"),
        ("effdet_tf.masks", "from effdet_tf import load"),
        ("training.main", "from export.saved_model import write"),
        ("export.main", "import training"),
    ],
)
def test_an_import_against_the_arrows_is_found(module, text):
    made_up = {
        name: ("", False) for name in ("effdet_tf.anchors", "effdet_tf.model.heads", "effdet_tf.losses")
    }
    found = violations(made_up | {module: (text, False)})
    assert len(found) == 1
    assert found[0].startswith(f"{module} imports ")


def test_imports_with_the_arrows_pass():
    good = {
        "effdet_tf.boxes": ("import numpy", False),
        "effdet_tf.anchors": ("from effdet_tf import boxes\nfrom .boxes import area", False),
        "effdet_tf.predict": ("from effdet_tf.anchors import Anchors", False),
        "effdet_tf.data.record": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from effdet_tf.data.writer import W",
            False,
        ),
        "training.main": ("import effdet_tf\nfrom training import trainer", False),
        "export.main": ("from effdet_tf.predict import Predictor", False),
    }
    assert violations(good) == []


def test_the_network_needs_no_tensorflow(sources):
    pure = [
        name
        for name in sources
        if any(name == f"effdet_tf.{p}" or name.startswith(f"effdet_tf.{p}.") for p in WITHOUT_TENSORFLOW)
    ]
    assert len(pure) >= len(WITHOUT_TENSORFLOW)
    for name in pure:
        tree = ast.parse(sources[name][0])
        first = "\n".join(
            ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
        )
        assert TENSORFLOW_DOOR not in set(imports(first, name, sources[name][1], set(sources)))
        outside = {module.split(".")[0] for module in reached(name, sources)}
        assert "tensorflow" not in outside, f"{name} brings in TensorFlow"


def test_a_hidden_tensorflow_import_is_found():
    made_up = {
        "effdet_tf.losses": ("from effdet_tf import boxes", False),
        "effdet_tf.boxes": ("def f():\n    import tensorflow as tf", False),
    }
    assert "tensorflow" in reached("effdet_tf.losses", made_up)


def test_files_stay_short():
    long = {
        name: count for name, path in modules().items() if (count := len(path.open().readlines())) > MAX_LINES
    }
    assert long == {}
