"""The folder of an export: artifacts are made beside it and appear whole, versions are never overwritten."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from effdet_tf.errors import UserError

PREFIX = ".tmp-export-"  # of the folders in which exports are made
SAVED_MODEL = "saved_model"
TFLITE = "tflite"


class Staging:
    """A temporary folder inside the folder of exports, whose finished parts are moved to their places.

    Attributes:
        out: the folder of exports.
        folder: the temporary folder.
        finished: what has its place already, in order.
    """

    def __init__(self, out: Path, folder: Path) -> None:
        self.out = out
        self.folder = folder
        self.finished: list[Path] = []

    def add_version(self, made: Path) -> Path:
        """Move the folder of a SavedModel to the number after the highest in `saved_model`.

        Args:
            made: a folder that is not empty, inside `folder`.

        Returns:
            Its place. A number that another export takes meanwhile is left to it.
        """
        versions = self.out / SAVED_MODEL
        versions.mkdir(exist_ok=True)
        number = max((int(inner.name) for inner in versions.iterdir() if inner.name.isdecimal()), default=0)
        while True:
            number += 1
            try:
                os.rename(made, versions / str(number))  # only onto what is not there, or is empty
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
            else:
                self.finished.append(versions / str(number))
                return versions / str(number)

    def put(self, made: Path, name: str) -> Path:
        """Move a file to `name` in the folder of exports, in place of an older one."""
        final = self.out / name
        final.parent.mkdir(exist_ok=True)
        os.replace(made, final)
        self.finished.append(final)
        return final


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Staging]:
    """Open a folder of exports; what killed exports left in it is removed.

    However the block ends, only what it has moved to its place stays.

    Args:
        out: made when it is missing.

    Yields:
        Where to make things.

    Raises:
        UserError: when it is a file.
        OSError: when nothing can be written there.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, exports need a folder; choose another one")
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{PREFIX}*"):
        _remove_if_left(old)
    folder, lock = _make(out)
    try:
        yield Staging(out, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        if is_new:
            with contextlib.suppress(OSError):  # it holds artifacts
                out.rmdir()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())


def _make(out: Path) -> tuple[Path, int]:
    """A new folder, and the lock on it that tells other exports that its process lives.

    A process number would not do: in containers they are all alike.
    """
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=out))
        except OSError as error:
            error.filename = str(out)  # the user knows nothing of the other
            raise
        # Until it is locked, another export may take it for a left one and remove it.
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # a file system without locks: nobody removes it either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def _remove_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:  # gone meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its process lives
        return
    finally:
        os.close(lock)
