"""How far scores, expected F1 and intervals of counts hold on a source that nothing was fitted on.

    python benchmarks/trust.py look cells data/*_val --out seen.pickle     once for each network
    python benchmarks/trust.py tables seen.pickle
    python benchmarks/trust.py draw seen.pickle --out docs/pictures/trust.png
    python benchmarks/trust.py beside cells cells-large data/*_val
    python benchmarks/trust.py strange --known data/TRAIN... --other data/VAL... images/...

`look` predicts every validation image, its four worse copies (`metrics.tuning.worse_copies`), its mirror
image and one of .8 times its size. `tables` leaves one source out at a time: what is said of its images
was learned on the others. `beside` does so for what two networks agree on. `strange` tells which images
are taken for unlike those of training.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.optimize import minimize
from scipy.stats import spearmanr

from effdet_tf.config import Config, PostprocessConfig, TrustConfig
from effdet_tf.data.ground_truth import decode_pixels
from effdet_tf.data.manifest import MANIFEST_NAME
from effdet_tf.geometry.boxes import iou
from effdet_tf.images.read import IMAGE_SUFFIXES, read_image
from effdet_tf.metrics.calibration import JudgedImage, bins_of, fit_lines, fit_trust
from effdet_tf.metrics.cell_metrics import match_cells
from effdet_tf.metrics.evaluation import annotated_images
from effdet_tf.metrics.instances import image_instances
from effdet_tf.metrics.tuning import spread_images, worse_copies
from effdet_tf.prediction.likeness import known_looks, looks_at_sizes, strangeness
from effdet_tf.prediction.run import load_run
from effdet_tf.prediction.trust import judge, log_odds
from effdet_tf.runs import find_run

Seen = dict[str, Any]
_EMPTY = np.zeros((8, 8), np.uint8)


def look(run: str, folders: Sequence[Path]) -> dict[str, Any]:
    """What a network sees in each image and its copies."""
    predictor = load_run(find_run(run), settings=["postprocess.calibration=[]"])
    score = float(load_run(find_run(run)).config.postprocess.as_given().report_score)
    rows: list[Seen] = []
    for folder in folders:
        for number, one in enumerate(annotated_images(folder)):
            pixels = decode_pixels(one.record)
            first = [int(one.cells[0]["category_id"]) if one.cells else 1]
            for copy, worse in ((pixels, False), *((copy, True) for copy in worse_copies(pixels, number))):
                found = predictor.predict(copy)
                entries = found.to_coco(one.image["id"], first * len(found.class_names))
                match = match_cells(image_instances(one.image, one.cells, entries))
                row = {"source": folder.name, "worse": worse, "true": len(match.gt_areas)}
                row |= {"scores": match.scores, "hits": match.matched_gt >= 0}
                if not worse:
                    row["agree"] = [
                        _agreement(predictor, pixels, found, how, score) for how in (_mirror, _small)
                    ]
                rows.append(row)
        print(f"{folder.name}: seen", flush=True)
    return {"run": run, "score": score, "rows": rows}


def _mirror(pixels: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    width = pixels.shape[1]
    return np.ascontiguousarray(pixels[:, ::-1]), lambda b: np.stack(
        [b[:, 0], width - b[:, 3], b[:, 2], width - b[:, 1]], 1
    )


def _small(pixels: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    return cv2.resize(pixels, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA), lambda b: b / 0.8


def _agreement(predictor: Any, pixels: np.ndarray, found: Any, how: Any, score: float) -> float:
    """F1 of the cells of two views, one against the other, by boxes at IoU .6."""
    view, back = how(pixels)
    return _alike(found.filter(score).boxes, back(predictor.predict(view).filter(score).boxes))


def _alike(own: np.ndarray, theirs: np.ndarray) -> float:
    if not len(own) or not len(theirs):
        return float(len(own) == len(theirs))
    near = np.array(iou(own[:, None], theirs[None])) > 0.6
    return 2 * min(near.any(1).sum(), near.any(0).sum()) / (len(own) + len(theirs))


def tables(seen: dict[str, Any]) -> None:
    """Print the tables of a network."""
    rows, score = seen["rows"], seen["score"]
    sources = sorted({row["source"] for row in rows})
    print(f"\n{seen['run']}, cells of score {score:.3f} before calibration\n")
    print("| source | images, cells found | ECE as given | isotonic, source left out | Platt, left out |")
    print("|---|---|---|---|---|")
    good = [row for row in rows if not row["worse"]]
    for source in sources:
        own, others = _pairs(good, source), _pairs(good, source, True)
        errors = [_error(own[0], own[1])]
        errors += [_error(fit(*others)(own[0]), own[1]) for fit in (_isotonic, _platt)]
        images = sum(row["source"] == source for row in good)
        print(f"| {source} | {images}, {len(own[0]):,} | " + " | ".join(f"{e:.3f}" for e in errors) + " |")
    print("\nExpected F1, source left out: Spearman of images as they are / with worse copies; mean error\n")
    print("| source | mean F1 | by all scores | as built | error of these | with a smaller view | mirror |")
    print("|---|---|---|---|---|---|---|")
    for source in sources:
        _quality(rows, source, score)
    print("\nCounts at 90 %, source left out\n")
    print("| source | holds, images as they are | worse copies | high / low |")
    print("|---|---|---|---|")
    for source in sources:
        _counts(rows, source, score)


def _pairs(rows: Sequence[Seen], source: str, others: bool = False) -> tuple[np.ndarray, np.ndarray]:
    own = [row for row in rows if (row["source"] == source) != others]
    return np.concatenate([r["scores"] for r in own]), np.concatenate([r["hits"] for r in own])


def _isotonic(scores: np.ndarray, hits: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return PostprocessConfig(calibration=fit_lines(scores, hits)).calibrated


def _platt(scores: np.ndarray, hits: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def loss(line: np.ndarray) -> float:
        odds = line[0] * log_odds(scores) + line[1]
        return float((np.logaddexp(0, odds) - hits * odds).mean())

    slope, offset = minimize(loss, [1.0, 0.0]).x
    return lambda values: 1 / (1 + np.exp(-(slope * log_odds(values) + offset)))


def _error(scores: np.ndarray, hits: np.ndarray) -> float:
    return float(bins_of(scores, hits)["error"])


def _judged(
    rows: Sequence[Seen], left_out: str, score: float
) -> tuple[list[JudgedImage], list[float], float]:
    """All images as calibrated without a source, the F1 that all their scores promise, the score there."""
    calibrated = _isotonic(*_pairs([row for row in rows if not row["worse"]], left_out, True))
    images, promised = [], []
    for row in rows:
        told = calibrated(row["scores"])
        kept = row["scores"] >= score
        found, hits = int(kept.sum()), int(row["hits"][kept].sum())
        mean = float(told[kept].mean()) if found else 0.0
        images.append(JudgedImage(row["source"], row["worse"], row["true"], found, hits, mean))
        promised.append(2 * told[kept].sum() / max(found + told.sum(), 1e-9))
    return images, promised, float(calibrated(score))


def _config(images: Sequence[JudgedImage], left_out: str, score: float) -> Config:
    trust = TrustConfig(*fit_trust([image for image in images if image.source != left_out]))
    return Config(trust=trust).replace(postprocess__report_score=score)


def _expected(config: Config, image: JudgedImage) -> Any:
    return judge(config, _EMPTY, np.full(image.found, max(image.mean, config.postprocess.report_score)))


def _quality(rows: Sequence[Seen], source: str, score: float) -> None:
    images, promised, reported = _judged(rows, source, score)
    config = _config(images, source, reported)
    true = np.array([2 * i.matched / max(i.found + i.true, 1) for i in images])
    built = np.array([_expected(config, i).f1 or 0.0 for i in images])
    own = np.array([i.source == source for i in images])
    good = own & np.array([not i.worse for i in images])

    def both(values: np.ndarray) -> str:
        return " / ".join(f"{spearmanr(values[k], true[k]).statistic:.2f}" for k in (good, own))

    error = " / ".join(f"{np.abs(built - true)[k].mean():.2f}" for k in (good, own))
    views = [_with_view(rows, images, true, source, k) for k in (1, 0)]
    cells = [f"{true[good].mean():.2f}", both(np.array(promised)), both(built), error, *views]
    print(f"| {source} | " + " | ".join(cells) + " |")


def _with_view(
    rows: Sequence[Seen], images: Sequence[JudgedImage], true: np.ndarray, source: str, view: int
) -> str:
    """Spearman and error of a line over mean score and agreement with another view, good images alone."""
    good = [k for k, row in enumerate(rows) if not row["worse"]]
    mean = log_odds(np.array([images[k].mean for k in good]))
    agree = log_odds(np.array([rows[k]["agree"][view] for k in good]))
    names = [rows[k]["source"] for k in good]
    weights = np.sqrt([1 / names.count(name) for name in names])
    columns = np.stack([np.ones_like(mean), mean, agree], 1)
    others = np.array([name != source for name in names])
    target = log_odds(true[good])
    fitted = (columns * weights[:, None])[others], (target * weights)[others]
    expected = 1 / (1 + np.exp(-columns @ np.linalg.lstsq(*fitted, rcond=None)[0]))[~others]
    own = true[good][~others]
    return f"{spearmanr(expected, own).statistic:.2f}, error {np.abs(expected - own).mean():.2f}"


def _counts(rows: Sequence[Seen], source: str, score: float) -> None:
    images, _, reported = _judged(rows, source, score)
    config = _config(images, source, reported)
    holds: dict[bool, list[bool]] = {False: [], True: []}
    widths = []
    for image in images:
        if image.source == source and image.found:
            told = _expected(config, image)
            holds[image.worse].append(told.least <= image.true <= told.most)
            widths += [] if image.worse else [max(told.most, 1) / max(told.least, 1)]
    shares = [f"{np.mean(holds[worse]):.2f}" for worse in (False, True)]
    print(f"| {source} | " + " | ".join(shares) + f" | {np.median(widths):.1f} |")


def strange(known: Sequence[Path], other: Sequence[Path]) -> None:
    """Print the share of the images of each folder that are like none of those known, all and all but one."""
    looks = [np.array([own for one in spread_images(path) for own in looks_at_sizes(one)]) for path in known]
    print(f"| images | unlike all of {', '.join(path.name for path in known)} |\n|---|---|")
    shown = {path: list(_pixels(path)) for path in other}
    for path, images in shown.items():
        share = np.mean([strangeness(image, known_looks(looks)) > 1 for image in images])
        print(f"| {path.name}, {len(images)} | {share:.2f} |")
    for k, path in enumerate(known):
        left = known_looks(looks[:k] + looks[k + 1 :])
        share = np.mean([strangeness(image, left) > 1 for image in spread_images(path)])
        print(f"| {path.name}, left out of training | {share:.2f} |")


def draw(seen: dict[str, Any], out: Path) -> None:
    """The picture of `docs/trust.md`: scores before and after, and expected F1 over the true one."""
    from matplotlib.figure import Figure

    rows, score = seen["rows"], seen["score"]
    sources = sorted({row["source"] for row in rows})
    good = [row for row in rows if not row["worse"]]
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    curves: dict[str, list[np.ndarray]] = {"as the network gives it": [], "calibrated on other sources": []}
    for source in sources:
        own, others = _pairs(good, source), _pairs(good, source, True)
        for label, scores in zip(curves, (own[0], _isotonic(*others)(own[0])), strict=True):
            curves[label].append(np.stack([scores, own[1]]))
        images, _, reported = _judged(rows, source, score)
        config = _config(images, source, reported)
        dots = [
            (_expected(config, one).f1 or 0, 2 * one.matched / max(one.found + one.true, 1))
            for one in images
            if one.source == source and not one.worse
        ]
        right.scatter(*np.array(dots).T, s=16, alpha=0.8, label=source.removesuffix("_val"))
    for label, parts in curves.items():
        mean, share, _ = np.array(bins_of(*np.concatenate(parts, axis=1))["bins"]).T
        left.plot(mean, share, marker="o", markersize=4, label=label)
    left.set(xlabel="score", ylabel="share of cells that match a true one", title="Scores as probabilities")
    right.set(xlabel="expected F1", ylabel="true F1", title="Images of sources left out")
    left.legend(fontsize=8, loc="upper left")
    right.legend(fontsize=8, loc="upper left")
    figure.savefig(out, dpi=100)


def beside(runs: Sequence[str], folders: Sequence[Path]) -> None:
    """Print what the agreement of two networks adds to the mean score of each, on images as they are."""
    networks = [load_run(find_run(run), settings=["postprocess.calibration=[]"]) for run in runs]
    scores = [float(load_run(find_run(run)).config.postprocess.as_given().report_score) for run in runs]
    rows: list[list[Seen]] = [[], []]
    for folder in folders:
        for one in annotated_images(folder):
            pixels = decode_pixels(one.record)
            first = [int(one.cells[0]["category_id"]) if one.cells else 1]
            found = [network.predict(pixels) for network in networks]
            boxes = [result.filter(score).boxes for result, score in zip(found, scores, strict=True)]
            for own, result in zip(rows, found, strict=True):
                entries = result.to_coco(one.image["id"], first * len(result.class_names))
                match = match_cells(image_instances(one.image, one.cells, entries))
                row = {"source": folder.name, "worse": False, "true": len(match.gt_areas)}
                row |= {"scores": match.scores, "hits": match.matched_gt >= 0}
                own.append(
                    row | {"agree": [_alike(*boxes), 0.5]}
                )  # the second tells nothing: by the mean score
    print(
        "| source | "
        + " | ".join(f"{run}: by the mean score | with the other network" for run in runs)
        + " |"
    )
    for source in sorted({row["source"] for row in rows[0]}):
        cells = []
        for own, score in zip(rows, scores, strict=True):
            images, _, _ = _judged(own, source, score)
            true = np.array([2 * i.matched / max(i.found + i.true, 1) for i in images])
            cells += [_with_view(own, images, true, source, view) for view in (1, 0)]
        print(f"| {source} | " + " | ".join(cells) + " |")


def _pixels(path: Path) -> Any:
    if (path / MANIFEST_NAME).exists():
        return spread_images(path)
    return (read_image(file) for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("look")
    one.add_argument("run")
    one.add_argument("folders", nargs="+", type=Path)
    one.add_argument("--out", type=Path, required=True)
    verbs.add_parser("tables").add_argument("seen", nargs="+", type=Path)
    three = verbs.add_parser("draw")
    three.add_argument("seen", type=Path)
    three.add_argument("--out", type=Path, required=True)
    pair = verbs.add_parser("beside")
    pair.add_argument("run", nargs=2)
    pair.add_argument("folders", nargs="+", type=Path)
    two = verbs.add_parser("strange")
    two.add_argument("--known", nargs="+", type=Path, required=True)
    two.add_argument("--other", nargs="+", type=Path, required=True)
    options = parser.parse_args()
    if options.verb == "look":
        options.out.write_bytes(pickle.dumps(look(options.run, options.folders)))
    elif options.verb == "tables":
        for path in options.seen:
            tables(pickle.loads(path.read_bytes()))  # noqa: S301 (our own file)
    elif options.verb == "beside":
        beside(options.run, options.folders)
    elif options.verb == "draw":
        draw(pickle.loads(options.seen.read_bytes()), options.out)  # noqa: S301 (likewise)
    else:
        strange(options.known, options.other)


if __name__ == "__main__":
    main()
