"""What `check` says about a data set, and the picture that it draws."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.data import check
from effdet_tf.data.manifest import Manifest, load_manifest
from effdet_tf.data.record import ImageRecord, serialize
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import encode_rle
from effdet_tf.presets import preset

COUNTS = [0, 1, 130, 7, 12]
SIDES = [5, 10, 20]


def record_of(number: int, cells: int) -> ImageRecord:
    """A flat image of 100 x 90 with square cells of 5, 10 and 20 px in turn; cell 1 of each is a crowd."""
    side = np.array([SIDES[i % 3] for i in range(cells)])
    start = np.random.default_rng(number).integers(0, 70, (cells, 2))
    boxes = np.concatenate([start, start + side[:, None]], 1).astype(np.float32)
    rles = []
    for y1, x1, y2, x2 in boxes.astype(int):
        mask = np.zeros((100, 90), bool)
        mask[y1:y2, x1:x2] = True
        rles.append(encode_rle(mask)["counts"].encode())
    return ImageRecord(
        image=cv2.imencode(".png", np.full((100, 90), 90, np.uint8))[1].tobytes(),
        height=100, width=90, channels=1, bit_depth=8, mean=90.0, std=0.09, boxes=boxes,
        annotated_boxes=boxes, classes=np.zeros(cells, np.int32),
        masks=np.full((cells, 28, 28), 255, np.uint8),
        rles=rles, iscrowd=(np.arange(cells) == 1).astype(np.uint8), image_id=number,
        file_name=f"{number}.png", source="made up", cell_type="BV2" if number % 2 else "A172",
    )  # fmt: skip


def write_set(folder: Path, counts: list[int]) -> Path:
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "one.tfrecord")) as writer:
        for number, cells in enumerate(counts):
            writer.write(serialize(record_of(number, cells)))
    Manifest(
        source="made up",
        categories=[{"id": 1, "name": "cell"}],
        shards=[{"file": "one.tfrecord", "images": len(counts), "cells": sum(counts), "sha256": ""}],
        images=len(counts),
        cells=sum(counts),
        max_cells=max(counts, default=0),
        cells_per_image={},
        image_statistics={"sizes": [{"height": 100, "width": 90, "images": len(counts)}]},
        cell_sizes=[],
        cell_types={"A172": {"images": 3, "cells": 142}, "BV2": {"images": 2, "cells": 8}},
        dropped={"polygon outside": {"count": 4, "examples": ["3.png"]}},
        notes={},
        mask_size=28,
    ).save(folder)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("check") / "set", COUNTS)


def test_report_counts_all_and_sizes_leave_crowds_out(data_dir):
    report = check.read_report(data_dir)
    assert report.counts.tolist() == COUNTS
    assert len(report.sizes) == sum(COUNTS) - 3
    assert set(report.sides.tolist()) == {5.0, 10.0, 20.0}
    # The fullest image has 130 cells; with a quarter to spare that is 163.
    assert report.max_instances == 200


def test_description_holds_the_figures(data_dir):
    text = "\n".join(check.describe(check.read_report(data_dir)))
    assert "5 images, 150 cells" in text and "90 x 100 (5)" in text
    assert "most 130; 1 images without" in text and "50 %: 7" in text
    assert re.search(r"A172 +3 +142   5\.0, 10\.0, 20\.0", text)
    assert re.search(r"dropped +4  polygon outside: 3\.png", text)


def test_histogram_bars_are_in_proportion():
    lines = check.histogram(np.array([5.0] * 10 + [13.0] * 20 + [300.0] * 5))
    bars = {line.split()[0]: line.count("#") for line in lines[1:]}
    assert bars["4-6"] == 20 and bars["12-16"] == 40 and bars["256-"] == 10 and bars["6-8"] == 0
    assert check.histogram(np.zeros(0)) == []


def test_preset_lines_give_recall_and_settings(data_dir):
    report = check.read_report(data_dir)
    coarse = "\n".join(check.describe_preset(report, preset("d0").replace(data__resize="none")))
    # No cell is larger than 20 px and d0's smallest anchor has 32 px: 400 / 1024 < 0.4.
    assert re.search(r"anchors of the preset +0\.0% +0\.0% +0\.0% +0\.0%", coarse)
    assert "anchors.sizes=[[" in coarse and "200 would do for these images, the preset has 2000" in coarse
    assert "--set data.max_instances" not in coarse  # less than the preset has: nothing to gain
    few = preset("cells-lite0").replace(data__max_instances=100)
    assert "--set data.max_instances=200, the fullest has 130 cells" in "\n".join(
        check.describe_preset(report, few)
    )
    with pytest.raises(UserError, match="no cells"):
        check.describe_preset(dataclasses.replace(report, sizes=np.zeros((0, 2), np.float32)), few)


def test_points_need_no_anchors_but_a_place_in_the_cell(data_dir):
    report = check.read_report(data_dir)
    sizes = report.sizes * 1.5  # the preset magnifies
    text = "\n".join(check.describe_preset(report, preset("cells-lite0")))
    assert "cells as in images magnified 1.5 times" in text and "anchors.sizes" not in text
    held = float(re.search(r"point of the finest level: ([\d.]+)%", text)[1])
    assert held == pytest.approx(100 * np.minimum(sizes / 4, 1).prod(1).mean(), abs=0.06)


def test_a_preset_that_fits_images_is_checked_at_that_scale(data_dir):
    report = check.read_report(data_dir)
    # 100 px become 512: the smallest cell has 25.6 px, 655 of the 1,024 px^2 of the smallest anchor.
    fitted = "\n".join(check.describe_preset(report, preset("d0")))
    assert "cells as in images fitted into 512 x 512 px" in fitted
    recall = re.search(r"anchors of the preset +([\d.]+)% +([\d.]+)%", fitted)
    assert float(recall[1]) > 95 and float(recall[2]) > 70


def test_overlay_outlines_cells_in_their_place(data_dir, tmp_path):
    names = check.write_overlay(data_dir, tmp_path / "over.png", images=4)
    assert names[0] == "0.png" and names[-1] == "4.png" and len(names) == 4
    canvas = cv2.imread(str(tmp_path / "over.png"))
    assert canvas.shape == (2 * (200 + check._CAPTION), 2 * 180, 3)
    record = record_of(1, 1)
    tile = check.draw_record(record)[check._CAPTION :]
    coloured = np.argwhere(tile.max(2) != tile.min(2))
    y1, x1, y2, x2 = record.boxes[0] * 2
    assert coloured.min(0).tolist() == [y1, x1] and coloured.max(0).tolist() == [y2 - 1, x2 - 1]
    with pytest.raises(UserError, match="PNG"):
        check.write_overlay(data_dir, tmp_path / "over.tif")


def test_a_damaged_shard_is_named(tmp_path):
    folder = write_set(tmp_path / "set", [2, 3])
    shard = folder / "one.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-50])
    assert load_manifest(folder).images == 2
    with pytest.raises(UserError, match="one.tfrecord"):
        check.read_report(folder)


def test_command_line(data_dir, tmp_path):
    def command(*arguments):
        full = [sys.executable, "-m", "effdet_tf", "check", *map(str, arguments)]
        return subprocess.run(full, capture_output=True, text=True, cwd=Path(__file__).parents[2])

    done = command(data_dir, "--preset", "cells-lite0", "--out", tmp_path / "over.png")
    assert done.returncode == 0, done.stderr
    assert (
        "150 cells" in done.stdout
        and "no anchors to fit" in done.stdout
        and (tmp_path / "over.png").is_file()
    )
    missing = command(tmp_path / "nowhere")
    assert missing.returncode == 1 and missing.stdout == ""
    # TensorFlow's GPU build says that it found no GPU before anything of ours runs.
    own = [
        line for line in missing.stderr.splitlines() if not re.match(r"WARNING: All log|[IWE]\d{4} ", line)
    ]
    assert len(own) == 1 and re.fullmatch(r"error: .*nowhere: does not exist.*", own[0])
    assert command().returncode == 2


def with_sums(data_dir, place):
    """A copy of a data set whose manifest has the sums of its shards, as `convert` writes them."""
    shutil.copytree(data_dir, place)
    manifest = load_manifest(place)
    shards = [
        {**shard, "sha256": hashlib.sha256((place / shard["file"]).read_bytes()).hexdigest()}
        for shard in manifest.shards
    ]
    dataclasses.replace(manifest, shards=shards).save(place)
    return place


def test_shards_are_compared_with_their_sums(data_dir, tmp_path):
    """Records in another order: each is sound, and the set is another one."""
    place = with_sums(data_dir, tmp_path / "data")
    shard = load_manifest(place).shards[0]["file"]
    records = list(tf.data.TFRecordDataset(str(place / shard)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(place / shard)) as writer:
        for record in reversed(records):
            writer.write(record)
    with pytest.raises(UserError, match=r"is not what `convert` wrote \(another SHA-256\)"):
        check.read_report(place)
    with pytest.raises(UserError, match="another SHA-256"):
        RecordStore(place)


def test_training_compares_shards_once(data_dir, tmp_path, monkeypatch):
    place = with_sums(data_dir, tmp_path / "data")
    compared = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: compared.append(a) or digest(*a))
    shards = len(load_manifest(place).shards)
    RecordStore(place)
    assert len(compared) == shards
    RecordStore(place)
    assert len(compared) == shards
    path = place / load_manifest(place).shards[0]["file"]
    os.utime(path, ns=(1, 1))
    RecordStore(place)
    assert len(compared) == shards + 1
    check.read_report(place)
    assert len(compared) == 2 * shards + 1
