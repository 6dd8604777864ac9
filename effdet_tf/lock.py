"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from effdet_tf.errors import UserError
from effdet_tf.files import TEMPORARY

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(folder: Path, work: str = "is training there") -> Iterator[None]:
    """Hold a folder for the block, made when it is missing.

    What an earlier holder left half written is removed. The lock is the system's: it goes with the process,
    however that ends, and the file that it hangs on says who held it last.

    Args:
        folder: to hold.
        work: what its holder does, for the message to another one.

    Raises:
        UserError: when the folder cannot be made, or another process holds it; says which.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if folder.is_file() else error.strerror
        raise UserError(f"--out {folder}: {reason}; name a folder that can be made") from error
    with open(folder / LOCK_FILE, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "another process"
            raise UserError(f"{folder}: {who} {work}; stop it, or choose another --out") from None
        except OSError as error:
            raise UserError(
                f"{folder / LOCK_FILE}: cannot be locked ({error.strerror}); choose an --out on another disk"
            ) from None
        for left in folder.glob(f"{TEMPORARY}*"):  # by a process that was killed while it saved
            left.unlink(missing_ok=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
