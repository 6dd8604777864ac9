"""Commands that other commands are made of."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from effdet_tf.errors import UserError


def run_step(module: str, command: Callable[[list[str]], int], words: Sequence[object]) -> None:
    """Print a command as one would type it, and run it.

    Args:
        module: `python -m` name.
        command: its `main`.
        words: its arguments.

    Raises:
        UserError: when it fails.
    """
    arguments = [str(word) for word in words]
    line = f"python -m {module} {shlex.join(arguments)}"
    print(f"\n$ {line}", flush=True)
    if command(arguments) != 0:
        raise UserError(f"stopped at `{line}`; its message stands above")
