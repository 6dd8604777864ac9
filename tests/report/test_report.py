"""The page: its numbers are the report's, names are escaped, and what is missing says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.metrics.scores import format_table, headline
from effdet_tf.report.collect import from_run
from effdet_tf.report.tables import image_table
from effdet_tf.report.write import report_on_evaluation, report_on_run
from tests.report.pages import CATEGORIES, Page, predictions

LOG = (
    "epoch,step,total,class,box,mask,rate,minutes,mask_AP,sartorius,count_mean_error\n"
    "1,10,2.5,1.0,0.5,1.0,0.001,0.5,,,\n"
    "2,20,2.0,0.8,0.4,0.8,0.0005,1.25,0.25,0.2,3.5\n"
)


def page_of(figures: Path) -> Page:
    return Page(figures.with_suffix(".html"))


@pytest.fixture
def run_folder(tiny_config: Config, tmp_path: Path) -> Path:
    """A run without validation and without weights: a configuration and a log."""
    folder = tmp_path / "run <i>"
    folder.mkdir()
    tiny_config.save(folder / "config.yaml")
    (folder / "log.csv").write_text(LOG)
    return folder


def test_the_numbers_are_those_of_the_report(usual):
    page, report = page_of(usual), json.loads(usual.read_text())
    figures = headline(report)
    assert page.figures == {
        "coco_mask_AP": f"{100 * figures['coco_mask_AP']:.1f}",
        "mask_AP": f"{100 * figures['mask_AP']:.1f}",
        "mask_AP50": f"{100 * figures['mask_AP50']:.1f}",
        "AFNR": f"{100 * report['livecell']['all']['segm']['AFNR']:.1f}",
        "sartorius": f"{figures['sartorius']:.3f}",
        "f1": f"{figures['f1']:.3f}",
        "count_mean_error": f"{figures['count_mean_error']:.1f}",
    }
    assert "3 images with 8 cells" in page.sections["header"]
    assert format_table(report).splitlines()[1].split()[0] in page.sections["figures"]
    for image in report["images"]:
        assert f"{image['file_name']} {image['cell_type']} {image['true']} {image['found']} ".replace(
            " ", ""
        ) in page.sections["images"].replace(" ", "")
    assert "training.evaluate" in page.sections["environment"]
    assert "48.5" in page.sections["precision"] and "whole LIVECell test set" in page.sections["precision"]
    assert "37.3" not in page.sections["precision"]  # of MCF7, which is not among these images
    assert "45.7" in page.sections["precision"]  # of BV2, which is


def test_charts_show_what_was_measured(usual):
    page, report = page_of(usual), json.loads(usual.read_text())
    curve = report["livecell"]["curves"]["segm"]["precision"]["50"]
    assert f"IoU .50: AP {100 * sum(curve) / 101:.1f}" in page.sections["precision"]
    for chart in (
        "prbbox",
        "prsegm",
        "apiou",
        "apsize",
        "aptype",
        "counts",
        "sizes",
        "cocosegm",
        "reliability",
    ):
        assert page.source.count(f'id="{chart}"') == 1
    assert f"true: {sum(report['sizes']['true'])}" in page.sections["cells"]
    for name, group in {"all": report["calibration"]["all"], **report["calibration"]["by"]}.items():
        shown = page.sections["calibration"].replace(" ", "")
        assert f"{name}{group['cells']}{group['error']:.3f}".replace(" ", "") in shown
    ids = [word for word in page.source.split() if word.startswith('id="')]
    assert len(set(ids)) > 20


@pytest.mark.parametrize("figure", ["sartorius", "f1"])
def test_the_image_table_has_the_worst_first_and_the_sign_of_the_difference(figure):
    images = [
        {"id": 1, "file_name": "good", "true": 5, "found": 7, "f1": 0.9, "sartorius": 0.8},
        {"id": 2, "file_name": "none", "true": 3, "found": 3, "f1": None, "sartorius": None},
        {"id": 3, "file_name": "bad", "true": 9, "found": 2, "f1": 0.2, "sartorius": 0.0},
        {"id": 4, "file_name": "fair", "true": 4, "found": 4, "f1": 0.5, "sartorius": 0.5},
    ]
    if figure == "f1":
        images = [{key: value for key, value in image.items() if key != "sartorius"} for image in images]
    rows = [row["cells"] for row in image_table(images)["rows"]]
    assert [row[0] for row in rows] == ["bad", "fair", "good", "none"]
    assert [row[4] for row in rows] == ["-7", "+0", "+2", "+0"]


def test_names_are_escaped(usual):
    page = page_of(usual)
    assert {"b", "i"} & set(page.tags) == {"b"}  # <b> is the page's own, in the legend
    assert page.source.count("<script>") == 1
    assert CATEGORIES[0]["name"] in page.sections["classes"] and "thin & $\\frac" in page.sections["classes"]
    assert "<i>A172</i>" in page.sections["cells"] and "31<script>.png" in page.sections["examples"]


def test_the_page_needs_nothing_else(usual):
    page = page_of(usual)
    assert page.links and all(link.startswith(("data:", "#")) for link in page.links)
    assert "@import" not in page.source and "url(http" not in page.source
    assert len(page.source) < 5e6


def test_galleries_show_every_kind_of_error(usual):
    page = page_of(usual)
    assert page.tags.count("img") == 3
    assert "31<script>.png, <i>A172</i>, 5 true cells, 5 found" in page.sections["examples"]
    assert "1 right, 4 missed, 1 false, 1 merged, 2 split" in page.sections["examples"]
    assert "2 right, 0 missed, 0 false, 0 merged, 0 split" in page.sections["examples"]


def test_boxes_alone(evaluated, boxes_data):
    for found, folder in ((predictions(False), None), (predictions(False), boxes_data)):
        page = page_of(evaluated(found, "--score", "0.5", **({"data": folder} if folder else {})))
        assert page.figures.keys() == {"box_AP", "box_AP50", "AFNR", "f1", "count_mean_error"}
        assert "Only boxes are evaluated" in page.sections["cells"]
        assert "1 right, 4 missed, 1 false, 1 merged, 2 split" in page.sections["examples"]
        assert CATEGORIES[1]["name"] in page.sections["classes"]


def test_nothing_found(evaluated):
    page = page_of(evaluated([]))
    assert page.figures["mask_AP"] == "0.0" and page.figures["f1"] == "0.000"
    assert "0 right, 5 missed, 0 false" in page.sections["examples"]


def test_one_image(evaluated):
    found = [entry for entry in predictions(True) if entry["image_id"] == 31]
    page = page_of(evaluated(found, "--limit", "1"))
    assert "the first image with 5 cells" in page.sections["header"]
    assert page.tags.count("img") == 1 and "best 31" in page.sections["examples"]


def test_a_run_without_validation(run_folder):
    page = Page(report_on_run(run_folder))
    assert page.figures == {"step": "20", "epoch": "2", "total": "2.000"}
    for part in ("examples", "precision", "cells", "classes", "images"):
        assert "no validation images" in page.sections[part]
    assert 'id="losses"' in page.source and 'id="rate"' in page.source
    assert "trained for1.2 minutes" in page.sections["header"]
    assert "preset: cells-lite0" in page.sections["configuration"]
    assert "not written down" in page.sections["environment"]
    assert "i" not in page.tags and "run <i>" in page.sections["header"]


def test_a_validated_run_has_learning_curves_and_pictures(run_folder, usual):
    shutil.copy(usual, run_folder / "metrics.json")
    shutil.copy(usual.with_suffix(".examples.json"), run_folder / "metrics.examples.json")
    page = Page(report_on_run(run_folder))
    for chart in ("losses", "rate", "validation", "counterror"):
        assert f'id="{chart}"' in page.source
    assert page.tags.count("img") == 3
    (run_folder / "log.csv").write_text(LOG.replace("0.25,0.2,3.5", ",,"))
    page = Page(report_on_run(run_folder))
    assert "no validation figures over the steps" in page.sections["learning"]
    (run_folder / "log.csv").unlink()
    assert "no log of a training" in Page(report_on_run(run_folder)).sections["learning"]


def test_an_evaluation_of_an_earlier_version_says_what_it_lacks(usual, tmp_path):
    report = json.loads(usual.read_text())
    for key in ("images", "confusion", "sizes", "about", "calibration"):
        del report[key]
    for protocol in ("livecell", "coco"):
        del report[protocol]["curves"]
    (tmp_path / "old.json").write_text(json.dumps(report))
    page = Page(report_on_evaluation(tmp_path / "old.json"))
    for part in ("precision", "cells", "classes", "images", "calibration"):
        assert "of an earlier version" in page.sections[part]
    assert "was not kept" in page.sections["examples"]
    assert "no configuration" in page.sections["configuration"]


def test_images_that_went_away_are_told(usual, data, tmp_path):
    shutil.copy(usual, tmp_path / "e.json")
    examples = json.loads(usual.with_suffix(".examples.json").read_text())
    (tmp_path / "e.examples.json").write_text(json.dumps(examples | {"data": str(tmp_path / "gone")}))
    page = Page(report_on_evaluation(tmp_path / "e.json"))
    assert page.tags.count("img") == 0 and "are not there any more" in page.sections["examples"]
    page = Page(report_on_evaluation(tmp_path / "e.json", data=data))
    assert page.tags.count("img") == 3


def test_the_same_files_give_the_same_page(usual, tmp_path):
    first, second = (report_on_evaluation(usual, tmp_path / name) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes() == usual.with_suffix(".html").read_bytes()


def test_parameters_are_those_that_are_learned(run_folder, tiny_config):
    from effdet_tf.model.network import build_network
    from effdet_tf.model.weights import save_arrays, to_arrays

    network = build_network(tiny_config)
    save_arrays(run_folder / "last.npz", to_arrays(network))
    learned = sum(int(variable.shape.num_elements()) for variable in network.trainable_variables)
    assert from_run(run_folder).parameters == learned


@pytest.mark.parametrize(
    "change",
    [
        {"livecell": None},
        {"cells": None},
        {"images": [{"id": 1}]},
        {"images": 3},
        {"sizes": {"edges": [1, 2], "true": [1], "found": [1, 2, 3]}},
        {"confusion": {"classes": ["a"], "counts": [], "missed": [0], "false": [0]}},
        {"calibration": {"all": {"cells": 1, "error": 0.1, "bins": [[1, 2]]}, "by": {}}},
        {"about": {"date": "yesterday"}},
        {"about": []},
        {"evaluated": "x"},
    ],
)
def test_a_damaged_evaluation_is_refused(usual, tmp_path, change):
    path = tmp_path / "e.json"
    path.write_text(json.dumps(json.loads(usual.read_text()) | change))
    with pytest.raises(UserError, match="holds no evaluation, or a damaged one"):
        report_on_evaluation(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.json"]
