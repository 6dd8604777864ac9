"""The one exception that a user's mistake or a user's file may raise."""

from __future__ import annotations


class UserError(Exception):
    """Bad input from outside: says what is wrong, where, and what to do, on one line.

    The command line prints it as `error: ...` and exits with code 1.
    """
