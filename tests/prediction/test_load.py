from __future__ import annotations

import pytest

from effdet_tf.errors import UserError
from effdet_tf.prediction.load import load, saved_model_version
from effdet_tf.prediction.metadata import describe, read_metadata


def test_of_several_versions_the_highest_is_taken(tmp_path):
    for name in ("2", "10", "9", "11", "x12"):
        (tmp_path / name).mkdir()
        if name != "11":
            (tmp_path / name / "saved_model.pb").touch()
    assert saved_model_version(tmp_path) == tmp_path / "10"
    assert saved_model_version(tmp_path / "9") == tmp_path / "9"
    assert saved_model_version(tmp_path / "11") is None
    assert saved_model_version(tmp_path / "none") is None


def test_settings_belong_to_runs_alone(tmp_path):
    (tmp_path / "saved_model.pb").touch()
    for source in (tmp_path, tmp_path / "a.tflite"):
        with pytest.raises(UserError, match="exported network"):
            load(source, settings=["data.max_instances=3"])


def test_metadata_gives_the_configuration_back(tiny_config):
    import json

    config = tiny_config.override(["data.normalization=fixed", "data.mean=3"])
    text = json.dumps(describe(config, "int8", (520, 704)))
    found, again = read_metadata(text, "here")
    assert again == config
    assert found["input"] == {
        "height": 520,
        "width": 704,
        "channels": 1,
        "resize": "none",
        "normalization": "fixed",
        "mean": 3.0,
        "std": 11.58,
        "zoom": 1.0,
    }
    assert found["precision"] == "int8" and found["mask_size"] == config.model.mask.size


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"format": 1, "config": {"nonsense": 1}}', b"\xff"]
)
def test_damaged_metadata_is_told(text):
    with pytest.raises(UserError, match="here"):
        read_metadata(text, "here")


def test_metadata_of_the_future_is_refused():
    with pytest.raises(UserError, match="update"):
        read_metadata('{"format": 2, "config": {}}', "here")
