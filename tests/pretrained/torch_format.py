"""The two formats of torch.save, written byte by byte as PyTorch 1.0 and 2.13 write them."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


class Global:
    """Pickles as the bare name of something in a module that is not installed."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Pickles as a call of a Global."""

    def __init__(self, function: Global, *arguments: object) -> None:
        self.function, self.arguments = function, arguments


class Reference:
    """Pickles as a storage's persistent id."""

    def __init__(self, dtype: str, key: str, count: int) -> None:
        self.id = ("storage", Global("torch", dtype), key, "cpu", count)


class Pickler(pickle._Pickler):  # the one in Python: its opcodes can be written by hand
    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            super().save(obj.arguments)
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        return obj.id if isinstance(obj, Reference) else None


def dump(value: object) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def tensor(dtype: str, key: str, count: int, offset: int, shape: tuple, strides: tuple) -> Call:
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(
        rebuild, Reference(dtype, key, count), offset, shape, strides, False, collections.OrderedDict()
    )


def write_zip(path: Path, tree: object, storages: dict[str, bytes], **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dump(tree))
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


def write_legacy(path: Path, tree: object, storages: dict[str, tuple[int, bytes]]) -> Path:
    parts = [dump(MAGIC), dump(1001), dump(SYSTEM), dump(tree), dump(list(storages))]
    path.write_bytes(
        b"".join(parts) + b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    )
    return path


def write_state_dict(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write float32 arrays as torch.save(state_dict) does."""
    tree = collections.OrderedDict()
    storages = {}
    for key, (name, array) in enumerate(arrays.items()):
        data = np.array(array, "<f4", order="C")
        strides = tuple(n // 4 for n in data.strides)
        tree[name] = tensor("FloatStorage", str(key), data.size, 0, data.shape, strides)
        storages[str(key)] = data.tobytes()
    return write_zip(path, tree, storages)
