"""Several annotated sets, with colliding image ids, evaluated as one; the score that is chosen on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from effdet_tf.config import load_config
from effdet_tf.data.annotated import folder_text, open_annotated
from effdet_tf.data.manifest import load_manifest
from effdet_tf.data.record import ImageRecord
from effdet_tf.errors import UserError
from effdet_tf.geometry.rle import Patch
from effdet_tf.metrics.evaluation import annotated_images, evaluate_run
from effdet_tf.metrics.scores import format_table
from effdet_tf.metrics.tuning import tune
from effdet_tf.prediction.results import Result
from effdet_tf.presets import preset
from effdet_tf.report.gallery import make_gallery
from tests.records import record_of
from training import evaluate

SIDE, CELL = 64, 8
Places = list[tuple[int, int, bool]]  # y and x of a lit pixel, and whether a cell is there
GRID = [(y, x) for y in range(0, SIDE, 2 * CELL) for x in range(0, SIDE, 2 * CELL)]


def record(image_id: int, places: Places, level: int, cell_type: str = "") -> ImageRecord:
    """An image in which the stand-in for a network finds a cell at each place, of a score that is `level`."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    for y, x, _ in places:
        image[y, x] = level
    patches = [Patch(y, x, np.ones((CELL, CELL), bool)) for y, x, real in places if real]
    return record_of(image, patches, image_id, cell_type=cell_type)


class Lit:
    """Finds a cell at each lit pixel, its score the pixel's value in %."""

    per_class = False
    class_names = ("cell",)
    config = preset("cells-lite0")

    def __init__(self, run: Path | None = None) -> None:
        if run is not None:
            self.config = load_config(run / "config.yaml")

    def predict(self, image: np.ndarray) -> Result:
        places = np.argwhere(image[..., 0] > 0)
        scores = image[places[:, 0], places[:, 1], 0].astype(np.float32) / 100
        order = np.argsort(-scores, kind="stable")
        boxes = np.concatenate([places, places + CELL], axis=1).astype(np.float32).reshape(-1, 4)[order]
        return Result(
            boxes=boxes,
            scores=scores[order],
            classes=np.zeros(len(boxes), np.int32),
            masks=np.full((len(boxes), 28, 28), 255, np.uint8),
            mask_boxes=boxes,
            height=image.shape[0],
            width=image.shape[1],
            class_names=self.class_names,
        )


def true(count: int) -> Places:
    return [(y, x, True) for y, x in GRID[:count]]


@pytest.fixture(scope="module")
def sets(tmp_path_factory, write_records) -> list[Path]:
    """Dense: images 1 and 2 with ten cells of .32. Sparse: images 2, 1, 3, 4, each one cell of .92; 1, 3 and
    4 have two false ones of .32 beside it. Empty: image 1, nothing there, a false one of .32.
    """
    folder = tmp_path_factory.mktemp("sets")
    dense = [record(1, true(10), 32, "BV2"), record(2, true(10), 32, "A172")]
    sparse = []
    for image_id in (2, 1, 3, 4):
        places: Places = true(1) + [(y, x, False) for y, x in GRID[1:3] if image_id != 2]
        one = record(image_id, places, 32)
        image = cv2.imdecode(np.frombuffer(one.image, np.uint8), cv2.IMREAD_UNCHANGED)
        image[0, 0] = 92
        sparse.append(replace(one, image=cv2.imencode(".png", image)[1].tobytes()))
    kinds = [{"id": 7, "name": "cell"}], [{"id": 1, "name": "cell"}]
    return [
        write_records(folder / "dense", dense, kinds[0]),
        write_records(folder / "sparse", sparse, kinds[1]),
        write_records(folder / "empty", [record(1, [(0, 0, False)], 32)], kinds[1]),
    ]


def evaluated(data: Any, **settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []
    report = evaluate_run(Lit(), data, progress=False, keep=found.extend, **settings)  # type: ignore[arg-type]
    return report, found


def test_images_of_several_sets_are_numbered_anew(sets: list[Path]) -> None:
    images = [one.image for one in annotated_images(sets)]
    assert [(i["id"], i["source"], i["file_name"]) for i in images] == [
        (1, "dense", "1.png"),
        (2, "dense", "2.png"),
        (3, "sparse", "2.png"),
        (4, "sparse", "1.png"),
        (5, "sparse", "3.png"),
        (6, "sparse", "4.png"),
        (7, "empty", "1.png"),
    ]
    for one in annotated_images(sets):
        assert {cell["image_id"] for cell in one.cells} <= {one.image["id"]}
        assert {cell["category_id"] for cell in one.cells} <= {7}  # of the first set
    # With a limit, too: the first of each, by the same ids.
    assert [one.image["id"] for one in annotated_images(sets, 1)] == [1, 3, 7]
    alone = [one.image for one in annotated_images(sets[1])]
    assert [i["id"] for i in alone] == [2, 1, 3, 4] and "source" not in alone[0]
    assert [one.image for one in annotated_images([sets[1]])] == alone


def test_the_report_of_several_sets_is_split_by_source_and_by_cell_type(sets: list[Path]) -> None:
    report, found = evaluated(sets, score_threshold=0.3)
    groups = report["cells"]["by"]
    assert list(groups) == ["dense", "empty", "sparse", "A172", "BV2", "unknown"]
    assert list(report["livecell"]["by"]) == list(groups)
    assert {name: (g["images"], g["true_cells"], g["found_cells"]) for name, g in groups.items()} == {
        "dense": (2, 20, 20),
        "sparse": (4, 4, 10),
        "empty": (1, 0, 1),
        "A172": (1, 10, 10),
        "BV2": (1, 10, 10),
        "unknown": (5, 4, 11),
    }
    assert report["livecell"]["by"]["dense"]["segm"]["AP"] == pytest.approx(1.0)
    assert groups["sparse"]["f1"] == pytest.approx(2 * 4 / 14)
    assert groups["sparse"]["mean_f1"] == pytest.approx((1 + 3 * 2 / 4) / 4)
    assert (groups["empty"]["f1"], groups["empty"]["mean_f1"]) == (0.0, 0.0)
    assert report["cells"]["all"]["images"] == 7 and len(found) == 31
    assert [image["source"] for image in report["images"]] == ["dense"] * 2 + ["sparse"] * 4 + ["empty"]
    header = next(line for line in format_table(report).splitlines() if "sparse" in line and "BV2" in line)
    assert header.split() == ["all", *groups]
    alone, _ = evaluated(sets[0])
    assert list(alone["cells"]["by"]) == ["A172", "BV2"]


def test_the_score_is_chosen_by_all_images_alike(sets: list[Path], write_records, tmp_path: Path) -> None:
    """F1 of the images up to .30: dense 1, 1, sparse 1, .5, .5, .5, empty 0; from .35 to .90: dense 0, 0, the
    others 1 each.
    """

    def tuned(*data: Path) -> float:
        return tune(Lit(), data, progress=False).report_score  # type: ignore[arg-type]

    assert (tuned(sets[0]), tuned(sets[1])) == (0.05, 0.325)
    assert tuned(*sets[:2]) == 0.05  # means 4.5 / 6 and 4 / 6
    assert tuned(*sets) == 0.325  # 4.5 / 7 and 5 / 7, though 20 of the 24 cells are lost there
    report, _ = evaluated(sets, score_threshold=0.325)
    assert report["cells"]["all"]["mean_f1"] == pytest.approx(5 / 7)
    assert report["cells"]["all"]["found_cells"] == 4
    # One dense image: 3.5 / 5 and 4 / 5, though the means of the sets have (1 + .625) / 2 and (0 + 1) / 2.
    one = write_records(tmp_path / "one", [record(1, true(10), 32)], [{"id": 1, "name": "cell"}])
    assert tuned(one, sets[1]) == 0.325


def test_images_that_tell_no_score_are_an_error(sets: list[Path]) -> None:
    with pytest.raises(UserError, match=r"empty: no found cell matches an annotated one, so no score"):
        tune(Lit(), sets[2], progress=False)  # type: ignore[arg-type]


@pytest.fixture
def changed(sets: list[Path], tmp_path: Path) -> Callable[..., Path]:
    """`changed(**values)`: a set of whose manifest some values are others."""

    def change(**values: Any) -> Path:
        replace(load_manifest(sets[1]), **values).save(tmp_path)
        return tmp_path

    return change


def test_sets_that_do_not_go_together_are_refused(sets: list[Path], changed: Callable[..., Path]) -> None:
    def message(*data: Path) -> str:
        with pytest.raises(UserError) as caught:
            evaluate_run(Lit(), data, progress=False)  # type: ignore[arg-type]
        return str(caught.value)

    other = changed(categories=[{"id": 1, "name": "nucleus"}])
    assert message(sets[0], other) == (
        f"{other}: classes nucleus differ from cell of {sets[0]}; convert both alike, or take one"
    )
    other = changed(masks=False)
    alone = f"{other}: its cells are annotated by boxes alone, those of {sets[0]} by masks; take one"
    assert message(sets[0], other) == message(other, sets[0]) == alone
    assert message(sets[0], changed(pseudo={"network": "cells"})).endswith("evaluate on annotated images")
    again = sets[0] / ".." / sets[0].name
    assert message(sets[0], again) == f"{again}: is given twice; each of its images would count twice"
    assert message() == "no folder of converted images was given"
    assert "holds no manifest.json" in message(sets[0], sets[0].parent)


def test_a_set_is_called_by_as_much_of_its_path_as_tells_it(sets: list[Path], tmp_path: Path) -> None:
    def names(*paths: str) -> tuple[str, ...]:
        manifest = replace(load_manifest(sets[0]), cell_types={"BV2": {"images": 2, "cells": 20}})
        for path in paths:
            (tmp_path / path).mkdir(parents=True, exist_ok=True)
            manifest.save(tmp_path / path)
        return open_annotated([tmp_path / path for path in paths]).names

    assert names("a/val", "b/test") == ("val", "test")
    assert names("a/val", "b/val") == ("a/val", "b/val")
    assert names("a/val", "b/BV2") == ("a/val", "b/BV2")  # the cell type has that name
    assert names("a/val", "b/all") == ("a/val", "b/all")  # and so has the row of all images
    assert open_annotated(sets[0]).names == ("dense",)


def test_one_folder_is_written_as_text_and_several_as_a_list() -> None:
    assert folder_text("a") == folder_text(["a"]) == folder_text(Path("a")) == "a"
    assert folder_text(["a", Path("b")]) == ["a", "b"]


def test_the_command_evaluates_several_sets(sets: list[Path], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("training.evaluate_job.load", lambda path: Lit())
    assert evaluate.main(["--run", str(tmp_path), "--data", *map(str, sets), "--score", "0.3"]) == 0
    out = tmp_path / "evaluation-dense+sparse+empty.json"
    report = json.loads(out.read_text())
    assert report["evaluated"]["data"] == list(map(str, sets))
    examples = json.loads(out.with_suffix(".examples.json").read_text())
    assert examples["data"] == [str(folder.resolve()) for folder in sets]
    # The pictures are of the images that were evaluated, ids or not.
    shown = {picture.entry["id"]: picture for picture in make_gallery(examples)}
    assert len(shown) == len(examples["images"]) > 4
    assert {k: picture.counts["false"] for k, picture in shown.items() if k in (3, 7)} == {3: 0, 7: 1}
    page = out.with_suffix(".html").read_text()
    assert "AP by source and cell type" in page and "There are no pictures" not in page
    assert "on dense, sparse, empty" in page


def test_the_command_chooses_the_score_of_a_run(
    sets: list[Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("effdet_tf.metrics.tuning.load_run", lambda path, settings=(): Lit(path))
    preset("cells-lite0").replace(postprocess__report_score=0.9).save(tmp_path / "config.yaml")
    before = load_config(tmp_path / "config.yaml")
    words = ["--run", str(tmp_path), "--data", *map(str, sets), "--tune-score"]
    assert evaluate.main(words) == 0
    # Too few cells to calibrate, and too few images to say how far to trust the network.
    assert load_config(tmp_path / "config.yaml") == before.replace(postprocess__report_score=0.325)
    said = f"{tmp_path / 'config.yaml'}: cells are reported from score 0.325 (it was 0.90)"
    assert said in capsys.readouterr().out
    assert not list(tmp_path.glob("evaluation*"))
    assert evaluate.evaluate(run=tmp_path, data=sets[:2], tune_score=True) == {"report_score": 0.05}
    assert evaluate.main(["--run", "cells", "--data", str(sets[0]), "--tune-score"]) == 1
    assert "comes with the package" in capsys.readouterr().err
    assert evaluate.main(["--run", str(sets[0]), "--data", str(sets[0]), "--tune-score"]) == 1
    assert "is no run folder" in capsys.readouterr().err
    assert load_config(tmp_path / "config.yaml").postprocess.report_score == 0.05
