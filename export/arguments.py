"""The options of `python -m export.main`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from effdet_tf.commands.parser import Parser, between, positive
from effdet_tf.runs import find_run

FORMATS = {"saved_model": "saved_model", "tflite-fp32": "float32", "tflite-fp16": "float16"}
FORMATS |= {"tflite-int8": "int8"}
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
_EXIT_CODES = """\
exit codes: 0 done, 1 failed (also when an export does not keep to its tolerance), 2 wrong usage"""
_HELP = {
    "run": "folder of a trained network, or cells: the one that comes with the package",
    "formats": f"with commas between them: {','.join(FORMATS)} (default: all; int8 where there are images to "
    "calibrate it on)",
    "size": "pixels of the images that a TFLite file takes in one piece, best those of your images: larger "
    "ones are predicted in tiles, near the padding of smaller ones cells may differ (default: the most "
    "frequent size of --data or --images, else 512x512)",
    "min-score": "score that a cell needs before its mask lowers it, fixed in the export: masks are made for "
    "no other (default: the score from which the run reports cells; 0: all, as evaluation needs them)",
    "mask-size": "side of the predicted bitmaps; 14 in place of 28 takes a quarter of the time for masks and "
    "costs accuracy, much of it where the mask head is of convolutions and was trained at 28",
    "max-pixels": "largest height x width that the SavedModel decodes (default: %(default)s)",
    "calibration": "images to calibrate int8 on, 24 of them: files, folders, or a folder of converted "
    "images; best training images (default: those of --data or --images)",
}


def build_parser(description: str | None = None) -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m export.main", description=description, examples=_EXAMPLES, epilog=_EXIT_CODES
    )
    add, whole = parser.add_argument, positive(int)
    add("--run", type=find_run, required=True, help=_HELP["run"])
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the exports")
    add("--formats", type=_formats, metavar="NAMES", help=_HELP["formats"])
    add("--size", type=_height_width, metavar="HxW", help=_HELP["size"])
    add("--max-instances", type=whole, metavar="N", help="maximum number of cells in an image")
    add("--min-score", type=between(0, 1), metavar="X", help=_HELP["min-score"])
    add("--mask-size", type=whole, metavar="M", help=_HELP["mask-size"])
    add("--max-pixels", type=whole, default=2048 * 2048, metavar="N", help=_HELP["max-pixels"])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="converted, annotated images to compare on: AP, too")
    source.add_argument("--images", nargs="+", help="files, folders and patterns to compare on")
    add("--limit", type=whole, help="compare on the first LIMIT images only")
    add("--calibration", nargs="+", metavar="IMAGES", help=_HELP["calibration"])
    add("--float-heads", action="store_true", help="int8: leave the heads in float; slower, more exact")
    drop = "points of AP that int8 may lose (default: 1)"
    add("--allow-drop", type=positive(float), metavar="X", help=drop)
    add("--no-parity", action="store_true", help="do not compare the exports with the run")
    add("--licence", default="", metavar="TEXT", help="licence of the weights, for the card")
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
