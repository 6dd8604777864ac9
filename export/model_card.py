"""The card that travels with an exported network: what it is, what it may be used for, and what it finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from effdet_tf._version import __version__
from effdet_tf.config import Config

NO_LICENCE = (
    "Not stated. Weights inherit the limits of the images they were trained on: LIVECell is CC BY-NC 4.0, "
    "the Sartorius competition's images are for non-commercial research."
)


def model_card(config: Config, licence: str, run: Path | None) -> str:
    """Text of MODEL_CARD.md; `licence` may be empty, `run` may hold metrics.json of its validation."""
    masks = f"{config.model.mask.size} x {config.model.mask.size}" if config.model.mask.enabled else "none"
    template = Path(__file__).with_name("serving_templates") / "MODEL_CARD.md.template"
    return template.read_text(encoding="utf-8").format(
        version=__version__,
        classes=", ".join(config.class_names),
        config=config,
        masks=masks,
        pixels=_pixels(config),
        licence=licence or NO_LICENCE,
        figures="\n".join(_figures(run)),
    )


def _pixels(config: Config) -> str:
    size = "as they are" if config.data.zoom == 1 else f"magnified {config.data.zoom:g} times by the network"
    if config.data.resize == "fit":
        size = f"scaled to fit {config.data.crop_size[0]} x {config.data.crop_size[1]}"
    if config.data.normalization != "fixed":
        of = {"image": "each image's", "content": "what shows cells, evenly lit: its"}[
            config.data.normalization
        ]
        return f"{size}, normalised by {of} own mean and standard deviation (8 or 16 bit)"
    return f"{size}, mean {config.data.mean} and standard deviation {config.data.std} of 8-bit pixels"


def _figures(run: Path | None) -> list[str]:
    path = run / "metrics.json" if run is not None else None
    if path is None or not path.is_file():
        return ["None: the run holds no metrics.json."]
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        groups = report["livecell"]["all"]
        rows = [
            f"| {name} | {100 * groups[kind]['AP']:.1f} | {100 * groups[kind]['AP50']:.1f} |"
            for kind, name in (("bbox", "box"), ("segm", "mask"))
            if groups.get(kind, {}).get("AP") is not None
        ]
        images, cells = groups["images"], groups["cells"]
    except (ValueError, KeyError, TypeError):
        return [f"None: {path.name} is not readable."]
    return [
        f"LIVECell protocol, {images} images, {cells} cells:",
        "",
        "| | AP | AP50 |",
        "|---|---|---|",
        *rows,
    ]
