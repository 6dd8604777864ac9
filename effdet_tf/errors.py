"""The exception for a user's mistake or file, and what they may have meant."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable, Iterator

NO_MEMORY = "use smaller images, or close other programs"  # the advice where memory does not suffice


class UserError(Exception):
    """Bad input from outside: says what is wrong, where, and what to do, on one line.

    The command line prints it as `error: ...` and exits with code 1.
    """


def reason_of(error: BaseException) -> str:
    """Why one image failed, in a line; an error that no code of ours expects is told as such."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if (reason := no_memory(error)) is not None:
        return f"{reason}; {NO_MEMORY}"
    text = _first_line(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".removeprefix(": ")
    return f"unexpected: {type(error).__name__}{f': {text}' if text else ''}"


def no_memory(error: BaseException) -> str | None:
    """`out of memory (reason)` when an error of Python, TensorFlow or JAX says that; None for another one."""
    tensorflow = sys.modules.get("tensorflow")  # that raises its own is loaded
    exhausted = (MemoryError, *([tensorflow.errors.ResourceExhaustedError] if tensorflow else []))
    if not isinstance(error, exhausted) and "RESOURCE_EXHAUSTED" not in str(error)[:200]:
        return None
    text = _first_line(error)
    return f"out of memory{f' ({text})' if text else ''}"


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(getattr(error, "message", error)).splitlines())
    return next((line[:300] for line in lines if line), "")


@contextlib.contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Tell of a package that is missing, with the command that installs it.

    Args:
        extra: of this package, which brings it.
        what: wants it, as the subject of the sentence.

    Raises:
        UserError: in place of an ImportError of the block.
    """
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in ("effdet_tf", "training", "export"):
            raise
        raise UserError(
            f'{what} needs {missing}, which is not installed: pip install "effdet_tf[{extra}]"'
        ) from error


def did_you_mean(word: str, known: Iterable[str], folder: str = "") -> str:
    """`; did you mean X or Y?` for the known words that are near, or nothing.

    Args:
        word: the unknown one.
        known: the others.
        folder: in which they lie, where they are names of files.
    """
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.65)
    return f"; did you mean {' or '.join(os.path.join(folder, name) for name in near)}?" if near else ""


def near_files(path: str | os.PathLike[str]) -> str:
    """`did_you_mean` for a path that does not exist: by what lies in its folder."""
    folder, name = os.path.split(os.path.normpath(path))
    if not os.path.isdir(folder or ".") or not os.access(folder or ".", os.R_OK | os.X_OK):
        return ""
    return did_you_mean(
        name, sorted(set(os.listdir(folder or ".")) - {name}), folder
    )  # a broken link is there
