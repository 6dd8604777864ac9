"""Serve an exported network on this machine: `python -m export.server DIR/saved_model`."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from effdet_tf.commands.parser import Parser, exit_code, positive

_DESCRIPTION = """\
A small server that speaks TensorFlow Serving's two protocols, REST and gRPC, to try an exported
network out and to test clients. It is NOT for production: no batching, no new versions while it
runs, no encryption. Use the tensorflow/serving container there (see DIR/SERVING.md).
Stop it with Ctrl-C or SIGTERM."""

_MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop; returns 0 then, 1 when it cannot start."""
    options = build_parser().parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from export.servable import Servable

    servable = Servable(options.folder, options.name, options.concurrency, options.max_pixels)
    from export.serving_protocols import Server  # needs a package that may be missing

    server = Server(servable, options.host, options.rest_port, options.grpc_port, options.max_request * _MIB)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    rest, grpc = f"http://{options.host}:{server.rest_port}", f"grpc://{options.host}:{server.grpc_port}"
    print(f"serving {servable.name}, version {servable.version}: {rest} {grpc}", flush=True)
    stop.wait()
    server.stop()


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m export.server",
        description=_DESCRIPTION,
        examples=[
            ("the newest version of an export, on the usual ports", "exports/mine/saved_model"),
            (
                "on other ports, for other machines",
                "exports/mine/saved_model --host 0.0.0.0 --rest-port 9001 --grpc-port 9000",
            ),
        ],
    )
    add, whole = parser.add_argument, positive(int)
    add("folder", type=Path, metavar="SAVED_MODEL", help="folder of versions; the highest is served")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    for protocol, port in (("rest", 8501), ("grpc", 8500)):
        taken = f"0 takes a free one (default: {port})"
        add(f"--{protocol}-port", type=int, default=port, metavar="PORT", help=taken)
    add("--name", default="cells", help="of the model (default: cells)")
    at_once = "requests that are computed at a time; others wait (default: 1)"
    add("--concurrency", type=whole, default=1, metavar="N", help=at_once)
    pixels = "largest sum of height x width of a request's images (default: %(default)s)"
    add("--max-pixels", type=whole, default=2048 * 2048, metavar="N", help=pixels)
    add("--max-request", type=whole, default=64, metavar="MIB", help="largest request, MiB (default: 64)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
