from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.data.record import iterate_records
from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import Patch
from effdet_tf.metrics import evaluation
from effdet_tf.metrics.scores import format_table
from effdet_tf.prediction.results import Result
from effdet_tf.presets import preset
from tests.records import record_of
from training import evaluate
from training.evaluate_job import evaluate_file

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 64, 96
CELLS = {31: [(4, 4), (4, 30), (30, 50)], 32: [(10, 10), (40, 60)], 33: []}


def make_record(image_id, corners):
    # The image tells the stand-in for a network where the cells are.
    image = np.full((HEIGHT, WIDTH), 100, np.uint8)
    patches = [Patch(y, x, np.ones((12, 16), bool)) for y, x in corners]
    for y, x in corners:
        image[y, x] = 255
    kind = "BV2" if image_id == 31 else "A172"
    classes = np.arange(len(corners), dtype=np.int32) % 2
    return record_of(image, patches, image_id, classes=classes, cell_type=kind)


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_records) -> Path:
    records = [make_record(image_id, corners) for image_id, corners in CELLS.items()]
    categories = [{"id": 9, "name": "round"}, {"id": 4, "name": "thin"}]
    return write_records(tmp_path_factory.mktemp("data") / "set", records, categories)


class PerfectPredictor:
    """Finds every cell whose corner is lit, in reading order, with classes in turn."""

    per_class = False
    config = preset("cells-lite0").replace(postprocess__report_score=0.85)

    def __init__(self, class_names=("round", "thin"), seen=None):
        self.class_names = class_names
        self.seen = [] if seen is None else seen

    def predict(self, image):
        self.seen.append(image.shape)
        corners = np.argwhere(image[..., 0] == 255)
        boxes = np.concatenate([corners, corners + (12, 16)], axis=1).astype(np.float32).reshape(-1, 4)
        return Result(
            boxes=boxes,
            scores=np.linspace(0.9, 0.8, len(corners)).astype(np.float32),
            classes=np.arange(len(corners), dtype=np.int32) % len(self.class_names),
            masks=np.full((len(corners), 28, 28), 255, np.uint8),
            mask_boxes=boxes,
            height=image.shape[0],
            width=image.shape[1],
            class_names=self.class_names,
        )


def judged(predictor, data, **settings):
    """The report, and the predictions of all images."""
    predictions = []
    report = evaluation.evaluate_run(predictor, data, progress=False, keep=predictions.extend, **settings)
    return report, predictions


def test_a_perfect_predictor_scores_1(data):
    predictor = PerfectPredictor()
    report, predictions = judged(predictor, data, coco=True)
    assert predictor.seen == [(HEIGHT, WIDTH, 1)] * 3
    assert report["livecell"]["all"]["images"] == 3
    assert report["livecell"]["all"]["segm"]["AP"] == pytest.approx(1.0)
    assert report["livecell"]["all"]["bbox"]["AP"] == pytest.approx(1.0)
    assert report["cells"]["all"]["sartorius"] == pytest.approx(1.0)
    assert report["coco"]["all"]["segm"]["AP"] == pytest.approx(1.0)
    assert [p["category_id"] for p in predictions] == [9, 4, 9, 9, 4]
    assert set(report["livecell"]["by"]) == {"BV2", "A172"}


def test_limit_takes_the_first_images_and_their_ground_truth(data):
    report, predictions = judged(PerfectPredictor(), data, limit=1)
    assert report["livecell"]["all"]["cells"] == 3
    assert {p["image_id"] for p in predictions} == {31}
    assert report["livecell"]["all"]["segm"]["AP"] == pytest.approx(1.0)


def test_other_classes_are_scored_without_classes_and_refused_with(data):
    stranger = PerfectPredictor(("cell",))
    report, predictions = judged(stranger, data)
    assert report["livecell"]["all"]["segm"]["AP"] == pytest.approx(1.0)
    assert {p["category_id"] for p in predictions} == {9}
    with pytest.raises(UserError, match="classes cell.*round, thin"):
        evaluation.evaluate_run(stranger, data, progress=False, coco=True)


def test_cocos_protocol_comes_by_itself_where_the_network_tells_classes_apart(data, capsys):
    predictor = PerfectPredictor()
    assert judged(predictor, data)[0]["coco"] is None
    predictor.per_class = True
    report, _ = judged(predictor, data)
    assert report["coco"]["all"]["segm"]["AP"] == pytest.approx(1.0)
    assert judged(predictor, data, coco=False)[0]["coco"] is None
    assert capsys.readouterr().err == ""
    stranger = PerfectPredictor(("cell",))
    stranger.per_class = True
    assert judged(stranger, data)[0]["coco"] is None
    assert "no figures by COCO's protocol: the network knows the classes cell" in capsys.readouterr().err


def test_classes_that_the_data_lack_are_left_out(data):
    """As a detector of 90 classes on data of 80, which cannot tell whether there is a `street sign`."""
    predictor = PerfectPredictor(("sign", "round", "thin"))
    report, predictions = judged(predictor, data, coco=True)
    assert [p["category_id"] for p in predictions] == [9, 4, 9]  # round, thin of image 31, round of 32
    assert report["left_out"] == 2
    assert report["livecell"]["all"]["segm"]["AR"] == pytest.approx(3 / 5)
    assert "2 predictions of classes that the images lack were left out." in format_table(report)


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "training.evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)


def test_command_scores_a_file_of_predictions(data, tmp_path):
    _, predictions = judged(PerfectPredictor(), data)
    found = tmp_path / "found.json"
    found.write_text(json.dumps(predictions[:3]))
    out = tmp_path / "new" / "metrics.json"
    done = run("--predictions", found, "--data", data, "--out", out, "--score", 0.5)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["livecell"]["by"]["BV2"]["segm"]["AP"] == pytest.approx(1.0)
    assert report["livecell"]["by"]["A172"]["segm"]["AP"] == 0.0
    assert report["cells"]["score_threshold"] == 0.5
    assert "LIVECell protocol" in done.stdout and str(out) in done.stdout
    assert {p.name for p in out.parent.iterdir()} == {
        "metrics.json",
        "metrics.examples.json",
        "metrics.html",
    }


def test_an_output_that_cannot_be_written_is_one_line(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.evaluate_job.load", lambda path: PerfectPredictor())
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "x.json")
    assert evaluate.main(["--run", str(tmp_path), "--data", str(data), "--limit", "1", "--out", out]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'file'}") and error.endswith("choose another --out")


def test_main_writes_report_and_predictions_into_the_run(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.evaluate_job.load", lambda path: PerfectPredictor())
    assert evaluate.main(["--run", str(tmp_path), "--data", str(data), "--limit", "2"]) == 0
    report = json.loads((tmp_path / f"evaluation-{data.name}.json").read_text())
    assert report["livecell"]["all"]["segm"]["AP"] == pytest.approx(1.0)
    assert report["evaluated"] == {"data": str(data), "of": str(tmp_path), "limit": 2}
    assert len(json.loads((tmp_path / f"evaluation-{data.name}.predictions.json").read_text())) == 5
    assert "A172" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("score", "used", "chosen"), [((), 0.85, "given"), (("--score", "best"), 0.05, "best here")]
)
def test_cells_are_evaluated_at_the_score_of_the_run(data, tmp_path, monkeypatch, score, used, chosen):
    monkeypatch.setattr("training.evaluate_job.load", lambda path: PerfectPredictor())
    assert evaluate.main(["--run", str(tmp_path), "--data", str(data), *score]) == 0
    cells = json.loads((tmp_path / f"evaluation-{data.name}.json").read_text())["cells"]
    assert (cells["score_threshold"], cells["chosen"]) == (used, chosen)
    assert (cells["all"]["recall"] == 1) == (used == 0.05)


def test_views_go_with_a_network(data, tmp_path):
    found = tmp_path / "found.json"
    found.write_text("[]")
    for views in (["--tta"], ["--tta-scales", "2"]):
        with pytest.raises(SystemExit) as caught:
            evaluate.main(["--predictions", str(found), "--data", str(data), *views])
        assert caught.value.code == 2


def test_predictions_of_images_beyond_the_limit_are_left_out(data, tmp_path):
    _, predictions = judged(PerfectPredictor(), data)
    found = tmp_path / "found.json"
    found.write_text(json.dumps({"annotations": predictions}))
    report = evaluate_file(found, data, limit=1)
    assert report["livecell"]["all"]["predictions"] == 3
    assert report["livecell"]["all"]["segm"]["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("", "not a JSON file"),
        ('{"images": []}', "not a COCO results file"),
        ('{"annotations": 3}', "not a COCO results file"),
        ('[{"image_id": [31], "score": 1, "bbox": [0, 0, 1, 1]}]', "image_id"),
        ('[{"score": 1, "bbox": [0, 0, 1, 1]}]', "image_id None"),
        ('[{"image_id": 31, "score": "high", "bbox": [0, 0, 1, 1]}]', "score 'high'"),
        ('[{"image_id": 31, "score": 0.5}]', "prediction 0 has no box"),
        ("{", "not a JSON file"),
        ("[1, 2]", "not a COCO results file"),
        ('[{"image_id": 99, "score": 1, "bbox": [0, 0, 1, 1]}]', "image_id 99"),
    ],
)
def test_a_bad_file_ends_in_one_line_and_exit_code_1(data, tmp_path, capsys, content, words):
    found = tmp_path / "found.json"
    if content is not None:
        found.write_text(content)
    assert evaluate.main(["--predictions", str(found), "--data", str(data)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert words in error


def test_figures_do_not_depend_on_the_order_of_a_file(data, tmp_path):
    report, predictions = judged(PerfectPredictor(), data)
    found = tmp_path / "found.json"
    found.write_text(json.dumps(predictions[::-1], indent=1))
    again = evaluate_file(found, data, score_threshold=report["cells"]["score_threshold"])
    assert again["livecell"] == report["livecell"]
    assert again["cells"]["all"] == report["cells"]["all"]


def test_two_images_with_one_id_and_no_image_at_all_are_refused(data, tmp_path, monkeypatch):
    records = list(iterate_records(data))
    monkeypatch.setattr(evaluation, "iterate_records", lambda folder: iter([*records, records[0]]))
    name = records[0].file_name
    with pytest.raises(UserError, match=f"{name} and {name} have the same image id 31"):
        judged(PerfectPredictor(), data)
    monkeypatch.setattr(evaluation, "iterate_records", lambda folder: iter([]))
    with pytest.raises(UserError, match="no image to evaluate on"):
        judged(PerfectPredictor(), data)


def test_a_folder_that_was_not_converted_ends_in_exit_code_1(tmp_path, capsys):
    found = tmp_path / "found.json"
    found.write_text("[]")
    assert evaluate.main(["--predictions", str(found), "--data", str(tmp_path)]) == 1
    assert "manifest" in capsys.readouterr().err


def test_wrong_usage_ends_in_exit_code_2(data):
    for arguments in (
        ["--data", str(data)],
        ["--run", "x", "--data", str(data), "--limit", "0"],
        ["--predictions", "x.json", "--data", str(data), "other"],
        ["--predictions", "x.json", "--data", str(data), "--tune-score"],
        ["--run", "x", "--data", str(data), "--tune-score", "--score", "0.5"],
        ["--run", "x", "--data", str(data), "--tune-score", "--limit", "3"],
        ["--run", "x", "--data", str(data), "--tune-score", "--tta"],
    ):
        with pytest.raises(SystemExit) as caught:
            evaluate.main(arguments)
        assert caught.value.code == 2
