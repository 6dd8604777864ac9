"""PyTorch files without PyTorch: both formats, every cut, and pickles that want more than tensors."""

from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.pretrained.torch_file import read_state_dict
from tests.pretrained.torch_format import (
    MAGIC,
    Call,
    Global,
    dump,
    tensor,
    write_legacy,
    write_state_dict,
    write_zip,
)

VALUES = np.arange(12, dtype="<f4")
# A transposed view, a shared storage with an offset, half precisions, whole numbers, a scalar.
TREE = {
    "state_dict": collections.OrderedDict(
        turned=tensor("FloatStorage", "0", 12, 0, (4, 3), (1, 4)),
        tail=tensor("FloatStorage", "0", 12, 10, (2,), (1,)),
        half=tensor("HalfStorage", "1", 2, 0, (2,), (1,)),
        brain=tensor("BFloat16Storage", "2", 2, 0, (2,), (1,)),
        count=tensor("LongStorage", "3", 1, 0, (), ()),
        none=tensor("FloatStorage", "0", 12, 0, (0, 3), (3, 1)),
    ),
    "epoch": 7,
    "args": Call(Global("argparse", "Namespace")),
}
STORAGES = {
    "0": VALUES.tobytes(),
    "1": np.array([1.5, -2], "<f2").tobytes(),
    "2": np.array([0x3FC0, 0xC000], "<u2").tobytes(),  # 1.5 and -2
    "3": np.array([41], "<i8").tobytes(),
}
COUNTS = {"0": 12, "1": 2, "2": 2, "3": 1}


@pytest.fixture(params=["zip", "legacy"])
def file(request, tmp_path) -> Path:
    path = tmp_path / "weights.pth"
    if request.param == "zip":
        return write_zip(path, TREE, STORAGES, byteorder=b"little", version=b"3\n")
    return write_legacy(path, TREE, {key: (COUNTS[key], data) for key, data in STORAGES.items()})


def test_tensors_come_out_by_their_dotted_names(file):
    found = read_state_dict(file)
    assert {name: array.shape for name, array in found.items()} == {
        "state_dict.turned": (4, 3),
        "state_dict.tail": (2,),
        "state_dict.half": (2,),
        "state_dict.brain": (2,),
        "state_dict.count": (),
        "state_dict.none": (0, 3),
    }
    np.testing.assert_array_equal(found["state_dict.turned"], VALUES.reshape(3, 4).T)
    assert found["state_dict.tail"].tolist() == [10, 11]
    assert found["state_dict.half"].tolist() == found["state_dict.brain"].tolist() == [1.5, -2]
    assert found["state_dict.brain"].dtype == np.float32
    assert found["state_dict.count"] == 41


def test_a_plain_state_dict_comes_back_as_it_was(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.float32(4).reshape(())}
    found = read_state_dict(write_state_dict(tmp_path / "w.pth", arrays))
    assert list(found) == ["a", "b.c"]
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_any_cut_gives_one_clear_line(file):
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, 23):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"not a readable PyTorch file, or a truncated one") as error:
            read_state_dict(file)
        assert "\n" not in str(error.value) and str(file) in str(error.value)


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (Global("os", "system"), "touch {mark}"),
        (Global("posix", "system"), "touch {mark}"),
        (Global("builtins", "eval"), "open('{mark}', 'w')"),
        (Global("builtins", "getattr"), "x"),
        (Global("torch", "load"), "x"),
        (Global("numpy", "load"), "{mark}"),
        (Global("effdet_tf.pretrained.torch_file", "open"), "{mark}"),
        (Global("torch._utils", "os.system"), "touch {mark}"),
    ],
)
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_pickle_that_tries_to_execute_is_refused(tmp_path, function, argument, write):
    mark = tmp_path / "executed"
    path = write(tmp_path / "evil.pth", {"weight": Call(function, argument.format(mark=mark))}, {})
    with pytest.raises(UserError, match="refused: its pickle asks for") as error:
        read_state_dict(path)
    assert f"{function.module}.{function.name}" in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "view",
    [
        tensor("FloatStorage", "0", 12, 8, (6,), (1,)),  # past the end
        tensor("FloatStorage", "0", 12, 0, (2, 2), (100, 1)),
        tensor("FloatStorage", "0", 12, -4, (2,), (1,)),
        tensor("FloatStorage", "0", 12, 11, (3,), (-1,)),
        tensor("FloatStorage", "0", 12, 0, (10**6, 10**6), (0, 0)),  # 4 TB out of 48 bytes
        tensor("FloatStorage", "0", 10**15, 0, (2,), (1,)),
        tensor("FloatStorage", "9", 12, 0, (2,), (1,)),  # no such storage
    ],
)
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_view_beyond_its_storage_is_refused(tmp_path, view, write):
    data = VALUES.tobytes() if write is write_zip else (12, VALUES.tobytes())
    with pytest.raises(UserError, match="not a readable PyTorch file"):
        read_state_dict(write(tmp_path / "bad.pth", {"w": view}, {"0": data}))


def test_a_compressed_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", dump({"w": tensor("FloatStorage", "0", 2**22, 0, (2,), (1,))}))
        archive.writestr("archive/data/0", bytes(2**24))
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match="larger than the file"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not a readable PyTorch file"),
        (b"hello", "not a readable PyTorch file"),
        (pickle.dumps({"a": 1}), "not a readable PyTorch file"),
        (pickle.dumps(MAGIC), "not a readable PyTorch file"),
    ],
)
def test_other_files_are_named_as_such(tmp_path, content, message):
    path = tmp_path / "other.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_state_dict(path)


def test_a_file_without_tensors_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no tensors"):
        read_state_dict(write_zip(tmp_path / "empty.pth", {"epoch": 3}, {}))
