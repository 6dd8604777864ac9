"""`python -m effdet_tf plate FOLDER --out OUT`: whole plates and time-lapses, on one machine or many."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from effdet_tf.commands.parser import positive
from effdet_tf.commands.predict import add_size_options, share, sizing_of
from effdet_tf.runs import DEFAULT_MODEL

_DESCRIPTION = """\
Find the cells of whole plates, on an engine that spreads the work: Apache Beam's own runner by default,
Flink, Spark or Dataflow by --runner. FOLDER and DIR are folders or buckets (gs://, s3://, hdfs://). Writes

  labels/PATH.labels.tif  label image of each image; a stack gives a stack
  cells/NNNNN.parquet     one row per cell: image, page, well, site, minutes, and the columns of `predict`
  images/NNNNN.parquet    one row per image and page
  counts.csv              images, cells, mean area, covered share, and how far to trust them, by plate
                          (folder), well, time and page
  failed.csv              the images that could not be read, and why; empty when there are none

Wells, sites and times come from the names (..._A7_1_00d04h00m.tif, as Incucyte writes them). The same command
again does only what is missing, new or changed."""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `plate` to the command line."""
    parser = subparsers.add_parser(
        "plate",
        help="whole plates and time-lapse stacks, by Apache Beam: labels, Parquet, counts by well and time",
        description=_DESCRIPTION,
        examples=[
            ("one process", "plates/ --out counted"),
            (
                "four processes of this machine",
                "plates/ --out counted --beam direct_num_workers=4 "
                "--beam direct_running_mode=multi_processing",
            ),
        ],
        epilog='needs: pip install "effdet_tf[plates]"\n'
        "exit codes: 0 all images done, 1 failed, 2 wrong usage, 3 some images failed",
    )
    add = parser.add_argument
    add("source", metavar="FOLDER", help="images and tif stacks, in any depth of folders")
    add("--out", required=True, metavar="DIR", help="folder or bucket to write to")
    network = "trained run or export, under a path that every worker can read (default: %(default)s)"
    add("--run", dest="run_folder", default=DEFAULT_MODEL, metavar="RUN", help=network)
    add("--score", type=share, metavar="X", help="as for `predict`")
    add("--channel", metavar="N", help="as for `predict`")
    add_size_options(parser)
    add("--no-labels", dest="labels", action="store_false", help="write no label tifs")
    add("--shard-images", type=positive(int), default=64, metavar="N", help="files in a shard (%(default)s)")
    add("--shard-mb", type=positive(float), default=256, metavar="MB", help="its size at most (%(default)s)")
    add("--retry-failed", action="store_true", help="try images again that failed before")
    verify = (
        "compare the contents of all files with those that were worked through, not sizes and dates alone"
    )
    add("--verify", action="store_true", help=verify)
    add("--runner", help="of Apache Beam: FlinkRunner, SparkRunner, DataflowRunner, ...")
    add("--beam", action="append", default=[], metavar="KEY=VALUE", help="an option of Apache Beam")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Work through a plate and print its counts; returns the exit code."""
    from effdet_tf.errors import needs

    options, sizing = _beam_options(args), sizing_of(args)
    logging.disable(logging.WARNING)  # of every cloud whose package is missing, Apache Beam warns
    try:
        with needs("plates", "`effdet_tf plate`"):
            from effdet_tf.plates import plate
    finally:
        logging.disable(logging.NOTSET)
    report = plate.run_plate(
        args.source,
        args.out,
        args.run_folder,
        score=args.score,
        labels=args.labels,
        channel=args.channel,
        sizing=sizing,
        shard_files=args.shard_images,
        shard_bytes=int(args.shard_mb * 2**20),
        retry_failed=args.retry_failed,
        verify=args.verify,
        beam=options,
    )
    print(report.counts.to_string(index=False, na_rep=""))
    print(
        f"{report.images} images, {report.cells} cells; {report.shards_done} of {report.shards} shards were "
        f"worked through now: {args.out}"
    )
    if report.boxes_only:
        print("this network has no mask head: boxes only, no label images, no areas")
    if report.failed:
        print(f"error: {report.failed} images failed, see {args.out}/failed.csv", file=sys.stderr)
        return 3 if report.images else 1
    return 0


def _beam_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of Apache Beam from the command line; UserError for one that is no KEY=VALUE."""
    from effdet_tf.errors import UserError

    options: dict[str, Any] = {"runner": args.runner} if args.runner else {}
    for text in args.beam:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"--beam {text}: is not KEY=VALUE, such as direct_num_workers=2")
        converted = {"true": True, "false": False}.get(value.lower(), value)
        if key in options:  # given again: a list
            past = options[key]
            converted = [*(past if isinstance(past, list) else [past]), converted]
        options[key] = converted
    return options
