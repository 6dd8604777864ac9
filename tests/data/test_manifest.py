"""The manifest comes back as it was written, and a broken one gives one line that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from effdet_tf.data.faults import EXAMPLES, Faults
from effdet_tf.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from effdet_tf.errors import UserError

MANIFEST = Manifest(
    source="coco",
    categories=[{"id": 3, "name": "cell"}, {"id": 90, "name": "débris"}],
    shards=[{"file": "part-00000-of-00001.tfrecord", "images": 2, "cells": 5, "sha256": "ab"}],
    images=2,
    cells=5,
    max_cells=4,
    cells_per_image={"mean": 2.5, "50": 2.5},
    image_statistics={"sizes": [], "bit_depths": {"8": 2}, "channels": {"1": 2}, "mean": 1.0, "std": 2.0},
    cell_sizes=[[3.0, 4.5]],
    cell_types={"BV2": {"images": 2, "cells": 5}},
    dropped={"image unreadable": {"count": 1, "examples": ["a.tif"]}},
    notes={},
    mask_size=28,
)


def test_the_manifest_comes_back(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    assert load_manifest(tmp_path) == MANIFEST
    assert load_manifest(str(tmp_path)).class_names == ("cell", "débris")
    assert MANIFEST.category_ids == (3, 90)
    assert next(iter(json.loads((tmp_path / MANIFEST_NAME).read_text()).items())) == ("format", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"images": "two"}, "images is str"),
        ({"mask_size": None}, "mask_size is NoneType"),
        ({"surprise": 1}, "surprise"),
        ({"shards": {}}, "shards is dict"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**MANIFEST.to_dict(), **change}))
    with pytest.raises(UserError, match=message):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": [7]},
        {"shards": [{"file": "../a.tfrecord", "images": 1}]},
        {"shards": [{"file": "a\n", "images": 1}]},
        {"shards": [{"file": "x" * 256, "images": 1}]},
        {"shards": [{"file": "a.tfrecord", "images": "1"}]},
        {"categories": [{"id": "1", "name": "cell"}]},
        {"categories": [{"id": 1}]},
        {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
        {"images": -1},
        {"cells": 10**30},
        {"images": 10**6},
        {"shards": [{"file": "a.tfrecord", "images": 3, "cells": -4, "sha256": ""}]},
        {"shards": [{"file": "a.tfrecord", "images": 3, "cells": 1e9, "sha256": ""}]},
        {"cell_sizes": [[1.0]]},
        {"cell_sizes": [[1.0, float("nan")]]},
        {"mask_size": 0},
        {"mask_size": 2**31},
    ],
    ids=str,
)
def test_parts_of_another_kind_are_refused(tmp_path: Path, change: dict) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**MANIFEST.to_dict(), **change}))
    with pytest.raises(UserError, match="is damaged") as caught:
        load_manifest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"format": 1}', "\xff"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_a_missing_manifest_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="convert"):
            load_manifest(folder)


def test_faults_are_counted_and_the_first_are_named() -> None:
    faults, more = Faults(), Faults()
    assert not faults
    faults.drop("gone", "a")
    more.drop("gone", "b", 4)
    for number in range(30):
        more.note("odd", f"n{number}")
    faults.merge(more)
    assert faults.dropped == {"gone": {"count": 5, "examples": ["a", "b"]}}
    assert faults.notes["odd"] == {"count": 30, "examples": [f"n{n}" for n in range(EXAMPLES)]}
    assert [" ".join(line.split()) for line in faults.lines()] == [
        "dropped 5 gone: a, b, ...",
        "note 30 odd: n0, n1, n2, ...",
    ]
