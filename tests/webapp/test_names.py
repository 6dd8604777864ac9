"""Names of a browser's files lead nowhere."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from effdet_tf.webapp.names import clean_name, names_of_outputs


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a.tif", "a.tif"),
        ("plate 1/Zellen é.tif", "plate 1/Zellen é.tif"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("..\\..\\Windows\\a.tif", "Windows/a.tif"),
        ("C:\\cells\\a.tif", "C_/cells/a.tif"),
        ("a/./b/../c.tif", "a/b/c.tif"),
        ("a\0b\r\n.tif", "ab.tif"),
        ("\u202egnp.tif", "gnp.tif"),
        ("...", "image"),
        ("", "image"),
        ('x"<y>|?*.tif', "x__y____.tif"),
    ],
)
def test_a_name_is_a_path_below_its_start(given: str, kept: str) -> None:
    assert str(clean_name(given)) == kept


def test_long_names_keep_their_end() -> None:
    name = clean_name("a" * 5000 + ".tif").name
    assert len(name) <= 150 and name.endswith("a.tif")
    deep = clean_name("/".join("abcdefghijklmnopqrstuvwxyz") + "/cell.tif")
    assert len(deep.parts) == 12 and deep.name == "cell.tif"


def test_outputs_are_named_as_predict_names_them() -> None:
    def named(*images: tuple[str, bool]) -> list[str]:
        return names_of_outputs([(PurePosixPath(name), rooted) for name, rooted in images])

    assert named(("plate/a.tif", True), ("plate/sub/b.tif", True)) == ["a", "sub/b"]
    assert named(("a.tif", False), ("a.png", False)) == ["a.tif", "a.png"]
    assert named(("one/a.tif", True), ("two/a.tif", True)) == ["one__a.tif", "two__a.tif"]
    assert named(("a.tif", False), ("a.tif", False)) == ["a.tif", "a.tif-2"]
