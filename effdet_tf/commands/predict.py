"""`python -m effdet_tf predict --run RUN IMAGES... --out DIR`: find the cells of many images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effdet_tf.commands.parser import between, positive
from effdet_tf.runs import DEFAULT_MODEL

if TYPE_CHECKING:
    from effdet_tf.outputs.jobs import Job
    from effdet_tf.prediction.predictor import Predictor
    from effdet_tf.prediction.sizing import Sizing

# As in effdet_tf.outputs, which is too heavy to import for --help; a test holds them equal.
FORMATS = ("labels", "table", "coco", "overlay", "imagej", "geojson", "yolo")
FILES = """\
  labels   NAME.labels.tif   label image: 0 is background, cell k has the value k (uint16, uint32
                             above 65,535 cells), for Fiji, napari and CellProfiler
  table    NAME.cells.csv    one row per cell (columns below)
  coco     NAME.coco.json    COCO annotations with scores; overlaps kept
  overlay  NAME.overlay.png  outlines on the contrast-stretched image
  imagej   NAME.rois.zip     regions for Fiji's ROI manager
  geojson  NAME.geojson      objects with measurements for QuPath
  yolo     NAME.txt          YOLO segmentation labels, with classes.txt
The first four are written by default. A tif stack (time, depth or channels) gives label and overlay
stacks, and pages in the other files. A network without mask head gives boxes: no label image, no
areas, boxes in the rest.
For all images: summary.csv with size, cells, cells per class, mean score and area, share covered,
how many cells to expect (cells_low to cells_high, at 90 %), expected F1, whether the image is unlike
those that the network knows, error; and wells.csv with the counts by folder, well and time, where
names are like Incucyte's (..._A7_1_00d04h00m.tif)."""

_DESCRIPTION = f"""\
Find every cell in images and write, for each of them:
{FILES}
8-bit, 16-bit and float images, gray or RGB: tif, png, jpg, jp2, bmp, webp, gif, pgm. Folders are
searched through all subfolders, which the outputs mirror; quote patterns such as "plate1/*.tif".
Images of any size: large ones are predicted in overlapping tiles."""

COLUMNS = """\
columns of NAME.cells.csv:
  page                    of a stack, from 1
  cell                    number of the cell = its value in the label image, best score first
  class, score            score from 0 to 1: the probability that it matches a cell at IoU .5, where the
                          network is calibrated, as those of the package are
  y0, x0, y1, x1          box in pixels; y1 and x1 are the edges after the last pixel
  area ... intensity_max  as scikit-image's regionprops defines them, of the label image (where
                          cells overlap, the higher score has the pixel): area, centroid_y,
                          centroid_x, perimeter, axis_major_length, axis_minor_length,
                          orientation, eccentricity, equivalent_diameter_area,
                          feret_diameter_max, extent, solidity, and mean, deviation, minimum
                          and maximum gray value in the image's own units
  area_um2, ..._um        areas and lengths in micrometres, where a tif says how large a pixel is
                          (ImageJ, OME, LSM, MetaMorph, pixels per centimetre) or --um-per-px does

exit codes: 0 all images done, 1 failed, 2 wrong usage, 3 some images failed"""


EXAMPLES = [
    ("a folder, with the network of the package", "images/ --out found"),
    ("a pattern, with a network of one's own", '"plate1/*.tif" --run runs/mine --score 0.4 --out found'),
    (
        "a time-lapse stack: regions for Fiji, objects for QuPath, micrometres",
        "movie.tif --out found --formats labels,table,imagej,geojson --um-per-px 0.65",
    ),
]
_HELP = {
    "run": "trained run, or an export of one: the folder of a SavedModel or a .tflite file (default: the "
    "network that comes with the package, %(default)s). A stranger's is safe to open, as SECURITY.md tells; "
    "how long it computes is not known",
    "tta": "look at every image in its eight mirrored and turned views and merge what they show: somewhat "
    "more accurate, eight times as slow",
    "scales": "look at every image at these magnifications, too, for example 0.8 1 1.25",
    "score": "keep cells with this score or more, 0 to 1 (default: tuned on the run's validation images)",
    "formats": f"what to write, separated by commas: {', '.join(FORMATS)}, or all (default: "
    f"{','.join(FORMATS[:4])})",
    "channel": "of files with several: number from 1, name, or all (default: the one without fluorescence by "
    "what the file says, else the first; the others are left out, and empty in the label image)",
    "um": "side of a pixel in micrometres (default: what a tif says of itself)",
    "cell-size": "usual diameter of the cells in these images, px: they are scaled to what the network knows "
    "best, unless it knows this size (default: by the size of a pixel where file and network say it, else by "
    "what the network sees)",
    "magnification": "of the objective, 10 for 10x: --um-per-px is then the side of a pixel of the camera, "
    "which is divided by it",
    "no-rescale": "show every image to the network as it is, whatever the size of its cells",
}


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `predict` to the command line."""
    parser = subparsers.add_parser(
        "predict",
        help="find the cells of images: label tif, table, COCO json, overlay, summary",
        description=_DESCRIPTION,
        examples=EXAMPLES,
        epilog=COLUMNS,
    )
    parser.add_argument("--run", dest="run_folder", default=DEFAULT_MODEL, metavar="RUN", help=_HELP["run"])
    add_view_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)
    return parser


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of test-time augmentation."""
    parser.add_argument("--tta", action="store_true", help=_HELP["tta"])
    scales: dict[str, Any] = {"type": between(0.1, 10), "nargs": "+", "default": (1.0,), "metavar": "X"}
    parser.add_argument("--tta-scales", **scales, help=_HELP["scales"])


def with_views(predictor: Predictor, args: argparse.Namespace) -> Predictor:
    """The predictor, with the views that the options of `add_view_options` ask for."""
    from effdet_tf.prediction.augmented import AugmentedPredictor, make_views

    views = make_views(args.tta, args.tta_scales)
    return predictor if len(views) == 1 and views[0].scale == 1 else AugmentedPredictor(predictor, views)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes that predicts images: which, where to, and what to write."""
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="files, folders and quoted patterns")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    add("--score", type=share, metavar="X", help=_HELP["score"])
    add("--sartorius", type=Path, metavar="CSV", help="also write a Sartorius submission")
    add("--formats", type=_formats, default=FORMATS[:4], metavar="A,B", help=_HELP["formats"])
    add("--channel", metavar="N", help=_HELP["channel"])
    add_size_options(parser)
    add("--overwrite", action="store_true", help="replace the predictions that DIR holds")


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Add what is said of the size of pixels and cells."""
    parser.add_argument("--um-per-px", type=positive(float), metavar="UM", help=_HELP["um"])
    parser.add_argument("--magnification", type=positive(float), metavar="X", help=_HELP["magnification"])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--cell-size", type=positive(float), metavar="PX", help=_HELP["cell-size"])
    size.add_argument("--no-rescale", dest="rescale", action="store_false", help=_HELP["no-rescale"])


def sizing_of(args: argparse.Namespace) -> Sizing:
    """What the options of `add_size_options` say; UserError for a magnification that does not fit them."""
    from effdet_tf.errors import UserError
    from effdet_tf.prediction.sizing import Sizing

    side, times = args.um_per_px, args.magnification
    if times is not None and args.cell_size is not None:
        raise UserError("--magnification and --cell-size: both say how large cells are; leave out one")
    if times is not None and side is None:
        raise UserError(
            f"--magnification {times:g}: says nothing of pixels without --um-per-px, the side of a pixel of "
            "the camera in micrometres"
        )
    return Sizing(args.rescale, args.cell_size, side if side is None or times is None else side / times)


def _formats(text: str) -> tuple[str, ...]:
    """The names of kinds of files, separated by commas, or "all"."""
    names = FORMATS if text == "all" else tuple(text.split(","))
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(FORMATS)}, all")
    return names


def share(text: str) -> float:
    """An argparse type for numbers from 0 to 1."""
    value = float(text)
    if 1 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1; {value:g} % is {value / 100:g}")
    return between(0, 1)(text)


share.__name__ = "number"  # what argparse calls it in its message


def run(args: argparse.Namespace) -> int:
    """Predict, then say how many images and cells, and where; returns the exit code."""
    from effdet_tf.outputs.jobs import find_images

    images = find_images(args.images)  # a wrong name is told at once, not after the model has loaded
    from effdet_tf.prediction.load import load

    sizing_of(args)  # likewise
    return predict_images(with_views(load(args.run_folder), args), images, args)


def _why_no_cells(best: float, score: float) -> str:
    if best >= score:  # where cells overlap, the better one has the pixels
        return f"nothing that reached score {score:g} kept enough pixels of its own"
    if best:
        return f"no cell in any image reached score {score:g}, the best has {best:.3f}; lower --score"
    return f"nothing was seen in any image; does this network know such images? (score {score:g} is asked)"


def predict_images(predictor: Predictor, images: Sequence[Job], args: argparse.Namespace) -> int:
    """Predict images of `find_images` as the options of `add_output_options` say; returns the exit code."""
    from effdet_tf.outputs.batch import predict_files
    from effdet_tf.prediction.trust import UNLIKE

    score = predictor.config.postprocess.report_score if args.score is None else args.score
    same = {name: getattr(args, name) for name in ("sartorius", "formats", "channel", "overwrite")}
    same["sizing"] = sizing_of(args)
    report = predict_files(predictor, images, args.out, score=score, progress=True, **same)
    print(f"{report.done} images, {report.cells} cells: {report.out}")
    if report.done and not report.cells:
        print(f"warning: {_why_no_cells(report.best, score)}", file=sys.stderr)
    if report.f1:
        mean = sum(report.f1) / len(report.f1)
        print(f"expected F1 at IoU .5: {mean:.2f}, mean of the images; summary.csv has that of each")
    if report.unlike:
        of = f"{report.unlike} of {report.done} images"
        print(f"warning: {of}: {UNLIKE} (column unlike of summary.csv)", file=sys.stderr)
    if report.boxes_only:
        print("this network has no mask head: boxes only, no label images, no areas")
    if report.wells:
        print(f"counts by well and time: {report.out / 'wells.csv'}")
    if report.failed:
        print(f"error: {len(report.failed)} images failed, see {report.out / 'summary.csv'}", file=sys.stderr)
    return report.exit_code
