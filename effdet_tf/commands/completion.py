"""`effdet_tf completion SHELL`: the script that lets a shell complete verbs, options and files."""

from __future__ import annotations

import argparse
from pathlib import Path

from effdet_tf.commands.parser import walk

SHELLS = ("bash", "zsh", "tcsh")
# What stands for files and folders in help texts, where the type of an option does not say so: patterns,
# and names of networks, may be given there, too.
_PATHS = ("IMAGES", "RUN", "SOURCE", "FOLDER", "DIR", "OUT", "DATA", "FILE")


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `completion` to the command line."""
    parser = subparsers.add_parser(
        "completion",
        help="print the script that lets a shell complete effdet_tf's verbs, options and files",
        description="Print the completion script of a shell for the command `effdet_tf`.",
        examples=[
            ("bash, from the next shell on", "bash > ~/.local/share/bash-completion/completions/effdet_tf"),
            ("zsh, into a folder that $fpath names", "zsh > ~/.zsh/completions/_effdet_tf"),
            ("tcsh, sourced by ~/.tcshrc", "tcsh > ~/.effdet_tf.tcsh"),
        ],
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the script; returns the exit code."""
    import shtab

    parser = args.build_parser()
    for verb in walk(parser):
        for action in verb._actions:
            if action.type is Path or action.metavar in _PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0
