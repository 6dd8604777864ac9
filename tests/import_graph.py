"""What imports what, by the sources; `python -m tests.import_graph` draws the page's arrows again."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("effdet_tf", "training", "export")
PAGE = ROOT / "docs" / "architecture.md"
EVERYWHERE = ("base", "config")  # boxes whose arrows are not drawn: nearly all import them

Sources = dict[str, tuple[str, bool]]  # module -> its text, and whether it is a package's __init__


def modules() -> dict[str, Path]:
    """Files of all modules of the project, by name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def read_sources() -> Sources:
    """Texts of all modules of the project."""
    return {name: (path.read_text(), path.name == "__init__.py") for name, path in modules().items()}


def imports(source: str, module: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """Names of the modules that a source imports, wherever the statement stands; not those for types only."""
    tree = ast.parse(source)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known else base


def read_boxes(page: str) -> dict[str, str]:
    """The page's table, turned round: box of each name of a module (`effdet_tf.` is left out there)."""
    boxes = {}
    for box, names in re.findall(r"^\| (\w+) \| (`[^|]*`) \|", page, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            boxes[name if name in PACKAGES else f"effdet_tf.{name}"] = box
    return boxes


def box_of(module: str, boxes: dict[str, str]) -> str | None:
    """Box of a module: that of the longest name that begins it; `effdet_tf` alone stands for itself only."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in boxes and (name != "effdet_tf" or module == name):
            return boxes[name]
    return None


def arrows(sources: Sources, boxes: dict[str, str]) -> set[tuple[str, str]]:
    """The arrows that the imports make: (box that imports, box that it takes from)."""
    found = set()
    for module, (text, is_package) in sources.items():
        for target in imports(text, module, is_package, set(sources)):
            here, there = box_of(module, boxes), box_of(target, boxes)
            if here and there and here != there:
                found.add((here, there))
    return found


def drawn(page: str) -> list[tuple[str, str]]:
    """The arrows of the page's diagram."""
    return re.findall(r"^    (\w+) --> (\w+)$", page, re.MULTILINE)


def draw(page: str, sources: Sources) -> str:
    """The page with the arrows that the imports make, in the order of its table."""
    boxes = read_boxes(page)
    rank = {box: number for number, box in enumerate(reversed(dict.fromkeys(boxes.values())))}
    wanted = [pair for pair in arrows(sources, boxes) if pair[1] not in EVERYWHERE]
    wanted.sort(key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    lines = "".join(f"    {here} --> {there}\n" for here, there in wanted)
    return re.sub(
        r"(?<=^```mermaid\nflowchart TD\n).*?(?=^```$)", lines, page, flags=re.MULTILINE | re.DOTALL
    )


if __name__ == "__main__":
    PAGE.write_text(draw(PAGE.read_text(), read_sources()))
