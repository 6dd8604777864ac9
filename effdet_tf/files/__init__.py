"""Files that appear whole, text in any encoding, folders that one process holds, and the cores it may use."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from effdet_tf.errors import UserError

TEMPORARY = ".tmp-"  # how names of unfinished files begin
LOCK_FILE = ".lock"
_HOLDER_FILE = ".lock-holder"  # which process holds the lock, for the message to another one


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has where it is confined, as in a container."""
    if hasattr(os, "sched_getaffinity"):  # Linux alone has it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` when the block ends well.

    The temporary name keeps the suffixes of `path`, since writers choose the format by them.

    Args:
        path: the final file; its folder is made when it is missing.

    Yields:
        The path to write to.

    Raises:
        OSError: when it cannot be written; its `filename` says which file.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # What cannot be guessed is no link that another user of the folder has laid there.
    temporary = final.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{final.name}")
    try:
        yield temporary
        os.replace(temporary, final)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # of a write, which knows no name
            error.filename = os.fspath(final)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn a failure to write into the user's error, which ends the run: the next image would fail alike."""
    try:
        yield
    except OSError as error:
        place, reason = error.filename or out, error.strerror or error
        advice = "make room or choose another folder"
        raise UserError(f"{place}: cannot be written ({reason}); {advice}") from error


# Marks at the beginning of a file, the longer ones first, and how it goes on.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(head: bytes) -> str:
    """The encoding that the byte order mark of a file tells; UTF-8 without one."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, or as its byte order mark says; the mark is no part of it.

    Raises:
        OSError: when it cannot be read.
        UnicodeDecodeError: when it is no text.
    """
    data = Path(path).read_bytes()
    return data.decode(encoding_of(data))


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically, with a newline at the end.

    Raises:
        TypeError: when `value` holds something JSON has no form for.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")


@contextlib.contextmanager
def locked(folder: Path, work: str = "is training there", file: str = "") -> Iterator[None]:
    """Hold a folder, made when it is missing, for the block.

    What an earlier holder left half written is removed. The lock is the system's: it goes with the process,
    however that ends.

    Args:
        folder: to hold.
        work: what its holder does, for the message to another one.
        file: in the folder, to hold in its place.

    Raises:
        UserError: when the folder cannot be made, or another process holds it; says which.
    """
    ending = f"-{file}" if file else ""
    lock_file, holder = folder / f"{LOCK_FILE}{ending}", folder / f"{_HOLDER_FILE}{ending}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if folder.is_file() else error.strerror
        raise UserError(f"--out {folder}: {reason}; name a folder that can be made") from error
    for path in (lock_file, holder):
        if path.is_symlink():
            raise UserError(f"{path}: is a link, which no lock is; remove it")
    lock = FileLock(lock_file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        who = "another process"
        with contextlib.suppress(OSError):  # it may end meanwhile
            who = holder.read_text(encoding="utf-8").strip() or who
        raise UserError(f"{folder / file}: {who} {work}; stop it, or choose another --out") from None
    except (OSError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"{lock_file}: cannot be locked ({reason}); choose an --out on another disk"
        ) from None
    try:
        _clear(folder, file)
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            lock_file.unlink(missing_ok=True)
        lock.release()


def _clear(folder: Path, file: str) -> None:
    """Remove what killed processes left unfinished of a file, or of all in a folder and below it.

    Folders below that are held by themselves are passed over.
    """
    for path, folders, names in os.walk(folder):
        held = Path(path) != folder and LOCK_FILE in names
        if file or held:
            folders.clear()
        for name in () if held else names:
            if name.startswith(TEMPORARY) and (not file or name.split("-", 3)[-1] == file):
                (Path(path) / name).unlink(missing_ok=True)
