"""The best, the median and the worst images of an evaluation, with the predictions on them.

They are known only when all images are evaluated. So the predictions lie in a scratch file until then, and
memory holds its places alone.
"""

from __future__ import annotations

import marshal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effdet_tf.config import PostprocessConfig
from effdet_tf.data.annotated import Folders, folder_list, folder_text
from effdet_tf.errors import UserError
from effdet_tf.files import write_json
from effdet_tf.files.untrusted import read_json
from effdet_tf.metrics.cell_metrics import SCORE_GRID
from effdet_tf.report.validation import is_examples

EACH = 2  # images of each kind, where there are enough
_KEPT = ("category_id", "score", "bbox", "segmentation")


class FoundScratch:
    """Keeps predictions, image by image, in a scratch file that goes away with the block."""

    def __init__(self, score: float | None) -> None:
        """`score` is the minimum of a cell in the metrics; None for the best of a grid."""
        self._minimum = SCORE_GRID[0] if score is None else score
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (`__exit__` closes it)
        self._places: dict[Any, int] = {}

    def __enter__(self) -> FoundScratch:
        """The block that it lives in."""
        return self

    def __exit__(self, *error: object) -> None:
        """Drop all of it."""
        self._file.close()

    def add(self, entries: Sequence[dict[str, Any]]) -> None:
        """Take the COCO results of one image; those below every score that counts are left out."""
        kept = [
            {key: entry[key] for key in _KEPT if key in entry}
            for entry in entries
            if entry["score"] >= self._minimum
        ]
        if kept:
            self._places[entries[0]["image_id"]] = self._file.seek(0, 2)
            marshal.dump(kept, self._file)

    def read(self, image_id: Any) -> list[dict[str, Any]]:
        """The predictions on an image."""
        if image_id not in self._places:
            return []
        self._file.seek(self._places[image_id])
        return marshal.load(self._file)  # noqa: S302 (our own file)


def write_examples(
    path: Path,
    report: dict[str, Any],
    found: FoundScratch,
    data: Folders,
    postprocess: PostprocessConfig | None = None,
) -> None:
    """Write the chosen images of an evaluation beside its figures.

    Args:
        path: JSON to write.
        report: of `metrics.scores.Evaluator.report`.
        found: the predictions on its images.
        data: folder or folders of the converted images; their pixels and annotated cells stay there.
        postprocess: what makes the scores that are reported of those of an uncalibrated network.
    """
    figures = report["boxes"] if report["boxes_only"] else report["cells"]
    score = figures["score_threshold"]
    chosen = [
        {
            "what": what,
            **image,
            "found_cells": [entry for entry in found.read(image["id"]) if entry["score"] >= score],
        }
        for what, image in choose(report["images"])
    ]
    folders = folder_text([folder.resolve() for folder in folder_list(data)])
    shown = score if postprocess is None else round(float(postprocess.calibrated(score)), 3)
    kept = {"data": folders, "score": shown, "masks": not report["boxes_only"]}
    write_json(path, kept | {"images": chosen}, None)


def choose(images: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The best, the median and the worst images, by the Sartorius metric, or by F1 where only boxes count.

    Args:
        images: "images" of a report; those of which the figure is not defined are passed over.

    Returns:
        ("best", "median" or "worst", image), best first, each image once.
    """
    figure = ranking_figure(images)
    defined = [image for image in images if image.get(figure) is not None]
    ranked = sorted(defined, key=lambda image: (-image[figure], str(image["id"])))
    count = len(ranked)
    each = min(EACH, max(1, count // 3), count)
    middle = max(each, (count - each) // 2)
    places = {"best": range(each), "worst": range(max(count - each, each), count)}
    median = [k for k in range(middle, middle + each) if k < places["worst"].start]
    parts = {"best": places["best"], "median": median, "worst": places["worst"]}
    return [(what, ranked[k]) for what, part in parts.items() for k in part]


def ranking_figure(images: Sequence[dict[str, Any]]) -> str:
    """The figure that images are ordered by."""
    return "sartorius" if any("sartorius" in image for image in images) else "f1"


def read_examples(path: Path) -> dict[str, Any] | None:
    """What `write_examples` wrote; None when there is no such file.

    Raises:
        UserError: when it is damaged.
    """
    try:
        value = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not is_examples(value):
        raise UserError(f"{path}: is damaged; evaluate again, or remove it to have a report without pictures")
    return value
