"""Commands that other commands are made of."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from effdet_tf import cli
from effdet_tf.data.manifest import MANIFEST_NAME
from effdet_tf.errors import UserError


def run_step(
    module: str, command: Callable[[list[str]], int], words: Sequence[object], shown: int | None = None
) -> None:
    """Print a command as one would type it, and run it; a UserError when it fails.

    Args:
        module: `python -m` name.
        command: its `main`.
        words: its arguments.
        shown: print this many of them and the last three; None prints all.
    """
    arguments = [str(word) for word in words]
    text = shlex.join(arguments)
    if shown is not None and len(arguments) > shown + 3:
        text = f"{shlex.join(arguments[:shown])} ... {shlex.join(arguments[-3:])}"
    line = f"python -m {module} {text}"
    print(f"\n$ {line}", flush=True)
    if command(arguments) != 0:
        raise UserError(f"stopped at `{line}`; its message stands above")


def convert(kind: str, source: Path, folder: Path, *words: object) -> None:
    """Convert images with `effdet_tf convert KIND SOURCE FOLDER`, unless that was done before.

    Raises:
        UserError: when it fails.
    """
    if not (folder / MANIFEST_NAME).exists():
        words = ("convert", kind, source, folder, *words, "--overwrite", "--quiet")
        run_step("effdet_tf", cli.main, words)
