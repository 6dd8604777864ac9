"""What every command line shares: number options, quiet progress bars, one-line errors and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from effdet_tf.errors import UserError


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """An argparse type for numbers above 0; `kind` is int or float."""

    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # what argparse calls it in its message
    return parse


def count(text: str) -> int:
    """An argparse type for whole numbers from 0 up."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


count.__name__ = "whole number"  # what argparse calls it in its message


def exit_code(command: Callable[[], int | None], on_os_error: str = "", on_interrupt: str = "") -> int:
    """Run a command and turn a user's mistake, a failing disk or Ctrl-C into one line on stderr.

    Args:
        command: does the work; returns its exit code, or None for 0.
        on_os_error: what to add to the message of a failing file.
        on_interrupt: likewise for Ctrl-C.

    Returns:
        The command's own code, or 1.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # progress bars in a log file: a line now and then
    try:
        return command() or 0
    except UserError as error:
        message = str(error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}{on_os_error}"
    except KeyboardInterrupt:
        message = f"interrupted{on_interrupt}"
    print(f"error: {message}", file=sys.stderr)
    return 1
