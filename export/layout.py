"""The folder of an export: artifacts are made beside it and appear whole, versions are never overwritten."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from effdet_tf.errors import UserError
from effdet_tf.files import LOCK_FILE

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
        """Move the folder of a SavedModel, not empty, to the number after the highest in `saved_model`.

        A number that another export takes meanwhile is left to it.
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
    """Open a folder of exports, made when it is missing; what killed exports left in it is removed.

    However the block ends, only what it has moved to its place stays.

    Raises:
        UserError: when it is a file.
        OSError: when nothing can be written there.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, exports need a folder; choose another one")
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{PREFIX}*"):
        # The lock of a living process times out; without locks on this file system nothing is removed.
        with contextlib.suppress(OSError, NotImplementedError), FileLock(old / LOCK_FILE, timeout=0):
            shutil.rmtree(old, ignore_errors=True)
    folder, lock = _locked_folder(out)
    try:
        yield Staging(out, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        if is_new:
            with contextlib.suppress(OSError):  # it holds artifacts
                out.rmdir()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _locked_folder(out: Path) -> tuple[Path, FileLock]:
    """A new folder and the lock in it, which tells other exports that this process lives.

    A process number would not do: in containers they are all alike.
    """
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=out))
        except OSError as error:
            error.filename = str(out)  # the user knows nothing of the other
            raise
        lock = FileLock(folder / LOCK_FILE)
        with contextlib.suppress(FileNotFoundError):  # another export removed it before it was locked
            (folder / LOCK_FILE).touch()
            with contextlib.suppress(OSError, NotImplementedError):  # no locks: nobody removes it either
                lock.acquire()
        if folder.exists():
            return folder, lock
        lock.release()
