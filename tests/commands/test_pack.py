"""`pack`: every record comes back to the bit, and a damaged or foreign file is one clear line."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile

from effdet_tf import cli
from effdet_tf.data.packed import load_packed
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError

CELLS = {"gray8": 3, "rgb8": 2, "none": 0}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two data sets: 8 bit, gray and RGB, one image without cells; and 16 bit."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pack")
    pixels = {
        "eight": {
            "gray8": rng.integers(0, 256, (40, 60), np.uint8),
            "none": rng.integers(0, 256, (30, 50), np.uint8),
            "rgb8": rng.integers(0, 256, (50, 40, 3), np.uint8),
        },
        "sixteen": {"gray16": rng.integers(0, 65536, (44, 36), np.uint16)},
    }
    for name, images in pixels.items():
        for kind in ("images", "masks"):
            (folder / name / kind).mkdir(parents=True)
        for stem, image in images.items():
            labels = np.zeros(image.shape[:2], np.uint16)
            for cell in range(CELLS.get(stem, 4)):
                labels[4 + 6 * cell : 9 + 6 * cell, 10 : 20 + cell] = cell + 1
            tifffile.imwrite(folder / name / "images" / f"{stem}.tif", image)
            tifffile.imwrite(folder / name / "masks" / f"{stem}.tif", labels)
        words = ["convert", "labelmaps", folder / name, folder / "data" / name, "--quiet", "--workers", 1]
        assert cli.main([str(word) for word in words]) == 0
    return folder / "data" / "eight", folder / "data" / "sixteen"


def pack(*words: object) -> int:
    return cli.main(["pack", *map(str, words)])


@pytest.mark.parametrize("chosen", [(0,), (1,), (0, 1)], ids=["8 bit", "16 bit", "both"])
def test_every_record_comes_back_to_the_bit(converted, chosen, tmp_path: Path, capsys) -> None:
    folders = [converted[k] for k in chosen]
    out = tmp_path / "set.npz"
    assert pack(*folders, out) == 0
    packed, store = load_packed(out), RecordStore(folders)
    cells = sum((5, 4)[k] for k in chosen)
    assert f"wrote {out}: {store.images} images, {cells} cells, classes cell" in capsys.readouterr().out
    assert packed.arrays["image"].dtype == (np.uint16 if 1 in chosen else np.uint8)
    for name in ("images", "class_names", "category_ids", "fingerprint", "max_cells", "mask_size", "masks"):
        assert getattr(packed, name) == getattr(store, name), name
    np.testing.assert_array_equal(packed.cell_sizes, store.cell_sizes)
    counts = []
    for number in range(store.images):
        found = packed.fetch(number)
        expected = {name: value.numpy() for name, value in store.fetch(number).items()}
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype, name
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        counts.append(len(found["classes"]))
    assert sum(counts) == cells and (0 in counts) == (0 in chosen)
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_the_same_data_give_the_same_bytes(converted, tmp_path: Path) -> None:
    assert pack(converted[0], tmp_path / "a.npz") == 0 == pack(converted[0], tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_nothing_is_replaced_unasked(converted, tmp_path: Path, capsys) -> None:
    out = tmp_path / "set.npz"
    out.write_bytes(b"mine")
    assert pack(converted[0], out) == 1 and "exists already" in one_error(capsys)
    assert out.read_bytes() == b"mine"
    assert pack(converted[0], out, "--overwrite") == 0
    assert load_packed(out).images == 3


def test_the_last_name_must_be_the_file(converted, capsys) -> None:
    assert pack(*converted) == 1
    assert "must end in .npz" in one_error(capsys)


def test_a_folder_without_data_is_refused(tmp_path: Path, capsys) -> None:
    assert pack(tmp_path, tmp_path / "set.npz") == 1
    assert "holds no manifest.json" in one_error(capsys) and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def arrays(converted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("good") / "set.npz"
    assert pack(converted[0], out) == 0
    with np.load(out, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def about(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("boxes", None, "no boxes"),
        ("image", lambda a: a[:-1], "pixels or cells are missing"),
        ("image", lambda a: a.astype(np.float32), "image is float32"),
        ("count", lambda a: a + 1, "pixels or cells are missing"),
        ("size", lambda a: -a, "without pixels"),
        ("masks", lambda a: a[:, :5], r"masks is uint8 \[5, 5, 28\], not uint8 \[5, 28, 28\]"),
        ("masks", lambda a: a.reshape(-1), "masks is uint8"),
        ("classes", lambda a: a + 9, "unknown class"),
        ("about", lambda a: about('{"format": 9}'), "format 9, this version reads 1"),
        ("about", lambda a: about("[]"), "not what"),
        ("about", lambda a: np.uint8([0xFF, 0xFE]), "not what"),
        ("about", None, "about"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(arrays, name, change, said, tmp_path: Path) -> None:
    changed = {key: value for key, value in arrays.items() if key != name}
    if change is not None:
        changed[name] = change(arrays[name])
    np.savez(tmp_path / "set.npz", **changed)
    with pytest.raises(UserError, match=said) as caught:
        load_packed(tmp_path / "set.npz")
    assert "set.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_another_kind_are_refused(converted, arrays, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pack it first.* effdet_tf pack"):
        load_packed(converted[0])
    with pytest.raises(UserError, match="no such packed data set"):
        load_packed(tmp_path / "none.npz")
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    np.savez(tmp_path / "pickled.npz", boxes=np.array([{"a": 1}], object))
    start = zipfile.ZipFile(path).getinfo("image.npy").header_offset
    broken = bytearray(whole)
    broken[start + 60 : start + 400] = b"\xff" * 340  # within the compressed pixels: no deflate stream
    for content in (
        bytes(broken),
        b"",
        whole[:1000],
        whole[: len(whole) // 2],
        (tmp_path / "pickled.npz").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a readable packed data set") as caught:
            load_packed(path)
        assert "\n" not in str(caught.value)
