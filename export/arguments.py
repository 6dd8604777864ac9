"""The options of `python -m export.main`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from effdet_tf.commands.parser import Parser, positive
from effdet_tf.runs import find_run

FORMATS = {
    "saved_model": "saved_model",
    "tflite-fp32": "float32",
    "tflite-fp16": "float16",
    "tflite-int8": "int8",
}
_EXAMPLES = [
    (
        "all formats, compared with the run on annotated images",
        "--run runs/mine --out exports/mine --data data/val --calibration data/train",
    ),
    (
        "one format for images of one size, without comparison",
        "--run cells --out exports/cells --formats tflite-fp16 --size 520x704 --no-parity",
    ),
]
_EXIT_CODES = (
    "exit codes: 0 done, 1 failed (also when an export does not keep to its tolerance), 2 wrong usage"
)


def build_parser(description: str | None = None) -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m export.main", description=description, examples=_EXAMPLES, epilog=_EXIT_CODES
    )
    _add_artifacts(parser)
    _add_images(parser)
    parser.add_argument("--licence", default="", metavar="TEXT", help="licence of the weights, for the card")
    return parser


def _add_artifacts(parser: Parser) -> None:
    """Add the options that say what is exported."""
    add, whole = parser.add_argument, positive(int)
    add(
        "--run",
        type=find_run,
        required=True,
        help="folder of a trained network, or cells: the one that comes with the package",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the exports")
    add(
        "--formats",
        type=_formats,
        metavar="NAMES",
        help=f"with commas between them: {','.join(FORMATS)} (default: all; int8 where there are images to "
        "calibrate it on)",
    )
    add(
        "--size",
        type=_height_width,
        metavar="HxW",
        help="pixels of the images that a TFLite file takes in one piece, best those of your images: larger "
        "ones are predicted in tiles, near the padding of smaller ones cells may differ "
        "(default: the most frequent size of --data or --images, else 512x512)",
    )
    add("--max-instances", type=whole, metavar="N", help="maximum number of cells in an image")
    add(
        "--mask-size",
        type=whole,
        metavar="M",
        help="side of the predicted bitmaps; 14 in place of 28 takes a quarter of the time for masks and "
        "costs accuracy, much of it where the mask head is of convolutions and was trained at 28",
    )
    add(
        "--max-pixels",
        type=whole,
        default=2048 * 2048,
        metavar="N",
        help="largest height x width that the SavedModel decodes (default: %(default)s)",
    )


def _add_images(parser: Parser) -> None:
    """Add the options of the comparison and of int8's calibration."""
    source, add = parser.add_mutually_exclusive_group(), parser.add_argument
    source.add_argument("--data", type=Path, help="converted, annotated images to compare on: AP, too")
    source.add_argument("--images", nargs="+", help="files, folders and patterns to compare on")
    add("--limit", type=positive(int), help="compare on the first LIMIT images only")
    add(
        "--calibration",
        nargs="+",
        metavar="IMAGES",
        help="images to calibrate int8 on, 24 of them: files, folders, or a folder of converted images; best "
        "training images (default: those of --data or --images)",
    )
    add("--float-heads", action="store_true", help="int8: leave the heads in float; slower, more exact")
    add(
        "--allow-drop", type=positive(float), metavar="X", help="points of AP that int8 may lose (default: 1)"
    )
    add("--no-parity", action="store_true", help="do not compare the exports with the run")


def _formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"unknown format {name!r}; known are {', '.join(FORMATS)}")
    return [name for name in FORMATS if name in names]


def _height_width(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"wrong size {text!r}; give HEIGHTxWIDTH in pixels, such as 520x704")
    return int(found[1]), int(found[2])
