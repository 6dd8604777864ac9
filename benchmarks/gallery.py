"""The best, the median and the worst image of every cell type: found cells beside true ones.

    python benchmarks/gallery.py cells data/val --out gallery [--outlines gallery.png]

Writes one picture an image into --out (the image, the true cells, the found ones), and with --outlines one
small picture of what was found alone, which shows neither image nor annotation. Green: found, IoU .5 or more
with a true cell; red: found, but no true cell; yellow: true, but missed (a dot in the small picture). By the
Sartorius metric at the score saved with the network.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import effdet_tf
from effdet_tf.data.ground_truth import decode_pixels
from effdet_tf.data.record import ImageRecord, iterate_records
from effdet_tf.geometry.rle import Patch, rle_to_patch
from effdet_tf.metrics.cell_metrics import sartorius
from effdet_tf.metrics.matching import count_matches, match_masks

GREEN, RED, YELLOW = (60, 190, 60), (50, 50, 230), (0, 200, 240)  # BGR


class Evaluated(NamedTuple):
    """One image with its true and found cells."""

    name: str
    kind: str
    metric: float
    pixels: np.ndarray  # [H, W] uint8
    true: list[Patch]
    found: list[Patch]
    matched: list[tuple[int, int]]  # true, found


def evaluate(predictor: effdet_tf.Predictor, record: ImageRecord) -> Evaluated:
    """Predict one image and match its cells."""
    size = {"size": [record.height, record.width]}
    patches = [rle_to_patch({**size, "counts": code}) for code in record.rles]
    true = [patch for patch in patches if patch is not None]
    image = decode_pixels(record)
    result = predictor.predict(image).filter(predictor.config.postprocess.report_score)
    labels, kept = result.label_image()
    found = []
    for number in range(1, len(kept) + 1):
        rows, columns = np.nonzero(labels == number)
        y, x = rows.min(), columns.min()
        found.append(Patch(int(y), int(x), labels[y : rows.max() + 1, x : columns.max() + 1] == number))
    match = match_masks(true, found, result.scores[kept], record.height, record.width)
    pairs = [
        (int(t), int(f))
        for t, f, iou in zip(match.overlap_gt, match.overlap_pred, match.iou, strict=True)
        if iou > 0.5
    ]
    pixels = cv2.normalize(image[..., 0], None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    metric = sartorius([count_matches(match, 0.0)])
    return Evaluated(record.file_name, record.cell_type, metric, pixels, true, found, pairs)


def outline(canvas: np.ndarray, patch: Patch, colour: tuple[int, int, int], thickness: int = 1) -> None:
    """Draw the border of a cell."""
    contours, _ = cv2.findContours(patch.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, colour, thickness, offset=(patch.x, patch.y))


def draw(evaluated: Evaluated, canvas: np.ndarray, dots: bool = False) -> np.ndarray:
    """Draw what was found, and what was missed: its outline or a dot."""
    seen, hit = {t for t, _ in evaluated.matched}, {f for _, f in evaluated.matched}
    for number, patch in enumerate(evaluated.true):
        if number in seen:
            continue
        if dots:
            rows, columns = np.nonzero(patch.mask)
            middle = (patch.x + int(columns.mean()), patch.y + int(rows.mean()))
            cv2.circle(canvas, middle, 3, YELLOW, cv2.FILLED)
        else:
            outline(canvas, patch, YELLOW)
    for number, patch in enumerate(evaluated.found):
        outline(canvas, patch, GREEN if number in hit else RED)
    return canvas


def caption(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture with a line of text above it."""
    bar = np.full((22, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([bar, picture])


def main() -> None:
    """Evaluate all images, then draw three of every type."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("run", help="trained network")
    parser.add_argument("data", type=Path, help="converted, annotated images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--outlines", type=Path, help="PNG of the outlines alone")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    predictor = effdet_tf.load(options.run)
    evaluated = sorted(
        (evaluate(predictor, r) for r in iterate_records(options.data)), key=lambda j: -j.metric
    )
    rows = []
    for kind in sorted({one.kind for one in evaluated}):
        own = [one for one in evaluated if one.kind == kind]
        row = []
        for what, one in (("best", own[0]), ("median", own[len(own) // 2]), ("worst", own[-1])):
            text = f"{kind}, {what}: {one.metric:.3f}, {len(one.true)} cells, {len(one.found)} found"
            print(f"{text}, {one.name}")
            gray = cv2.cvtColor(one.pixels, cv2.COLOR_GRAY2BGR)
            ground_truth = gray.copy()
            for patch in one.true:
                outline(ground_truth, patch, YELLOW)
            pictures = np.concatenate([gray, ground_truth, draw(one, gray.copy())], axis=1)
            cv2.imwrite(str(options.out / f"{kind}-{what}.png"), caption(pictures, text))
            blank = np.full_like(gray, 255)
            row.append(caption(draw(one, blank, dots=True), text))
        rows.append(np.concatenate(row, axis=1))
    if options.outlines:
        width = max(row.shape[1] for row in rows)
        white = [
            np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows
        ]
        small = cv2.resize(np.concatenate(white), None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(options.outlines), small)


if __name__ == "__main__":
    main()
