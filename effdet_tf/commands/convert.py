"""`python -m effdet_tf convert KIND SRC OUT`: write an annotated image set as TFRecords with a manifest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effdet_tf.commands.parser import positive
from effdet_tf.data.livecell_names import SPLITS
from effdet_tf.geometry import MASK_SIZE

if TYPE_CHECKING:
    from effdet_tf.data.manifest import Manifest
    from effdet_tf.data.sources.base import Source


def _mask_size(text: str) -> int:
    from effdet_tf.data.manifest import MAX_MASK_SIZE

    value = int(positive(int)(text))
    if value > MAX_MASK_SIZE:
        raise argparse.ArgumentTypeError(f"{text} is above {MAX_MASK_SIZE}")
    return value


_mask_size.__name__ = "whole number"  # what argparse calls it in its message


_FOLDER, _FILE = {"type": Path, "metavar": "DIR"}, {"type": Path, "metavar": "FILE"}
_JSON = {"type": Path, "metavar": "JSON"}
_CLASSES = {"choices": ("one", "type")}
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
            "--split": {
                "choices": SPLITS,
                "default": "train",
                "metavar": "SET",
                "help": f"{', '.join(SPLITS)} (default: %(default)s)",
            },
            "--cell-type": {"metavar": "TYPE", "help": "take the single-type set of A172, BT474, ..."},
            "--annotations": _JSON | {"help": "instead of --split: any JSON file"},
            "--images": _FOLDER | {"help": "image folder (default: SRC/images)"},
            "--classes": _CLASSES
            | {"default": "one", "help": "one class, or one per cell type (default: one)"},
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
            "--ids": _FILE | {"help": "take only the image ids in this file"},
            "--exclude-ids": _FILE | {"help": "leave out the image ids in this file"},
            "--classes": _CLASSES
            | {"default": "type", "help": "one class, or shsy5y, astro, cort (default: type)"},
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
            "--annotations": _JSON | {"help": "default: the one JSON file below SRC"},
            "--images": _FOLDER | {"help": "image folder, flat or nested (default: SRC)"},
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
            "--images": _FOLDER | {"help": "image folder (default: SRC/images)"},
            "--masks": _FOLDER | {"help": "label-map folder (default: SRC/masks)"},
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
            "--images": _FOLDER | {"help": "image folder (default: SRC/images, or SRC)"},
            "--outlines": _FOLDER | {"help": "their folder (default: SRC/labels, or SRC)"},
        },
    )
    for kind, what, files in (
        ("imagej", "regions of Fiji's ROI manager beside the images", "x.rois.zip, x.zip or x.roi"),
        ("geojson", "outlines as QuPath exports them beside the images", "x.geojson"),
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


def run(args: argparse.Namespace) -> int:
    """Convert, report, and return the exit code."""
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
        manifest = write_records(_open(args, scratch), args.out, options)
    print(report(args.out, manifest))
    return 0


def report(out: Path, manifest: Manifest) -> str:
    """What was written, for a person."""
    import numpy as np

    from effdet_tf.data.faults import Faults

    size = sum((out / shard["file"]).stat().st_size for shard in manifest.shards)
    per_image, statistics = manifest.cells_per_image, manifest.image_statistics
    frames = ", ".join(f"{s['width']}x{s['height']} ({s['images']})" for s in statistics["sizes"][:4])
    lines = [
        f"{out}: {manifest.images} images, {manifest.cells} cells, {len(manifest.shards)} shards, "
        f"{size / 1e6:.1f} MB",
        f"  classes         {', '.join(manifest.class_names)}",
        f"  image sizes     {frames}{', ...' if len(statistics['sizes']) > 4 else ''}",
        f"  cells per image median {per_image['50']:g}, mean {per_image['mean']:g}, "
        f"most {manifest.max_cells}",
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


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("src", type=Path, metavar="SRC", help="folder of the data set")
    common.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    common.add_argument(
        "--workers", type=positive(int), metavar="N", help="processes (default: one for each core)"
    )
    sharding = common.add_mutually_exclusive_group()
    sharding.add_argument("--shards", type=positive(int), metavar="N", help="number of shards")
    sharding.add_argument(
        "--images-per-shard", type=positive(int), default=64, metavar="N", help="(default: %(default)s)"
    )
    common.add_argument(
        "--mask-size",
        type=_mask_size,
        default=MASK_SIZE,
        metavar="N",
        help="side of the stored bitmaps (default: %(default)s)",
    )
    common.add_argument("--limit", type=positive(int), metavar="N", help="only the first N images by name")
    common.add_argument(
        "--strict", action="store_true", help="exit 1, writing nothing, when anything was at fault"
    )
    common.add_argument("--overwrite", action="store_true", help="replace a data set that lies in OUT")
    common.add_argument("--quiet", action="store_true", help="no progress bar")
    return common


def _open(args: argparse.Namespace, scratch: Path) -> Source:
    if args.kind == "livecell":
        from effdet_tf.data.sources.livecell import open_livecell

        return open_livecell(
            args.src, scratch, args.split, args.cell_type, args.annotations, args.images, args.classes
        )
    if args.kind == "sartorius":
        from effdet_tf.data.sources.sartorius import open_sartorius

        return open_sartorius(args.src, args.ids, args.exclude_ids, args.classes)
    if args.kind == "coco":
        from effdet_tf.data.sources.coco import find_annotations, open_coco

        return open_coco(args.annotations or find_annotations(args.src), args.images or args.src, scratch)
    if args.kind in ("imagej", "geojson", "yolo"):
        from effdet_tf.data.sources.outlines import open_outlines

        return open_outlines(args.kind, args.src, args.images, args.outlines)
    from effdet_tf.data.sources.labelmaps import open_labelmaps

    return open_labelmaps(args.src, args.images, args.masks)
