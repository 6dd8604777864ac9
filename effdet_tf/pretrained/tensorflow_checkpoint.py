"""Files of TensorFlow: checkpoints, archives of one, and Keras 2's HDF5 weights, as arrays by name.

An archive is taken for hostile: only the files of a checkpoint leave it, into a temporary folder, and what it
claims or expands to is limited. Neither checkpoints nor HDF5 files can make their readers run code.
"""

from __future__ import annotations

import gzip
import os
import re
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import h5py
import numpy as np

from effdet_tf.errors import UserError

MAX_BYTES = 4 * 2**30  # of all tensors; the largest detector with averages and optimizer has 0.9 GiB
_MAX_ENTRIES = 10_000  # of an archive
_MAX_READ = 2**24  # at once; a tar header that claims to be larger is none
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_MEMBER = re.compile(r"checkpoint|[^.].*\.(index|data-\d{5}-of-\d{5})")
_KINDS = "a checkpoint's folder or prefix, a .tar.gz of one, or Keras weights (.h5)"


def read_variables(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all variables of a checkpoint or weights file.

    Args:
        path: a checkpoint's folder, its prefix (`.../ckpt-300`, or its .index or .data file), a `.tar.gz`,
            `.tgz` or `.tar` that holds one, or a `.h5` file of Keras 2. Of several checkpoints in a folder
            the one that its file `checkpoint` names is read; without that file the latest, and a line on
            stderr says so.

    Returns:
        name -> array, as in the file but for the `:0` of Keras's names. Strings (a checkpoint's object
        graph) are no variables and left out.

    Raises:
        UserError: when there is no checkpoint, or it is damaged, of another kind or hostile; when reading it
            takes TensorFlow and there is none.
    """
    file = Path(path)
    if file.is_dir():
        return _read_checkpoint(_prefix_in(file, str(file)), str(file))
    if file.name.lower().endswith(_ARCHIVES):
        return _read_archive(file)
    if file.is_file() and (h5py.is_hdf5(file) or file.suffix.lower() == ".h5"):
        return _read_h5(file)
    prefix = file.with_name(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", file.name))
    if not prefix.with_name(f"{prefix.name}.index").is_file():
        what = "not a file of TensorFlow" if file.exists() else "no such file"
        raise UserError(f"{file}: {what}; give {_KINDS}")
    return _read_checkpoint(prefix, str(file))


def _prefix_in(folder: Path, where: str) -> Path:
    """The checkpoint of a folder that is to be read."""
    names = sorted(f.name.removesuffix(".index") for f in folder.glob("*.index") if f.name[0] != ".")
    if not names:
        raise UserError(f"{where}: holds no TensorFlow checkpoint (no *.index file); give {_KINDS}")
    state = folder / "checkpoint"
    if state.is_file():
        with open(state, encoding="utf-8", errors="replace") as file:
            named = re.search(r'^model_checkpoint_path: *"([^"]*)"', file.read(2**16), re.MULTILINE)
        # A moved folder keeps the path it was written under: the name alone counts.
        name = re.split(r"[/\\]", named[1])[-1] if named else ""
        if name not in names:
            found = f"its file `checkpoint` names {name or 'nothing'}, but it holds {', '.join(names[:5])}"
            raise UserError(f"{where}: {found}; give one of these by its name")
        return folder / name
    if len(names) == 1:
        return folder / names[0]
    steps = {int(m[1]): name for name in names if (m := re.search(r"(\d+)$", name))}
    if len(steps) < len(names):
        found = f"{len(names)} checkpoints, {', '.join(names[:5])}"
        raise UserError(f"{where}: holds {found}; give one by its name")
    latest = steps[max(steps)]
    print(f"note: {where}: holds {len(names)} checkpoints; {latest} is read, the latest", file=sys.stderr)
    return folder / latest


def _read_checkpoint(prefix: Path, where: str) -> dict[str, np.ndarray]:
    try:
        import tensorflow as tf
    except ImportError:
        advice = "run `weights import` where it is, and take the folder that it writes"
        reason = f"reading a TensorFlow checkpoint takes TensorFlow, which is not installed; {advice}"
        raise UserError(f"{where}: {reason}") from None
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        types = reader.get_variable_to_dtype_map()
        shapes = reader.get_variable_to_shape_map()
        kept = [n for n, t in types.items() if t.is_floating or t.is_integer or t.is_bool]
        # The data lie uncompressed: an index that promises more is damaged, or would exhaust the memory.
        promised = sum(types[n].size * int(np.prod(shapes[n], dtype=object)) for n in kept)
        stored = sum(f.stat().st_size for f in prefix.parent.glob(f"{prefix.name}.data-*"))
        if promised > stored:
            raise ValueError(f"its index promises {promised} bytes of tensors, its data files have {stored}")
        return {name: np.asarray(reader.get_tensor(name)) for name in sorted(kept)}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError, MemoryError, OSError) as error:
        raise UserError(f"{where}: a damaged or truncated checkpoint ({_reason(error)})") from None


class _Bounded:
    """A stream for tarfile that refuses to expand beyond `MAX_BYTES`, or to give much at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, position: int) -> int:
        if position > MAX_BYTES:
            raise tarfile.ReadError(f"it expands to more than {MAX_BYTES} bytes")
        return self._stream.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ or self.tell() + size > MAX_BYTES:
            raise tarfile.ReadError(f"it expands to more than {MAX_BYTES} bytes, or has a header that does")
        return self._stream.read(size)


def _read_archive(archive: Path) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with open(archive, "rb") as file:
                packed = file.peek(2)[:2] == b"\x1f\x8b"
                stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
                with tarfile.open(fileobj=cast(Any, _Bounded(stream)), mode="r:") as tar:
                    _unpack(tar, Path(temporary), str(archive))
        except FileNotFoundError:
            raise UserError(f"{archive}: no such file") from None
        except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
            reason = f"not a readable archive, or a truncated one ({_reason(error)})"
            raise UserError(f"{archive}: {reason}") from None
        folders = sorted({f.parent for f in Path(temporary).rglob("*.index")})
        if len(folders) != 1:
            several = f"{len(folders)} folders with checkpoints; unpack it and give one"
            raise UserError(f"{archive}: holds {several if folders else 'no checkpoint'}")
        return _read_checkpoint(_prefix_in(folders[0], str(archive)), str(archive))


def _unpack(tar: tarfile.TarFile, folder: Path, where: str) -> None:
    """Take the files of checkpoints out of an archive, one after the other."""
    size = 0
    for count, member in enumerate(tar):
        name = PurePosixPath(member.name)
        if count >= _MAX_ENTRIES:
            raise tarfile.ReadError(f"more than {_MAX_ENTRIES} entries")
        size += max(member.size, 0)
        if size > MAX_BYTES:
            raise UserError(f"{where}: refused: its files claim more than {MAX_BYTES} bytes")
        if name.is_absolute() or ".." in name.parts:
            outside = f"its entry {member.name!r} would be written outside of its folder"
            raise UserError(f"{where}: refused: {outside}")
        if not _MEMBER.fullmatch(name.name) or member.isdir():
            continue
        if not member.isreg():
            raise UserError(f"{where}: refused: its entry {member.name!r} is a link or a device, not a file")
        tar.extract(member, folder, filter="data")


def _read_h5(file: Path) -> dict[str, np.ndarray]:
    try:
        with h5py.File(file) as root:
            # A whole model keeps its weights in a group; a file of weights is that group.
            group = root["model_weights"] if "model_weights" in root else root
            datasets = dict(_datasets(group))
            if sum(d.nbytes for d in datasets.values()) > MAX_BYTES:
                raise ValueError(f"its datasets claim more than {MAX_BYTES} bytes")
            return {name: np.asarray(dataset[()]) for name, dataset in datasets.items()}
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, MemoryError) as error:
        reason = f"not readable Keras 2 weights (.h5), or truncated ones ({_reason(error)})"
        raise UserError(f"{file}: {reason}") from None


def _datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """The datasets that Keras 2 lists in its attributes, by variable name."""
    for layer in _strings(group, "layer_names"):
        for name in _strings(_inside(group, layer), "weight_names"):
            dataset = _inside(group, f"{layer}/{name}")
            if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
                raise ValueError(f"{name} lies in another file")
            if dataset.dtype.kind not in "fiub":
                raise ValueError(f"{name} holds no numbers")
            yield name.removesuffix(":0"), dataset


def _inside(group: h5py.Group, path: str) -> Any:
    """What lies at a path, which no link may lead to another file."""
    for part in path.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{path} is missing, or a link")
        group = group[part]
    return group


def _strings(group: h5py.Group, name: str) -> list[str]:
    """A list of names; Keras cuts a long one into attributes `name0`, `name1`, ..."""
    found = [group.attrs[name]] if name in group.attrs else []
    while (part := f"{name}{len(found)}") in group.attrs:
        found.append(group.attrs[part])
    if not found:
        raise ValueError(f"no attribute {name}")
    return [n.decode() if isinstance(n, bytes) else str(n) for part in found for n in part]


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
