from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.import_graph import PACKAGES, Sources, imports, modules, read_sources

# From the lowest to the highest: a module imports from its own folder and from the lines above its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_version", "errors"),
    ("files",),
    ("geometry", "settings"),
    ("config", "runs"),
    ("presets", "images"),
    ("model",),
    ("pretrained", "data"),
    ("prediction",),
    ("metrics",),
    ("outputs",),
    ("api",),
    ("",),  # effdet_tf/__init__.py: the public names, for those who stand outside or above
    ("report", "plates", "webapp", "napari_plugin"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
# TensorFlow kernels of the network: imported inside a function, after asking for the backend.
TENSORFLOW_DOOR = "effdet_tf.model.kernels"
WITHOUT_TENSORFLOW = ("effdet_tf.geometry", "effdet_tf.model")
WITHOUT_TENSORFLOW += ("training.assignment", "training.mask_targets", "training.losses")
MAX_LINES_OF_A_FILE, MAX_LINES_OF_A_FUNCTION, MAX_MODULES_OF_THE_ROOT = 400, 60, 10
# Names that may occur again: formats, in the folders that read and that write them.
FORMATS = {"coco", "geojson", "yolo", "imagej", "labelmaps", "livecell", "sartorius", "saved_model", "tflite"}


def layer(module: str) -> int:
    """Layer of a module of effdet_tf."""
    name = (module.split(".") + [""])[1]
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"{module} has no place in LAYERS: give it one")


def violations(sources: Sources) -> list[str]:
    """Every import against the arrows."""
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
            elif package == "effdet_tf" and module.split(".")[:2] != target.split(".")[:2]:
                if layer(target) >= layer(module):
                    found.append(f"{module} imports {target}, which is not below it")
    return found


def circle(sources: Sources) -> list[str]:
    """Modules that import each other in a circle, wherever the statements stand; empty if none do."""
    known = set(sources)
    graph = {
        # A package's __init__ stands for what it gathers from its own modules.
        module: {t for t in imports(text, module, is_package, known) if t in known and t != module}
        for module, (text, is_package) in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def names_twice(sources: Sources) -> dict[str, list[str]]:
    """Module names that occur in several places."""
    places = defaultdict(list)
    for module, (_, is_package) in sources.items():
        *folder, name = module.split(".")
        if is_package or name in ("__main__", "main") or folder[-1:] == ["commands"] or name in FORMATS:
            continue
        places[name].append(module)
    return {name: found for name, found in places.items() if len(found) > 1}


def classes_twice(sources: Sources) -> dict[str, list[str]]:
    """Public classes whose name occurs in several modules."""
    places = defaultdict(list)
    for module, (text, _) in sources.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    return {name: found for name, found in places.items() if len(found) > 1}


def long_functions(sources: Sources) -> list[str]:
    """Functions with more lines than a reader wants to hold in mind."""
    return [
        f"{module}.{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for module, (text, _) in sources.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > MAX_LINES_OF_A_FUNCTION
    ]


def reached(start: str, sources: Sources) -> set[str]:
    """All modules, ours and others, that importing `start` brings in."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if module != TENSORFLOW_DOOR and module in sources:
            text, is_package = sources[module]
            waiting += imports(text, module, is_package, set(sources))
    return seen


@pytest.fixture(scope="module")
def sources() -> Sources:
    return read_sources()


def test_imports_follow_the_arrows(sources):
    assert len(sources) > 20
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("effdet_tf.geometry.boxes", "from effdet_tf.model import heads"),
        ("effdet_tf.geometry.boxes", "from .. import cli"),
        ("effdet_tf.images.read", "from effdet_tf.data.record import decode"),
        ("effdet_tf.model.heads", "from training.losses import total"),
        ("effdet_tf.model.heads", "def f():\n    import effdet_tf.prediction.run"),
        ("effdet_tf.data.record", "from effdet_tf.pretrained import open"),
        ("effdet_tf.prediction.run", "import training.trainer"),
        ("effdet_tf.report.write", "from effdet_tf.webapp import app"),
        ("effdet_tf.geometry.masks", "from effdet_tf import load"),
        ("training.main", "from export.saved_model import write"),
        ("export.main", "import training"),
    ],
)
def test_an_import_against_the_arrows_is_found(module, text):
    made_up = {name: ("", False) for name in ("effdet_tf.cli", "effdet_tf.model.heads", "training.losses")}
    found = violations(made_up | {module: (text, False)})
    assert len(found) == 1
    assert found[0].startswith(f"{module} imports ")


def test_imports_with_the_arrows_pass():
    good = {
        "effdet_tf.geometry.boxes": ("import numpy", False),
        "effdet_tf.geometry.masks": ("from effdet_tf.geometry import boxes\nfrom .boxes import area", False),
        "effdet_tf.model.anchors": ("from effdet_tf.geometry.boxes import area", False),
        "effdet_tf.data.record": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from effdet_tf.outputs.page import W",
            False,
        ),
        "training.main": ("import effdet_tf\nfrom training import trainer", False),
        "export.main": ("from effdet_tf.prediction.run import Predictor", False),
    }
    assert violations(good) == []


def test_no_modules_import_each_other_in_a_circle(sources):
    assert circle(sources) == []


def test_a_circle_is_found():
    made_up = {
        "training.main": ("def f():\n    from training.demo import run", False),
        "training.demo": ("from training import main", False),
    }
    assert set(circle(made_up)) == {"training.main", "training.demo"}


def test_one_name_for_one_module(sources):
    assert names_twice(sources) == {}


def test_one_name_for_one_public_class(sources):
    assert classes_twice(sources) == {}


def test_functions_stay_short(sources):
    assert long_functions(sources) == []


def test_names_that_occur_twice_and_long_functions_are_found():
    made_up = {
        "effdet_tf.data.plan": ("class Source:\n    pass\nclass _Row:\n    pass", False),
        "effdet_tf.plates.plan": ("class Source:\n    pass\nclass _Row:\n    pass", False),
        "effdet_tf.commands.check": ("def f():\n" + "    pass\n" * 60, False),
        "effdet_tf.data.check": ("def g():\n" + "    pass\n" * 59, False),
        "effdet_tf.outputs.coco": ("", False),
        "effdet_tf.data.sources.coco": ("", False),
    }
    assert names_twice(made_up) == {"plan": ["effdet_tf.data.plan", "effdet_tf.plates.plan"]}
    assert classes_twice(made_up) == {"Source": ["effdet_tf.data.plan", "effdet_tf.plates.plan"]}
    assert long_functions(made_up) == ["effdet_tf.commands.check.f has 61 lines"]


def test_the_root_stays_small(sources):
    root = [name for name, path in modules().items() if path.parent.name == "effdet_tf"]
    assert len(root) <= MAX_MODULES_OF_THE_ROOT, root


def test_the_network_needs_no_tensorflow(sources):
    pure = [
        name for name in sources if any(f"{name}.".startswith(f"{start}.") for start in WITHOUT_TENSORFLOW)
    ]
    assert len(pure) > 15
    for name in pure:
        tree = ast.parse(sources[name][0])
        first = "\n".join(
            ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
        )
        if name != TENSORFLOW_DOOR:
            assert TENSORFLOW_DOOR not in set(imports(first, name, sources[name][1], set(sources)))
            outside = {module.split(".")[0] for module in reached(name, sources)}
            assert "tensorflow" not in outside, f"{name} brings in TensorFlow"


def test_a_hidden_tensorflow_import_is_found():
    made_up = {
        "training.losses": ("from effdet_tf.geometry import boxes", False),
        "effdet_tf.geometry.boxes": ("def f():\n    import tensorflow as tf", False),
    }
    assert "tensorflow" in reached("training.losses", made_up)


def test_files_stay_short():
    long = {
        name: count
        for name, path in modules().items()
        if (count := len(path.open().readlines())) > MAX_LINES_OF_A_FILE
    }
    assert long == {}


def test_what_the_tests_alone_install_is_not_imported(sources):
    """An environment with the extra `test` has more than a user's: an import of it fails there alone."""
    theirs = {"faster_coco_eval", "hypothesis", "openvino", "pytest", "scipy", "shapely", "skimage"}
    known = set(sources)
    found = {
        (module, name.split(".")[0])
        for module, (source, is_package) in sources.items()
        for name in imports(source, module, is_package, known)
    }
    assert len(found) > 500 and not {(module, name) for module, name in found if name in theirs}
