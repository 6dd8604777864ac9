"""The state file: everything back to the bit, or one clear line and nothing touched."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from effdet_tf.errors import UserError
from training.state import DAMAGED_FILE, PREVIOUS_FILE, STATE_FILE, has_state, load_state, save_state

PROGRESS = {"epoch": 3, "elapsed": 0.1 + 0.2, "best": None, "history": [{"epoch": 1, "total": 2.5}]}


def make_groups(seed: int) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    return {
        "network": [
            keras.Variable(rng.normal(size=(3, 4)).astype("float32")),
            keras.Variable(rng.integers(0, 2**31, (2,)), dtype="uint32", trainable=False),
        ],
        "average": [tf.Variable(rng.normal(size=(3, 4)).astype("float32"))],
        "optimizer": [keras.Variable(np.int64(seed), dtype="int64")],
    }


def values(groups: dict[str, list]) -> list[np.ndarray]:
    return [tf.convert_to_tensor(v).numpy().copy() for variables in groups.values() for v in variables]


def test_variables_and_progress_come_back_to_the_bit(tmp_path: Path) -> None:
    saved, loaded = make_groups(1), make_groups(2)
    save_state(tmp_path, saved, PROGRESS)
    assert load_state(tmp_path, loaded) == PROGRESS
    for a, b in zip(values(saved), values(loaded), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


@pytest.mark.parametrize("fault", ["damaged", "missing"])
def test_the_state_before_serves_where_the_last_is_damaged(tmp_path: Path, fault: str, capsys) -> None:
    first, second, loaded = make_groups(1), make_groups(2), make_groups(3)
    save_state(tmp_path, first, PROGRESS)
    save_state(tmp_path, second, {**PROGRESS, "epoch": 4})
    assert {path.name for path in tmp_path.iterdir()} == {STATE_FILE, PREVIOUS_FILE}
    last = tmp_path / STATE_FILE
    if fault == "missing":  # killed between two renames
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:-100])
    assert has_state(tmp_path)
    assert load_state(tmp_path, loaded) == PROGRESS
    for a, b in zip(values(first), values(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
    warning = capsys.readouterr().err
    assert (warning == "") == (fault == "missing")
    assert fault == "missing" or f"{last}: not a readable checkpoint" in warning and PREVIOUS_FILE in warning
    save_state(tmp_path, second, PROGRESS)
    load_state(tmp_path, loaded)
    with np.load(tmp_path / PREVIOUS_FILE) as before:  # the good one was not overwritten by the damaged one
        np.testing.assert_array_equal(before["average/0"], values(first)[2])
    assert (tmp_path / DAMAGED_FILE).exists() == (fault == "damaged")


def test_who_only_reads_leaves_a_damaged_state_where_it_is(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_state(tmp_path, make_groups(seed), PROGRESS)
    (tmp_path / STATE_FILE).write_bytes(b"PK")
    assert load_state(tmp_path, make_groups(3), mend=False) == PROGRESS
    assert (tmp_path / STATE_FILE).read_bytes() == b"PK"


def test_two_damaged_states_are_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_state(tmp_path, make_groups(seed), PROGRESS)
    for name in (STATE_FILE, PREVIOUS_FILE):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=f"{STATE_FILE}: not a readable checkpoint"):
        load_state(tmp_path, make_groups(3))


def test_a_folder_without_state_is_a_fresh_start(tmp_path: Path) -> None:
    assert not has_state(tmp_path)
    assert load_state(tmp_path, make_groups(1)) is None


def larger(groups: dict[str, list]) -> None:
    groups["network"][0] = keras.Variable(np.zeros((3, 5), "float32"))


def longer(groups: dict[str, list]) -> None:
    groups["average"].append(tf.Variable(0.0))


def shorter(groups: dict[str, list]) -> None:
    groups["network"].pop()


@pytest.mark.parametrize("change", [larger, longer, shorter])
def test_the_state_of_another_network_is_refused_whole(tmp_path: Path, change) -> None:
    save_state(tmp_path, make_groups(1), PROGRESS)
    groups = make_groups(2)
    change(groups)
    before = values(groups)
    with pytest.raises(UserError, match="another network"):
        load_state(tmp_path, groups)
    for a, b in zip(before, values(groups), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    save_state(tmp_path, make_groups(1), PROGRESS)
    path = tmp_path / STATE_FILE
    whole = path.read_bytes()
    array = tmp_path / "array.npy"
    np.save(array, np.zeros(3))
    flipped = bytearray(whole)
    flipped[whole.index(b"\x93NUMPY") + 130] ^= 0xFF
    damaged = [whole[:n] for n in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for content in [*damaged, bytes(flipped), b"not an archive", array.read_bytes()]:
        path.write_bytes(content)
        groups = make_groups(2)
        before = values(groups)
        with pytest.raises(UserError) as caught:
            load_state(tmp_path, groups)
        assert STATE_FILE in str(caught.value) and "\n" not in str(caught.value)
        for a, b in zip(before, values(groups), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_failed_save_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, make_groups(1), PROGRESS)
    before = (tmp_path / STATE_FILE).read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_state(tmp_path, make_groups(2), PROGRESS)
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
