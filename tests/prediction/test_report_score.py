from __future__ import annotations

import pytest

from effdet_tf.config import load_config
from effdet_tf.errors import UserError
from effdet_tf.prediction.load import report_score
from effdet_tf.runs import MODELS, model_names


def test_the_default_comes_first():
    assert model_names()[0] == "cells" and "cells-large" in model_names()


def test_a_run_tells_its_score_without_being_opened():
    config = load_config(MODELS / "cells" / "config.yaml")
    assert report_score("cells") == config.postprocess.report_score


def test_an_export_tells_its_score_later(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").touch()
    assert report_score(str(tmp_path)) is None
    assert report_score("any.tflite") is None


def test_what_is_no_network_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="neither a run nor a SavedModel; choose the folder of one"):
        report_score(str(tmp_path))
    with pytest.raises(UserError, match="no such run folder"):
        report_score(str(tmp_path / "gone"))
