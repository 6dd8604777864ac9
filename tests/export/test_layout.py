from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from effdet_tf.errors import UserError
from export import layout
from export.layout import staging

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def make_version(stage, text="x"):
    made = stage.folder / "made"
    (made / "variables").mkdir(parents=True)
    (made / "saved_model.pb").write_text(text)
    return made


def add(out, text="x"):
    with staging(out) as stage:
        return stage.add_version(make_version(stage, text))


def test_versions_count_up_and_none_is_overwritten(tmp_path):
    assert add(tmp_path, "one") == tmp_path / "saved_model" / "1"
    assert add(tmp_path, "two") == tmp_path / "saved_model" / "2"
    assert (tmp_path / "saved_model/1/saved_model.pb").read_text() == "one"
    assert names(tmp_path) == {"saved_model/1/saved_model.pb", "saved_model/2/saved_model.pb"}


def test_the_number_follows_the_highest(tmp_path):
    for name in ("3", "007", "eight", "9x"):
        (tmp_path / "saved_model" / name).mkdir(parents=True)
    (tmp_path / "saved_model" / "11").write_text("a file takes a number too")
    assert add(tmp_path).name == "12"


def test_a_number_that_another_export_takes_meanwhile_is_left_to_it(tmp_path, monkeypatch):
    rename = os.rename

    def late(source, target):
        if not target.exists():
            target.mkdir()
            (target / "saved_model.pb").write_text("the other's")
            monkeypatch.setattr(layout.os, "rename", rename)
        rename(source, target)

    monkeypatch.setattr(layout.os, "rename", late)
    assert add(tmp_path, "ours").name == "2"
    assert (tmp_path / "saved_model/1/saved_model.pb").read_text() == "the other's"
    assert (tmp_path / "saved_model/2/saved_model.pb").read_text() == "ours"


def test_a_file_replaces_an_older_one(tmp_path):
    for text in ("old", "new"):
        with staging(tmp_path) as stage:
            made = stage.folder / "made.tflite"
            made.write_text(text)
            place = stage.put(made, "tflite/int8.tflite")
            assert stage.finished == [place]
    assert place.read_text() == "new"
    assert names(tmp_path) == {"tflite/int8.tflite"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_what_was_not_finished_goes_and_what_was_stays(tmp_path, error):
    with pytest.raises(error), staging(tmp_path) as stage:
        stage.add_version(make_version(stage))
        (stage.folder / "half").mkdir()
        (stage.folder / "half" / "file").write_text("half")
        raise error
    assert names(tmp_path) == {"saved_model/1/saved_model.pb"}
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]


def test_a_new_folder_in_which_nothing_was_made_goes_too(tmp_path):
    with pytest.raises(RuntimeError), staging(tmp_path / "a" / "out"):
        raise RuntimeError
    assert not (tmp_path / "a" / "out").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError), staging(tmp_path / "mine"):
        raise RuntimeError
    assert (tmp_path / "mine").is_dir()


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file"), staging(tmp_path / "file"):
        pass


def test_what_a_killed_export_left_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom export.layout import staging\n"
        "with staging(Path(sys.argv[1])) as stage:\n"
        "    (stage.folder / 'half').write_text('half')\n"
        "    print(stage.folder.name, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        name = process.stdout.readline().strip()
        with staging(tmp_path):
            assert (tmp_path / name / "half").exists()
        assert (tmp_path / name / "half").exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / name / "half").exists()
        with staging(tmp_path):
            assert not (tmp_path / name).exists()
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    made = []
    mkdtemp = layout.tempfile.mkdtemp

    def removed_once(**arguments):
        folder = mkdtemp(**arguments)
        made.append(folder)
        if len(made) == 1:
            os.rmdir(folder)
        return folder

    monkeypatch.setattr(layout.tempfile, "mkdtemp", removed_once)
    with staging(tmp_path) as stage:
        assert stage.folder.is_dir()
    assert len(made) == 2


def test_sizes(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"123")
    (tmp_path / "a" / "b" / "two").write_bytes(b"45")
    assert layout.size_of(tmp_path) == 5
    assert layout.size_of(tmp_path / "a" / "one") == 3
