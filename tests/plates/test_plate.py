"""The whole way: plan, Apache Beam, tables; again, with more, and after a fault."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

import effdet_tf
from effdet_tf import cli
from effdet_tf.errors import UserError
from effdet_tf.files import locked
from effdet_tf.images.read import Stack
from effdet_tf.outputs.wells import count_cells
from effdet_tf.plates import work
from effdet_tf.plates.plate import model_digest, run_plate
from effdet_tf.plates.work import work_through
from effdet_tf.runs import MODELS

ROOT = Path(__file__).resolve().parents[2]
VARYING = ("counts.csv", "failed.csv", ".lock")  # written by every call


@pytest.fixture
def opened(monkeypatch, predictor):
    """The predictor in place of a network; how many images it has seen is in `seen`."""
    monkeypatch.setattr("effdet_tf.prediction.load.load", lambda run: predictor)
    return predictor


@pytest.fixture
def plate(tmp_path, squares, write_image):
    folder = tmp_path / "plate"
    for k, (well, hour) in enumerate([("A1", 0), ("A1", 4), ("A2", 0), ("A2", 4), ("A2", 4)]):
        write_image(folder / f"p1/X_Phase_{well}_{k}_00d{hour:02d}h00m.png", squares(k + 1))
    (folder / "bad.tif").write_bytes(b"MM")
    return folder


def test_counts_by_well_and_time(opened, plate, tmp_path):
    report = run_plate(str(plate), str(tmp_path / "out"), "cells", shard_files=2)
    assert (report.images, report.cells, report.failed) == (5, 15, 1)
    assert (report.shards, report.shards_done) == (3, 3)
    counts = pd.read_csv(tmp_path / "out/counts.csv")
    rows = counts[counts["plate"] == "p1"].set_index(["well", "hours"])
    assert rows["cells"].to_dict() == {("A1", 0.0): 1, ("A1", 4.0): 2, ("A2", 0.0): 3, ("A2", 4.0): 9}
    assert rows.loc[("A2", 4.0), ["images", "failed", "cells_per_image", "mean_area"]].tolist() == [
        2,
        0,
        4.5,
        16,
    ]
    assert rows.loc[("A2", 4.0), "covered"] == pytest.approx(9 * 16 / 4800)
    bad = counts[counts["plate"].isna()]
    assert bad[["images", "failed", "cells"]].values.tolist() == [[0, 1, 0]]
    failed = pd.read_csv(tmp_path / "out/failed.csv")
    assert failed["image"].tolist() == ["bad.tif"] and "bad.tif: is no image" in failed["error"][0]


def test_again_does_what_is_missing_and_no_more(opened, plate, tmp_path, squares, write_image):
    out = tmp_path / "out"
    run_plate(str(plate), str(out), "cells", shard_files=2)
    assert opened.seen == 5
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.name not in VARYING}
    report = run_plate(str(plate), str(out), "cells", shard_files=2)
    assert (report.shards_done, report.cells, opened.seen) == (0, 15, 5)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (out / "done/00001.json").unlink()
    (out / "labels/.tmp-123-x.tif").write_bytes(b"half")
    write_image(plate / "p2/X_Phase_A1_1_00d00h00m.png", squares(7))
    report = run_plate(str(plate), str(out), "cells", shard_files=2)
    assert (report.shards_done, report.shards, report.cells, opened.seen) == (2, 4, 22, 8)
    assert not list(out.rglob(".tmp-*"))
    tifffile.imwrite(plate / "bad.tif", squares(2))
    (plate / "p2/X_Phase_A1_1_00d00h00m.png").unlink()
    report = run_plate(str(plate), str(out), "cells", shard_files=2)
    assert (report.shards_done, report.cells, report.failed) == (2, 17, 0)
    assert not list(out.rglob("p2/*")) and len(list(out.rglob("*.labels.tif"))) == 6


def test_a_fault_costs_the_shard_that_it_hits_alone(opened, plate, tmp_path, monkeypatch):
    write, written = work.pq.write_table, []

    def break_at_the_fourth(table, where, **more):
        written.append(where)
        if len(written) == 7:  # each shard has two tables
            raise MemoryError("the fourth")
        return write(table, where, **more)

    with monkeypatch.context() as patch:
        patch.setattr(work.pq, "write_table", break_at_the_fourth)
        with pytest.raises(Exception, match="the fourth"):
            run_plate(str(plate), str(tmp_path / "out"), "cells", shard_files=1)
    done = len(list((tmp_path / "out/done").iterdir()))
    assert 1 <= done < 6
    seen = opened.seen
    report = run_plate(str(plate), str(tmp_path / "out"), "cells", shard_files=1)
    assert (report.cells, report.failed) == (15, 1)
    assert opened.seen - seen in (6 - done, 5 - done)  # none of those that were done; one file is no image


def test_a_fault_in_an_image_costs_that_image_alone(opened, plate, tmp_path, monkeypatch):
    found = type(opened).find

    def break_at_the_fourth(self, image):
        if self.seen == 3:
            self.seen += 1
            raise MemoryError
        return found(self, image)

    monkeypatch.setattr(type(opened), "find", break_at_the_fourth)
    report = run_plate(str(plate), str(tmp_path / "out"), "cells")
    assert (report.images, report.failed) == (4, 2)
    errors = pd.read_csv(tmp_path / "out/failed.csv")["error"].tolist()
    assert "out of memory; use smaller images, or close other programs" in errors


def test_results_inside_of_the_folder_of_images_are_not_counted(opened, plate):
    for _ in range(3):
        report = run_plate(str(plate), str(plate / "out"), "cells", shard_files=2)
        assert (report.images, report.failed, report.shards) == (5, 1, 3)


def test_an_image_that_is_damaged_now_loses_its_labels(opened, plate, tmp_path):
    out, image = tmp_path / "out", plate / "p1/X_Phase_A1_0_00d00h00m.png"
    run_plate(str(plate), str(out), "cells")
    labels = out / "labels/p1/X_Phase_A1_0_00d00h00m.png.labels.tif"
    assert labels.exists()
    sound = image.read_bytes()
    image.write_bytes(sound[:20])
    report = run_plate(str(plate), str(out), "cells")
    assert (report.images, report.failed) == (4, 2) and not labels.exists()
    image.write_bytes(sound)
    assert run_plate(str(plate), str(out), "cells").images == 5 and labels.exists()


def test_what_failed_is_tried_again_on_request(opened, plate, tmp_path, monkeypatch):
    found = type(opened).find

    def refuse(self, image):
        raise UserError("out of sorts")

    out = str(tmp_path / "out")
    monkeypatch.setattr(type(opened), "find", refuse)
    assert run_plate(str(plate), out, "cells", shard_files=2).failed == 6
    monkeypatch.setattr(type(opened), "find", found)
    assert run_plate(str(plate), out, "cells", shard_files=2).failed == 6
    report = run_plate(str(plate), out, "cells", shard_files=2, retry_failed=True)
    assert (report.images, report.failed, report.shards_done) == (5, 1, 3)


def test_a_second_call_on_the_same_folder_is_refused(opened, plate, tmp_path):
    with locked(tmp_path / "out", "works on this plate"):
        with pytest.raises(UserError, match="works on this plate; stop it, or choose another --out"):
            run_plate(str(plate), str(tmp_path / "out"), "cells")


def test_a_network_without_masks_has_no_areas(opened, plate, tmp_path, monkeypatch, capsys):
    found = type(opened).find
    monkeypatch.setattr(
        type(opened),
        "find",
        lambda self, image: dataclasses.replace(found(self, image), masks=None, mask_boxes=None),
    )
    assert cli.main(["plate", str(plate), "--out", str(tmp_path / "out")]) == 3
    assert "boxes only, no label images" in capsys.readouterr().out
    counts = pd.read_csv(tmp_path / "out/counts.csv")
    assert counts["cells"].sum() == 15 and counts[["mean_area", "covered"]].isna().all(axis=None)
    assert not (tmp_path / "out/labels").exists()


@pytest.mark.parametrize(
    ("beam", "words"),
    [
        ({"runner": "Nonsense"}, "--runner, --beam: .*Nonsense"),
        (
            {"direct_num_worker": "4"},
            "--beam direct_num_worker: .* no such option; near: .*direct_num_workers",
        ),
        ({"direct_num_workers": "abc"}, "--runner, --beam: .*invalid int value"),
    ],
)
def test_what_the_engine_cannot_do_is_one_line(opened, plate, tmp_path, beam, words):
    with pytest.raises(UserError, match=words) as caught:
        run_plate(str(plate), str(tmp_path / "out"), "cells", beam=beam)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line(opened, plate, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("effdet_tf.plates.work.pq.write_table", full)
    assert cli.main(["plate", str(plate), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "No space left on device" in error and "goes on" in error


def test_counts_of_stacks_are_by_page_and_of_names_without_time_have_no_hour(opened, tmp_path, squares):
    (tmp_path / "plate").mkdir()
    tifffile.imwrite(
        tmp_path / "plate/B2_1.tif", np.stack([squares(k) for k in (3, 1, 2, 0)]), photometric="minisblack"
    )
    counts = run_plate(str(tmp_path / "plate"), str(tmp_path / "out"), "cells").counts
    assert counts[["well", "page", "cells"]].values.tolist() == [
        ["B2", k, n] for k, n in enumerate((3, 1, 2, 0))
    ]
    assert counts["hours"].isna().all() and np.isnan(counts["mean_area"][3])


def test_one_channel_of_a_plate(opened, tmp_path, squares, caplog):
    (tmp_path / "plate").mkdir()
    pages = np.stack([[squares(k), squares(k + 1)] for k in (1, 3)])
    for name in ("B2_1.ome.tif", "B3_1.ome.tif"):
        metadata = {"axes": "TCYX", "Channel": {"Name": ["GFP", "Phase"]}}
        tifffile.imwrite(
            tmp_path / "plate" / name, pages, photometric="minisblack", metadata=metadata, ome=True
        )
    for channel, expected in ((None, [2, 4]), ("gfp", [1, 3]), ("all", [1, 2, 3, 4])):
        out = tmp_path / f"out-{channel}"
        counts = run_plate(str(tmp_path / "plate"), str(out), "cells", channel=channel).counts
        assert counts["cells"].tolist() == expected * 2
        with Stack(out / "labels" / "B2_1.ome.tif.labels.tif") as labels:
            assert labels.axes == ("TC", (2, 2)) and labels.is_ome
    with pytest.raises(UserError, match="other settings .channel None there, all now"):
        run_plate(str(tmp_path / "plate"), str(tmp_path / "out-None"), "cells", channel="all")


def test_nothing_was_found_in_no_images():
    empty = count_cells(pd.DataFrame({name: [] for name in ("image", "page", "well", "minutes", "cells",
                                                            "mean_area", "covered", "error")}))  # fmt: skip
    assert len(empty) == 0


def test_other_settings_are_refused_and_a_network_that_is_none(opened, plate, tmp_path):
    run_plate(str(plate), str(tmp_path / "out"), "cells")
    with pytest.raises(UserError, match="other settings .score None there, 0.9 now"):
        run_plate(str(plate), str(tmp_path / "out"), "cells", score=0.9)
    with pytest.raises(UserError, match="no such run folder"):
        run_plate(str(plate), str(tmp_path / "out"), str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no images"):
        run_plate(str(tmp_path / "nothing"), str(tmp_path / "out"), "cells")


def test_the_digest_is_that_of_the_network(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "best.npz"):
        (folder / name).write_bytes((MODELS / "cells" / name).read_bytes())
    assert model_digest(str(folder)) == model_digest("cells")
    (folder / "config.yaml").write_text("preset: d0\n")
    assert model_digest(str(folder)) != model_digest("cells")
    (folder / "saved_model.pb").write_bytes(b"1")
    assert model_digest(str(folder)) != model_digest("cells")


def test_options_of_the_engine(opened, plate, tmp_path, monkeypatch, capsys):
    asked = {}

    def run_here(task, left, beam):
        asked.update(beam)
        for shard in left:
            work_through(task, shard, opened)

    monkeypatch.setattr("effdet_tf.plates.plate.run_pipeline", run_here)
    words = ["plate", str(plate), "--out", str(tmp_path / "out"), "--runner", "FlinkRunner"]
    words += [
        "--beam",
        "flink_master=host:8081",
        "--beam",
        "streaming=false",
        "--beam",
        "experiments=a",
        "--beam",
        "experiments=b",
    ]
    assert cli.main(words) == 3  # one image is damaged
    assert asked == {
        "runner": "FlinkRunner",
        "flink_master": "host:8081",
        "streaming": False,
        "experiments": ["a", "b"],
    }
    assert cli.main([*words, "--beam", "nonsense"]) == 1
    assert "--beam nonsense: is not KEY=VALUE" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.setattr(effdet_tf, "plates", effdet_tf.plates)  # put back, when imported anew
    for name in [name for name in sys.modules if name.startswith("effdet_tf.plates")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["plate", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert (
        'needs apache_beam, which is not installed: pip install "effdet_tf[plates]"'
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_two_processes_with_the_network_of_the_package(tmp_path, write_image):
    from effdet_tf.data.synthetic.phase_contrast import render_image

    for k in range(4):
        image, _ = render_image(np.random.default_rng(k), 128, 128, 12, "Round")
        write_image(tmp_path / f"plate/X_Phase_A{k + 1}_1_00d00h00m.png", image)
    (tmp_path / "plate/bad.png").write_bytes(b"nothing")
    words = ["--shard-images", "2", "--beam", "direct_num_workers=2"]
    command = [
        sys.executable,
        "-m",
        "effdet_tf",
        "plate",
        str(tmp_path / "plate"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [*command, *words, "--beam", "direct_running_mode=multi_processing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3, done.stderr
    assert "4 images," in done.stdout and "3 of 3 shards were worked through now" in done.stdout
    assert done.stderr.rstrip().endswith("1 images failed, see " + str(tmp_path / "out/failed.csv"))
    counts = pd.read_csv(tmp_path / "out/counts.csv").dropna(subset=["well"])
    assert counts["well"].tolist() == ["A1", "A2", "A3", "A4"] and (counts["cells"] > 2).all()


def test_another_content_of_the_same_size_and_time_is_seen_on_request(opened, plate, tmp_path, squares):
    out = str(tmp_path / "out")
    run_plate(str(plate), out, "cells")
    path = sorted(plate.rglob("*.png"))[0]
    before, data = path.stat(), path.read_bytes()
    tifffile.imwrite(plate / "x.tif", squares(2))
    run_plate(str(plate), out, "cells")
    other = bytearray(data)
    other[-5] ^= 1  # a sum in the file: it is damaged now
    path.write_bytes(other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run_plate(str(plate), out, "cells").shards_done == 0
    report = run_plate(str(plate), out, "cells", verify=True)
    assert report.shards_done == 1
    assert run_plate(str(plate), out, "cells", verify=True).shards_done == 0
