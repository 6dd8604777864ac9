"""What every command does with what goes wrong: one line, and exit code 1."""

from __future__ import annotations

import pytest

from effdet_tf.commands.parser import exit_code


def raising(error: Exception):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "error: out of memory; do this"),
        (MemoryError("Unable to allocate 9 GiB"), "error: out of memory (Unable to allocate 9 GiB); do this"),
        (RuntimeError("RESOURCE_EXHAUSTED\nx"), "error: out of memory (RESOURCE_EXHAUSTED); do this"),
    ],
)  # fmt: skip
def test_too_little_memory_is_one_line(error, line, capsys):
    assert exit_code(raising(error), on_no_memory="do this") == 1
    assert capsys.readouterr().err == f"{line}\n"


def test_tensorflow_without_memory_is_told(capsys):
    import tensorflow as tf

    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmore")
    assert exit_code(raising(error)) == 1
    assert capsys.readouterr().err.startswith("error: out of memory (OOM when allocating); ")


def test_a_fault_of_the_program_is_not_hidden():
    with pytest.raises(RuntimeError, match="a bug"):
        exit_code(raising(RuntimeError("a bug")))
