"""Small files that ask for much: each is answered at once, in one line, with little memory."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from effdet_tf.config import Config, load_config
from effdet_tf.data.faults import Faults
from effdet_tf.data.sources.coco import open_coco
from effdet_tf.data.sources.outline_files import read_geojson, read_rois
from effdet_tf.errors import UserError
from effdet_tf.files import limits
from effdet_tf.files.untrusted import json_file, parse_yaml, read_npz
from effdet_tf.images.read import Stack, read_image
from effdet_tf.pretrained.torch_file import read_state_dict

_MEMORY = 64 << 20


@contextlib.contextmanager
def frugal() -> Iterator[None]:
    """The block takes little memory, as far as Python and numpy tell of it."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < _MEMORY
    finally:
        tracemalloc.stop()


def put(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def tiff(values: dict[int, int], data: bytes, following: int = 0) -> bytes:
    """A tif of one strip or tile, `data`, with the tags `values`; the next directory is at `following`."""
    where, count = (324, 325) if 322 in values else (273, 279)
    tags = sorted({258: 8, 259: 8, 262: 1, 277: 1, **values, where: 8, count: len(data)}.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)


ZEROS = zlib.compress(bytes(2**26), 9)


@pytest.mark.parametrize("read", [read_image, Stack])
@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (1, 1)])
def test_pages_that_lead_back_to_each_other(tmp_path: Path, read: Callable, first: int, second: int) -> None:
    stack = io.BytesIO()
    tifffile.imwrite(stack, np.zeros((3, 16, 16), np.uint8), photometric="minisblack", metadata=None)
    data = bytearray(stack.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = list(file.pages)
    source = pages[second + 1 if second > first else second]
    count = int.from_bytes(data[source.offset : source.offset + 2], "little")
    place = source.offset + 2 + 12 * count
    data[place : place + 4] = pages[first].offset.to_bytes(4, "little")
    with frugal(), pytest.raises(UserError, match="its pages lead back to each other"):
        read(put(tmp_path / "loop.tif", bytes(data)))


def test_a_chain_of_too_many_pages_and_how_to_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(
        tmp_path / "s.tif", np.zeros((12, 16, 16), np.uint8), photometric="minisblack", metadata=None
    )
    monkeypatch.setenv("EFFDET_LIMITS", "pages=11")
    with pytest.raises(UserError, match=r"12 pages of a file, more than 11; EFFDET_LIMITS=pages=N"):
        Stack(tmp_path / "s.tif")
    monkeypatch.setenv("EFFDET_LIMITS", "values=1000, pages=12")
    with Stack(tmp_path / "s.tif") as stack:
        assert stack.pages == 12
    for wrong in ("pages=no", "page=3", "pages", "pages=0"):
        monkeypatch.setenv("EFFDET_LIMITS", wrong)
        with pytest.raises(UserError, match="write kind=number, with pixels, values"):
            limits.limit("pages")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({256: 16384, 257: 16384, 278: 16384, 277: 65535}, "pixels x samples"),
        ({256: 9000, 257: 9000, 278: 9000, 277: 20}, "pixels x samples"),
        ({256: 16, 257: 16, 322: 65520, 323: 65520}, "pixels x samples"),
        ({256: 2**31, 257: 2**31, 278: 16}, "is more than"),
        ({256: 16, 257: 16, 278: 16}, "cannot be decoded|damaged"),  # expands to 64 MB
    ],
)
def test_tifs_that_ask_for_much(tmp_path: Path, values: dict[int, int], told: str) -> None:
    path = put(tmp_path / "x.tif", tiff(values, ZEROS))
    with frugal(), pytest.raises(UserError, match=told):
        read_image(path)


def test_ordinary_tifs_of_the_same_kind_are_read(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = put(tmp_path / "x.tif", tiff({256: 16, 257: 16, 278: 16}, zlib.compress(pixels.tobytes())))
    assert (read_image(path)[..., 0] == pixels).all()
    tile = np.zeros((32, 32), np.uint8)
    tile[:16, :16] = pixels
    path = put(tmp_path / "t.tif", tiff({256: 16, 257: 16, 322: 32, 323: 32}, zlib.compress(tile.tobytes())))
    assert (read_image(path)[..., 0] == pixels).all()


# JSON and YAML


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [], "annotations": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"images": [], "annotations": ' + '{"a": ' * 50_000 + "1" + "}" * 50_000 + "}",
        '{"a": ' + '["]", ' * 50_000 + "1" + "]" * 50_000 + "}",  # the text hides the depth
        '{"a": ' + '["\\"]", ' * 50_000 + "1" + "]" * 50_000 + "}",
        "[" * 3_000_000,
    ],
)
def test_json_that_nests_without_end(tmp_path: Path, text: str) -> None:
    path = put(tmp_path / "x.json", text)
    with frugal(), pytest.raises(UserError, match="levels of nested lists and objects, more than 100"):
        open_coco(path, tmp_path, tmp_path)
    with frugal(), pytest.raises(UserError, match="is no GeoJSON"):
        read_geojson(path, Faults())


def test_a_text_without_end(tmp_path: Path) -> None:
    path = put(tmp_path / "x.json", '{"images": "' + "x" * 20_000_000)
    with pytest.raises(UserError, match="is no data set"):
        open_coco(path, tmp_path, tmp_path)


def test_the_depth_of_json_is_followed_in_any_parts(tmp_path: Path) -> None:
    source = random.Random(0)
    words = ("a", '"', "\\", "[", "]{", '\\"', "[[[", '\\\\"[', "\\\\")

    def value(depth: int) -> Any:
        kind = source.random()
        if depth and kind < 0.4:
            return [value(depth - 1) for _ in range(source.randrange(4))]
        if depth and kind < 0.7:
            return {source.choice(words): value(depth - 1) for _ in range(source.randrange(3))}
        return source.choice([1, None, *words])

    for _ in range(500):
        text = json.dumps(value(8)).encode()
        path = put(tmp_path / "x.json", text)
        with json_file(path) as file:
            size = source.choice((1, 2, 3, 7, 1000))
            assert b"".join(iter(lambda: file.read(size), b"")) == text  # noqa: B023 (called at once)
            assert (file._depth, file._in_string) == (0, False)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "model: &m {preset: lite0}\ntrain: *m\n",
        "a: " + "[" * 20_000,
        "a: 2026-13-45",
        "a: !!python/object/apply:os.system [ls]",
    ],
)
def test_yaml_that_grows_or_runs(tmp_path: Path, text: str) -> None:
    with frugal(), pytest.raises(ValueError, match="."):
        parse_yaml(text)
    with frugal(), pytest.raises(UserError, match="not a YAML file") as told:
        load_config(put(tmp_path / "config.yaml", text))
    assert "\n" not in str(told.value)
    with pytest.raises(UserError):
        Config().override([f"train.epochs={text.partition(': ')[2]}"])


# Archives


def test_archives_of_numbers_are_looked_at_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (2**24,)}
        )
        with archive.open("big.npy", "w") as file:
            file.write(header.getvalue())
            for _ in range(64):
                file.write(bytes(2**20))
    monkeypatch.setenv("EFFDET_LIMITS", f"bytes={2**25}")
    with frugal(), pytest.raises(UserError, match="bytes that a file expands to beyond its own size"):
        read_npz(path)


def test_arrays_that_do_not_fit_the_network_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    wanted = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez_compressed(path, a=wanted, b=np.zeros((5000, 5000), np.float32), foreign=np.zeros((4000, 4000)))
    with frugal():
        found = read_npz(path, {"a": (2, 3), "b": (3, 3)})
    assert {name: array.shape for name, array in found.items()} == {
        **{"a": (2, 3), "b": (5000, 5000)},
        "foreign": (4000, 4000),
    }
    assert (found["a"] == wanted).all() and found["a"].dtype == np.float32


def test_regions_in_a_zip_that_expands(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(3):
            archive.writestr(f"{k}.roi", bytes(2**26))
    with frugal(), pytest.raises(UserError, match="bytes that a file expands to"):
        read_rois(path, Faults())


def torch(path: Path, tree: bytes, storage: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", tree)
        archive.writestr("a/data/0", storage)
    return path


def tensor(name: str, length: int) -> bytes:
    """A pickled pair: a name, and a tensor that is all of storage 0."""
    count = length.to_bytes(4, "little")
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuJ" + count + b"tQ"
    key = b"X" + len(name).to_bytes(4, "little") + name.encode()
    return key + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0J" + count + b"\x85K\1\x85tR"


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (b"\x80\2}r\xff\xff\xff\x3f.", "a table of values that it has not got"),
        (b"\x80\4\x95\xff\xff\xff\x7f\0\0\0\0}.", "a frame that is larger than the file"),
        (b"\x80\4\x8e\xff\xff\xff\x7f\0\0\0\0abc.", "bytes8"),
        (b"\x80\2\x8b\xff\xff\xff\x7fabc.", "long4"),
        (b"\x80\2}q\0X\1\0\0\0ah\0s.", "levels of nested lists"),  # holds itself
        # 40 dicts, each of which holds the one before twice
        (
            b"\x80\2}q\0" + b"".join(b"}q" + bytes([k + 1]) + b"(X\1\0\0\0ah" + bytes([k]) + b"X\1\0\0\0bh"
                                    + bytes([k]) + b"u" for k in range(40)) + b".",
            "entries of an archive, tensors of a network",
        ),
        # 5,000 tensors of one storage
        (b"\x80\2}(" + b"".join(tensor(str(k), 250_000) for k in range(5000)) + b"u.", "expands to beyond"),
    ],
)  # fmt: skip
def test_pickles_that_grow(tmp_path: Path, tree: bytes, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFDET_LIMITS", f"bytes={2**25}, names=20000")
    path = torch(tmp_path / "x.pth", tree, bytes(1_000_000))
    with frugal(), pytest.raises(UserError, match=told) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


def test_tensors_that_share_a_storage_are_read(tmp_path: Path) -> None:
    values = np.arange(8, dtype="<f4")
    path = torch(tmp_path / "x.pth", b"\x80\2}(" + tensor("a", 8) + tensor("b", 8) + b"u.", values.tobytes())
    found = read_state_dict(path)
    assert list(found) == ["a", "b"] and all((array == values).all() for array in found.values())


def test_the_page_states_the_limits() -> None:
    page = (Path(__file__).resolve().parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    for kind, (most, _) in limits._MEANING.items():
        assert f"| `{kind}` | {most:,} |" in page
