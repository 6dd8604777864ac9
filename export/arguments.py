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
_EXIT_CODES = (
    "exit codes: 0 done, 1 failed (also when an export does not keep to its tolerance), 2 wrong usage"
)


def build_parser(description: str | None = None) -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m export.main",
        description=description,
        examples=[
            (
                "all formats, compared with the run on annotated images",
                "--run runs/mine --out exports/mine --data data/val --calibration data/train",
            ),
            (
                "one format for images of one size, without comparison",
                "--run cells --out exports/cells --formats tflite-fp16 --size 520x704 --no-parity",
            ),
        ],
        epilog=_EXIT_CODES,
    )
    parser.add_argument(
        "--run",
        type=find_run,
        required=True,
        help="folder of a trained network, or cells: the one that comes with the package",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the exports")
    parser.add_argument(
        "--formats",
        type=_formats,
        metavar="NAMES",
        help=f"with commas between them: {','.join(FORMATS)} (default: all; int8 where there are images to "
        "calibrate it on)",
    )
    parser.add_argument(
        "--size",
        type=_height_width,
        metavar="HxW",
        help="pixels of the images that a TFLite file takes in one piece, best those of your images: larger "
        "ones are predicted in tiles, near the padding of smaller ones cells may come out otherwise "
        "(default: the most frequent size of --data or --images, else 512x512)",
    )
    whole, points = positive(int), positive(float)
    parser.add_argument("--max-instances", type=whole, metavar="N", help="most cells of an image")
    parser.add_argument(
        "--mask-size",
        type=whole,
        metavar="M",
        help="side of the predicted bitmaps; 14 in place of 28 takes a quarter of the time for masks and "
        "costs accuracy, much of it where the mask head is of convolutions and was trained at 28",
    )
    parser.add_argument(
        "--max-pixels",
        type=whole,
        default=2048 * 2048,
        metavar="N",
        help="largest height x width that the SavedModel decodes (default: %(default)s)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="converted, annotated images to compare on: AP, too")
    source.add_argument("--images", nargs="+", help="files, folders and patterns to compare on")
    parser.add_argument("--limit", type=whole, help="compare on the first LIMIT images only")
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="IMAGES",
        help="what int8 is calibrated on, 24 of them: files, folders, or a folder of converted images; best "
        "training images (default: those of --data or --images)",
    )
    parser.add_argument(
        "--float-heads", action="store_true", help="int8: leave the heads in float; slower, more exact"
    )
    parser.add_argument(
        "--allow-drop", type=points, metavar="X", help="points of AP that int8 may lose (default: 1)"
    )
    parser.add_argument("--no-parity", action="store_true", help="do not compare the exports with the run")
    parser.add_argument("--licence", default="", metavar="TEXT", help="licence of the weights, for the card")
    return parser


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
