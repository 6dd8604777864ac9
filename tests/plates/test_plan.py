"""Shards: full, in order, stable, and no work twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from effdet_tf.errors import UserError
from effdet_tf.plates import storage
from effdet_tf.plates.plan import PlateFile, Shard, done_file, find_sources, make_shards, missing, update_plan

SETTINGS = {"model": "abc", "score": None}


def sources(*sizes: int) -> list[PlateFile]:
    return [PlateFile(f"{k:03d}.png", size, 1) for k, size in enumerate(sizes)]


def plan(out: Path, files: list[PlateFile], settings=SETTINGS, most=2) -> tuple[list[Shard], list[str]]:
    """The shards, and the files that are gone."""
    gone: list[str] = []
    return update_plan(str(out), files, settings, most, 10**9, gone.append), gone


def mark(out: Path, shard: Shard, failed: int = 0) -> None:
    storage.write(
        done_file(str(out), shard), json.dumps({"digest": shard.digest(), "failed": failed}).encode()
    )


def names(shards: list[Shard]) -> list[list[str]]:
    return [[file.path for file in shard.files] for shard in shards]


def test_shards_are_filled_in_order():
    shards = make_shards(sources(5, 5, 5, 20, 1, 1, 1), 7, 3, 12)
    assert [shard.name for shard in shards] == ["00007", "00008", "00009", "00010"]
    assert [[file.size for file in shard.files] for shard in shards] == [[5, 5], [5], [20], [1, 1, 1]]
    assert make_shards([], 0, 3, 12) == []


def test_images_of_all_folders_are_found_and_nothing_else(tmp_path):
    for name in (
        "b.tif",
        "a/c.PNG",
        "a/d/e.jpg",
        "a/.hidden.png",
        ".cache/f.png",
        "notes.txt",
        "a/table.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    for name in ("a.labels.tif", "a.overlay.png", "out/labels/b.png", "outer.png"):  # results of this program
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    found = find_sources(str(tmp_path), str(tmp_path / "out"))
    assert found.pop().path == "outer.png"
    (tmp_path / "outer.png").unlink()
    assert [file.path for file in found] == ["a/c.PNG", "a/d/e.jpg", "b.tif"]
    assert {file.size for file in found} == {3} and all(file.modified > 10**9 for file in found)
    assert find_sources(f"{tmp_path}/", f"{tmp_path}/a/../out/") == found
    with pytest.raises(UserError, match="no images"):
        find_sources(str(tmp_path / "nowhere"), str(tmp_path / "out"))


def test_what_is_new_comes_as_new_shards_and_what_was_done_stays_done(tmp_path):
    files = sources(1, 1, 1)
    shards, gone = plan(tmp_path, files)
    assert names(shards) == [["000.png", "001.png"], ["002.png"]] and gone == []
    assert missing(str(tmp_path), shards, False) == shards
    for shard in shards:
        mark(tmp_path, shard)
    more = [PlateFile("000-first.png", 1, 1), *files]
    shards, gone = plan(tmp_path, more)
    assert names(shards) == [["000.png", "001.png"], ["002.png"], ["000-first.png"]] and gone == []
    assert missing(str(tmp_path), shards, False) == shards[2:]


def test_a_changed_file_and_one_that_is_gone_make_their_shards_anew(tmp_path):
    files = sources(1, 1, 1, 1, 1)
    shards, _ = plan(tmp_path, files)
    for shard in shards:
        mark(tmp_path, shard)
    files[1] = files[1]._replace(modified=2)
    shards, gone = plan(tmp_path, files[:4])
    assert gone == ["004.png"]
    assert [shard.name for shard in missing(str(tmp_path), shards, False)] == ["00000", "00002"]
    assert shards[2].files == ()
    assert plan(tmp_path, files[:4]) == (shards, [])


def test_failed_shards_are_tried_again_on_request(tmp_path):
    shards, _ = plan(tmp_path, sources(1, 1, 1))
    mark(tmp_path, shards[0], failed=1)
    mark(tmp_path, shards[1])
    assert missing(str(tmp_path), shards, False) == []
    assert missing(str(tmp_path), shards, True) == shards[:1]


def test_a_mark_that_is_cut_short_does_not_count(tmp_path):
    shards, _ = plan(tmp_path, sources(1))
    mark(tmp_path, shards[0])
    for text in (b'{"dig', b"{}", b"[]"):
        Path(done_file(str(tmp_path), shards[0])).write_bytes(text)
        assert missing(str(tmp_path), shards, False) == shards


def test_results_of_other_settings_are_not_mixed(tmp_path):
    plan(tmp_path, sources(1))
    with pytest.raises(UserError, match="other settings .score None there, 0.5 now.; choose another --out"):
        plan(tmp_path, sources(1), {**SETTINGS, "score": 0.5})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": {}, "format": 1, "shards": [{}]}'])
def test_a_damaged_plan_is_told(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan.json: is no plan of a plate"):
        plan(tmp_path, sources(1))


def test_labels_of_what_is_gone_are_removed_before_the_plan_forgets_it(tmp_path):
    plan(tmp_path, sources(1, 1))

    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update_plan(str(tmp_path), sources(1), SETTINGS, 2, 10**9, interrupted)
    assert plan(tmp_path, sources(1))[1] == ["001.png"]


def test_folders_with_signs_of_patterns_in_their_names(tmp_path):
    folder = tmp_path / "plate [1]*?"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"123")
    assert [file.path for file in find_sources(str(folder), str(tmp_path / "out"))] == ["a.png"]
    with pytest.raises(UserError, match="would be read as a pattern"):
        list(storage.walk("gs://bucket/plate[1]"))


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = f"{tmp_path}/a/b/file.bin"
    storage.write(target, b"one")
    storage.write(target, b"two")
    assert storage.read(target) == b"two" and os.listdir(tmp_path / "a/b") == ["file.bin"]
    with pytest.raises(ZeroDivisionError), storage.writing(target) as local:
        local.write_bytes(b"three")
        raise ZeroDivisionError
    assert storage.read(target) == b"two" and os.listdir(tmp_path / "a/b") == ["file.bin"]
    storage.remove(target)
    storage.remove(target)
    assert not storage.exists(target)
