"""`effdet_tf serve`: a local web app that outlines the cells of images that are dropped on it."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys

from effdet_tf.commands.parser import between, positive
from effdet_tf.commands.predict import add_size_options, sizing_of
from effdet_tf.errors import needs
from effdet_tf.runs import DEFAULT_MODEL

_DESCRIPTION = """\
Open a local web app: drop images (8 or 16 bit or float, gray or RGB, tif, png, jpg, bmp), see every cell
outlined, move the score threshold, compare networks, and take the files that `predict --score X` writes.

Only this computer reaches it, unless --host says otherwise. Nothing is loaded from or sent to
elsewhere. Images and results are kept in a temporary folder until the command ends."""


_HELP = {
    "run": "trained run or export to start with; the networks that come with the package can be chosen in "
    "the web app (default: %(default)s)",
    "host": "address to listen on; another than %(default)s lets other computers in, without a password",
    "token": "let in only who has the link, which gets a secret of its own: on a machine with several users",
    "timeout": "seconds that an image may take; then it is given up, and the network started again "
    "(default: %(default)s)",
    "pixels": "largest height x width of an image (default: %(default)s); above it, outlines come slowly "
    "in a browser",
}


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `serve` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="a local web app: drop images, see outlines, move the threshold, take the files",
        description=_DESCRIPTION,
        examples=[
            ("with the network of the package; opens the browser", ""),
            ("with a network of one's own, on a fixed port", "--run runs/mine --port 9000"),
        ],
        epilog="exit codes: 0 ended by Ctrl-C, 1 failed, 2 wrong usage",
    )
    add = parser.add_argument
    add("--run", dest="run_folder", default=DEFAULT_MODEL, metavar="RUN", help=_HELP["run"])
    port = "default: 8765, or the next that is free; 0 takes any"
    add("--port", type=between(0, 65535, int), metavar="N", help=port)
    add("--host", default="127.0.0.1", metavar="ADDRESS", help=_HELP["host"])
    add_size_options(parser)
    add("--max-pixels", type=positive(int), default=25_000_000, metavar="N", help=_HELP["pixels"])
    add("--token", action="store_true", help=_HELP["token"])
    add("--timeout", type=positive(float), default=600.0, metavar="S", help=_HELP["timeout"])
    add("--no-open", dest="open", action="store_false", help="open no browser")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve the web app until Ctrl-C; returns the exit code."""
    sizing = sizing_of(args)
    with needs("serve", "the web app"):
        from effdet_tf.webapp.launch import bind, serve

    with bind(args.host, args.port) as listening:  # a port in use is told before the network is loaded
        print(f"loading {args.run_folder} ...", flush=True)
        from effdet_tf.webapp.networks import Networks
        from effdet_tf.webapp.session import Limits, Session

        session = Session(Networks(args.run_folder, args.timeout, sizing), Limits(pixels=args.max_pixels))
        token = secrets.token_urlsafe(24) if args.token else ""
        # Without a display, Python would start a browser in the terminal.
        display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        screen = sys.platform in ("win32", "darwin") or bool(display)
        # A process that was started in the background ignores Ctrl-C: there it ends without an exception.
        with contextlib.suppress(KeyboardInterrupt):
            serve(session, listening, args.host, args.open and screen, token)
        print("ended", flush=True)
        if session.at_work:
            # Python would wait for the network's thread; the session's files are gone already.
            os._exit(0)
    return 0
