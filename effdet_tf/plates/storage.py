"""Files on a disk or in a bucket, by Apache Beam's file systems: local paths, gs://, s3://, hdfs://, azfs://."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from effdet_tf.errors import UserError
from effdet_tf.files import TEMPORARY, atomic_write

# By default, Beam unpacks and packs by the suffix.
_open = partial(FileSystems.open, compression_type=CompressionTypes.UNCOMPRESSED)
_create = partial(FileSystems.create, compression_type=CompressionTypes.UNCOMPRESSED)


def join(base: str, *parts: str) -> str:
    """A path below another, with "/" between."""
    return "/".join([base.rstrip("/") or "/", *(part.strip("/") for part in parts)])


def is_local(path: str) -> bool:
    """Whether a path is of this machine's own file system."""
    return FileSystems.get_scheme(path) is None


def below(folder: str, path: str) -> str | None:
    """Where a path lies below a folder, with "/" at the end; None when it does not."""
    if is_local(folder) != is_local(path):
        return None
    if is_local(folder):
        folder, path = os.path.realpath(folder), os.path.realpath(path)
    folder, path = folder.rstrip("/") + "/", path.rstrip("/") + "/"
    return path[len(folder) :] if path.startswith(folder) and path != folder else None


def walk(folder: str) -> Iterator[tuple[str, int, int]]:
    """Every file below a folder: path below it, size in bytes, date in whole seconds since 1970.

    A folder that is not there has none.

    Raises:
        UserError: when it cannot be listed.
    """
    if is_local(folder):
        for place, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(place, name)
                with contextlib.suppress(FileNotFoundError):  # gone since
                    entry = os.stat(path)
                    yield os.path.relpath(path, folder), entry.st_size, int(entry.st_mtime)
        return
    root = folder.rstrip("/")
    if set(root) & set("*?["):
        raise UserError(f"{folder}: * ? and [ in the name of a bucket's folder would be read as a pattern")
    try:
        found = FileSystems.match([f"{root}/**"])[0].metadata_list
    except (BeamIOError, ValueError) as error:  # ValueError: the store's own package is not installed
        causes = [*(getattr(error, "exception_details", None) or {}).values(), error]
        reason = str(causes[0]).splitlines()[0]
        raise UserError(f"{folder}: cannot be listed ({reason})") from error
    for entry in found:
        path = entry.path[len(root) :].lstrip("/")
        yield path, int(entry.size_in_bytes), int(entry.last_updated_in_seconds or 0)


def exists(path: str) -> bool:
    """Whether a file is there."""
    return FileSystems.exists(path)


def read(path: str) -> bytes:
    """The whole of a file.

    Raises:
        OSError: when it cannot be read.
    """
    with _open(path) as file:
        return file.read()


def write(path: str, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with writing(path) as local:
        local.write_bytes(content)


def remove(path: str) -> None:
    """Remove a file, where it is there."""
    if FileSystems.exists(path):
        FileSystems.delete([path])


@contextlib.contextmanager
def writing(path: str) -> Iterator[Path]:
    """Yield a local path to write to; what is there at the end appears under `path`, whole.

    Raises:
        OSError: when it cannot be written.
    """
    if is_local(path):
        with atomic_write(path) as temporary:
            yield temporary
        return
    folder, name = path.rsplit("/", 1)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / name
        yield local
        with contextlib.suppress(OSError):  # there already, perhaps by another worker
            FileSystems.mkdirs(folder)
        unfinished = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}-{name}"
        try:
            with open(local, "rb") as source, _create(unfinished) as target:
                shutil.copyfileobj(source, target)
            remove(path)  # buckets refuse to rename onto what is there
            FileSystems.rename([unfinished], [path])
        except BaseException:
            with contextlib.suppress(Exception):
                FileSystems.delete([unfinished])
            raise


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """A file of a bucket as a local one, with its suffix; a local file as it is.

    Raises:
        OSError: when it cannot be read.
    """
    if is_local(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / path.rsplit("/", 1)[-1]
        with _open(path) as source, open(local, "wb") as target:
            shutil.copyfileobj(source, target)
        yield local
