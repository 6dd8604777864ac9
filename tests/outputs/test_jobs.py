"""From files, patterns and folders to images with unique output names."""

from __future__ import annotations

from pathlib import Path

import pytest

from effdet_tf.errors import UserError
from effdet_tf.outputs.jobs import find_images


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A folder as users have them; the files are empty, since only names count here."""
    for name in (
        "plate/A1.tif",
        "plate/a2.TIF",
        "plate/day 2/A1.png",
        "plate/day 2/deep/B.jpeg",
        "plate/notes.txt",
        "plate/.hidden.tif",
        "plate/.cache/x.tif",
        "plate/A1.labels.tif",
        "plate/A1.overlay.png",
        "other/A1.tif",
        "other/odd[1].tif",
        "empty/readme.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _names(*inputs: str) -> list[str]:
    return [job.name for job in find_images(inputs)]


def test_folder_is_searched_through_and_mirrored(tree):
    jobs = find_images([tree / "plate"])
    assert [job.name for job in jobs] == ["A1", "a2", "day 2/A1", "day 2/deep/B"]
    assert [job.path.name for job in jobs] == ["A1.tif", "a2.TIF", "A1.png", "B.jpeg"]


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["plate/A1.tif"], ["A1"]),
        (["plate/*.tif"], ["A1"]),  # its own label image is not an input
        (["plate/**"], ["A1", "a2", "day 2/A1", "day 2/deep/B"]),
        (["plate/**/*.png"], ["day 2/A1"]),
        (["*/A1.tif"], ["other/A1", "plate/A1"]),
        (["./plate/day*"], ["day 2/A1", "day 2/deep/B"]),  # a folder that a pattern matches
        (["other/odd[1].tif"], ["odd[1]"]),  # a file of that very name goes before the pattern
        (["plate/notes.txt"], ["notes"]),  # named on purpose: tried, and refused when it is read
        (["plate", "plate/A1.tif", "./plate/../plate/A1.tif"], ["A1", "a2", "day 2/A1", "day 2/deep/B"]),
    ],
)
def test_files_and_patterns(tree, inputs, names):
    assert _names(*inputs) == names


def test_same_stem_in_one_folder_keeps_the_suffix(tree):
    for name in ("A1.png", "a1.jpg"):
        (tree / "other" / name).touch()
    assert sorted(_names("other")) == ["A1.png", "A1.tif", "a1.jpg", "odd[1]"]


def test_same_name_from_two_folders_takes_the_folder_then_a_number(tree):
    assert _names("plate/A1.tif", "other/A1.tif") == ["plate__A1.tif", "other__A1.tif"]
    (tree / "more" / "plate").mkdir(parents=True)
    (tree / "more" / "plate" / "A1.tif").touch()
    assert _names("plate/A1.tif", "more/plate/A1.tif") == ["plate__A1.tif", "plate__A1.tif-2"]


def test_longer_name_that_meets_a_short_one_still_differs(tree):
    for name in ("x.tif", "x.png", "x.tif.png"):
        (tree / "empty" / name).touch()
    names = _names("empty")
    assert len(set(names)) == 3 and "x.png" in names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("empty", "no image in this folder"),
        ("plate/*.bmp", "matches no file"),
        ("plate/none.tif", "does not exist"),
    ],
)
def test_no_match_is_said(tree, text, message):
    with pytest.raises(UserError, match=message) as caught:
        find_images(["plate", text])
    assert str(caught.value).startswith(text)
