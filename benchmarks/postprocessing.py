"""What happens to the figures of one trained network when only what comes after it changes: a Markdown table.

    python benchmarks/postprocessing.py cells data/val [--limit 24] [--only "soft NMS; Matrix NMS"]

Matrix NMS (Wang et al., SOLOv2, 2020; Gaussian) stands in this file alone: it was tried here and not taken.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import tensorflow as tf
from ablations import figures

from effdet_tf.metrics.evaluation import evaluate_run
from effdet_tf.model import postprocess
from effdet_tf.prediction.augmented import AugmentedPredictor, make_views
from effdet_tf.prediction.run import load_run
from effdet_tf.runs import find_run

# name -> settings of the run
SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "no votes": ["postprocess.vote_iou=0"],
    "votes from IoU .5 on": ["postprocess.vote_iou=0.5"],
    "votes from IoU .8 on": ["postprocess.vote_iou=0.8"],
    "hard NMS at IoU .4": ["postprocess.nms_iou=0.4"],
    "hard NMS at IoU .6": ["postprocess.nms_iou=0.6"],
    "hard NMS at IoU .7": ["postprocess.nms_iou=0.7"],
    "soft NMS": ["postprocess.nms=soft"],
    "Matrix NMS": [],
    "score without mask quality": ["postprocess.mask_scoring=false"],
    "5,000 candidates": ["postprocess.top_k=5000"],
    "masks of 14 x 14": ["model.mask.size=14"],
    "zoom 1.3": ["data.zoom=1.3"],
    "zoom 1.75": ["data.zoom=1.75"],
    "eight views": [],
    "scales .85, 1, 1.2": [],
}
MATRIX_CANDIDATES = 4000  # their IoUs are a matrix: 64 MB
SIGMA = 0.5


def matrix_suppress(
    config: Any, candidates: postprocess.Candidates
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """In place of `postprocess.suppress`: every score falls by its most overlapping better neighbour."""
    boxes, scores = candidates.boxes[:MATRIX_CANDIDATES], candidates.scores[:MATRIX_CANDIDATES]
    low = tf.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = tf.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = tf.reduce_prod(tf.maximum(high - low, 0.0), axis=-1)
    area = tf.reduce_prod(tf.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=-1)
    overlap = shared / tf.maximum(area[:, None] + area[None] - shared, 1e-6)
    overlap = tf.linalg.band_part(overlap, 0, -1) - tf.linalg.band_part(overlap, 0, 0)  # better i, worse j
    hidden = tf.reduce_max(overlap, axis=0)  # how much each is overlapped itself
    decay = tf.exp(-(overlap**2 - hidden[:, None] ** 2) / SIGMA)
    lowered = scores * tf.reduce_min(tf.where(overlap > 0, decay, 1.0), axis=0)
    room = tf.minimum(config.data.max_instances, tf.size(lowered))
    best, chosen = tf.math.top_k(lowered, room)
    count = tf.reduce_sum(tf.cast(best >= config.postprocess.score_threshold, tf.int32))
    padding = [[0, config.data.max_instances - room]]
    return tf.pad(chosen, padding), tf.pad(best, padding), count


def main() -> None:
    """Evaluate every setting that is asked for."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("run", type=find_run, help="trained network")
    parser.add_argument("data", type=Path, help="converted, annotated images")
    parser.add_argument("--limit", type=int, help="only the first images")
    parser.add_argument("--only", help="names, with semicolons between them (default: all)")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(";")] if options.only else list(SETTINGS)
    print("| | box AP / 50 / 75 | mask AP / 50 / 75 | AFNR, mask | Sartorius metric | score | count bias |")
    print("|---|---|---|---|---|---|---|")
    suppress = postprocess.suppress
    for name in names:
        postprocess.suppress = matrix_suppress if name == "Matrix NMS" else suppress
        predictor: Any = load_run(options.run, settings=SETTINGS[name])
        if name == "eight views":
            predictor = AugmentedPredictor(predictor, make_views())
        elif name.startswith("scales"):
            predictor = AugmentedPredictor(predictor, make_views(False, (0.85, 1.0, 1.2)))
        report = evaluate_run(predictor, options.data, options.limit, progress=False)
        cells = report["cells"]
        last = f"{cells['score_threshold']:.2f} | {cells['all']['count_bias']:+.1f}"
        print(f"| {name} | {figures(report)} | {last} |", flush=True)


if __name__ == "__main__":
    main()
