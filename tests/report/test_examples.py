"""Which images are shown, and what is kept of them meanwhile."""

from __future__ import annotations

import json

import pytest

from effdet_tf.errors import UserError
from effdet_tf.report.examples import FoundScratch, choose, read_examples, write_examples


def images(*scores, figure="sartorius"):
    return [
        {"id": number, "true": 1, "found": 1, "f1": 0.5, figure: score} for number, score in enumerate(scores)
    ]


def chosen(*scores, **options):
    return [(what, image["id"]) for what, image in choose(images(*scores, **options))]


def test_the_best_the_median_and_the_worst():
    scores = [k / 10 for k in range(9)]
    wanted = [("best", 8), ("best", 7), ("median", 5), ("median", 4), ("worst", 1), ("worst", 0)]
    assert chosen(*scores) == wanted
    assert chosen(*scores, figure="f1") == wanted


@pytest.mark.parametrize("count", range(8))
def test_no_image_is_shown_twice(count):
    shown = [number for _, number in chosen(*[k / 10 for k in range(count)])]
    assert len(shown) == len(set(shown)) == min(count, 3 if 3 <= count < 6 else 6)
    assert shown == sorted(shown, reverse=True)


def test_images_without_the_figure_are_passed_over():
    assert chosen(None, 0.5, None, figure="f1") == [("best", 1)]
    assert chosen(0.5, 0.5, 0.5) == [("best", 0), ("median", 1), ("worst", 2)]


def entry(image_id, score):
    return {"image_id": image_id, "category_id": 1, "score": score, "bbox": [0, 0, 1, 1], "extra": 1}


def test_what_was_found_is_kept_above_the_score(tmp_path):
    report = {"boxes_only": "", "cells": {"score_threshold": 0.4}, "images": images(0.5, 0.2)}
    with FoundScratch(None) as found:
        found.add([entry(1, 0.9), entry(1, 0.3), entry(1, 0.01)])
        found.add([])
        found.add([entry(0, 0.5)])
        assert [e["score"] for e in found.read(1)] == [0.9, 0.3]
        assert [e["score"] for e in found.read(0)] == [0.5] and found.read(7) == []
        write_examples(tmp_path / "x.json", report, found, tmp_path)
    examples = read_examples(tmp_path / "x.json")
    assert [(i["what"], i["id"], len(i["found_cells"])) for i in examples["images"]] == [
        ("best", 0, 1),
        ("worst", 1, 1),
    ]
    assert "extra" not in examples["images"][0]["found_cells"][0]


@pytest.mark.parametrize("text", ["", "[]", '{"images": [3]}', '{"data": 1, "score": 0.5}'])
def test_damaged_examples_are_refused(tmp_path, text):
    assert read_examples(tmp_path / "x.json") is None
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="x.json: is damaged; evaluate again"):
        read_examples(tmp_path / "x.json")


def test_no_more_than_the_chosen_images_are_written(tmp_path):
    report = {
        "boxes_only": "x",
        "boxes": {"score_threshold": 0.0},
        "images": images(*[0.5] * 50, figure="f1"),
    }
    with FoundScratch(0.0) as found:
        for number in range(50):
            found.add([entry(number, 0.5)])
        write_examples(tmp_path / "x.json", report, found, tmp_path)
    assert len(json.loads((tmp_path / "x.json").read_text())["images"]) == 6
