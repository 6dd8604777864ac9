"""Predicting many files with a stand-in for the network."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from effdet_tf import outputs
from effdet_tf.commands import predict as command
from effdet_tf.commands.parser import Parser
from effdet_tf.errors import UserError
from effdet_tf.files import locked
from effdet_tf.geometry.masks import labels_to_patches, patch_box, patch_to_bitmap
from effdet_tf.geometry.rle import decode_kaggle_rle
from effdet_tf.images.gray import to_gray
from effdet_tf.outputs.batch import predict_files
from effdet_tf.outputs.jobs import find_images
from effdet_tf.prediction.predictor import missing_from
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.sizing import Sizing
from effdet_tf.presets import preset
from tests.predictors import Finder


class Thresholder(Finder):
    """Finds the bright blobs of an image; the larger, the better the score."""

    class_names = ("small", "large")
    category_ids = (4, 2)
    config = preset("cells-lite0").override(["postprocess.report_score=0.0"])

    def __init__(self, masks: bool = True) -> None:
        self.masks = masks
        self.dtypes: list[str] = []

    def find(self, image: np.ndarray) -> Result:
        self.dtypes.append(str(image.dtype))
        gray = to_gray(image)
        if gray.shape == (13, 13):
            raise UserError("13 x 13 is too small; give a larger image")
        _, labels = cv2.connectedComponents((gray > gray.mean() + 1).astype(np.uint8))
        patches = sorted(
            (patch for _, patch in labels_to_patches(labels)), key=lambda patch: -patch.mask.sum()
        )
        areas = np.array([patch.mask.sum() for patch in patches], np.int32)
        boxes = np.array([patch_box(patch) for patch in patches], np.float32).reshape(-1, 4)
        bitmaps = np.array([patch_to_bitmap(patch, 28) for patch in patches], np.uint8).reshape(-1, 28, 28)
        return Result(
            boxes=boxes,
            scores=np.float32(areas / (areas + 50)),
            classes=(areas > 50).astype(np.int32),
            masks=bitmaps if self.masks else None,
            mask_boxes=boxes if self.masks else None,
            height=gray.shape[0],
            width=gray.shape[1],
            class_names=self.class_names,
        )


def _blobs(dtype=np.uint8, bright: int = 200, channels: int = 0) -> np.ndarray:
    """Two blobs of 100 and 36 pixels in 40 x 50."""
    image = np.zeros((40, 50), dtype)
    image[5:15, 5:15] = bright
    image[25:31, 30:36] = bright
    return np.repeat(image[..., None], channels, 2) if channels else image


@pytest.fixture
def images(tmp_path) -> Path:
    """Nine files: good ones of several kinds, one without cells, and three that fail."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    tifffile.imwrite(folder / "a.tif", _blobs())
    tifffile.imwrite(folder / "b16.tif", _blobs(np.uint16, 40000))
    cv2.imwrite(str(folder / "rgb.png"), _blobs(channels=3))
    cv2.imwrite(str(folder / "a.png"), _blobs())
    cv2.imwrite(str(folder / "sub" / "a.jpg"), _blobs())
    cv2.imwrite(str(folder / "sub" / "dark.png"), np.zeros((40, 50), np.uint8))
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "empty.tif").touch()
    cv2.imwrite(str(folder / "tiny.png"), np.zeros((13, 13), np.uint8))
    return folder


def test_good_files_are_done_and_bad_ones_named(images, tmp_path, capsys):
    predictor = Thresholder()
    report = predict_files(predictor, find_images([images]), tmp_path / "out", progress=True)
    assert (report.done, report.cells, report.exit_code) == (6, 10, 3)
    assert sorted(path.name for path, _ in report.failed) == ["broken.png", "empty.tif", "tiny.png"]
    assert "uint16" in predictor.dtypes
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 3
    assert all(sum(name in line for line in errors) == 1 for name in ("broken.png", "empty.tif", "tiny.png"))

    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("image")
    assert summary.index.is_unique and len(summary) == 9
    assert summary.loc["b16", ["cells", "cells_small", "cells_large"]].tolist() == [2, 1, 1]
    assert summary.loc["sub/dark", "cells"] == 0
    assert summary["error"].notna().sum() == 3 and "too small" in summary.loc["tiny", "error"]


def test_all_outputs_of_an_image_agree(images, tmp_path):
    predict_files(Thresholder(), find_images([images / "b16.tif"]), tmp_path / "out")
    labels = tifffile.imread(tmp_path / "out" / "b16.labels.tif")
    table = pd.read_csv(tmp_path / "out" / "b16.cells.csv")
    coco = json.loads((tmp_path / "out" / "b16.coco.json").read_text())
    overlay = cv2.imread(str(tmp_path / "out" / "b16.overlay.png"))
    assert labels.dtype == np.uint16 and labels[10, 10] == 1 and labels[28, 33] == 2
    assert table["area"].tolist() == np.bincount(labels.ravel())[1:].tolist() == [100, 36]
    assert table["intensity_mean"].tolist() == [40000, 40000]
    assert table["class"].tolist() == ["large", "small"]
    assert [entry["category_id"] for entry in coco["annotations"]] == [2, 4]
    assert coco["images"][0]["file_name"] == "b16.tif"
    assert overlay.shape == (160, 200, 3)


def test_same_stem_and_subfolders_do_not_overwrite_each_other(images, tmp_path):
    predict_files(Thresholder(), find_images([images]), tmp_path / "out", formats=["labels"])
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.tif")}
    names = {"a.tif", "a.png", "b16", "rgb", "sub/a", "sub/dark"}
    assert written == {f"{name}.labels.tif" for name in names}
    assert not list((tmp_path / "out").rglob("*.json")) and not list((tmp_path / "out").rglob("*.png"))


def test_score_and_submission(images, tmp_path):
    csv_path = tmp_path / "submission.csv"
    inputs = [images / "a.tif", images / "sub"]
    report = predict_files(
        Thresholder(), find_images(inputs), tmp_path / "out", score=0.5, sartorius=csv_path
    )
    assert (report.done, report.cells) == (3, 2)  # the 36 pixels of the small blob have score .42
    rows = list(csv.reader(csv_path.open()))
    assert rows[0] == ["id", "predicted"]
    assert [row[0] for row in rows[1:]] == ["a.tif", "a.jpg", "dark"]
    assert rows[3] == ["dark", ""]
    mask = decode_kaggle_rle(rows[1][1], 40, 50)
    assert mask.sum() == 100 and mask[5:15, 5:15].all()


def test_submission_ids_are_file_stems_also_in_subfolders(images, tmp_path):
    predict_files(
        Thresholder(),
        find_images([images / ".." / "images" / "sub"]),
        tmp_path / "o",
        sartorius=tmp_path / "s.csv",
    )
    assert {row["id"] for row in csv.DictReader((tmp_path / "s.csv").open())} == {"a", "dark"}


def test_rerun_is_refused_unless_allowed(images, tmp_path):
    predict_files(Thresholder(), find_images([images / "a.tif"]), tmp_path / "out")
    before = (tmp_path / "out" / "summary.csv").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        predict_files(Thresholder(), find_images([images / "rgb.png"]), tmp_path / "out")
    assert (tmp_path / "out" / "summary.csv").read_bytes() == before
    predict_files(Thresholder(), find_images([images / "rgb.png"]), tmp_path / "out", overwrite=True)
    assert pd.read_csv(tmp_path / "out" / "summary.csv")["image"].tolist() == ["rgb"]


def test_overwriting_removes_what_the_former_run_wrote_of_the_same_images(images, tmp_path):
    out, jobs = tmp_path / "out", find_images([images / "a.tif", images / "rgb.png"])
    predict_files(Thresholder(), jobs, out, formats=outputs.FORMATS)
    for name in ("a.notes.txt", "a.mine.csv", "b.cells.csv"):  # a person's own
        (out / name).write_text("mine")
    before = {path.name for path in out.iterdir()}
    predict_files(Thresholder(), jobs[:1], out, formats=["table"], overwrite=True)
    gone = before - {path.name for path in out.iterdir()}
    suffixes = ("labels.tif", "coco.json", "overlay.png", "rois.zip", "geojson", "txt")
    assert gone == {f"a.{suffix}" for suffix in suffixes}
    (images / "a.tif").write_bytes(b"II*\0")  # what is no more is not left beside a row that says so
    predict_files(Thresholder(), jobs[:1], out, formats=["table"], overwrite=True)
    assert not (out / "a.cells.csv").exists() and (out / "rgb.cells.csv").exists()
    assert (out / "a.notes.txt").read_text() == "mine"


def test_a_file_belongs_to_the_image_that_was_written_there_last(images, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    shutil.copy(images / "a.tif", other / "a.tif")
    for folder in (images, other):  # two images of one name, one after the other
        predict_files(Thresholder(), find_images([folder / "a.tif"]), out, overwrite=True)
    predict_files(Thresholder(), find_images([images / "a.tif"]), out, formats=["table"], overwrite=True)
    assert (out / "a.labels.tif").exists()  # of the other one since


def test_a_record_removes_nothing_outside_its_folder(images, tmp_path):
    out, jobs = tmp_path / "out", find_images([images / "a.tif"])
    predict_files(Thresholder(), jobs, out, formats=["table"])
    victims = [tmp_path / "victim.csv", out / "other.csv", images / "rgb.png"]
    victims[0].write_text("x")
    (out / "link").symlink_to(images)
    key = os.fspath((images / "a.tif").resolve())
    names = ["../victim.csv", os.fspath(victims[0]), "link/rgb.png"]
    with (out / ".written.jsonl").open("a") as file:
        file.write(json.dumps({"image": key, "files": names}) + "\n{broken\n")
    predict_files(Thresholder(), jobs, out, formats=["coco"], overwrite=True)
    assert victims[0].exists() and victims[2].exists()


def test_two_runs_into_one_folder_are_refused(images, tmp_path):
    out, jobs = tmp_path / "out", find_images([images / "a.tif"])
    with locked(out, "writes predictions there"):
        with pytest.raises(UserError, match="process .* writes predictions there"):
            predict_files(Thresholder(), jobs, out)
    assert not (out / "summary.csv").exists()
    assert predict_files(Thresholder(), jobs, out).done == 1


def test_names_that_files_of_other_kinds_have(tmp_path):
    image = np.zeros((40, 40), np.uint8)
    image[5:20, 5:20] = 200
    for name in ("classes.png", "m_0001.png", "n_0001.png"):
        cv2.imwrite(str(tmp_path / name), image)
    tifffile.imwrite(tmp_path / "m.tif", np.stack([image, image.T]), photometric="minisblack")
    out = tmp_path / "out"
    predict_files(Thresholder(), find_images([tmp_path]), out, formats=["yolo"])
    assert (out / "classes.txt").read_text() == "small\nlarge\n"
    found = {path.name for path in out.glob("*.txt")} - {"classes.txt"}
    assert found == {"classes.png.txt", "m_0001.txt", "m_0002.txt", "m_0001.png.txt", "n_0001.txt"}


def test_what_no_code_expects_fails_one_image_alone(images, tmp_path, monkeypatch, capsys):
    class Failing(Thresholder):
        def find(self, image: np.ndarray) -> Result:
            if image.dtype == np.uint16:
                raise RuntimeError("node 7\nfailed to prepare")
            if image.shape[2] == 3:
                raise MemoryError
            return super().find(image)

    make_page = outputs.make_page

    def fail_late(result, image, *more):
        if image.max() == 0:  # sub/dark.png
            raise ValueError("while it was measured")
        return make_page(result, image, *more)

    monkeypatch.setattr(outputs, "make_page", fail_late)
    report = predict_files(Failing(), find_images([images]), tmp_path / "out", progress=True)
    table = pd.read_csv(tmp_path / "out" / "summary.csv").fillna("").set_index("image")["error"].to_dict()
    assert (
        table["b16"] == "unexpected: RuntimeError: node 7"
        and table["rgb"] == "out of memory; use smaller images, or close other programs"
    )
    assert table["sub/dark"] == "unexpected: ValueError: while it was measured"
    assert table["a.png"] == "" and report.done == 3 and len(report.failed) == 6 and report.exit_code == 3
    assert not list((tmp_path / "out").rglob("*dark*"))
    log = (tmp_path / "out" / "errors.log").read_text()
    assert log.count("Traceback") == 3 and "failed to prepare" in log and "broken.png" not in log


def test_any_name_gets_a_row_and_files(tmp_path):
    folder, long = tmp_path / "in", "n" * 236
    folder.mkdir()
    for name in (b"a.png", b"caf\xe9.png", f"{long}.png".encode(), f"{long}x.png".encode()):
        (folder / os.fsdecode(name)).write_bytes(cv2.imencode(".png", _blobs())[1])
    report = predict_files(Thresholder(), find_images([folder]), tmp_path / "out", formats=outputs.FORMATS)
    names = pd.read_csv(tmp_path / "out" / "summary.csv")["image"].tolist()
    assert report.done == 4 and names[:2] == ["a", "caf%E9"] and len(set(names)) == 4
    assert all(re.fullmatch("n{191}-[0-9a-f]{8}", name) for name in names[2:])
    for name in names:
        assert (tmp_path / "out" / f"{name}.labels.tif").exists()
    assert (
        json.loads((tmp_path / "out" / "caf%E9.coco.json").read_text())["images"][0]["file_name"]
        == "caf%E9.png"
    )


def test_crash_midway_keeps_what_is_done(images, tmp_path):
    class Dying(Thresholder):
        def find(self, image: np.ndarray) -> Result:
            if len(self.dtypes) == 2:
                raise KeyboardInterrupt
            return super().find(image)

    with pytest.raises(KeyboardInterrupt):
        predict_files(Dying(), find_images([images]), tmp_path / "out", sartorius=tmp_path / "out" / "s.csv")
    assert pd.read_csv(tmp_path / "out" / "summary.csv")["cells"].tolist() == [2, 2]
    assert len(pd.read_csv(tmp_path / "out" / "s.csv")) == 4
    assert not list((tmp_path / "out").rglob(".tmp*"))


def test_boxes_only_network(images, tmp_path):
    report = predict_files(Thresholder(masks=False), find_images([images / "a.tif"]), tmp_path / "out")
    assert report.cells == 2 and not (tmp_path / "out" / "a.labels.tif").exists()
    assert pd.read_csv(tmp_path / "out" / "a.cells.csv")["area"].isna().all()
    with pytest.raises(UserError, match="no mask head"):
        predict_files(
            Thresholder(masks=False),
            find_images([images / "a.tif"]),
            tmp_path / "o",
            sartorius=tmp_path / "s.csv",
        )


def test_output_that_cannot_be_written_is_a_user_error(images, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out: is a file, the predictions need a folder"):
        predict_files(Thresholder(), find_images([images / "a.tif"]), tmp_path / "out")


def _run_command(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(
        "effdet_tf.prediction.load.load", lambda run: Thresholder()
    )  # the real one loads TensorFlow
    parser = Parser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["predict", "--run", "run", *arguments])
    return args.run(args)


@pytest.mark.parametrize(("names", "code"), [(["a.tif"], 0), (["a.tif", "empty.tif"], 3), (["empty.tif"], 1)])
def test_command_exit_codes(images, tmp_path, monkeypatch, capsys, names, code):
    paths = [str(images / name) for name in names]
    assert _run_command(monkeypatch, *paths, "--out", str(tmp_path / "out"), "--formats", "labels") == code
    printed = capsys.readouterr()
    done = names.count("a.tif")
    assert printed.out.splitlines()[-1] == f"{done} images, {2 * done} cells: {tmp_path / 'out'}"
    assert ("1 images failed" in printed.err) == (code != 0)
    assert not list((tmp_path / "out").glob("*.overlay.png"))


def test_command_refuses_a_missing_image_before_it_loads_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr("effdet_tf.prediction.load.load", None)
    parser = Parser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(
        ["predict", "--run", "run", str(tmp_path / "no.tif"), "--out", str(tmp_path / "out")]
    )
    with pytest.raises(UserError, match="does not exist"):
        args.run(args)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("score", ["1.5", "-1", "nan", "x"])
def test_command_refuses_a_score_that_is_none(score):
    parser = Parser()
    command.add_parser(parser.add_subparsers())
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["predict", "--run", "r", "x.tif", "--out", "o", f"--score={score}"])
    assert caught.value.code == 2


@pytest.mark.parametrize(("score", "warned"), [(None, True), (0.3, True), (0.5, False)])
def test_missing_cells_are_told_where_they_would_have_been_kept(images, tmp_path, capsys, score, warned):
    class Full(Thresholder):
        def find(self, image: np.ndarray) -> Result:
            found = super().find(image)  # the weakest has score .42
            return dataclasses.replace(found, truncated=missing_from(found.scores, len(found), score or 0))

    predict_files(Full(), find_images([images / "a.tif"]), tmp_path / "out", score=score, progress=True)
    assert ("weaker ones are missing" in capsys.readouterr().err) == warned


def test_a_warning_of_the_predictor_has_a_line_of_its_own(images, tmp_path, capsys):
    class Warner(Thresholder):
        def find(self, image):
            logging.getLogger("effdet_tf").warning("an older export")
            return super().find(image)

    job = [job for job in find_images([images]) if job.name == "b16"]
    predict_files(Warner(), job, tmp_path / "found", progress=True)
    shown = [line.split("\r")[-1] for line in capsys.readouterr().err.split("\n")]
    assert shown.count("an older export") == 1, shown


def test_no_row_without_its_files_and_nothing_half_begun(images, tmp_path, monkeypatch):
    """The disk fills when the files of an image are finished, and when the second of them is begun."""
    from effdet_tf.outputs import coco, image_files

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(coco, "_categories", full)  # these come last
        with pytest.raises(UserError, match="No space left"):
            predict_files(
                Thresholder(), find_images([images / "a.tif"]), tmp_path / "out", sartorius=tmp_path / "s.csv"
            )
    assert [len(pd.read_csv(tmp_path / name)) for name in ("out/summary.csv", "s.csv")] == [0, 0]
    with monkeypatch.context() as patch:
        patch.setitem(image_files.WRITERS, "geojson", full)
        with pytest.raises(UserError, match="No space left"):
            predict_files(
                Thresholder(), find_images([images / "a.tif"]), tmp_path / "two", formats=("coco", "geojson")
            )
    left = [path.name for folder in ("out", "two") for path in (tmp_path / folder).iterdir()]
    assert not [name for name in left if name.startswith(".tmp") or name.endswith("json")]


def test_formats_that_are_not_read_are_counted_and_named(tmp_path, caplog):
    for name in ("a.vsi", "sub/b.VSI", "c.oib", ".hidden/d.oib", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"no image in this folder .*not read there are 2 \.vsi, 1 \.oib"):
        find_images([tmp_path])
    assert not caplog.records
    cv2.imwrite(str(tmp_path / "e.png"), _blobs())
    assert [job.name for job in find_images([tmp_path])] == ["e"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(f"not read: 2 .vsi, 1 .oib ({tmp_path / 'a.vsi'}); save as tif")


def test_text_that_a_spreadsheet_would_run_is_marked_as_text(tmp_path):
    class Named(Thresholder):
        class_names = ("=1+1", "-large")

    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "=HYPERLINK(1).png"), _blobs())
    cv2.imwrite(str(tmp_path / "in" / "-1_A7_1_00d00h00m.png"), _blobs())
    out = tmp_path / "out"
    predict_files(
        Named(), find_images([tmp_path / "in"]), out, sartorius=out / "s.csv", sizing=Sizing(False, None, 0.5)
    )
    table = pd.read_csv(out / "summary.csv")
    assert table["image"].tolist() == ["'-1_A7_1_00d00h00m", "'=HYPERLINK(1)"] and table[
        "cells"
    ].tolist() == [2, 2]
    cells = pd.read_csv(out / "=HYPERLINK(1).cells.csv")
    assert cells["class"].tolist() == ["'-large", "'=1+1"] and cells["area"].tolist() == [100, 36]
    assert cells["orientation"].dtype == float
    assert set(pd.read_csv(out / "s.csv")["id"]) == {"-1_A7_1_00d00h00m", "=HYPERLINK(1)"}
    assert json.loads((out / "=HYPERLINK(1).coco.json").read_text())["categories"][0]["name"] == "=1+1"


def test_links_that_lead_nowhere_and_pipes_are_rows_of_their_own(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), _blobs())
    (folder / "gone.png").symlink_to("missing.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    jobs = find_images([folder, folder / "pipe.png"])  # a folder's pipes are passed over
    report = predict_files(Thresholder(), jobs, tmp_path / "out")
    assert report.done == 1
    told = {Path(path).name: reason for path, reason, *_ in report.failed}
    assert told.keys() == {"gone.png", "loop.png", "pipe.png"}
    assert "is no regular file" in told["pipe.png"] and "cannot be read" in told["loop.png"]
    with pytest.raises(UserError, match=r"gone\.png: does not exist; check the name"):
        find_images([folder / "gone.png"])


@pytest.mark.parametrize("name", ["new\nline.png", "tab\t.png", "a\x1b[31m.png", ' lead".png', "=1+1.png"])
def test_odd_names_keep_their_rows_and_files(tmp_path, name):
    (tmp_path / "in").mkdir()
    cv2.imencode(".png", _blobs())[1].tofile(str(tmp_path / "in" / name))
    report = predict_files(Thresholder(), find_images([tmp_path / "in"]), tmp_path / "out")
    assert (report.done, report.failed) == (1, [])
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 2 and rows[1][0].lstrip("'") == name.removesuffix(".png")
    assert (tmp_path / "out" / f"{name.removesuffix('.png')}.labels.tif").is_file()
