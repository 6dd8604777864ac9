"""What imports what, by the sources; `python -m tests.import_graph` draws the arrows of the page again."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("effdet_tf", "training", "export")
PAGE = ROOT / "docs" / "architecture.md"
# Folders that nearly all others import: no arrows are drawn to them.
EVERYWHERE = ("base", "files", "geometry")

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


def folder(module: str, sources: Sources) -> str | None:
    """Folder of a module as the page names it; "base" for the modules in the root of effdet_tf."""
    package, *inner = module.split(".")
    if package != "effdet_tf":
        return package if package in PACKAGES else None
    if not inner or inner[0] in ("api", "cli", "__main__", "errors", "_version"):
        return None  # the public names and the door of the command line above, the error below all folders
    return inner[0] if sources.get(f"effdet_tf.{inner[0]}", ("", False))[1] else "base"


def arrows(sources: Sources) -> set[tuple[str, str]]:
    """The arrows that the imports make: (folder that imports, folder that it takes from)."""
    found = set()
    for module, (text, is_package) in sources.items():
        for target in imports(text, module, is_package, set(sources)):
            here, there = folder(module, sources), folder(target, sources)
            if here and there and here != there:
                found.add((here, there))
    return found


def page_folders(page: str) -> list[str]:
    """The folders in the page's table, in its order: from the lowest to the highest."""
    return re.findall(r"^\| `(\w+)/?` \|", page, re.MULTILINE)


def drawn(page: str) -> list[tuple[str, str]]:
    """The arrows of the page's diagram."""
    return re.findall(r"^    (\w+) --> (\w+)$", page, re.MULTILINE)


def draw(page: str, sources: Sources) -> str:
    """The page with the arrows that the imports make, in the order of its table."""
    rank = {name: number for number, name in enumerate(reversed(["base", *page_folders(page)]))}
    wanted = [pair for pair in arrows(sources) if pair[1] not in EVERYWHERE]
    wanted.sort(key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    lines = "".join(f"    {here} --> {there}\n" for here, there in wanted)
    return re.sub(
        r"(?<=^```mermaid\nflowchart TD\n).*?(?=^```$)", lines, page, flags=re.MULTILINE | re.DOTALL
    )


if __name__ == "__main__":
    PAGE.write_text(draw(PAGE.read_text(), read_sources()))
