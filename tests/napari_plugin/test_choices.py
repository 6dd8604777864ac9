from __future__ import annotations

import os

import pytest

from effdet_tf.config import load_config
from effdet_tf.errors import UserError
from effdet_tf.napari_plugin import choices as networks
from effdet_tf.runs import MODELS


def test_the_default_comes_first():
    assert networks.names()[0] == "cells" and "cells-large" in networks.names()


def test_a_run_tells_its_score_without_being_opened():
    config = load_config(MODELS / "cells" / "config.yaml")
    assert networks.own_score("cells") == config.postprocess.report_score


def test_an_export_tells_its_score_later(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").touch()
    assert networks.own_score(str(tmp_path)) is None
    assert networks.own_score("any.tflite") is None


def test_what_is_no_network_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="neither a run nor a SavedModel; choose the folder of one"):
        networks.own_score(str(tmp_path))
    with pytest.raises(UserError, match="no such run folder"):
        networks.own_score(str(tmp_path / "gone"))


def test_a_run_that_was_trained_on_is_another_one(tmp_path):
    file = tmp_path / "best.npz"
    file.touch()
    before = networks.changed(str(tmp_path))
    os.utime(file, ns=(before + 10**9,) * 2)
    assert networks.changed(str(tmp_path)) == before + 10**9
    assert networks.changed(str(tmp_path / "gone")) == 0
