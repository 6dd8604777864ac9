"""What an exported network says of itself: one JSON, inside a TFLite file and beside a SavedModel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from effdet_tf._version import __version__
from effdet_tf.config import Config, checked
from effdet_tf.errors import UserError
from effdet_tf.files.untrusted import parse_json
from effdet_tf.settings import build

METADATA_FILE = "effdet_tf.json"
FORMAT = 1


def describe(
    config: Config, precision: str, size: tuple[int, int] | None = None, signatures: Sequence[str] = ()
) -> dict[str, Any]:
    """Describe an exported network, ready for JSON.

    Args:
        config: what it was exported with.
        precision: of its weights: float32, float16 or int8.
        size: height, width of the input in pixels; None where it takes any.
        signatures: of a SavedModel.

    Returns:
        What a program needs to feed the network and to name what it finds, and the whole configuration.
    """
    fixed = config.data.normalization == "fixed"
    return {
        "format": FORMAT,
        "effdet_tf": __version__,
        "precision": precision,
        "signatures": sorted(signatures),
        "input": {
            "height": size[0] if size else None,
            "width": size[1] if size else None,
            "channels": config.data.channels,
            "resize": config.data.resize,
            "zoom": config.data.zoom,  # images are magnified this much before they enter
            "normalization": config.data.normalization,
            # Of 8-bit pixels; "image" takes the mean and standard deviation of each image, "content" those of
            # what of it shows cells (`effdet_tf.images.content`).
            "mean": config.data.mean if fixed else None,
            "std": config.data.std if fixed else None,
        },
        "classes": [
            {"id": k, "name": name, "category_id": category}
            for k, (name, category) in enumerate(zip(config.class_names, config.category_ids, strict=True))
        ],
        "max_instances": config.data.max_instances,
        "score_threshold": config.postprocess.score_threshold,
        "min_score": max(
            float(config.postprocess.calibrated(config.postprocess.score_threshold)),
            config.postprocess.min_score,
        ),
        "report_score": config.postprocess.report_score,
        "mask_size": config.model.mask.size if config.model.mask.enabled else None,
        "config": dataclasses.asdict(config),
    }


def read_metadata(text: str | bytes, where: str) -> tuple[dict[str, Any], Config]:
    """Read what `describe` gave, as JSON.

    Args:
        text: the JSON.
        where: it comes from, for messages.

    Returns:
        The description, and the configuration in it.

    Raises:
        UserError: when it is damaged or of a later version.
    """
    try:
        found = parse_json(text)
        version, config = found["format"], dict(found["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: holds no description by effdet_tf; export it with `python -m export.main`"
        ) from error
    if version != FORMAT:
        raise UserError(
            f"{where}: its description has format {version!r}, this program reads {FORMAT}; update"
        )
    try:
        return found, checked(build(Config, config, ""))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
