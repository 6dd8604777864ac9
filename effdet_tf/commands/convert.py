"""`python -m effdet_tf convert KIND SRC OUT`: write an annotated image set as TFRecords with a manifest."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effdet_tf.commands.parser import Parser, between, called, positive
from effdet_tf.data.livecell_names import SPLITS
from effdet_tf.data.manifest import MAX_MASK_SIZE
from effdet_tf.errors import UserError
from effdet_tf.geometry import MASK_SIZE

if TYPE_CHECKING:
    from effdet_tf.data.manifest import Manifest
    from effdet_tf.data.sources.base import Source


_WORTH_A_LINE, _MOST_LOST = 0.1, 0.5  # shares of lost annotations: told first, exit code 1


def _path(metavar: str, text: str) -> dict[str, Any]:
    return {"type": Path, "metavar": metavar, "help": text}


def _classes(default: str, text: str) -> dict[str, Any]:
    return {"choices": ("one", "type"), "default": default, "help": f"{text} (default: {default})"}


_SPLIT = {
    "choices": SPLITS,
    "default": "train",
    "metavar": "SET",
    "help": f"{', '.join(SPLITS)} (default: train)",
}
# kind -> (help, description, examples, options)
_KINDS: dict[str, tuple[str, str, list[tuple[str, str]], dict[str, dict[str, Any]]]] = {
    "livecell": (
        "LIVECell: tif images and COCO JSON",
        "Convert LIVECell, or a set laid out like it: images/, flat or by type, annotations/.",
        [
            ("the validation images of all eight types", "LIVECell data/val --split val"),
            ("one cell type alone", "LIVECell data/a172 --split train --cell-type A172"),
        ],
        {
            "--split": _SPLIT,
            "--cell-type": {"metavar": "TYPE", "help": "take the single-type set of A172, BT474, ..."},
            "--annotations": _path("JSON", "instead of --split: any JSON file"),
            "--images": _path("DIR", "image folder (default: SRC/images)"),
            "--classes": _classes("one", "one class, or one per cell type"),
        },
    ),
    "sartorius": (
        "Sartorius: train.csv and train/",
        "Convert the Sartorius competition's training images: train.csv and train/*.png.",
        [
            ("all images, three classes", "sartorius data/all"),
            (
                "a split by lists of image ids, one class",
                "sartorius data/val --ids val_ids.txt --classes one",
            ),
        ],
        {
            "--ids": _path("FILE", "take only the image ids in this file"),
            "--exclude-ids": _path("FILE", "leave out the image ids in this file"),
            "--classes": _classes("type", "one class, or shsy5y, astro, cort"),
        },
    ),
    "coco": (
        "any COCO detection or segmentation set",
        "Convert images with a COCO JSON: polygons, run-length encodings, or boxes alone.",
        [
            ("one folder with the images and one JSON file", "my_set data/train"),
            (
                "a named file, images elsewhere",
                "my_set data/train --annotations train.json --images my_set/pictures",
            ),
        ],
        {
            "--annotations": _path("JSON", "default: the one JSON file below SRC"),
            "--images": _path("DIR", "image folder, flat or nested (default: SRC)"),
        },
    ),
    "labelmaps": (
        "image and label-map pairs: images/ and masks/, or x_img and x_masks, or x and x.labels",
        "Convert images with label maps: 0 is background, every other number is one cell. A pair "
        "has one stem: images/x.tif and masks/x.tif, or x_img.tif beside x_masks.tif, or x.tif beside "
        "x.labels.tif. Stacks are pairs of pages.",
        [
            ("my_cells/images/ and my_cells/masks/", "my_cells data/train"),
            (
                "folders of other names; stop at any fault",
                "my_cells data/train --images raw --masks outlined --strict",
            ),
        ],
        {
            "--images": _path("DIR", "image folder (default: SRC/images)"),
            "--masks": _path("DIR", "label-map folder (default: SRC/masks)"),
        },
    ),
}
_KINDS |= {
    kind: (
        what,
        f"Convert images with {what}. An image x.tif goes with {files}, at the same place in "
        "the two folders or in one; what `predict` wrote and a person corrected comes back this way.",
        [
            ("all in one folder", "my_cells data/train"),
            ("in two folders", "my_cells data/train --images raw --outlines corrected"),
        ],
        {
            "--images": _path("DIR", "image folder (default: SRC/images, or SRC)"),
            "--outlines": _path("DIR", "their folder (default: SRC/labels, or SRC)"),
        },
    )
    for kind, what, files in (
        ("imagej", "regions of Fiji's ROI manager beside the images", "x.rois.zip, x.zip or x.roi"),
        ("geojson", "outlines as QuPath exports them beside the images", "x.geojson"),
        ("labelme", "LabelMe's files beside the images", "x.json"),
        ("yolo", "YOLO labels: images/ and labels/", "x.txt, with classes.txt or data.yaml for names"),
    )
}


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `convert` to the command line."""
    parser = subparsers.add_parser(
        "convert",
        help="write an annotated image set as TFRecords with a manifest",
        description="Write an annotated image set as sharded TFRecords and a manifest.json that says what "
        "they hold and what was left out. The same input gives the same bytes with any number of workers.",
    )
    common = _common_options()
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, (help_line, description, examples, options) in _KINDS.items():
        added = kinds.add_parser(
            kind, parents=[common], help=help_line, description=description, examples=examples
        )
        for name, settings in options.items():
            added.add_argument(name, **settings)
    parser.set_defaults(run=run)
    return parser


def convert(kind: str, src: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Manifest:
    """Write annotated images as TFRecords, as the command does: `convert("coco", "mine", "data/train")`.

    Args:
        kind: of annotation: livecell, sartorius, coco, labelmaps, imagej, geojson, labelme, yolo.
        src: folder of the data set.
        out: folder to write to.
        options: those of the command, by name (`effdet_tf convert KIND --help`).

    Returns:
        The manifest: classes, counts, and what was left out and why.

    Raises:
        UserError: for an option that is unknown or wrong, data that cannot be read, or, after the rest was
            written, when most annotations were lost; `allow_loss=True` accepts that.
    """
    parser = Parser(prog="effdet_tf")
    add_parser(parser.add_subparsers())
    with called(parser, ("convert", kind, src, out), options) as arguments:
        chosen = parser.parse_args(arguments)
    manifest = _write(chosen)
    if manifest.lost_share > _MOST_LOST and not chosen.allow_loss:
        raise UserError(f"{_loss(chosen.out, manifest)[0]}; mend them, or give allow_loss=True")
    return manifest


def run(args: argparse.Namespace) -> int:
    """Convert, report, and return the exit code."""
    manifest = _write(args)
    print(report(args.out, manifest))
    return 0 if args.allow_loss or manifest.lost_share <= _MOST_LOST else 1


def _write(args: argparse.Namespace) -> Manifest:
    from effdet_tf.data.writer import WriteOptions, prepare_output, write_records

    options = WriteOptions(
        workers=args.workers,
        shards=args.shards,
        images_per_shard=args.images_per_shard,
        mask_size=args.mask_size,
        limit=args.limit,
        strict=args.strict,
        progress=not args.quiet,
    )
    with prepare_output(args.out, args.overwrite) as scratch:
        source = _open(args, scratch)
        source.name = args.source or source.name
        return write_records(source, args.out, options)


def report(out: Path, manifest: Manifest) -> str:
    """What was written, for a person."""
    import numpy as np

    from effdet_tf.data.faults import Faults

    size = sum((out / shard["file"]).stat().st_size for shard in manifest.shards)
    per_image, statistics = manifest.cells_per_image, manifest.image_statistics
    sizes = ", ".join(f"{s['width']}x{s['height']} ({s['images']})" for s in statistics["sizes"][:4])
    lines = [
        *_loss(out, manifest),
        f"{out}: {manifest.images} images, {manifest.cells} cells, {len(manifest.shards)} shards, "
        f"{size / 1e6:.1f} MB",
        f"  classes         {', '.join(manifest.class_names)}",
        f"  image sizes     {sizes}{', ...' if len(statistics['sizes']) > 4 else ''}",
        f"  cells per image median {per_image['50']:g}, mean {per_image['mean']:g}, "
        f"maximum {manifest.max_cells}",
    ]
    if manifest.cell_sizes:
        sides = np.sqrt(np.prod(np.array(manifest.cell_sizes), axis=1))
        low, middle, high = np.percentile(sides, [5, 50, 95])
        lines.append(f"  cell size       median {middle:.0f} px, 5-95 % {low:.0f}-{high:.0f} px")
    if not manifest.masks:
        lines.append("  annotation      boxes only: train with --set model.mask.enabled=false")
    for name, entry in manifest.cell_types.items():
        lines.append(f"  {name:15} {entry['images']} images, {entry['cells']} cells")
    faults = Faults(manifest.dropped, manifest.notes).lines()
    lines += [f"  {line}" for line in faults] or ["  nothing was dropped"]
    return "\n".join(lines)


def _loss(out: Path, manifest: Manifest) -> list[str]:
    """What comes first where much was lost."""
    if manifest.lost_share <= _WORTH_A_LINE:
        return []
    lost = sum(manifest.lost.values())
    reason = max(manifest.lost, key=lambda one: manifest.lost[one])
    return [
        f"{out}: {manifest.lost_share:.0%} of the annotations were lost ({lost} of {lost + manifest.cells}); "
        f"most often: {reason} ({manifest.lost[reason]})"
    ]


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("src", type=Path, metavar="SRC", help="folder of the data set")
    add("out", type=Path, metavar="OUT", help="folder to write to")
    add("--workers", type=positive(int), metavar="N", help="processes (default: one for each core)")
    sharding = common.add_mutually_exclusive_group()
    sharding.add_argument("--shards", type=positive(int), metavar="N", help="number of shards")
    sharding.add_argument(
        "--images-per-shard", type=positive(int), default=64, metavar="N", help="(default: %(default)s)"
    )
    size = between(1, MAX_MASK_SIZE, int)
    text = "side of the stored bitmaps (default: %(default)s)"
    add("--mask-size", type=size, default=MASK_SIZE, metavar="N", help=text)
    text = "name of the source, by which data.source_share gives it its part of training (default: {})"
    add("--source", metavar="NAME", help=text.format("the kind of annotation"))
    add("--limit", type=positive(int), metavar="N", help="only the first N images by name")
    add("--strict", action="store_true", help="exit 1, writing nothing, when anything was at fault")
    add("--allow-loss", action="store_true", help="exit 0 even when most annotations could not be used")
    add("--overwrite", action="store_true", help="replace a data set that lies in OUT")
    add("--quiet", action="store_true", help="no progress bar")
    return common


def _open(args: argparse.Namespace, scratch: Path) -> Source:
    from effdet_tf.data.sources import coco, labelmaps, livecell, outlines, sartorius

    src = args.src
    if args.kind == "livecell":
        choice = (args.split, args.cell_type, args.annotations, args.images, args.classes)
        return livecell.open_livecell(src, scratch, *choice)
    if args.kind == "sartorius":
        return sartorius.open_sartorius(src, args.ids, args.exclude_ids, args.classes)
    if args.kind == "coco":
        return coco.open_coco(args.annotations or coco.find_annotations(src), args.images or src, scratch)
    if args.kind == "labelmaps":
        return labelmaps.open_labelmaps(src, args.images, args.masks)
    return outlines.open_outlines(args.kind, src, args.images, args.outlines)
