"""Find the cells of images by asking a server: `python -m export.client --url ... IMAGES --out DIR`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from effdet_tf.commands.parser import Parser, exit_code, positive
from effdet_tf.commands.predict import COLUMNS, FILES, add_output_options, predict_images

_DESCRIPTION = f"""\
Send images to TensorFlow Serving, or to python -m export.server, and write what
`python -m effdet_tf predict` writes, for each image:
{FILES}
REST (http://host:8501) needs no TensorFlow here, gRPC (grpc://host:8500) is faster.
Pixels are sent without loss, as 8 or 16-bit PNG, whatever format the files have."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 done, 1 failed, 3 some images failed (2, wrong usage, is argparse's)."""
    options = build_parser().parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return exit_code(lambda: _run(options), on_os_error="; choose another --out")


def _run(options: argparse.Namespace) -> int:
    from effdet_tf.outputs.jobs import find_images
    from export.remote import RemotePredictor, connect

    images = find_images(options.images)  # a wrong name is told before the server is asked
    connection = connect(options.url, options.model, options.version, options.timeout, options.max_message)
    return predict_images(RemotePredictor(connection), images, options)


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m export.client",
        description=_DESCRIPTION,
        examples=[
            ("by REST", "--url http://localhost:8501 images/ --out found"),
            (
                "by gRPC, from another machine",
                '--url grpc://server:8500 "plate1/*.tif" --score 0.4 --out found',
            ),
        ],
        epilog=COLUMNS,
    )
    add, whole = parser.add_argument, positive(int)
    url = "http://host:8501 or grpc://host:8500 of the server"
    add("--url", required=True, metavar="URL", help=url)
    add("--model", default="cells", metavar="NAME", help="name of the model on the server (default: cells)")
    add("--version", type=whole, metavar="N", help="version of the model (default: the latest)")
    seconds = "seconds to wait for each answer (default: 60)"
    add("--timeout", type=positive(float), default=60.0, metavar="S", help=seconds)
    add(
        "--max-message",
        type=whole,
        default=256,
        metavar="MIB",
        help="largest gRPC message and largest answer, MiB (default: 256)",
    )
    add_output_options(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
