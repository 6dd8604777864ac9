"""docs/architecture.md against the sources: every module has a box, and the arrows are the imports."""

from __future__ import annotations

from graphlib import TopologicalSorter

import pytest

from tests.import_graph import EVERYWHERE, PAGE, arrows, box_of, draw, drawn, read_boxes, read_sources

AGAIN = "then run `python -m tests.import_graph`, which draws the arrows again"
MADE_UP = """\
| box | modules | what |
|---|---|---|
| base | `errors` | |
| data | `data`, `effdet_tf` | |
| records | `data.record` | |
| export | `export` | |

```mermaid
flowchart TD
    data --> records
    export --> records
```
"""
SOURCES = {
    "effdet_tf": ("", True),
    "effdet_tf.errors": ("", False),
    "effdet_tf.data": ("from effdet_tf import errors", True),
    "effdet_tf.data.record": ("import effdet_tf.errors", False),
    "effdet_tf.data.writer": ("def f():\n    from .record import ImageRecord", False),
    "export.main": ("from effdet_tf.data import writer", False),
}


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text()


@pytest.fixture(scope="module")
def sources():
    return read_sources()


def test_every_module_has_a_box(page, sources):
    boxes = read_boxes(page)
    without = sorted(name for name in sources if name.count(".") and box_of(name, boxes) is None)
    assert without == [], f"name them in a row of the table of {PAGE.name}, or in a row of its own; {AGAIN}"


def test_every_name_of_the_table_is_there(page, sources):
    gone = [
        name
        for name in read_boxes(page)
        if not any(module == name or module.startswith(f"{name}.") for module in sources)
    ]
    assert gone == [], f"no such modules: take them out of the table of {PAGE.name}; {AGAIN}"


def test_the_arrows_are_the_imports(page, sources):
    there = set(drawn(page))
    made = {pair for pair in arrows(sources, read_boxes(page)) if pair[1] not in EVERYWHERE}
    lacking, too_many = sorted(made - there), sorted(there - made)
    assert (lacking, too_many) == ([], []), (
        f"{PAGE.name} lacks the arrows {lacking} and has {too_many}, which no import makes: "
        "run `python -m tests.import_graph`"
    )
    assert len(drawn(page)) == len(there), "an arrow is drawn twice"
    assert draw(page, sources) == page, (
        "the arrows stand in another order: run `python -m tests.import_graph`"
    )


def test_the_boxes_form_no_circle(page, sources):
    below: dict[str, set[str]] = {}
    for here, there in arrows(sources, read_boxes(page)):
        below.setdefault(here, set()).add(there)
    assert set(TopologicalSorter(below).static_order()) == set(read_boxes(page).values())


def test_the_longest_name_counts():
    boxes = read_boxes(MADE_UP)
    assert box_of("effdet_tf.data.record", boxes) == "records"
    assert box_of("effdet_tf.data.writer", boxes) == box_of("effdet_tf", boxes) == "data"
    assert box_of("effdet_tf.other", boxes) is None  # not all of effdet_tf is in the box of its __init__


def test_wrong_arrows_are_found_and_mended():
    right = draw(MADE_UP, SOURCES)
    assert drawn(MADE_UP) == [("data", "records"), ("export", "records")]
    assert drawn(right) == [("export", "data"), ("data", "records")]
    assert draw(right, SOURCES) == right
    assert right.replace("    export --> data\n", "") == MADE_UP.replace("    export --> records\n", "")
