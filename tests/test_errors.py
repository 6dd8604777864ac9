from __future__ import annotations

from effdet_tf.errors import did_you_mean, near_files


def test_near_words_are_named_and_far_ones_are_not():
    assert did_you_mean("predcit", ["predict", "plate", "info"]) == "; did you mean predict?"
    assert did_you_mean("weigths", ["weights", "weight"]) == "; did you mean weights or weight?"
    assert did_you_mean("train", ["predict", "plate", "info"]) == ""


def test_files_are_compared_by_name_and_named_with_their_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "over.png").write_bytes(b"")
    assert near_files(tmp_path / "imagse") == f"; did you mean {tmp_path / 'images'}?"
    assert near_files(tmp_path / "nowhere") == ""
    assert near_files(tmp_path / "none" / "images") == ""


def test_a_name_without_folder_is_looked_for_here(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    assert near_files("imagse/") == "; did you mean images?"
