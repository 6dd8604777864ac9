"""The log files: one row per epoch whatever happened in between, and readable TensorBoard events."""

from __future__ import annotations

import csv
from pathlib import Path

import tensorflow as tf

from effdet_tf.runs import LOG_FILE
from training import run_log
from training.run_log import TENSORBOARD_FOLDER, RunLog


def read_csv(folder: Path) -> list[dict[str, str]]:
    with open(folder / LOG_FILE, newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for path in sorted((folder / TENSORBOARD_FOLDER).glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_each_epoch_is_a_row_and_a_late_column_leaves_earlier_rows_blank(tmp_path: Path) -> None:
    log = RunLog(tmp_path, [])
    log.epoch(8, {"epoch": 1, "total": 2.5})
    log.epoch(16, {"epoch": 2, "total": 2.0, "mask_AP": 0.25})
    assert read_csv(tmp_path) == [
        {"epoch": "1", "total": "2.5", "mask_AP": ""},
        {"epoch": "2", "total": "2.0", "mask_AP": "0.25"},
    ]


def test_an_epoch_repeated_after_a_crash_stands_once(tmp_path: Path) -> None:
    first = RunLog(tmp_path, [])
    first.epoch(8, {"epoch": 1, "total": 2.5})
    checkpoint = list(first.history)
    first.epoch(16, {"epoch": 2, "total": 9.0})  # the power went before this epoch's checkpoint
    RunLog(tmp_path, checkpoint).epoch(16, {"epoch": 2, "total": 2.0})
    assert [(row["epoch"], row["total"]) for row in read_csv(tmp_path)] == [("1", "2.5"), ("2", "2.0")]


def test_tensorboard_reads_steps_and_epochs(tmp_path: Path) -> None:
    log = RunLog(tmp_path, [])
    log.step(20, {"loss/total": 3.0, "rate": 0.5})
    log.step(40, {"loss/total": 2.0, "rate": 0.25})
    log.epoch(40, {"epoch": 1, "total": 2.5, "mask_AP": None, "note": "text is left out"})
    events = read_events(tmp_path)
    assert events["loss/total"] == {20: 3.0, 40: 2.0}
    assert events["rate"] == {20: 0.5, 40: 0.25}
    assert events["epoch/total"] == {40: 2.5}
    assert not {"epoch/mask_AP", "epoch/note"} & set(events)


def test_without_tensorboard_there_is_the_table_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_log, "find_spec", lambda name: None)
    log = RunLog(tmp_path, [])
    log.step(20, {"loss/total": 3.0})
    log.epoch(20, {"epoch": 1, "total": 2.5})
    assert read_csv(tmp_path) == [{"epoch": "1", "total": "2.5"}]
    assert not (tmp_path / TENSORBOARD_FOLDER).exists()
