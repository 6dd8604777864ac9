"""One mistake of a new user, and how it is made and answered."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

Prepare = Callable[[Path, pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mistake:
    """A row of the table.

    Attributes:
        what: the user did, for people.
        command: as typed, in a copy of what `places.build` makes.
        code: exit code.
        words: that the answer must hold.
        prepare: makes the situation in that folder.
    """

    what: str
    command: str
    code: int
    words: tuple[str, ...]
    prepare: Prepare | None = None

    @property
    def key(self) -> str:
        """A short name for pytest."""
        return re.sub(r"\W+", "-", self.what).strip("-").lower()[:60]


def run(command: str) -> int:
    """Run a command of ours in this process; returns its exit code."""
    words = shlex.split(command)
    if words[0] == "effdet_tf":
        name, arguments = "effdet_tf.cli", words[1:]
    else:
        assert words[:2] == ["python", "-m"], command
        name, arguments = words[2], words[3:]
    try:
        return importlib.import_module(name).main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def answer(out: str, error: str, words: tuple[str, ...]) -> str:
    """What a user reads: errors and warnings, else the lines on stdout that the words stand in."""
    lines = [line for line in error.splitlines() if re.match(r"(error|warning|note): ", line)]
    if not any(any(word in line for word in words) for line in lines):
        lines += [line.strip() for line in out.splitlines() if any(word in line for word in words)]
    text = re.sub(r"\b\d+ cells:", "N cells:", "\n".join(lines))  # of an untrained network
    return re.sub(r"\d+ of \d+ bytes", "N of M bytes", text)  # as the tif writer's version has it
