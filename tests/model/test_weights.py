from __future__ import annotations

import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import assign_arrays, named_variables, read_arrays, save_arrays, to_arrays


@pytest.fixture(scope="module")
def network(tiny_config):
    return build_network(tiny_config)


@pytest.fixture(scope="module")
def arrays(network):
    return to_arrays(network)


def test_weights_survive_the_file_and_make_the_same_network(network, arrays, tiny_config, tmp_path):
    save_arrays(tmp_path / "w.npz", arrays)
    other = build_network(tiny_config)
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype(np.float32)
    expected, before = (n.dense(image, training=False)["class_logits"].numpy() for n in (network, other))
    assert (expected != before).any()
    assign_arrays(other, read_arrays(tmp_path / "w.npz"), "w.npz")
    np.testing.assert_array_equal(other.dense(image, training=False)["class_logits"].numpy(), expected)
    for path, value in to_arrays(other).items():
        np.testing.assert_array_equal(value, arrays[path])
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_every_float_has_a_name_of_its_own(network, arrays):
    assert len(arrays) == len(named_variables(network))
    assert any("mask_head" in path for path in arrays)
    assert any("moving_variance" in path for path in arrays)
    assert not any("seed" in path for path in arrays)
    assert all(value.dtype == np.float32 for value in arrays.values())


def test_a_copy_does_not_follow_the_network(network, arrays):
    path, variable = next(iter(named_variables(network).items()))
    copy = to_arrays(network)[path]
    variable.assign(variable + 1)
    np.testing.assert_array_equal(copy, arrays[path])
    variable.assign(copy)


def test_missing_foreign_and_misshapen_arrays_are_named_and_nothing_is_changed(network, arrays):
    first, second = list(arrays)[:2]
    cases = [
        ({k: v for k, v in arrays.items() if k != first}, f"{first} is missing"),
        ({**arrays, "head/kernel": np.zeros(3)}, "head/kernel is not in this network"),
        ({**arrays, second: np.zeros((2, 2))}, f"{second} has shape (2, 2)"),
    ]
    for wrong, message in cases:
        with pytest.raises(UserError) as error:
            assign_arrays(network, {k: v + 1 for k, v in wrong.items()}, "other.npz")
        assert message in str(error.value)
        assert str(error.value).startswith("other.npz: ")
        assert "(1 in all)" in str(error.value)
    with pytest.raises(UserError, match=rf"\({len(arrays)} in all\)"):
        assign_arrays(network, {}, "other.npz")
    np.testing.assert_array_equal(to_arrays(network)[first], arrays[first])


def test_a_truncated_file_is_refused(arrays, tmp_path):
    path = tmp_path / "w.npz"
    save_arrays(path, arrays)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="w.npz: not a readable weights file"):
            read_arrays(path)


def test_a_damaged_file_is_refused(arrays, tmp_path):
    path = tmp_path / "w.npz"
    save_arrays(path, arrays)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    with pytest.raises(UserError, match="not a readable weights file"):
        read_arrays(path)
    np.savez_compressed(path, **{"a": np.random.default_rng(0).normal(size=2000)})
    whole = bytearray(path.read_bytes())
    whole[300:9000] = bytes(8700)
    path.write_bytes(whole)
    with pytest.raises(UserError, match="not a readable weights file"):
        read_arrays(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(UserError, match="none.npz: no such weights file"):
        read_arrays(tmp_path / "none.npz")
    with pytest.raises(UserError, match="not a readable weights file"):
        read_arrays(tmp_path)


def test_a_file_that_could_run_code_is_refused(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(UserError, match="not a readable weights file"):
        read_arrays(path)


@pytest.mark.parametrize("content", ["array", "text"])
def test_another_kind_of_file_is_refused(content, tmp_path):
    path = tmp_path / "w.npz"
    with path.open("wb") as file:
        if content == "array":
            np.save(file, np.zeros(5))
        else:
            file.write(b"model: d0\n" * 50)
    with pytest.raises(UserError, match="not a readable weights file"):
        read_arrays(path)
