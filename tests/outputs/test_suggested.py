"""Crops to annotate: values of the image, outlines that `convert` reads, and what to look at first."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from effdet_tf import cli
from effdet_tf.data.build import build_image
from effdet_tf.data.sources.labelmaps import open_labelmaps
from effdet_tf.errors import UserError
from effdet_tf.images.read import Stack, read_image, read_labels
from effdet_tf.outputs.jobs import find_images
from effdet_tf.outputs.suggested import suggest_crops
from tests.outputs.test_batch import Thresholder

SIDE = 64


class Doubting(Thresholder):
    """Reports blobs of 50 px and more; sees smaller ones too."""

    config = Thresholder.config.override(["postprocess.report_score=0.5"])


def picture(dtype: type = np.uint16, bright: int = 40_000, at: int = 0) -> np.ndarray:
    """160 x 64 px: a blob of 100 px, score .67, and one of 36 px, score .42, in its upper part alone."""
    image = np.full((160, 64), 100, dtype)
    image[5 + at : 15 + at, 5:15] = bright
    image[25 + at : 31 + at, 30:36] = bright
    return image


def test_crops_of_a_stack_keep_values_page_and_place_and_their_outlines(tmp_path):
    pages = np.stack([picture(), picture(at=70)])
    tifffile.imwrite(tmp_path / "film.tif", pages, imagej=True, metadata={"axes": "TYX", "unit": "um"},
                     resolution=(2, 2))  # fmt: skip
    report = suggest_crops(
        Doubting(), find_images([tmp_path / "film.tif"]), tmp_path / "out", count=2, side=SIDE
    )
    assert (report.images, len(report.crops), report.cells, report.in_doubt) == (2, 2, 2, 4)
    table = pd.read_csv(tmp_path / "out" / "suggested.csv")
    assert table.page.tolist() == [1, 2] or table.page.tolist() == [2, 1]
    for row in table.itertuples():
        assert Path(row.file) == (tmp_path / "film.tif").resolve()
        expected = pages[row.page - 1, row.y0 : row.y1, row.x0 : row.x1]
        crop = tifffile.imread(tmp_path / "out" / "images" / f"{row.crop}.tif")
        assert crop.dtype == np.uint16 and np.array_equal(crop, expected)
        labels = read_labels(tmp_path / "out" / "masks" / f"{row.crop}.tif")
        assert labels.shape == crop.shape and labels.max() == row.cells == 1
        assert (labels == 1).sum() == pytest.approx(100, abs=15)
        assert (crop[labels == 1] == 40_000).mean() > 0.85
        with Stack(tmp_path / "out" / "images" / f"{row.crop}.tif") as stack:
            assert stack.um_per_px == pytest.approx(0.5)
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert cells.label.tolist() == [0, 1, 0, 1]  # the less sure first: .42 in place of .67
    assert cells.score[:2].tolist() == pytest.approx([36 / 86, 100 / 150], abs=1e-3)
    first = table[table.crop == cells.crop[0]].iloc[0]
    height = cells.y0[0] + first.y0 + (0 if first.page == 1 else -70)
    assert (height, cells.x0[0]) == (25, 30)  # in the crop's pixels


def test_convert_reads_what_was_suggested(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture())
    suggest_crops(Doubting(), find_images([tmp_path / "a.tif"]), tmp_path / "out", count=1, side=SIDE)
    (task,) = open_labelmaps(tmp_path / "out").tasks
    assert len(build_image(task, 28).fields["boxes"]) == 1
    assert cli.main(["convert", "labelmaps", str(tmp_path / "out"), str(tmp_path / "data"), "--quiet"]) == 0


def test_colours_and_folders_of_equal_names_stay_apart(tmp_path):
    for folder, bright in (("a", 200), ("b", 100)):
        (tmp_path / "in" / folder).mkdir(parents=True)
        image = np.repeat(picture(np.uint8, bright)[..., None], 3, 2)
        image[..., 2] //= 2
        tifffile.imwrite(tmp_path / "in" / folder / "x.tif", image, photometric="rgb")
    report = suggest_crops(Doubting(), find_images([tmp_path / "in"]), tmp_path / "out", count=2, side=512)
    assert sorted(report.crops) == ["a__x_y0_x0", "b__x_y0_x0"]
    for name in report.crops:
        source = read_image(tmp_path / "in" / name[0] / "x.tif")
        assert np.array_equal(read_image(tmp_path / "out" / "images" / f"{name}.tif"), source)


def test_what_is_annotated_is_not_suggested_again(tmp_path):
    for k in range(3):
        tifffile.imwrite(tmp_path / f"{k}.tif", picture(bright=30_000 + k))
    jobs = find_images([tmp_path / f"{k}.tif" for k in range(3)])
    first = suggest_crops(Doubting(), jobs, tmp_path / "first", count=2, side=SIDE)
    second = suggest_crops(Doubting(), jobs, tmp_path / "second", count=20, side=SIDE, done=[first.out])
    places = [
        set(pd.read_csv(one.out / "suggested.csv")[["file", "y0"]].itertuples(index=False))
        for one in (first, second)
    ]
    assert places[0].isdisjoint(places[1])
    assert len(second.crops) == 4 and not second.strangers  # three images of two crops each
    other = suggest_crops(Doubting(), jobs[:1], tmp_path / "third", side=SIDE, done=[first.out, second.out])
    assert not other.crops
    (tmp_path / "moved").mkdir()
    tifffile.imwrite(tmp_path / "moved" / "9.tif", picture())
    moved = suggest_crops(
        Doubting(), find_images([tmp_path / "moved"]), tmp_path / "fourth", side=SIDE, done=[first.out]
    )
    assert moved.strangers == [first.out] and moved.crops


def test_a_broken_image_does_not_end_it(tmp_path):
    tifffile.imwrite(tmp_path / "good.tif", picture())
    (tmp_path / "bad.tif").write_bytes((tmp_path / "good.tif").read_bytes()[:90])
    report = suggest_crops(Doubting(), find_images([tmp_path]), tmp_path / "out", side=SIDE)
    assert report.exit_code == 3 and [path.name for path, _ in report.failed] == ["bad.tif"]
    assert len(report.crops) == 2
    only = suggest_crops(Doubting(), find_images([tmp_path / "bad.tif"]), tmp_path / "none", side=SIDE)
    assert only.exit_code == 1 and not only.crops


def test_corrected_masks_are_never_written_over(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture())
    jobs, out = find_images([tmp_path / "a.tif"]), tmp_path / "out"
    suggest_crops(Doubting(), jobs, out, side=SIDE)
    before = sorted((path, path.read_bytes()) for path in out.rglob("*.tif"))
    with pytest.raises(UserError, match=r"suggested.csv: exists already.*name another folder"):
        suggest_crops(Doubting(), jobs, out, side=SIDE)
    (out / "suggested.csv").unlink()
    with pytest.raises(UserError, match="images: exists already"):
        suggest_crops(Doubting(), jobs, out, side=SIDE)
    assert sorted((path, path.read_bytes()) for path in out.rglob("*.tif")) == before


def test_faults_are_told_in_a_line(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture())
    jobs = find_images([tmp_path / "a.tif"])
    boxes = Doubting()
    boxes.config = boxes.config.override(["model.mask.enabled=false"])
    with pytest.raises(UserError, match="no mask head"):
        suggest_crops(boxes, jobs, tmp_path / "out")
    with pytest.raises(UserError, match=r"suggested.csv: cannot be read \(No such file"):
        suggest_crops(Doubting(), jobs, tmp_path / "out", done=[tmp_path])
    (tmp_path / "suggested.csv").write_text("crop,page\nx,y\n")
    with pytest.raises(UserError, match="no table of suggested crops"):
        suggest_crops(Doubting(), jobs, tmp_path / "out", done=[tmp_path])
    assert not (tmp_path / "out").exists()


def test_one_page_that_cannot_be_read_leaves_the_others(tmp_path):
    with tifffile.TiffWriter(tmp_path / "film.tif") as writer:
        for k in range(4):
            writer.write(picture()[: 150 if k == 1 else 160], contiguous=False)
    report = suggest_crops(
        Doubting(), find_images([tmp_path / "film.tif"]), tmp_path / "out", count=3, side=512
    )
    assert report.images == 3 and len(report.failed) == 1 and report.exit_code == 3
    assert report.failed[0][1].startswith("page 2: ")
    assert sorted(pd.read_csv(tmp_path / "out" / "suggested.csv").page) == [1, 3, 4]


def test_an_image_is_looked_at_once_more_for_all_its_crops(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture())
    finder = Doubting()
    suggest_crops(finder, find_images([tmp_path / "a.tif"]), tmp_path / "out", count=9, side=SIDE)
    assert len(finder.dtypes) == 2


def test_own_crops_and_masks_in_the_folder_are_no_images(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture())
    first = suggest_crops(Doubting(), find_images([tmp_path]), tmp_path / "next", count=1, side=SIDE)
    again = suggest_crops(
        Doubting(), find_images([tmp_path]), tmp_path / "more", count=9, side=SIDE, done=[first.out]
    )
    assert again.own == 2 and again.images == 1
    assert all(name.startswith("a_") for name in again.crops) and set(again.crops).isdisjoint(first.crops)


def test_a_crop_that_was_deleted_is_not_annotated(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture())
    jobs = find_images([tmp_path / "a.tif"])
    first = suggest_crops(Doubting(), jobs, tmp_path / "next", count=1, side=SIDE)
    (first.out / "masks" / f"{first.crops[0]}.tif").unlink()
    again = suggest_crops(Doubting(), jobs, tmp_path / "more", count=1, side=SIDE, done=[first.out])
    assert again.crops == first.crops


def test_a_mask_of_another_kind_of_file_is_annotated(tmp_path):
    """napari and Fiji save as png, too, and `convert labelmaps` reads it."""
    tifffile.imwrite(tmp_path / "a.tif", picture())
    jobs = find_images([tmp_path / "a.tif"])
    first = suggest_crops(Doubting(), jobs, tmp_path / "next", count=1, side=SIDE)
    mask = first.out / "masks" / f"{first.crops[0]}.tif"
    assert cv2.imwrite(str(mask.with_suffix(".png")), read_labels(mask).astype(np.uint16))
    mask.unlink()
    again = suggest_crops(Doubting(), jobs, tmp_path / "more", count=1, side=SIDE, done=[first.out])
    assert len(again.crops) == 1 and again.crops != first.crops


def test_a_small_annotated_crop_does_not_make_a_large_one_annotated(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.tile(picture(), (4, 10)))
    jobs = find_images([tmp_path / "a.tif"])
    first = suggest_crops(Doubting(), jobs, tmp_path / "next", count=1, side=SIDE)
    large = suggest_crops(Doubting(), jobs, tmp_path / "more", side=512, done=[first.out])
    assert len(large.crops) == 1
    small = suggest_crops(Doubting(), jobs, tmp_path / "less", side=SIDE, count=99, done=[large.out])
    assert not small.crops and not small.strangers


def test_a_folder_whose_masks_were_all_deleted_is_no_stranger(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture())
    jobs = find_images([tmp_path / "a.tif"])
    first = suggest_crops(Doubting(), jobs, tmp_path / "next", count=1, side=SIDE)
    (first.out / "masks" / f"{first.crops[0]}.tif").unlink()
    assert not suggest_crops(Doubting(), jobs, tmp_path / "more", side=SIDE, done=[first.out]).strangers


def test_nothing_to_write_leaves_the_folder_free(tmp_path):
    (tmp_path / "bad.tif").write_bytes(b"II*\0nothing")
    tifffile.imwrite(tmp_path / "a.tif", picture())
    jobs = find_images([tmp_path / "bad.tif"])
    assert not suggest_crops(Doubting(), jobs, tmp_path / "out", side=SIDE).crops
    assert suggest_crops(Doubting(), find_images([tmp_path / "a.tif"]), tmp_path / "out", side=SIDE).crops


def test_names_of_deep_folders_fit(tmp_path):
    folder = tmp_path / "in" / ("a" * 90) / ("b" * 90) / ("é" * 40)
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "x.tif", picture(np.float32, 0.5))
    report = suggest_crops(Doubting(), find_images([tmp_path / "in"]), tmp_path / "out", count=1, side=512)
    crop = read_image(tmp_path / "out" / "images" / f"{report.crops[0]}.tif")
    assert crop.dtype == np.float32 and np.array_equal(crop, read_image(folder / "x.tif"))


def test_the_command_tells_what_it_wrote(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("effdet_tf.prediction.load.load", lambda run: Doubting())
    tifffile.imwrite(tmp_path / "a.tif", picture())
    words = [str(tmp_path / "a.tif"), "--out", str(tmp_path / "out"), "--count", "4", "--side", "64"]
    assert cli.main(["suggest", *words, "--no-rescale"]) == 0
    told = capsys.readouterr()
    assert "2 crops of 1 images, 1 cells outlined, 2 in doubt" in told.out
    assert "2 crops and no more" in told.err and "are not calibrated" in told.err
    assert cli.main(["suggest", *words]) == 1
    assert "exists already" in capsys.readouterr().err
    none = [words[0], "--out", str(tmp_path / "none"), "--side", "64", "--done", str(tmp_path / "out")]
    assert cli.main(["suggest", *none]) == 0
    told = capsys.readouterr()
    assert "0 crops" in told.out and "correct" not in told.out and "overlaps those, or annotated" in told.err
