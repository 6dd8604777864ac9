"""The networks that come with the package: they are there, open by their names, and find real cells."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import effdet_tf
from effdet_tf import cli
from effdet_tf.config import load_config
from effdet_tf.data.synthetic.phase_contrast import render_image
from effdet_tf.geometry.boxes import iou
from effdet_tf.metrics.evaluation import evaluate_run
from effdet_tf.model.network import build_network
from effdet_tf.prediction.load import load
from effdet_tf.prediction.sizing import Sizing, predict_sized
from effdet_tf.pretrained.fit import start_from
from effdet_tf.pretrained.open import open_source
from effdet_tf.runs import BEST_FILE, CONFIG_FILE, MODELS, find_run, model_names, weights_file

MODEL = MODELS / "cells"


@pytest.fixture(scope="module", params=["cells", "cells-large"])
def cells(request: pytest.FixtureRequest):
    return load(request.param)


def test_they_are_small_and_say_what_they_are():
    assert model_names() == ["cells", "cells-large"]
    for name in model_names():
        assert sum(path.stat().st_size for path in (MODELS / name).iterdir()) < 25e6
        card = (MODELS / name / "MODEL_CARD.md").read_text()
        assert card.startswith(f"# {name}\n")
        for words in ("non-commercial", "Sartorius", "python -m training.release", "## Figures", "## Limits"):
            assert words in card
        assert load_config(MODELS / name / CONFIG_FILE).class_names == ("cell",)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    assert find_run("cells") == MODEL
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODEL, tmp_path / "cells")
    assert find_run("cells") == Path("cells")


def test_a_folder_of_images_called_cells_does_not_hide_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.tif").write_bytes(b"")
    assert find_run("cells") == MODEL
    (tmp_path / "cells" / "config.yaml").write_text("")
    assert find_run("cells") == Path("cells")
    assert find_run("other") == Path("other")


def test_it_opens_by_name_and_takes_any_image(cells):
    image = render_image(np.random.default_rng(0), 96, 128, 12, "Round")[0]
    for pixels in (image, image.astype(np.uint16) * 200, np.repeat(image[..., None], 3, axis=-1)):
        result = cells.predict(pixels)
        assert (result.height, result.width) == image.shape
        assert result.masks is not None and result.class_names == ("cell",)
    assert (result.scores <= 1).all()


@pytest.mark.parametrize("added", ["border", "bar", "tiles", "light"])
def test_what_a_microscope_adds_costs_no_cells(cells, added):
    """The same cells at IoU .75 as in the clean image; before, a border cost half of them and more."""
    image = render_image(np.random.default_rng(2), 300, 420, 60, "Cluster")[0]
    offset = 0
    if added == "border":
        disturbed, offset = cv2.copyMakeBorder(image, *[48] * 4, cv2.BORDER_CONSTANT, value=0), 48
    elif added == "bar":
        bar = np.zeros((32, 420), np.uint8)
        bar[6:26, 20:200:3] = 255
        disturbed = np.concatenate([image, bar])
    elif added == "tiles":
        disturbed = np.block([[image, np.zeros_like(image)], [np.zeros_like(image), image]])
    else:
        disturbed = (image * np.linspace(0.7, 1, 420)).astype(np.uint8)
    clean, found = (cells.predict(pixels).filter(0.3) for pixels in (image, disturbed))
    inner = clean.take(((clean.boxes[:, :2] > 16) & (clean.boxes[:, 2:] < [284, 404])).all(1))
    best = np.asarray(iou(inner.boxes[:, None], found.boxes[None] - offset)).max(axis=1)
    assert len(inner) > 20 and (best > 0.75).mean() > 0.93
    assert not found.disturbed


def test_an_image_of_another_magnification_has_the_same_cells(cells):
    known = cells.config.data
    small, middle, large = known.cell_size  # of several microscopes
    assert 8 < small < 10 and 16 < middle < 18 and 55 < large < 65 and not known.um_per_px
    image = render_image(np.random.default_rng(0), 300, 420, 60, "Round")[0]
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    some, most = map(float, cells.config.postprocess.calibrated(np.array([0.3, 0.5])))
    wanted = cells.predict(image, some)
    by_size = predict_sized(cells, large, some, Sizing(cell_size=70))
    cells.config = cells.config.replace(data__um_per_px=1.24)  # as one tells a network of one's own
    by_pixel = predict_sized(cells, large, some, Sizing(), um_per_px=0.31)
    cells.config = cells.config.replace(data__um_per_px=0.0)
    assert by_size.scale == by_pixel.scale == 0.25 and len(wanted) > 20
    np.testing.assert_array_equal(by_size.boxes, by_pixel.boxes)
    sure = wanted.filter(most)  # weaker ones come and go with a gray value
    best = np.asarray(iou(sure.boxes[:, None] * 4, by_size.boxes[None])).max(axis=1)
    assert len(sure) >= 10 and (best > 0.8).all() and np.median(best) > 0.95
    assert abs(len(by_size) - len(wanted)) <= 0.1 * len(wanted)


def test_predict_needs_no_run(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "one.png"), render_image(np.random.default_rng(1), 96, 128, 12, "Round")[0])
    assert cli.main(["predict", str(tmp_path / "one.png"), "--out", str(tmp_path / "out")]) == 0
    assert "1 images" in capsys.readouterr().out
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["error"] == "" and int(row["cells"]) >= 0
    assert (tmp_path / "out" / "one.labels.tif").is_file()


def test_results_say_how_far_to_trust_them(tmp_path, capsys):
    random = np.random.default_rng(1)
    (tmp_path / "images").mkdir()
    stripes = np.tile(np.arange(300) % 24 * 10, (200, 1)).astype(np.uint8)
    drawn = {"p_A1_1_00d00h00m": render_image(random, 200, 300, 25, "Round")[0], "p_A1_2_00d00h00m": stripes}
    for name, image in drawn.items():
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), image)
    words = ["predict", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    cells, strange = csv.DictReader((tmp_path / "out" / "summary.csv").open(newline=""))
    assert 0 < int(cells["cells_low"]) <= int(cells["cells"]) <= int(cells["cells_high"]) < 200
    assert 0.3 < float(cells["expected_f1"]) < 1 and cells["unlike"] in "01" and strange["unlike"] == "1"
    assert "expected F1 at IoU .5: " in said.out and "unlike what the network was trained on" in said.err
    (well,) = csv.DictReader((tmp_path / "out" / "wells.csv").open(newline=""))
    assert int(well["cells_high"]) == int(cells["cells_high"]) + int(strange["cells_high"] or 0)
    assert int(well["unlike"]) == int(cells["unlike"]) + 1 and 0 < float(well["expected_f1"]) < 1
    with pytest.warns(UserWarning, match="the image is unlike what the network was trained on"):
        trust = effdet_tf.load("cells").predict(stripes).trust
    assert (str(trust.least), str(trust.most)) == (
        strange["cells_low"],
        strange["cells_high"],
    ) and trust.unlike
    # Of other cells than those of its own score nothing is known.
    assert cli.main([*words, "--overwrite", "--score", "0.6"]) == 0
    rows = csv.DictReader((tmp_path / "out" / "summary.csv").open(newline=""))
    assert {row[name] for row in rows for name in ("cells_low", "cells_high", "expected_f1", "unlike")} == {
        ""
    }
    assert "expected F1" not in capsys.readouterr().out


def test_info_describes_it(capsys):
    assert cli.main(["info", "cells"]) == 0
    assert "preset cells-lite0" in capsys.readouterr().out
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert "\n  cells: cells-lite0, 822,422 parameters" in text and "\n  cells-large: cells-lite2" in text


@pytest.mark.parametrize("name", ["cells", "cells-large"])
def test_training_can_start_from_all_of_it(name):
    network = build_network(load_config(MODELS / name / CONFIG_FILE))
    rows = start_from(network, open_source(name), strict=True)
    assert {row.outcome for row in rows} == {"loaded"}
    assert weights_file(MODELS / name).name == BEST_FILE


CHOSEN = {"cort": 2, "shsy5y": 2, "astro": 2}  # of the held-out images, the first of each type by id


@pytest.mark.real_data
def test_it_finds_the_cells_of_images_it_never_saw(cells, real_data: Path, tmp_path: Path):
    root = real_data / "sartorius"
    held_out = set((root / "val_ids.txt").read_text().split())
    with open(root / "train.csv", newline="") as file:
        types = {row["id"]: row["cell_type"] for row in csv.DictReader(file) if row["id"] in held_out}
    chosen = [
        identity
        for kind, count in CHOSEN.items()
        for identity in sorted(i for i, own in types.items() if own == kind)[:count]
    ]
    (tmp_path / "ids.txt").write_text("\n".join(chosen) + "\n")
    data = tmp_path / "data"
    words = ["convert", "sartorius", root, data, "--classes", "one", "--ids", tmp_path / "ids.txt", "--quiet"]
    assert cli.main(list(map(str, words))) == 0
    score = cells.config.postprocess.report_score
    report = evaluate_run(cells, data, progress=False, score_threshold=score)
    mask = report["livecell"]["all"]["segm"]
    assert report["livecell"]["all"]["images"] == 6
    # The whole validation set is in the model card; these six are of all its kinds.
    assert mask["AP"] > 0.15 and mask["AP50"] > 0.45
    assert report["cells"]["by"]["cort"]["sartorius"] > 0.3
    assert report["cells"]["all"]["f1"] > 0.5
