"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from effdet_tf.files import atomic_write


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a.bin"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.bin")
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.bin"):
        open(tmp_path / "nowhere" / "b.bin")
    assert caught.value.filename == str(tmp_path / "nowhere" / "b.bin")
