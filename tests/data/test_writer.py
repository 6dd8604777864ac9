"""Shards: the same bytes with any number of workers, whole or not at all, and a manifest that adds up."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from effdet_tf.data import record as record_lib
from effdet_tf.data import writer
from effdet_tf.data.faults import Faults
from effdet_tf.data.manifest import MANIFEST_NAME, load_manifest
from effdet_tf.data.sources.base import Source
from effdet_tf.data.sources.labelmaps import open_labelmaps
from effdet_tf.data.writer import WriteOptions, prepare_output, write_records
from effdet_tf.errors import UserError

ALONE = WriteOptions(workers=1, images_per_shard=3)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Eight pairs of 24x32 images; image k has k cells of 3x4 pixels, so the first has none."""
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        labels = np.zeros((24, 32), np.uint8)
        for cell in range(number):
            labels[3 * cell : 3 * cell + 3, 4 * (cell % 7) : 4 * (cell % 7) + 4] = cell + 1
        tifffile.imwrite(root / "images" / f"i{number}.tif", rng.integers(0, 255, (24, 32), np.uint8))
        tifffile.imwrite(root / "masks" / f"i{number}.tif", labels)
    return root


def convert(root: Path, out: Path, options: WriteOptions = ALONE, overwrite: bool = False) -> None:
    with prepare_output(out, overwrite):
        write_records(open_labelmaps(root), out, options)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())} if out.exists() else {}


def test_the_bytes_do_not_depend_on_the_workers(pairs: Path, tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 3), ("c", 1)):
        convert(pairs, tmp_path / name, dataclasses.replace(ALONE, workers=workers))
    first = contents(tmp_path / "a")
    assert list(first) == [MANIFEST_NAME] + [f"part-0000{n}-of-00003.tfrecord" for n in range(3)]
    assert contents(tmp_path / "b") == first
    assert contents(tmp_path / "c") == first


def test_the_manifest_adds_up(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(pairs, out)
    manifest = load_manifest(out)
    assert (manifest.images, manifest.cells, manifest.max_cells, manifest.mask_size) == (8, 28, 7, 28)
    assert [(s["images"], s["cells"]) for s in manifest.shards] == [
        (3, 0 + 3 + 6),
        (3, 1 + 4 + 7),
        (2, 2 + 5),
    ]
    for shard in manifest.shards:
        assert hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    assert manifest.cells_per_image["mean"] == 3.5 and manifest.cells_per_image["100"] == 7
    assert manifest.cell_sizes == [[3.0, 4.0]] * 28
    statistics = manifest.image_statistics
    pixels = np.stack([tifffile.imread(path) for path in sorted((pairs / "images").iterdir())])
    assert statistics["sizes"] == [{"height": 24, "width": 32, "images": 8}]
    assert statistics["bit_depths"] == {"8": 8} and statistics["channels"] == {"1": 8}
    assert statistics["mean"] == pytest.approx(pixels.mean(), abs=1e-3)
    assert statistics["std"] == pytest.approx(pixels.std(), abs=1e-3)
    assert manifest.notes == {"image without any cell": {"count": 1, "examples": ["i0.tif"]}}


def test_the_records_hold_the_images_and_cells(pairs: Path, tmp_path: Path) -> None:
    convert(pairs, tmp_path / "out")
    records = list(record_lib.iterate_records(tmp_path / "out"))
    assert [record.file_name for record in records] == [f"i{n}.tif" for n in (0, 3, 6, 1, 4, 7, 2, 5)]
    for record in records:
        number = int(record.file_name[1])
        assert record.image_id == number + 1 and record.source == "labelmaps"
        assert len(record.rles) == number and record.masks.shape == (number, 28, 28)
        if number:
            np.testing.assert_array_equal(record.boxes[-1, :2], [3 * (number - 1), 4 * ((number - 1) % 7)])
        parsed = record_lib.parse(record_lib.serialize(record))
        pixels = tifffile.imread(pairs / "images" / record.file_name)
        np.testing.assert_array_equal(parsed["image"].numpy()[..., 0], pixels)


@pytest.mark.parametrize(
    ("options", "shards", "images"),
    [
        ({"shards": 1}, 1, 8),
        ({"shards": 50}, 8, 8),
        ({"images_per_shard": 64}, 1, 8),
        ({"limit": 3}, 1, 3),
        ({"limit": 99, "shards": 2}, 2, 8),
    ],
)
def test_sharding_and_limit(pairs: Path, tmp_path: Path, options: dict, shards: int, images: int) -> None:
    convert(pairs, tmp_path / "out", dataclasses.replace(ALONE, **options))
    manifest = load_manifest(tmp_path / "out")
    assert (len(manifest.shards), manifest.images) == (shards, images)


def test_the_mask_size_is_chosen(pairs: Path, tmp_path: Path) -> None:
    convert(pairs, tmp_path / "out", dataclasses.replace(ALONE, mask_size=14))
    assert load_manifest(tmp_path / "out").mask_size == 14
    assert next(record_lib.iterate_records(tmp_path / "out")).masks.shape[1:] == (14, 14)


def test_a_complete_set_is_not_overwritten_unasked(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(pairs, out)
    before = contents(out)
    with pytest.raises(UserError, match="--overwrite"):
        convert(pairs, out, dataclasses.replace(ALONE, limit=1))
    assert contents(out) == before
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "none", out, overwrite=True)
    assert contents(out) == {**before, "mine.txt": b"kept"}  # a wrong source costs nothing
    convert(pairs, out, dataclasses.replace(ALONE, limit=1), overwrite=True)
    assert sorted(contents(out)) == [MANIFEST_NAME, "mine.txt", "part-00000-of-00001.tfrecord"]


def test_a_failing_overwrite_leaves_the_old_set(pairs: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    convert(pairs, out)
    before = contents(out)

    def fails(task: object, mask_size: int) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "build_image", fails)
    with pytest.raises(KeyboardInterrupt):
        convert(pairs, out, overwrite=True)
    assert contents(out) == before and load_manifest(out).images > 0


def test_an_interrupted_conversion_leaves_nothing_behind(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = writer.build_image

    def interrupted(task: object, mask_size: int) -> object:
        if task.file_name == "i4.tif":  # in the second shard
            raise KeyboardInterrupt
        return build(task, mask_size)

    monkeypatch.setattr(writer, "build_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(pairs, tmp_path / "out")
    assert contents(tmp_path / "out") == {}
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-00007-of-00009.tfrecord").write_bytes(b"killed")
    (tmp_path / "out" / ".tmp-scratch-killed").mkdir()
    (tmp_path / "out" / ".tmp-77-part-00001-of-00009.tfrecord").write_bytes(b"killed")
    convert(pairs, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 4


def test_unusable_images_are_left_out_and_named(pairs: Path, tmp_path: Path) -> None:
    for number in (2, 5):  # all of the third shard
        (pairs / "images" / f"i{number}.tif").write_bytes(b"")
    (pairs / "images" / "i3.tif").write_bytes(b"noise")
    convert(pairs, tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    assert manifest.images == 5 and manifest.dropped["image unreadable"]["count"] == 3
    assert manifest.dropped["image unreadable"]["examples"][0].startswith("i3.tif: ")
    assert [s["file"] for s in manifest.shards] == [f"part-0000{n}-of-00003.tfrecord" for n in range(2)]
    assert len(list(record_lib.iterate_records(tmp_path / "out"))) == 5
    assert len(contents(tmp_path / "out")) == 3


def test_nothing_usable_is_an_error(pairs: Path, tmp_path: Path) -> None:
    for path in (pairs / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image could be converted: dropped 8 image unreadable"):
        convert(pairs, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_strict_turns_any_fault_into_an_error(pairs: Path, tmp_path: Path) -> None:
    strict = dataclasses.replace(ALONE, strict=True)
    with pytest.raises(UserError, match=r"note 1 image without any cell: i0\.tif"):
        convert(pairs, tmp_path / "out", strict)
    assert contents(tmp_path / "out") == {}
    for folder in ("images", "masks"):
        (pairs / folder / "i0.tif").unlink()
    convert(pairs, tmp_path / "out", strict)
    assert load_manifest(tmp_path / "out").images == 7


def test_an_output_that_is_no_folder_is_refused(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, a data set needs a folder"):
        convert(pairs, tmp_path / "file")


def test_cell_sizes_are_sampled_evenly() -> None:
    tally = writer.Tally()
    for number in range(100):
        boxes = np.zeros((100, 4), np.float32)
        boxes[:, 2:] = number + 1
        fields = {"boxes": boxes, "iscrowd": np.zeros(100, np.uint8), "rles": [b""] * 100, "cell_type": ""}
        fields |= {
            "height": 5,
            "width": 5,
            "bit_depth": 8 + 8 * (number % 2),
            "channels": 1,
            "mean": 1.0,
            "std": 1.0,
        }
        tally.add(fields)
    manifest = tally.manifest(Source("x", [], []), [], 28)
    assert manifest.cells == 10_000 and len(manifest.cell_sizes) == 4096
    assert np.mean(manifest.cell_sizes) == pytest.approx(50.5, abs=0.1)
    assert manifest.image_statistics["mean"] is None  # 8 and 16 bit have no common unit
    json.dumps(manifest.to_dict())
    assert isinstance(tally.faults, Faults)


def test_two_conversions_into_one_folder_are_refused(tmp_path):
    with prepare_output(tmp_path / "out") as scratch:
        with (
            pytest.raises(UserError, match="process .* writes a data set there"),
            prepare_output(tmp_path / "out"),
        ):
            pass
        assert scratch.is_dir()
    assert not (tmp_path / "out").exists()
