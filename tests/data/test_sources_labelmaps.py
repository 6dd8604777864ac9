"""Label maps: each layout finds its pairs, each depth its cells, and stray fragments are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from effdet_tf.data.build import build_image
from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.base import Source
from effdet_tf.data.sources.labelmaps import open_labelmaps
from effdet_tf.errors import UserError

IMAGE = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
LABELS = np.zeros((20, 30), dtype=np.uint8)
LABELS[2:8, 3:9] = 7
LABELS[10:19, 20:30] = 200
LABELS[0, 29] = 7  # a stray fragment


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def everything(source: Source) -> Faults:
    faults = source.faults
    for task in source.tasks:
        faults.merge(build_image(task, 28).faults)
    return faults


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/x.tif", "masks/x.png"),
        ("images/x.tif", "masks/x_cp_masks.tif"),
        ("x_img.tif", "x_masks.tif"),
        ("x.tif", "x_masks.tif"),
        ("x.png", "x_label.png"),
    ],
)
def test_pairs_are_found_in_each_layout(tmp_path: Path, image: str, mask: str) -> None:
    save(tmp_path / image, IMAGE)
    save(tmp_path / mask, LABELS)
    source = open_labelmaps(tmp_path)
    assert [(t.image_id, t.file_name, t.read_cells.args[0].name) for t in source.tasks] == [
        (1, Path(image).name, Path(mask).name)
    ]
    assert not source.faults


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32])
def test_every_depth_gives_the_same_cells(tmp_path: Path, dtype: type) -> None:
    save(tmp_path / "pictures" / "a.tif", IMAGE)
    save(tmp_path / "outlines" / "a.tif", LABELS.astype(dtype) * (1 if dtype == np.uint8 else 250))
    source = open_labelmaps(tmp_path, tmp_path / "pictures", tmp_path / "outlines")
    result = build_image(source.tasks[0], 28)
    fields = result.fields
    assert fields is not None and fields["bit_depth"] == 16
    np.testing.assert_array_equal(fields["boxes"], [[2, 3, 8, 9], [10, 20, 19, 30]])
    assert fields["mean"] == pytest.approx(IMAGE.mean()) and fields["std"] == pytest.approx(IMAGE.std())
    entry = result.faults.notes["label in several pieces: the largest is kept"]
    assert entry["count"] == 1 and entry["examples"][0].startswith("a.tif (label ")


def test_faults_have_their_reasons(tmp_path: Path) -> None:
    for stem in ("alone", "small", "colour", "empty", "double"):
        save(tmp_path / "images" / f"{stem}.tif", IMAGE)
    save(tmp_path / "images" / "double.png", IMAGE)
    save(tmp_path / "masks" / "double.png", LABELS)
    save(tmp_path / "masks" / "small.png", LABELS[:-1])
    save(tmp_path / "masks" / "colour.png", np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    save(tmp_path / "masks" / "empty.png", LABELS * 0)
    save(tmp_path / "masks" / "orphan.png", LABELS)
    source = open_labelmaps(tmp_path)
    assert [t.file_name for t in source.tasks] == ["colour.tif", "double.png", "empty.tif", "small.tif"]
    faults = everything(source)
    assert {reason: entry["count"] for reason, entry in faults.dropped.items()} == {
        "image without a label map": 1,
        "label map without an image": 1,
        "two files of one stem: the first is used": 1,
        "annotation of the image unusable": 2,
    }
    assert faults.notes["image without any cell"]["examples"] == ["empty.tif"]


@pytest.mark.parametrize(
    ("image", "channels", "depth", "reason"),
    [
        (
            IMAGE.astype(np.float32) / 7 - 40,
            1,
            16,
            "float image stored as 16 bit between its least and largest value",
        ),
        (np.dstack([IMAGE, IMAGE // 2, IMAGE // 3]), 1, 16, "16-bit colour image stored as gray"),
        (np.dstack([IMAGE % 251] * 3).astype(np.uint8), 1, 8, None),
        (np.dstack([IMAGE % 251, IMAGE % 13, IMAGE % 7]).astype(np.uint8), 3, 8, None),
    ],
)
def test_images_are_stored_as_what_a_record_holds(
    tmp_path: Path, image: np.ndarray, channels: int, depth: int, reason: str | None
) -> None:
    save(tmp_path / "x_img.tif", image)
    save(tmp_path / "x_masks.tif", (LABELS == 200).astype(np.uint8))
    result = build_image(open_labelmaps(tmp_path).tasks[0], 28)
    assert result.fields is not None
    assert (result.fields["channels"], result.fields["bit_depth"]) == (channels, depth)
    assert list(result.faults.notes) == ([reason] if reason else [])


def test_wrong_places_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_labelmaps(tmp_path / "none")
    with pytest.raises(UserError, match="no image has a label map"):
        open_labelmaps(tmp_path)
    with pytest.raises(UserError, match="belong together"):
        open_labelmaps(tmp_path, images=tmp_path)


@pytest.mark.real_data
def test_usiigaci(real_data: Path) -> None:
    source = open_labelmaps(real_data / "usiigaci")
    assert len(source.tasks) == 10 and not source.faults
    result = build_image(source.tasks[0], 28)
    assert result.fields is not None and result.fields["bit_depth"] == 16
    assert 30 < len(result.fields["rles"]) < 90
