"""A shard: labels, cells and rows agree, and a bad image costs no other."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import tifffile

from effdet_tf.config import Config, TrustConfig
from effdet_tf.errors import UserError
from effdet_tf.images.read import read_labels
from effdet_tf.outputs import CELL_COLUMNS
from effdet_tf.outputs.wells import count_cells
from effdet_tf.plates.plan import find_sources, make_shards
from effdet_tf.plates.work import CELL_SCHEMA, IMAGE_SCHEMA, Task, labels_file, work_through
from effdet_tf.prediction.trust import judge


@pytest.fixture
def plate(tmp_path, squares, write_image):
    """Two wells, a stack of three times, one damaged file, one that the network refuses."""
    folder = tmp_path / "plate"
    write_image(folder / "p1/X_Phase_A1_1_00d00h00m.png", squares(5))
    write_image(folder / "p1/X_Phase_B2_1_00d04h00m.png", squares(0))
    tifffile.imwrite(
        folder / "C3_1.tif",
        np.stack([squares(k) for k in (1, 2, 3, 4)]),
        compression="zlib",
        photometric="minisblack",
    )
    (folder / "cut.tif").write_bytes(b"II*\0")
    write_image(folder / "refused.png", np.zeros((7, 9), np.uint8))
    return folder


@pytest.fixture
def worked(plate, tmp_path, predictor):
    """The counts of the plate as one shard, and the output folder."""
    out = tmp_path / "out"
    [shard] = make_shards(find_sources(str(plate), str(out)), 0, 100, 10**9)
    return work_through(Task(str(plate), str(out), "-", None, True), shard, predictor), out, shard


def test_rows_of_all_images(worked):
    done, out, shard = worked
    assert done == {"images": 6, "cells": 5 + 0 + 1 + 2 + 3 + 4, "failed": 2}
    rows = pd.read_parquet(out / "images/00000.parquet")
    assert list(rows.columns) == IMAGE_SCHEMA.names
    rows = rows.set_index(["image", "page"])
    assert rows.loc[("p1/X_Phase_A1_1_00d00h00m.png", 0), ["well", "site", "minutes", "cells"]].tolist() == [
        *("A1", 1, 0, 5)
    ]
    assert rows.loc[("p1/X_Phase_B2_1_00d04h00m.png", 0), ["minutes", "cells"]].tolist() == [240, 0]
    assert rows.loc["C3_1.tif"]["cells"].tolist() == [1, 2, 3, 4]
    assert rows.loc[("C3_1.tif", 3), "covered"] == pytest.approx(4 * 16 / 2400)
    errors = rows["error"]
    assert "cut.tif" in errors["cut.tif", 0] and errors["refused.png", 0] == "an image of 7 rows"
    assert (errors.drop(["cut.tif", "refused.png"]) == "").all()
    mark = json.loads((out / "done/00000.json").read_text())
    assert len(set(mark.pop("contents").values())) == len(shard.files)
    assert mark == {"digest": shard.digest(), **done}


def test_cells_and_labels_agree(worked):
    _, out, _ = worked
    cells = pd.read_parquet(out / "cells/00000.parquet")
    assert list(cells.columns) == CELL_SCHEMA.names and set(CELL_COLUMNS) < set(cells.columns)
    assert (cells["area"] == 16).all() and (cells["class"] == "cell").all()
    with tifffile.TiffFile(out / "labels/C3_1.tif.labels.tif") as stack:
        assert len(stack.series) == 1 and stack.series[0].shape == (4, 40, 60)
        for page, labels in enumerate(stack.asarray()):
            of_page = cells[(cells["image"] == "C3_1.tif") & (cells["page"] == page)]
            assert sorted(of_page["cell"]) == list(range(1, page + 2)) == sorted(set(labels.ravel()) - {0})
            for cell in of_page.itertuples():
                y, x = np.nonzero(labels == cell.cell)
                assert (cell.centroid_y, cell.centroid_x) == (y.mean(), x.mean())
    assert read_labels(labels_file(str(out), "p1/X_Phase_B2_1_00d04h00m.png")).max() == 0
    assert not (out / "labels/cut.tif.labels.tif").exists()


def test_a_page_that_fails_leaves_the_others_at_their_place(tmp_path, predictor, squares, monkeypatch):
    folder = tmp_path / "plate"
    folder.mkdir()
    tifffile.imwrite(
        folder / "s.tif",
        np.stack([squares(k) for k in (1, 2, 3, 4)]),
        compression="zlib",
        photometric="minisblack",
    )
    found = type(predictor).find

    def unless_two_or_four(self, image):
        if self.seen in (0, 3):
            self.seen += 1
            raise UserError("not this one")
        return found(self, image)

    monkeypatch.setattr(type(predictor), "find", unless_two_or_four)
    [shard] = make_shards(find_sources(str(folder), str(tmp_path / "out")), 0, 100, 10**9)
    done = work_through(Task(str(folder), str(tmp_path / "out"), "-", 0.5, True), shard, predictor)
    assert done == {"images": 2, "cells": 5, "failed": 2}
    labels = tifffile.imread(tmp_path / "out/labels/s.tif.labels.tif")
    assert [page.max() for page in labels] == [0, 2, 3, 0]


def test_score_and_no_labels(tmp_path, predictor, squares, write_image):
    write_image(tmp_path / "plate/a.png", squares(3))
    [shard] = make_shards(find_sources(str(tmp_path / "plate"), str(tmp_path / "out")), 0, 100, 10**9)
    task = Task(str(tmp_path / "plate"), str(tmp_path / "out"), "-", 0.95, False)
    assert work_through(task, shard, predictor)["cells"] == 0
    assert len(pd.read_parquet(tmp_path / "out/cells/00000.parquet")) == 0
    assert not (tmp_path / "out/labels").exists()


def test_what_to_expect_of_an_image_is_in_the_tables(plate, tmp_path, predictor):
    trust = TrustConfig(f1=(0.0, 1.0), count=(-0.5, 0.0, 1.0, 0.0))
    predictor.config = Config(trust=trust)
    [shard] = make_shards(find_sources(str(plate), str(tmp_path / "out")), 0, 100, 10**9)
    work_through(Task(str(plate), str(tmp_path / "out"), "-", None, True), shard, predictor)
    rows = pd.read_parquet(tmp_path / "out/images/00000.parquet")
    five, none = (rows[rows["image"].str.contains(name)].iloc[0] for name in ("A1_1", "B2_1"))
    expected = judge(predictor.config, np.zeros((9, 9)), np.full(5, 0.9, np.float32))
    assert (five["cells_low"], five["cells_high"]) == (expected.least, expected.most)
    assert expected.least < 5 < expected.most and five["expected_f1"] == pytest.approx(0.9, abs=1e-3)
    assert none[["cells_low", "cells_high", "expected_f1", "unlike"]].isna().all()  # says nothing of no cell
    counts = count_cells(rows).set_index("well")
    assert (counts["cells_low"]["A1"], counts["cells_high"]["A1"]) == (expected.least, expected.most)
    assert counts["expected_f1"]["A1"] == pytest.approx(0.9, abs=1e-3) and "unlike" not in counts


def test_a_disk_that_refuses_leaves_no_mark(plate, tmp_path, predictor, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("effdet_tf.plates.work.pq.write_table", full)
    [shard] = make_shards(find_sources(str(plate), str(tmp_path / "out")), 0, 100, 10**9)
    with pytest.raises(OSError, match="No space left"):
        work_through(Task(str(plate), str(tmp_path / "out"), "-", None, True), shard, predictor)
    assert not (tmp_path / "out/done").exists()
