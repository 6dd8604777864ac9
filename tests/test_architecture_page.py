"""docs/architecture.md against the sources: every folder has a row, and the arrows are the imports."""

from __future__ import annotations

from graphlib import TopologicalSorter

import pytest

from tests.import_graph import EVERYWHERE, PAGE, arrows, draw, drawn, folder, page_folders, read_sources

MADE_UP = """\
| folder | what |
|---|---|
| `data/` | |
| `outputs/` | |
| `export/` | |

```mermaid
flowchart TD
    outputs --> data
    export --> outputs
```
"""
SOURCES = {
    "effdet_tf": ("from effdet_tf.outputs import table", True),
    "effdet_tf.errors": ("", False),
    "effdet_tf.data": ("from effdet_tf import errors", True),
    "effdet_tf.outputs": ("", True),
    "effdet_tf.outputs.table": ("def f():\n    from effdet_tf.data import record", False),
    "export.main": ("import effdet_tf.data.writer", False),
}


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text()


@pytest.fixture(scope="module")
def sources():
    return read_sources()


def test_every_folder_has_a_row(page, sources):
    there = {folder(name, sources) for name in sources} - {None, "base"}
    assert sorted(page_folders(page)) == sorted(there), f"rows of the table of {PAGE.name} and folders differ"


def test_the_arrows_are_the_imports(page, sources):
    there = set(drawn(page))
    made = {pair for pair in arrows(sources) if pair[1] not in EVERYWHERE}
    lacking, too_many = sorted(made - there), sorted(there - made)
    assert (lacking, too_many) == ([], []), (
        f"{PAGE.name} lacks the arrows {lacking} and has {too_many}, which no import makes: "
        "run `python -m tests.import_graph`"
    )
    assert draw(page, sources) == page, "the arrows have another order: run `python -m tests.import_graph`"


def test_the_folders_form_no_circle(sources):
    below: dict[str, set[str]] = {}
    for here, there in arrows(sources):
        below.setdefault(here, set()).add(there)
    assert len(set(TopologicalSorter(below).static_order())) > 10


def test_wrong_arrows_are_found_and_mended():
    right = draw(MADE_UP, SOURCES)
    assert drawn(MADE_UP) == [("outputs", "data"), ("export", "outputs")]
    assert drawn(right) == [("export", "data"), ("outputs", "data")]
    assert draw(right, SOURCES) == right
