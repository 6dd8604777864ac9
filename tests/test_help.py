"""Every command's help: it has examples, they parse, and its lines fit a terminal."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from effdet_tf import cli
from effdet_tf.commands.parser import HelpFormatter, Parser, walk
from training import benchmark

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("training", "export")
    for path in (ROOT / package).rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def parsers() -> Iterator[Parser]:
    yield from walk(cli.build_parser())
    for module in MODULES:
        yield importlib.import_module(module).build_parser()


PARSERS = {parser.prog: parser for parser in parsers()}


def test_all_commands_are_looked_at():
    assert {"training.main", "training.evaluate", "export.main", "export.client"} <= set(MODULES)
    assert {"effdet_tf predict", "effdet_tf weights import", "effdet_tf convert coco"} <= set(PARSERS)
    assert {f"python -m {module}" for module in MODULES} <= set(PARSERS)


@pytest.mark.parametrize("prog", PARSERS)
def test_a_command_has_examples_that_parse(prog):
    parser = PARSERS[prog]
    assert parser.examples, f"{prog} has no example: give its Parser `examples`"
    for what, arguments in parser.examples:
        assert what
        words = shlex.split(arguments.partition(" > ")[0])
        if prog == "python -m training.benchmark":  # what it does not know is for training.main
            benchmark._parse(words)
        else:
            parser.parse_args(words)


@pytest.mark.parametrize("prog", PARSERS)
def test_examples_stand_in_the_help_as_a_shell_takes_them(prog):
    text = PARSERS[prog].format_help()
    for what, arguments in PARSERS[prog].examples:
        assert f"  # {what}\n" in text
        commands = re.sub(r" \\\n +", " ", text)
        assert f"\n  {prog} {arguments}".rstrip() in commands


@pytest.mark.parametrize("columns", ["20", "80", "100", "300"])
@pytest.mark.parametrize("prog", PARSERS)
def test_lines_fit_80_to_100_columns(prog, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for line in PARSERS[prog].format_help().splitlines():
        assert len(line) <= min(max(int(columns), 80), 100), line


def test_lists_stay_and_prose_is_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    prose = f"{'word ' * 14}end\nof a sentence that goes on in the next line of the source."
    listed = f"writes\n  a.tif   {'what it is ' * 8}\n  b.tif   more"
    lines = HelpFormatter("x")._fill_text(f"{prose}\n\n{listed}", 80, "").splitlines()
    assert lines[:2] == [f"{'word ' * 14}end of a", "sentence that goes on in the next line of the source."]
    assert lines[3] == "writes" and lines[4].startswith("  a.tif   what it is")
    assert lines[5].startswith(" " * 10 + "it is") and lines[6:] == ["  b.tif   more"]


@pytest.mark.parametrize("prog", ["effdet_tf", "python -m effdet_tf"])
def test_help_names_the_command_as_it_was_called(prog, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "--help"], prog)
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith(f"usage: {prog} predict ")
    assert f"\n  {prog} predict images/ --out found\n" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["predcit"], "invalid choice: 'predcit'; did you mean predict? (usage: effdet_tf --help)"),
        (["train"], "it is `python -m training.main` (usage: effdet_tf --help)"),
        (["convert", "cocoa", "a", "b"], "did you mean coco? (usage: effdet_tf convert --help)"),
        (["info", "--jsn"], "--jsn; did you mean --json? (usage: effdet_tf info --help)"),
        (["info", "a", "b"], "unrecognized arguments: b (usage: effdet_tf info --help)"),
        (["convert", "coco", "a", "b", "--limt=3"], "did you mean --limit? (usage: effdet_tf convert coco"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_that_names_what_is_near(words, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert expected in error
