"""Sartorius: codes, overlaps and pin holes, id lists, and a csv with and without the metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effdet_tf.data.build import build_image
from effdet_tf.data.sources.sartorius import open_sartorius
from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import decode_rle, encode_kaggle_rle

H, W = 20, 30
SHORT = "id,annotation,width,height,cell_type"
FULL = SHORT + ",plate_time,sample_date,sample_id,elapsed_timedelta"


def code(y0: int, x0: int, y1: int, x1: int, hole: tuple[int, int] | None = None) -> str:
    mask = np.zeros((H, W), dtype=bool)
    mask[y0:y1, x0:x1] = True
    if hole:
        mask[hole] = False
    return encode_kaggle_rle(mask)


ROWS = [
    ("b", code(2, 3, 8, 9, hole=(4, 5)), "cort"),
    ("b", code(5, 6, 12, 14), "cort"),  # overlaps the first
    ("a", code(0, 0, 3, 3), "astro"),
    ("c", code(1, 1, 5, 5), "SHSY5Y"),
]


def write(
    root: Path, rows: list[tuple[str, str, str]] = ROWS, metadata: bool = False, size: str = f"{W},{H}"
) -> Path:
    (root / "train").mkdir()
    for name in {row[0] for row in rows}:
        Image.fromarray(np.arange(H * W).reshape(H, W).astype(np.uint8)).save(root / "train" / f"{name}.png")
    end = ",11h30m00s,2019-06-16,x,0 days" if metadata else ""
    lines = [FULL if metadata else SHORT] + [f"{i},{a},{size},{c}{end}" for i, a, c in rows]
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("metadata", [False, True])
def test_cells_overlaps_and_pin_holes(tmp_path: Path, metadata: bool) -> None:
    source = open_sartorius(write(tmp_path, metadata=metadata))
    assert [c["name"] for c in source.categories] == ["shsy5y", "astro", "cort"]
    assert [(t.image_id, t.file_name, t.cell_type) for t in source.tasks] == [
        (1, "a.png", "astro"), (2, "b.png", "cort"), (3, "c.png", "SHSY5Y"),
    ]  # fmt: skip
    results = [build_image(task, 28) for task in source.tasks]
    assert [r.fields["classes"].tolist() for r in results if r.fields] == [[1], [2, 2], [0]]
    fields = results[1].fields
    assert fields is not None
    np.testing.assert_array_equal(fields["boxes"], [[2, 3, 8, 9], [5, 6, 12, 14]])
    np.testing.assert_array_equal(fields["annotated_boxes"], fields["boxes"])
    assert (fields["masks"][0] == 255).all()  # the pin hole is filled to train on ...
    truth = decode_rle({"size": [H, W], "counts": fields["rles"][0]})
    assert truth.sum() == 35 and not truth[4, 5]  # ... and stays in what evaluation compares with
    other = decode_rle({"size": [H, W], "counts": fields["rles"][1]})
    assert (truth & other).sum() == 9
    assert results[1].faults.notes == {
        "pin holes filled in the training mask": {"count": 1, "examples": ["b.png (mask 1)"]}
    }


def test_one_class(tmp_path: Path) -> None:
    source = open_sartorius(write(tmp_path, [*ROWS, ("d", "1 2", "hela")]), classes="one")
    assert source.categories == [{"id": 1, "name": "cell"}] and len(source.tasks) == 4
    assert {task.read_cells.args[1] for task in source.tasks} == {0}


def test_id_lists_split_without_changing_ids(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "ids.txt").write_text("c\n b zzz")
    taken = open_sartorius(tmp_path, ids=tmp_path / "ids.txt")
    rest = open_sartorius(tmp_path, exclude_ids=tmp_path / "ids.txt")
    assert [(t.image_id, t.file_name) for t in taken.tasks] == [(2, "b.png"), (3, "c.png")]
    assert [(t.image_id, t.file_name) for t in rest.tasks] == [(1, "a.png")]
    assert taken.faults.notes["listed id is not in train.csv"]["examples"] == ["zzz"]
    with pytest.raises(UserError, match=r"none\.txt"):
        open_sartorius(tmp_path, ids=tmp_path / "none.txt")


def test_faults_have_their_reasons(tmp_path: Path) -> None:
    rows = [*ROWS, ("a", "5", "astro"), ("a", f"{H * W} 2", "astro"), ("e", "", "cort"), ("f", "1 1", "hela")]
    write(tmp_path, rows)
    with (tmp_path / "train.csv").open("a") as file:
        file.write(f"a,1 1,{H},{W},astro\n,1 1,{W},{H},astro\na,1 1,,,astro\n")
    (tmp_path / "train" / "c.png").unlink()
    source = open_sartorius(tmp_path)
    faults = source.faults
    for task in source.tasks:
        faults.merge(build_image(task, 28).faults)
    assert {reason: entry["count"] for reason, entry in faults.dropped.items()} == {
        "csv row with another image size than the rows before": 1,
        "csv row without an id": 1,
        "csv row without a size": 1,
        "image file missing": 1,
        "unknown cell type 'hela'": 1,
        "cells of a dropped image": 2,
        "degenerate or unreadable segmentation": 2,
    }
    assert faults.notes["image without any cell"]["examples"] == ["e.png"]


def test_a_wrong_size_drops_the_image(tmp_path: Path) -> None:
    source = open_sartorius(write(tmp_path, ROWS[:2], size="31,20"))
    result = build_image(source.tasks[0], 28)
    assert result.fields is None
    assert result.faults.dropped["cells of a dropped image"]["count"] == 2
    assert "20x30" in result.faults.dropped["image of another size than annotated"]["examples"][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,annotation,width,height\n", "lacks the column cell_type"),
        ("", "lacks the column"),
        ("id\0,\n", "column|csv"),
    ],
)
def test_a_wrong_csv_gives_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        open_sartorius(tmp_path)
    assert "train.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_places_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.csv"):
        open_sartorius(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_sartorius(tmp_path / "none")
    (write(tmp_path) / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="train: does not exist"):
        open_sartorius(tmp_path)


@pytest.mark.real_data
def test_the_real_set(real_data: Path) -> None:
    root = real_data / "sartorius"
    train = open_sartorius(root, exclude_ids=root / "val_ids.txt")
    val = open_sartorius(root, ids=root / "val_ids.txt")
    assert (len(train.tasks), len(val.tasks)) == (406, 48)
    assert {t.image_id for t in train.tasks} | {t.image_id for t in val.tasks} == set(range(1, 455))
    assert sum(t.annotated for t in train.tasks + val.tasks) == 35199
    result = build_image(val.tasks[0], 28)
    assert result.fields is not None and len(result.fields["rles"]) > 10
    assert (result.fields["height"], result.fields["width"]) == (520, 704)
