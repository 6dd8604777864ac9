"""What every command line shares: parsers with examples, number options, one-line errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NoReturn

from effdet_tf.commands.tensorflow_noise import hush_tensorflow
from effdet_tf.errors import NO_MEMORY, UserError, did_you_mean, no_memory

_WIDTH = (80, 100)  # narrowest and widest help, columns
_FULL = 60  # columns of a line of prose that goes on in the next; a shorter one ends
_MARGIN = re.compile(r" *(?:\S.{0,32}?  +)?")  # of a line: its indentation, or all before its second column
_WHOLE: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
_FROM_PYTHON = ContextVar("_FROM_PYTHON", default=False)  # options come from a call: faults are raised


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps lists and commands in descriptions as they are, and wraps prose to 80 to 100 columns."""

    def __init__(self, prog: str, **options: Any) -> None:
        columns = min(max(shutil.get_terminal_size((_WIDTH[1], 24)).columns, _WIDTH[0]), _WIDTH[1])
        super().__init__(prog, max_help_position=26, width=columns, **options)

    def add_argument(self, action: argparse.Action) -> None:
        """As argparse's, which forgets that the names of verbs are indented once more."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            longest = max(map(len, action.choices), default=0)
            self._action_max_length = max(self._action_max_length, longest + 2 * self._indent_increment)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.splitlines():
            prose = lines and lines[-1] and line and " " not in (lines[-1][0], line[0])
            if prose and len(lines[-1].rpartition("\n")[2]) > _FULL:
                lines[-1] += f" {line}"
            else:
                lines.append(line)
        return "\n".join(_fold(indent + line, width) for line in lines)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, **_WHOLE)


def _fold(line: str, width: int) -> str:
    """A line in lines of at most `width`; what follows stands below the text of a two-column list."""
    found = _MARGIN.match(line)
    margin = " " * (found.end() if found else 0)
    return line if len(line) <= width else textwrap.fill(line, width, subsequent_indent=margin, **_WHOLE)


class Parser(argparse.ArgumentParser):
    """A parser with examples in its help, whose faults take one line and name what is near.

    Attributes:
        examples: (what it does, arguments) of each example.
        elsewhere: words that a user may take for verbs here, and the commands that they are.
    """

    elsewhere: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **options: Any) -> None:
        """As argparse's; the examples stand before the epilog.

        Args:
            args: as argparse's.
            examples: what each of them does, and the arguments behind the command, as in a shell.
            options: as argparse's.
        """
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, **options)
        self.examples = tuple(examples)
        if examples:
            shown = [f"  # {what}\n{_command(f'{self.prog} {words}')}" for what, words in examples]
            heading = "examples:" if len(examples) > 1 else "example:"
            self.epilog = "\n".join([heading, *shown]) + (f"\n\n{self.epilog}" if self.epilog else "")

    def error(self, message: str) -> NoReturn:
        """Say on one line what is wrong and where the usage stands, and exit with 2; raise it in `called`."""
        if _FROM_PYTHON.get():
            raise UserError(message)
        self.exit(2, f"error: {message} (usage: {self.prog} --help)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; what is unknown is answered by the verb that it was given to, with near options."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self
            while action := parser._verbs():
                parser = action.choices[getattr(found, action.dest)]
            option = next((word.partition("=")[0] for word in unknown if word.startswith("--")), "")
            known = [name for name in parser._option_string_actions if name.startswith("--")]
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(option, known)}")
        return found

    def _verbs(self) -> argparse._SubParsersAction | None:
        """The action that takes a verb; None where there are no verbs."""
        return next((a for a in self._actions if isinstance(a, argparse._SubParsersAction)), None)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        if value in self.elsewhere:
            raise argparse.ArgumentError(action, f"no verb {value!r} here; it is `{self.elsewhere[value]}`")
        advice = did_you_mean(str(value), known) or f"; choose from {', '.join(known)}"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{advice}")


def walk(parser: Parser) -> Iterator[Parser]:
    """The parsers that take arguments themselves: this one, or those of all its verbs."""
    action = parser._verbs()
    if action is None:
        yield parser
    else:
        for verb in action.choices.values():
            yield from walk(verb)


@contextlib.contextmanager
def called(parser: Parser, words: Sequence[object], options: Mapping[str, Any]) -> Iterator[list[str]]:
    """The arguments of a command whose options are given in Python; what is wrong is raised within.

    Args:
        parser: of the command.
        words: the arguments without a name.
        options: value by name, `cell_type="A172"` for `--cell-type A172`: True and False for a switch, a list
            where the command takes several, a dict for `KEY=VALUE`; None leaves an option out.

    Raises:
        UserError: for an option that the command lacks, and within for what its parser refuses.
    """
    arguments = [str(word) for word in words]
    inner = parser
    for word in arguments:
        if (verbs := inner._verbs()) is None:
            break
        inner = verbs.choices.get(word, inner)
    switches = inner._option_string_actions
    known = {
        name[2:].replace("-", "_"): name for name in switches if name.startswith("--") and name != "--help"
    }
    for key, value in options.items():
        if key not in known:
            raise UserError(f"{inner.prog} has no option {key!r}{did_you_mean(key, known)}")
        arguments += _option_words(switches[known[key]], known[key], value)
    token = _FROM_PYTHON.set(True)
    try:
        yield arguments
    finally:
        _FROM_PYTHON.reset(token)


def _option_words(action: argparse.Action, name: str, value: Any) -> list[str]:
    """An option as it is typed; nothing for None."""
    if value is None:
        return []
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{name[2:].replace('-', '_')}={value!r}: give True or False")
        off = f"--no-{name[2:]}"
        return [name] if value else [off] if off in action.option_strings else []
    if isinstance(value, Mapping):
        value = [f"{key}={one}" for key, one in value.items()]
    several = [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]
    if isinstance(action, argparse._AppendAction):
        return [f"{name}={one}" for one in several]
    return [f"{name}={','.join(several)}"] if action.nargs is None else [name, *several]


def _command(command: str) -> str:
    """A command in lines that a shell takes, each beginning with an option or a redirection."""
    first, *parts = re.split(r" (?=--|> )", command)
    lines = [f"  {first}"]
    for part in parts:
        if len(lines[-1]) + len(part) < _WIDTH[0] - 3:
            lines[-1] += f" {part}"
        else:
            lines.append(f"      {part}")
    return " \\\n".join(lines)


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """An argparse type for numbers above 0; `kind` is int or float."""
    return _number(kind, lambda value: value > 0, "is not above 0")


def between(low: float, high: float, kind: type[int] | type[float] = float) -> Callable[[str], float]:
    """An argparse type for numbers from `low` to `high`; `kind` is int or float."""
    return _number(kind, lambda value: low <= value <= high, f"is not between {low} and {high}")


def _number(
    kind: type[int] | type[float], accepts: Callable[[float], bool], fault: str
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"{text} {fault}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # what argparse calls it in its message
    return parse


count = _number(int, lambda value: value >= 0, "is below 0")
"""An argparse type for whole numbers from 0 up."""


def exit_code(
    command: Callable[[], int | None],
    on_os_error: str = "",
    on_interrupt: str = "",
    on_no_memory: str = NO_MEMORY,
) -> int:
    """Run a command and turn a user's mistake, a failing disk, too little memory or Ctrl-C into one line.

    Args:
        command: does the work; returns its exit code, or None for 0.
        on_os_error: what to add to the message of a failing file.
        on_interrupt: likewise for Ctrl-C.
        on_no_memory: what to do when memory does not suffice.

    Returns:
        The command's own code, or 1.
    """
    hush_tensorflow()
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
    except Exception as error:
        if (reason := no_memory(error)) is None:
            raise
        message = f"{reason}; {on_no_memory}"
    print(f"error: {message}", file=sys.stderr)
    return 1
