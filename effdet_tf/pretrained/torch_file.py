"""PyTorch files (`.pth`, `.pt`, `.bin`) read without PyTorch, and without running what a pickle asks for.

Both formats of `torch.save` hold a pickle that names the tensors and the plain bytes of their storages: a zip
archive since version 1.6, a sequence of pickles before. The pickle is read by an unpickler that knows the few
names a state dict needs and refuses every other, so nothing of a stranger's is called or imported.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.files.limits import allow
from effdet_tf.files.untrusted import ForbiddenNameError, PlainUnpickler

# First number of a file in the old format.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16"}
_DTYPES |= {"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1"}
_DTYPES |= {"ByteStorage": "u1", "BoolStorage": "?"}
# Of a training checkpoint beside its tensors: settings, which we do not read.
_SETTINGS = {("argparse", "Namespace"), ("torch", "device"), ("torch", "dtype"), ("torch", "Size")}
# RuntimeError: a zip member that is encrypted or packed in an unknown way; endless recursion.
_FAULTS: tuple[type[Exception], ...] = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError)
_FAULTS += (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError)
_FAULTS += (MemoryError,)


class _Storage(NamedTuple):
    dtype: str
    key: str
    length: int


class _View(NamedTuple):
    """A tensor: a strided view of a storage that may not have been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Settings:
    """Takes the place of an object whose content is not wanted."""

    def __init__(self, *_: Any) -> None:
        """Accept and forget."""

    def __setstate__(self, state: Any) -> None:
        """Forget."""


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without storage")
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    **{name: _Settings for name in _SETTINGS},
}


class _Unpickler(PlainUnpickler):
    """Knows tensors, dicts and plain values."""

    def __init__(self, stream: BinaryIO) -> None:
        """Read from a binary stream; `storages` collects what tensors refer to."""
        super().__init__(stream, _KNOWN)
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage that a persistent id names."""
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or dtype not in _DTYPES.values() or int(count) < 0:
            raise ValueError("an unknown kind of storage")
        return self.storages.setdefault(str(key), _Storage(dtype, str(key), int(count)))


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read every tensor of what `torch.save` wrote: a state dict, or a training checkpoint around one.

    Gives name -> array in the file's shape and type (bfloat16 as float32); the names of nested dicts are
    joined by dots.

    Raises:
        UserError: when the file is missing, truncated, of another kind, or asks for anything but tensors.
    """
    file = Path(path)
    try:
        with open(file, "rb") as stream:
            found = _read_zip(stream, file) if zipfile.is_zipfile(stream) else _read_legacy(stream, file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except ForbiddenNameError as error:
        raise UserError(
            f"{file}: refused: its pickle asks for {error}, which no state dict needs and which could run "
            "code; save the state dict alone, with torch.save(model.state_dict(), ...)"
        ) from None
    except _FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: not a readable PyTorch file, or a truncated one ({reason[:200]})") from None
    if not found:
        raise UserError(f"{file}: holds no tensors")
    return found


def _read_zip(stream: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    size = stream.seek(0, io.SEEK_END)
    with zipfile.ZipFile(stream) as archive:
        allow("names", len(archive.namelist()), path)
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(names) != 1:
            raise ValueError("a zip archive without data.pkl")
        root = names[0].removesuffix("data.pkl")

        def member(name: str) -> bytes:
            # torch.save never compresses: a member that claims more than the file holds is a bomb.
            if archive.getinfo(name).file_size > size:
                raise ValueError(f"{name} claims to be larger than the file")
            return archive.read(name)

        if root + "byteorder" in archive.namelist() and member(root + "byteorder") != b"little":
            raise ValueError("saved on a big-endian machine")
        tree = _Unpickler(io.BytesIO(member(names[0]))).load()
        return _resolve(tree, lambda storage: member(f"{root}data/{storage.key}"), path)


def _read_legacy(stream: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if _Unpickler(stream).load() != _LEGACY_MAGIC:
        raise ValueError("it does not start as one")
    _Unpickler(stream).load()  # version of the protocol
    system = _Unpickler(stream).load()
    if not system["little_endian"]:
        raise ValueError("saved on a big-endian machine")
    unpickler = _Unpickler(stream)
    tree = unpickler.load()
    blocks = {}
    for key in _Unpickler(stream).load():
        (count,) = struct.unpack("<q", stream.read(8))
        storage = unpickler.storages[key]
        if count != storage.length:
            raise ValueError(f"storage {key} has another length than its tensors say")
        wanted = count * _itemsize(storage.dtype)
        if wanted > size - stream.tell():
            raise EOFError(f"storage {key} ends early")
        blocks[key] = stream.read(wanted)
    return _resolve(tree, lambda storage: blocks[storage.key], path)


def _views(tree: Any, path: Path) -> Iterator[tuple[str, _View]]:
    """Names and tensors; dicts that occur in each other many times over are counted each time."""
    seen, left = 0, [("", tree, 0)]
    while left:
        prefix, value, depth = left.pop()
        seen += 1
        allow("names", seen, path)
        allow("depth", depth, path)
        if isinstance(value, _View):
            yield prefix, value
        elif isinstance(value, dict):
            inner = [
                (f"{prefix}.{name}" if prefix else str(name), one, depth + 1) for name, one in value.items()
            ]
            left += reversed(inner)


def _resolve(tree: Any, read: Callable[[_Storage], bytes], path: Path) -> dict[str, np.ndarray]:
    storages: dict[str, np.ndarray] = {}
    arrays = {}
    taken = 0
    for name, view in _views(tree, path):
        key = view.storage.key
        if key not in storages:
            storages[key] = _decode(read(view.storage), view.storage)
        arrays[name] = _cut(storages[key], view, name)
        taken += arrays[name].nbytes
        allow("bytes", taken - path.stat().st_size, path)  # tensors may share what is stored
    return arrays


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _decode(data: bytes, storage: _Storage) -> np.ndarray:
    if len(data) < storage.length * _itemsize(storage.dtype):
        raise EOFError(f"storage {storage.key} ends early")
    if storage.dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, storage.dtype)


def _cut(values: np.ndarray, view: _View, name: str) -> np.ndarray:
    """Take a tensor's values out of its storage; a view that reaches beyond it would read foreign memory."""
    if len(view.shape) != len(view.strides) or min((*view.shape, *view.strides, view.offset), default=0) < 0:
        raise ValueError(f"{name}: shape {view.shape} and strides {view.strides} do not fit")
    last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    if 0 in view.shape:
        return np.zeros(view.shape, values.dtype)
    # A stride of 0 repeats values: a few bytes could claim any size.
    if last >= len(values) or int(np.prod(view.shape, dtype=object)) > len(values):
        raise ValueError(f"{name} reaches beyond its storage")
    steps = [stride * values.itemsize for stride in view.strides]
    return np.array(
        np.lib.stride_tricks.as_strided(values[view.offset :], view.shape, steps, writeable=False)
    )
