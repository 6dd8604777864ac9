"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write, locked


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a.bin"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.bin")
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.bin"):
        open(tmp_path / "nowhere" / "b.bin")
    assert caught.value.filename == str(tmp_path / "nowhere" / "b.bin")


def test_unfinished_files_have_names_that_nobody_guesses(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with atomic_write(tmp_path / "a.bin") as temporary:
            names.add(temporary.name)
            temporary.write_bytes(b"x")
    assert len(names) == 3 and all(name.startswith(".tmp-") and name.endswith("-a.bin") for name in names)


@pytest.mark.parametrize("name", [".lock", ".lock-holder", ".lock-a.npz"])
def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    target = tmp_path / "precious.txt"
    target.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(target)
    with pytest.raises(UserError, match="is a link, which no lock is; remove it"):
        with locked(tmp_path / "out", file="a.npz" if name.endswith("npz") else ""):
            raise AssertionError
    assert target.read_text() == "precious"


def test_what_killed_processes_left_below_is_cleared(tmp_path: Path) -> None:
    for place in ("a/b", "held", "held/below"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / ".tmp-99-0123abcd-x.csv").touch()
        (tmp_path / place / "x.csv").touch()
    with locked(tmp_path / "held"), locked(tmp_path):
        (tmp_path / "held" / ".tmp-99-0123abcd-y.csv").touch()
        with locked(tmp_path, file="z"):
            pass
    assert not (tmp_path / "a/b/.tmp-99-0123abcd-x.csv").exists()
    assert (tmp_path / "held/.tmp-99-0123abcd-y.csv").exists()  # of a process that goes on
    assert all((tmp_path / place / "x.csv").exists() for place in ("a/b", "held", "held/below"))


def test_two_files_of_a_folder_are_held_apart(tmp_path: Path) -> None:
    for name in ("a.npz", "b-a.npz"):
        (tmp_path / f".tmp-99-0123abcd-{name}").touch()
    with locked(tmp_path, "packs there", "a.npz"):
        assert not (tmp_path / ".tmp-99-0123abcd-a.npz").exists()  # of a process that was killed
        assert (tmp_path / ".tmp-99-0123abcd-b-a.npz").exists()  # of one that goes on
        with locked(tmp_path, "packs there", "b.npz"):
            pass
        with (
            pytest.raises(UserError, match=r"a\.npz: process \d+ on .* packs there"),
            locked(tmp_path, "packs there", "a.npz"),
        ):
            raise AssertionError
