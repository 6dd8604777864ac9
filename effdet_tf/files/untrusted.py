"""JSON, YAML, pickles and numpy archives from elsewhere, without what makes a small file large."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, BinaryIO, cast

import numpy as np
import yaml

from effdet_tf.errors import UserError
from effdet_tf.files import encoding_of, read_text
from effdet_tf.files.limits import allow, limit

_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)  # of a string, from within it
_STRING = re.compile(b'"' + _REST.pattern, re.DOTALL)
_LONGEST_STRING = 2**24  # bytes
_OTHERS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, with which a few bytes stand for any number of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As its base; an alias is refused."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        ValueError: when it is none, has aliases, or nests too deeply; its text is one line.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: an impossible date
        raise ValueError(str(error).splitlines()[0]) from None


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: when it is none or nests too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file in any encoding holds; it is to fit into memory.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is none or nests too deeply.
    """
    return parse_json(read_text(path))


class _Shallow:
    """A JSON file to be read in parts, whose lists and objects do not nest beyond the limit."""

    def __init__(self, file: IO[bytes], path: object) -> None:
        """Read from `file`; `path` is for messages."""
        self._file, self._path, self._most = file, path, limit("depth")
        self._depth = self._length = 0
        self._in_string = self._escaped = False  # at the end of what was read

    def read(self, size: int = -1) -> bytes:
        """The next bytes.

        Raises:
            UserError: when they nest too deeply.
        """
        data = self._file.read(size)
        begin = 0
        if self._in_string:
            end = _REST.match(data, int(self._escaped))
            if end is None:
                self._escaped = _ends_escaped(data, self._escaped)
                self._length += len(data)
                if self._length > _LONGEST_STRING:
                    raise UserError(
                        f"{self._path}: is no data set (a text of more than {self._length:,} bytes)"
                    )
                return data
            begin, self._in_string = end.end(), False
        outside, quote, begun = _STRING.sub(b"", data[begin:]).partition(b'"')
        if quote:
            self._in_string, self._escaped, self._length = True, _ends_escaped(begun, False), len(begun)
        brackets = np.frombuffer(outside.translate(None, _OTHERS), np.uint8)
        if brackets.size:
            steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
            depths = self._depth + np.cumsum(steps)
            if (deepest := int(depths.max())) > self._most:
                allow("depth", deepest, self._path)
            self._depth = int(depths[-1])
        return data


def _ends_escaped(data: bytes, escaped: bool) -> bool:
    """Whether the byte behind a part of a string is escaped; so may its first byte be."""
    slashes = len(data) - len(data.rstrip(b"\\"))
    if escaped and slashes == len(data):
        slashes -= 1
    return slashes % 2 == 1


@contextlib.contextmanager
def json_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A JSON file to be read in parts: as UTF-8 without a byte order mark, whatever it is stored as.

    Reading on raises a UserError where lists and objects nest too deeply.
    """
    with open(path, "rb") as file:
        encoding = encoding_of(file.read(4))
        file.seek(3 if encoding == "utf-8-sig" else 0)
        # Others are rare, and small: they are taken into memory.
        plain = file if encoding.startswith("utf-8") else io.BytesIO(read_text(path).encode())
        yield cast(IO[bytes], _Shallow(plain, path))


def read_npz(
    path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, when its names and sizes are in order; pickles are refused.

    Args:
        path: the file.
        shapes: of the arrays that are wanted. Of all others their shape alone is read, and they are zeros
            that take no memory. None: all are wanted.

    Raises:
        UserError: when it asks for too much.
        OSError, ValueError, zipfile.BadZipFile and others of numpy: when it is damaged.
    """
    with np.load(path, allow_pickle=False) as archive:
        entries = archive.zip.infolist()
        allow("names", len(entries), path)
        allow("bytes", sum(entry.file_size for entry in entries) - os.path.getsize(path), path)
        found = {}
        for name in archive.files:
            stated = _shape(archive.zip, name)
            wanted = shapes is None or stated == tuple(shapes.get(name, (-1,)))
            found[name] = archive[name] if wanted else np.broadcast_to(np.float32(0), stated)
        return found


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape of an array by its header."""
    entry = name if name in archive.namelist() else f"{name}.npy"
    with archive.open(entry) as file:
        form = np.lib.format
        first = form.read_magic(file) == (1, 0)
        shape, _, dtype = form.read_array_header_1_0(file) if first else form.read_array_header_2_0(file)
    if math.prod(shape) * dtype.itemsize > archive.getinfo(entry).file_size:
        raise ValueError(f"{name} states more values than it has")
    return tuple(int(side) for side in shape)


class ForbiddenNameError(Exception):
    """A pickle asked for something that its kind of file does not need, and which could run code."""


class PlainUnpickler(pickle.Unpickler):
    """Reads plain values and what stands for the names that it is told; refuses every other name."""

    def __init__(self, stream: BinaryIO, known: Mapping[tuple[str, str], Any]) -> None:
        """Read from a binary stream; `known` is by module and name.

        Raises:
            ValueError: for a pickle that would take memory out of all proportion.
        """
        _hold_to_size(stream)
        super().__init__(stream)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for `module.name`.

        Raises:
            ForbiddenNameError: when nothing does.
        """
        try:
            return self._known[module, name]
        except KeyError:
            raise ForbiddenNameError(f"{module}.{name}") from None


def _hold_to_size(stream: BinaryIO) -> None:
    """Look at a pickle before it is read, from where a stream is, to which it is set back.

    A number of the table of values that were seen makes it as long, and a length of bytes takes them at once.
    """
    begin = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    stream.seek(begin)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise ValueError("a table of values that it has not got")
        if opcode.name == "FRAME" and int(argument or 0) > end - begin:
            raise ValueError("a frame that is larger than the file")
    stream.seek(begin)
