"""An ordinary EfficientDet, from a COCO detection file to boxes: several classes, colour, no masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from effdet_tf import cli
from effdet_tf.config import load_config
from effdet_tf.prediction.load import load
from effdet_tf.presets import preset
from training import evaluate, main

HEIGHT, WIDTH = 96, 144
CLASSES = {3: ("disc", (40, 40, 220)), 5: ("square", (220, 60, 40)), 11: ("bar", (40, 200, 210))}  # BGR


def draw(canvas: np.ndarray, kind: int, y: int, x: int, h: int, w: int) -> None:
    colour = CLASSES[kind][1]
    if kind == 3:
        cv2.ellipse(canvas, (x + w // 2, y + h // 2), (w // 2, h // 2), 0, 0, 360, colour, -1)
    else:
        cv2.rectangle(canvas, (x, y), (x + w - 1, y + h - 1), colour, -1)


def write_set(folder: Path, images: int, seed: int) -> Path:
    """Coloured shapes on grey noise, and their boxes; in the last image a crowd region and a shape."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    entries, annotations = [], []
    for number in range(images):
        canvas = random.integers(90, 140, (HEIGHT, WIDTH, 1)).repeat(3, 2).astype(np.uint8)
        taken = np.zeros((HEIGHT, WIDTH), bool)
        for _ in range(5):
            kind = int(random.choice(list(CLASSES)))
            h, w = (16, 40) if kind == 11 else random.integers(20, 34, 2).tolist()
            y, x = int(random.integers(0, HEIGHT - h)), int(random.integers(0, WIDTH - w))
            if taken[y : y + h, x : x + w].any():
                continue
            taken[y : y + h, x : x + w] = True
            draw(canvas, kind, y, x, h, w)
            annotations.append(
                {"image_id": 70 + number, "category_id": kind, "bbox": [x, y, w, h], "area": w * h}
            )
        cv2.imwrite(str(folder / "images" / f"{number}.png"), canvas)
        entries.append({"id": 70 + number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
    crowd = {"image_id": 70 + images - 1, "category_id": 5, "bbox": [0, 0, 60, HEIGHT], "area": 60 * HEIGHT}
    annotations.append({**crowd, "iscrowd": 1})
    document = {
        "images": entries,
        "categories": [{"id": i, "name": name} for i, (name, _) in CLASSES.items()],
        "annotations": [{"id": n, "iscrowd": 0, **cell} for n, cell in enumerate(annotations, 1)],
    }
    (folder / "boxes.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Source and converted folders of `train` and `val`."""
    root = tmp_path_factory.mktemp("plain")
    folders = {}
    for seed, (split, images) in enumerate((("train", 24), ("val", 6))):
        source = write_set(root / split, images, seed)
        out = root / f"{split}-data"
        assert cli.main(["convert", "coco", str(source), str(out), "--workers", "1", "--quiet"]) == 0
        folders |= {split: source, f"{split}-data": out}
    return folders


@pytest.fixture(scope="module")
def run(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small plain detector, trained by the command line for some seconds."""
    folder = tmp_path_factory.mktemp("run")
    config = preset("lite0").override(
        [
            "model.mask.enabled=false",
            "model.backbone_levels=[3]",
            "model.max_level=4",
            "model.fpn_channels=32",
            "model.fpn_repeats=1",
            "model.head_repeats=1",
            "model.drop_connect=0",
            "model.batch_norm_momentum=0.9",
            "anchors.scale=3",
            "data.crop_size=[96, 144]",
            "data.crops_per_image=3",
            "data.max_instances=40",
            "augment.scale_range=[0.8, 1.25]",
            "train.batch=6",
            "train.epochs=9",
            "train.learning_rate=4e-3",
            "train.ema=0.9",
            "train.evaluate_every=9",
        ]
    )
    config.save(folder / "wanted.yaml")
    code = main.main(
        ["--config", str(folder / "wanted.yaml"), "--data", str(sets["train-data"])]
        + ["--val", str(sets["val-data"]), "--out", str(folder / "run")]
    )
    assert code == 0
    return folder / "run"


def test_training_evaluates_boxes_by_cocos_protocol(run):
    metrics = json.loads((run / "metrics.json").read_text())
    figures = metrics["coco"]["all"]["bbox"]
    assert figures["AP"] > 0.3 and figures["AP50"] > 0.8  # of images that it never saw
    assert set(figures["classes"]) == {"disc", "square", "bar"}
    assert min(values["AP50"] for values in figures["classes"].values()) > 0.6
    assert "segm" not in metrics["coco"]["all"] and metrics["cells"] is None
    row = pd.read_csv(run / "log.csv").iloc[-1]
    assert row["coco_box_AP"] == pytest.approx(figures["AP"], abs=1e-4)
    assert row["mask"] == 0 and pd.isna(row["mask_AP"])
    config = load_config(run / "config.yaml")
    assert (config.class_names, config.category_ids) == (("disc", "square", "bar"), (3, 5, 11))
    # The score to report by is found on the boxes; few of them reach .5 after so short a training.
    assert config.postprocess.report_score == metrics["boxes"]["report_score"] < 0.5
    assert metrics["boxes"]["best_f1"] > 0.8


def test_evaluation_equals_pycocotools_on_the_annotation_file_itself(run, sets, tmp_path, capsys):
    """What the records keep of the boxes is all that COCO's evaluation of boxes needs."""
    out = tmp_path / "figures.json"
    assert evaluate.main(["--run", str(run), "--data", str(sets["val-data"]), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "COCO protocol" in shown and "AR100" in shown and "Only boxes are scored" in shown
    assert "mask" not in shown and "Sartorius" not in shown
    figures = json.loads(out.read_text())["coco"]["all"]["bbox"]
    coco = COCO(str(sets["val"] / "boxes.json"))
    reference = COCOeval(coco, coco.loadRes(str(out.with_suffix(".predictions.json"))), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR", "ARs", "ARm", "ARl")
    got = [-1 if figures[name] is None else figures[name] for name in names]
    assert got == pytest.approx(reference.stats.tolist(), abs=1e-9)


def test_predict_writes_boxes_of_every_class(run, sets, tmp_path, capsys):
    images = sets["val"] / "images"
    assert cli.main(["predict", "--run", str(run), str(images), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "this network has no mask head: boxes only, no label images, no areas"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = ("cells.csv", "coco.json", "overlay.png")
    assert names == {"summary.csv", ".written.jsonl", *(f"{k}.{kind}" for k in range(6) for kind in kinds)}
    truth = json.loads((sets["val"] / "boxes.json").read_text())["annotations"]
    right = 0
    for number in range(6):
        table = pd.read_csv(tmp_path / "out" / f"{number}.cells.csv")
        document = json.loads((tmp_path / "out" / f"{number}.coco.json").read_text())
        assert len(table) == len(document["annotations"])
        assert all("segmentation" not in found for found in document["annotations"])
        for cell in truth:
            if cell["image_id"] != 70 + number or cell["iscrowd"]:
                continue
            x, y, w, h = cell["bbox"]
            near = table[
                (np.abs(table[["y0", "x0", "y1", "x1"]] - [y, x, y + h, x + w]).max(axis=1) < 6)
                & (table["class"] == CLASSES[cell["category_id"]][0])
            ]
            right += len(near) > 0
    cells = sum(not cell["iscrowd"] for cell in truth)
    assert right >= 0.7 * cells
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert summary["cells"].sum() == summary[["cells_disc", "cells_square", "cells_bar"]].to_numpy().sum()
    assert summary["mean_area"].isna().all()
    overlay = cv2.imread(str(tmp_path / "out" / "0.overlay.png"))
    assert (np.ptp(overlay.astype(int), axis=2) > 60).sum() > 200  # coloured boxes on a gray picture


def test_a_larger_image_is_scaled_to_fit(run, sets):
    """Three times as large: the same boxes, three times as large."""
    predictor = load(run)
    image = cv2.imread(str(sets["val"] / "images" / "1.png"))[..., ::-1]
    large = cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    score = predictor.config.postprocess.report_score
    small, big = (predictor.predict(picture).filter(score) for picture in (image, large))
    assert len(small) >= 2 and (big.height, big.width) == (3 * HEIGHT, 3 * WIDTH)
    distance = np.abs(big.boxes[:, None] / 3 - small.boxes[None]).max(-1).min(0)
    assert np.median(distance) < 1.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "the training data have boxes only, so no masks can be learned"),
        (["model.mask.enabled=false", "anchors.from_data=true"], "set data.resize=none"),
    ],
)
def test_settings_that_boxes_cannot_serve_end_in_one_line(sets, tmp_path, capsys, settings, words):
    arguments = ["--preset", "lite0", "--data", str(sets["train-data"]), "--out", str(tmp_path / "run")]
    arguments += [word for setting in settings for word in ("--set", setting)]
    assert main.main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (tmp_path / "run").exists()
