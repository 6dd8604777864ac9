from __future__ import annotations

import dataclasses

import pytest
import yaml

from effdet_tf.config import AnchorConfig, Config, load_config
from effdet_tf.errors import UserError
from effdet_tf.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_saved_config_comes_back_the_same(name, tmp_path):
    config = dataclasses.replace(preset(name), class_names=("shsy5y", "astro"), category_ids=(1, 7))
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_the_file_is_plain_yaml_that_a_person_can_edit(tmp_path):
    preset("cells-lite0").save(tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "!!" not in text
    assert yaml.safe_load(text)["model"]["mask"]["stride"] == 2


def test_a_partial_file_keeps_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("train:\n  batch: 3\nmodel:\n  mask: {size: 14}\n")
    config = load_config(path)
    assert config.train.batch == 3
    assert config.model.mask.size == 14
    assert config.model.mask.stride == Config().model.mask.stride


def test_overrides_reach_every_depth_and_leave_the_original_alone():
    before = Config()
    after = before.override(
        [
            "train.batch=2",
            "model.mask.samples=5",
            "anchors.ratios=[1, 3]",
            "anchors.sizes=[[8, 12], [20, 30]]",
            "augment.flip=false",
            "class_names=[a, b]",
            "model.backbone=efficientnet-lite0",
        ]
    )
    assert (after.train.batch, after.model.mask.samples, after.augment.flip) == (2, 5, False)
    assert after.anchors.ratios == (1.0, 3.0)
    assert after.anchors.sizes == ((8.0, 12.0), (20.0, 30.0))
    assert isinstance(after.anchors.sizes[0][0], float)
    assert after.class_names == ("a", "b")
    assert after.model.backbone == "efficientnet-lite0"
    assert before == Config()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),  # YAML 1.1 takes this for text
        ("1.5e-3", 0.0015),
        ("1", 1.0),
        ("0.25", 0.25),
    ],
)
def test_a_learning_rate_is_a_float_however_it_is_written(text, value):
    rate = Config().override([f"train.learning_rate={text}"]).train.learning_rate
    assert isinstance(rate, float)
    assert rate == value


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_on_and_off_are_words_where_words_are_asked_for(word, tmp_path):
    config = Config().override([f"train.mixed_precision={word}"])
    assert config.train.mixed_precision == word
    config.save(tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml").train.mixed_precision == word


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        ("train.bach=2", "train.batch"),
        ("train.learning_rte=1", "train.learning_rate"),
        ("model.mask.strid=2", "model.mask.stride"),
        ("model.maks.stride=2", "model.mask.stride"),
        ("train.batch.size=2", "train.batch"),
    ],
)
def test_an_unknown_key_names_the_near_ones(setting, near):
    with pytest.raises(UserError) as error:
        Config().override([setting])
    message = str(error.value)
    assert repr(setting.split("=")[0]) in message
    assert near in message.split("did you mean")[1]
    assert "\n" not in message


@pytest.mark.parametrize("sizes", ["[10, 20]", "[20, 10, 30]", "[0, 10, 20]", "[-1, 5, 9]"])
def test_known_sizes_of_cells_are_three_that_rise(tmp_path, sizes):
    (tmp_path / "config.yaml").write_text(f"data: {{cell_size: {sizes}}}")
    with pytest.raises(UserError, match=r"data\.cell_size"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("data: {cell_size: [10, 20, 30]}")
    assert load_config(tmp_path / "config.yaml").data.cell_size == (10, 20, 30)


def test_a_run_from_before_a_setting_existed_keeps_its_behaviour(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("preset: d0\ndata: {channels: 1, normalization: image}\naugment: {flip: true}\n")
    config = load_config(path)
    assert config.data.resize == "none"
    assert config.augment.flip_vertical


def test_an_unknown_key_in_a_file_names_file_and_near_keys(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model:\n  mask:\n    chanels: 3\n")
    with pytest.raises(UserError, match=r"config\.yaml: .*'model\.mask\.chanels'.*model\.mask\.channels"):
        load_config(path)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("train.batch=many", "train.batch"),
        ("train.batch=2.5", "train.batch"),
        ("train.batch=true", "train.batch"),
        ("train.learning_rate=fast", "train.learning_rate"),
        ("train.learning_rate=true", "train.learning_rate"),
        ("train.learning_rate=", "train.learning_rate"),
        ("augment.flip=1", "augment.flip"),
        ("data.crop_size=256", "data.crop_size"),
        ("data.crop_size=[256]", "data.crop_size"),
        ("data.crop_size=[256, 256, 1]", "data.crop_size"),
        ("anchors.ratios=[1, x]", "anchors.ratios"),
        ("anchors.sizes=[8, 12]", "anchors.sizes"),
        ("class_names=cell", "class_names"),
        ("model.mask=yes", "model.mask"),
        ("data.channels=2", "data.channels"),
        ("model.stem_stride=true", "model.stem_stride"),
        ("loss.class_loss=focl", "loss.class_loss"),
        ("data.resize=fitt", "data.resize"),
        ("train.mixed_precision=maybe", "train.mixed_precision"),
    ],
)
def test_a_wrong_value_is_refused_by_name(setting, named):
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        Config().override([setting])


def test_a_choice_error_lists_the_choices():
    with pytest.raises(UserError, match="focal, quality_focal"):
        Config().override(["loss.class_loss=bce"])


@pytest.mark.parametrize("setting", ["train.batch", "train.batch=[1", "=3"])
def test_a_setting_that_is_none_is_refused(setting):
    with pytest.raises(UserError):
        Config().override([setting])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no configuration"),
        (b"- 1\n- 2\n", "no configuration"),
        (b"train: {batch: [", "not a YAML file"),
        (b"\xff\xfe\x00x", "not a YAML file"),
        (b"train: 3\n", "train"),
        (b"train: {batch: x}\n", r"train\.batch"),
        (b"1: 2\n", "unknown configuration key '1'"),
    ],
)
def test_a_bad_file_is_one_line_about_that_file(content, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_config(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(UserError, match="none.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_anchors_per_location():
    assert AnchorConfig().per_location == 9
    assert AnchorConfig(sizes=((8.0, 12.0), (20.0, 30.0)), ratios=(1.0, 2.0, 0.5)).per_location == 6
