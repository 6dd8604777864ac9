"""Checkpoints, archives and HDF5 files: what is read, and one clear line for every bad one."""

from __future__ import annotations

import io
import sys
import tarfile

import h5py
import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.pretrained import tensorflow_checkpoint
from effdet_tf.pretrained.tensorflow_checkpoint import read_variables
from tests.pretrained.checkpoints.rebuild import write_checkpoint, write_h5

KERNEL = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
VALUES = {"graph": b"text", "net/kernel": KERNEL, "net/WSM": np.float32(0.5), "global_step": np.int64(300)}
LAYERS = {
    "stem": {"stem/conv2d/kernel:0": KERNEL},
    "fpn": {"fpn/WSM:0": np.float32(2), "fpn/WSM_1:0": np.float32(3)},
}
INDEX, DATA = "model.index", "model.data-00000-of-00001"


@pytest.fixture
def folder(tmp_path):
    """A folder with one checkpoint, `model`, as the published archives have it."""
    found = tmp_path / "efficientdet-d0"
    found.mkdir()
    write_checkpoint(found / "model", VALUES)
    state = 'model_checkpoint_path: "/far/away/model"\nall_model_checkpoint_paths: "/far/away/other"\n'
    (found / "checkpoint").write_text(state)
    return found


def pack(folder, name, extra=()):
    """An archive of a folder beside it, with further members `(TarInfo, bytes)`."""
    path = folder.parent / name
    with tarfile.open(path, "w" if name.endswith(".tar") else "w:gz") as tar:
        for info, content in extra:
            tar.addfile(info, io.BytesIO(content))
        tar.add(folder, folder.name)
    return path


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def check(found):
    assert sorted(found) == ["global_step", "net/WSM", "net/kernel"]
    np.testing.assert_array_equal(found["net/kernel"], KERNEL)
    assert found["net/kernel"].dtype == np.float32
    assert found["net/WSM"] == 0.5 and found["net/WSM"].shape == ()
    assert found["global_step"] == 300


def fault(path):
    with pytest.raises(UserError) as caught:
        read_variables(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["", "model", INDEX, DATA])
def test_folders_and_prefixes(folder, name):
    check(read_variables(folder / name))


@pytest.mark.parametrize("name", ["d0.tar.gz", "d0.tgz", "d0.tar", "D0.TAR.GZ"])
def test_archives(folder, name):
    (folder / "._model.index").write_bytes(b"what macOS adds")
    (folder / "model.meta").write_bytes(b"the graph")
    check(read_variables(str(pack(folder, name))))


def test_an_archive_leaves_nothing_behind(folder, monkeypatch, tmp_path):
    path = pack(folder, "d0.tgz")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    check(read_variables(path))
    assert not list(scratch.iterdir())


def test_without_a_state_file_the_only_checkpoint_is_read(folder):
    (folder / "checkpoint").unlink()
    check(read_variables(folder))


def test_the_state_file_decides(folder, capsys):
    write_checkpoint(folder / "ckpt-900", {"other": np.float32(1)})
    check(read_variables(folder))
    assert capsys.readouterr().err == ""


def test_of_several_checkpoints_the_latest_is_read_and_told(folder, capsys):
    for file in folder.iterdir():
        file.unlink()
    for step in (9, 100, 20):
        write_checkpoint(folder / f"ckpt-{step}", {"step": np.int64(step)})
    assert read_variables(folder)["step"] == 100
    assert capsys.readouterr().err == f"note: {folder}: holds 3 checkpoints; ckpt-100 is read, the latest\n"


def test_several_checkpoints_without_steps_are_refused(folder):
    (folder / "checkpoint").unlink()
    write_checkpoint(folder / "ckpt-900", VALUES)
    assert fault(folder) == f"{folder}: holds 2 checkpoints, ckpt-900, model; give one by its name"


def test_a_state_file_that_names_nothing_there_is_refused(folder):
    (folder / "checkpoint").write_text('model_checkpoint_path: "ckpt-7"\n')
    assert "names ckpt-7, but it holds model;" in fault(folder)
    (folder / "checkpoint").write_bytes(b"\xff\x00")
    assert "names nothing, but it holds model;" in fault(folder)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("inside", ["/", "model_weights"])
def test_h5(tmp_path, parts, inside):
    write_h5(tmp_path / "d0.h5", LAYERS, parts, inside)
    found = read_variables(tmp_path / "d0.h5")
    assert sorted(found) == ["fpn/WSM", "fpn/WSM_1", "stem/conv2d/kernel"]
    np.testing.assert_array_equal(found["stem/conv2d/kernel"], KERNEL)
    assert (found["fpn/WSM"], found["fpn/WSM_1"]) == (2, 3)


def test_missing_and_foreign_files(tmp_path):
    other = tmp_path / "weights.zip"
    other.write_bytes(b"PK")
    assert "no such file; give a checkpoint's folder" in fault(tmp_path / "ckpt-1")
    assert "no such file" in fault(tmp_path / "d0.tar.gz")
    assert "no such file" in fault(tmp_path / "d0.h5")
    assert "not a file of TensorFlow" in fault(other)
    assert "holds no TensorFlow checkpoint" in fault(tmp_path)


@pytest.mark.parametrize("name", ["d0.tar.gz", "d0.tar", "d0.h5"])
def test_a_web_page_in_place_of_a_download(tmp_path, name):
    (tmp_path / name).write_text("<html>" + "not found " * 100)
    assert f"{name}: not " in fault(tmp_path / name)


@pytest.mark.parametrize("name", [INDEX, DATA])
def test_truncated_and_damaged_checkpoints(folder, name):
    file = folder / name
    whole = file.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert "a damaged or truncated checkpoint (" in fault(folder)
    file.write_bytes(bytes([*whole[:20], whole[20] ^ 1, *whole[21:]]))
    assert "a damaged or truncated checkpoint (" in fault(folder)
    file.unlink()
    fault(folder)


def test_an_index_that_promises_more_than_the_data_is_refused_before_reading(folder):
    with open(folder / DATA, "r+b") as file:
        file.truncate(50)
    assert "its index promises 108 bytes of tensors, its data files have 50" in fault(folder)


@pytest.mark.parametrize("name", ["d0.tar.gz", "d0.tar"])
def test_truncated_archives(folder, name):
    path = pack(folder, name)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:cut])
        assert str(path) in fault(path)


def test_archives_without_one_checkpoint(folder):
    second = folder / "archive"
    second.mkdir()
    write_checkpoint(second / "ckpt-1", VALUES)
    assert "holds 2 folders with checkpoints" in fault(pack(folder, "d0.tgz"))
    empty = folder.parent / "empty"
    empty.mkdir()
    (empty / "readme.txt").write_text("nothing")
    assert fault(pack(empty, "none.tgz")).endswith("none.tgz: holds no checkpoint")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (member("../../model.index", b"x"), "outside of its folder"),
        (member("/tmp/model.index", b"x"), "outside of its folder"),
        (member("a/../../evil.txt", b"x"), "outside of its folder"),
        (member("d0/model.index", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link or a device"),
        (member("d0/model.index", type=tarfile.LNKTYPE, linkname="../x"), "a link or a device"),
        (member("d0/checkpoint", type=tarfile.FIFOTYPE), "a link or a device"),
    ],
)
@pytest.mark.parametrize("name", ["d0.tgz", "d0.tar"])
def test_hostile_archives_are_refused(folder, name, extra, reason):
    path = pack(folder, name, [extra])
    before = sorted(folder.parent.rglob("*"))
    assert f"{path}: refused: its entry '{extra[0].name}'" in fault(path)
    assert reason in fault(path)
    assert sorted(folder.parent.rglob("*")) == before


def test_a_bomb_is_refused_by_what_it_claims(folder):
    header = member("d0/model.index")[0]
    header.size = 2**42
    path = folder.parent / "bomb.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    assert "refused: its files claim more than 4294967296 bytes" in fault(path)


@pytest.mark.parametrize("name", ["d0/model.index", "d0/model.meta"])
def test_a_bomb_is_refused_by_what_it_expands_to(folder, monkeypatch, name):
    path = pack(folder, "bomb.tgz", [member(name, bytes(600_000)), member(name, bytes(600_000))])
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(tensorflow_checkpoint, "MAX_BYTES", 1_000_000)
    assert "bomb.tgz: refused: its files claim more than 1000000 bytes" in fault(path)
    path = pack(folder, "bomb.tgz", [member(name, bytes(999_999))])
    assert "it expands to more than 1000000 bytes" in fault(path)


def test_a_header_of_gigabytes_is_not_read_into_memory(folder):
    name = member("././@PaxHeader", type=tarfile.XHDTYPE)[0]
    name.size = 2**30
    path = folder.parent / "header.tar"
    path.write_bytes(name.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2**20)
    assert "not a readable archive" in fault(path)


def test_too_many_entries_are_refused(folder, monkeypatch):
    monkeypatch.setattr(tensorflow_checkpoint, "_MAX_ENTRIES", 3)
    assert "more than 3 entries" in fault(pack(folder, "d0.tgz"))


def test_truncated_h5(tmp_path):
    path = tmp_path / "d0.h5"
    write_h5(path, LAYERS)
    whole = path.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:cut])
        assert "not readable Keras 2 weights (.h5), or truncated ones" in fault(path)


def test_other_h5_files_are_refused(tmp_path):
    path = tmp_path / "d0.h5"
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = KERNEL
    assert "no attribute layer_names" in fault(path)
    write_h5(path, LAYERS)
    with h5py.File(path, "r+") as file:
        del file["fpn/fpn/WSM_1:0"]
    assert "fpn/fpn/WSM_1:0 is missing, or a link" in fault(path)
    write_h5(path, {"stem": {"stem/kernel:0": np.array(b"text")}})
    assert "stem/kernel:0 holds no numbers" in fault(path)


def test_h5_reads_no_other_file(tmp_path):
    path, secret = tmp_path / "d0.h5", tmp_path / "secret"
    secret.write_bytes(b"s" * 96)
    write_h5(tmp_path / "other.h5", LAYERS)
    layout = h5py.VirtualLayout(KERNEL.shape, "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "stem/stem/conv2d/kernel:0", KERNEL.shape)
    for kind in ("external storage", "external link", "soft link", "virtual"):
        write_h5(path, LAYERS)
        with h5py.File(path, "r+") as file:
            name = "stem/stem/conv2d/kernel:0"
            del file[name]
            if kind == "external storage":
                file.create_dataset(name, KERNEL.shape, "f4", external=[(str(secret), 0, 96)])
            elif kind == "virtual":
                file.create_virtual_dataset(name, layout)
            else:
                inside = h5py.SoftLink("/fpn/fpn/WSM:0")
                file[name] = inside if kind == "soft link" else h5py.ExternalLink("other.h5", f"/{name}")
        assert "lies in another file" in fault(path) or "or a link" in fault(path), kind


def test_an_h5_bomb_is_refused_by_what_it_claims(tmp_path):
    path = tmp_path / "d0.h5"
    write_h5(path, LAYERS)
    with h5py.File(path, "r+") as file:
        del file["fpn/fpn/WSM:0"]
        file.create_dataset("fpn/fpn/WSM:0", (2**40,), "f4", chunks=(1024,))
    assert "claim more than 4294967296 bytes" in fault(path)


def test_without_tensorflow_the_message_says_where_to_go(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for path in (folder, folder / "model", pack(folder, "d0.tgz")):
        assert "takes TensorFlow, which is not installed; run `weights import` where it is" in fault(path)
    write_h5(tmp_path / "d0.h5", LAYERS)
    assert len(read_variables(tmp_path / "d0.h5")) == 3
