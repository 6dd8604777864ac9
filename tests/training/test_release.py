"""The network that comes with the package: how it is packed, what its card says, and that it works."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.config import Config, load_config
from effdet_tf.errors import UserError
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import read_arrays, save_arrays, to_arrays
from effdet_tf.prediction.run import load_run
from effdet_tf.presets import preset
from effdet_tf.runs import BEST_FILE, CONFIG_FILE, LAST_FILE
from training import release


@pytest.fixture
def earlier_run(tiny_points: Config, tmp_path: Path) -> Path:
    """A run that finds something: the class bias is lifted."""
    folder = tmp_path / "run"
    folder.mkdir()
    tiny_points.replace(postprocess__report_score=0.2, train__init="/somewhere/else").save(
        folder / CONFIG_FILE
    )
    network = build_network(tiny_points)
    layer = network.dense.get_layer("class_predict")
    layer.bias.assign(layer.bias + 4)
    save_arrays(folder / LAST_FILE, to_arrays(network))
    return folder


def test_kernels_are_halved_and_nothing_else_changes(earlier_run, tmp_path):
    release.pack([earlier_run], tmp_path / "model")
    before, after = read_arrays(earlier_run / LAST_FILE), read_arrays(tmp_path / "model" / BEST_FILE)
    assert set(before) == set(after)
    for name, value in before.items():
        assert after[name].dtype == (np.float16 if value.ndim > 1 else np.float32), name
        np.testing.assert_allclose(after[name], value, rtol=1e-3, atol=1e-6)
    assert (tmp_path / "model" / BEST_FILE).stat().st_size < 0.7 * (earlier_run / LAST_FILE).stat().st_size
    before = load_config(earlier_run / CONFIG_FILE)
    assert before.train.init == "/somewhere/else"
    assert load_config(tmp_path / "model" / CONFIG_FILE) == before.replace(train__init="")
    image = np.random.default_rng(0).integers(0, 255, (80, 96), dtype=np.uint8)
    whole, half = load_run(earlier_run).predict(image), load_run(tmp_path / "model").predict(image)
    assert len(whole) > 0 and abs(len(half) - len(whole)) <= 0.1 * len(whole) + 1


def test_what_float16_cannot_hold_is_refused(earlier_run, tmp_path):
    arrays = read_arrays(earlier_run / LAST_FILE)
    name = next(name for name, value in arrays.items() if value.ndim == 4)
    arrays[name].flat[0] = 1e6
    save_arrays(earlier_run / LAST_FILE, arrays)
    with pytest.raises(UserError, match=name.replace("/", ".")):
        release.pack([earlier_run], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_weights_of_several_runs_are_averaged(earlier_run, tmp_path):
    later = shutil.copytree(earlier_run, tmp_path / "later")
    arrays = read_arrays(earlier_run / LAST_FILE)
    save_arrays(later / LAST_FILE, {name: value + 1 for name, value in arrays.items()})
    load_config(later / CONFIG_FILE).replace(postprocess__report_score=0.3).save(later / CONFIG_FILE)
    release.pack([earlier_run, later], tmp_path / "model")
    assert load_config(tmp_path / "model" / CONFIG_FILE).postprocess.report_score == 0.3
    after = read_arrays(tmp_path / "model" / BEST_FILE)
    for name, value in arrays.items():
        np.testing.assert_allclose(after[name], value + 0.5, rtol=1e-3, atol=1e-3)
    other = {name: value for name, value in arrays.items() if "class_predict" not in name}
    save_arrays(later / LAST_FILE, other)
    with pytest.raises(UserError, match="weights of different networks have no mean"):
        release.pack([earlier_run, later], tmp_path / "model")


def test_a_run_is_packed_evaluated_and_described(earlier_run, train_data, val_data, tmp_path, capsys):
    out = tmp_path / "out"
    for name, folder in (("train", train_data), ("val", val_data)):
        shutil.copytree(folder, out / "data" / name)
    source = tmp_path / "source" / "sartorius"
    source.mkdir(parents=True)
    (source / "val_ids.txt").write_text("0140b3c8f445\n")
    words = [str(source.parent), "--out", str(out), "--run", str(earlier_run), "--minutes", "7"]
    words += ["--upright", "5", "--score", "0.15"]
    assert release.main(words) == 0, capsys.readouterr().err
    card = (out / "model" / "MODEL_CARD.md").read_text()
    parameters = sum(
        np.prod(v.shape) for v in build_network(load_config(earlier_run / CONFIG_FILE)).trainable_variables
    )
    assert f"{parameters:,} parameters" in card
    assert "python -m training.release DATA --out release --minutes 7 --upright 5 --score 0.15" in card
    assert "Trained on the 4 annotated images" in card and "2 images," in card and "at score 0.15," in card
    assert "zero-shot" not in card.split("## Figures")[1].split("## Limits")[0]  # not there, not judged
    assert sorted(p.name for p in (out / "model").iterdir()) == [
        "MODEL_CARD.md", "best.npz", "config.yaml", "metrics.json",
    ]  # fmt: skip


def test_a_network_of_another_name_says_how_it_was_trained(earlier_run, tmp_path):
    release.pack([earlier_run], tmp_path / "model")
    card = release.model_card("cells-large", tmp_path / "model", {}, "By hand, on Monday.", 3)
    assert card.startswith("# cells-large\n") and 'effdet_tf.load("cells-large")' in card
    assert "--run cells-large --out" in card and "--init cells-large" in card
    assert "## Training\n\nBy hand, on Monday.\n" in card and "training.release" not in card
    backbone = load_config(earlier_run / CONFIG_FILE).model.backbone
    assert f"weights of {backbone}".lower() in card.lower()


@pytest.mark.slow
def test_it_trains_in_parts_and_packs_the_mean_of_the_upright_ones(
    earlier_run, train_data, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    for name in ("train", "val"):
        shutil.copytree(train_data, out / "data" / name)
    source = tmp_path / "source" / "sartorius"
    source.mkdir(parents=True)
    (source / "val_ids.txt").write_text("0140b3c8f445\n")
    parts = []

    def train(words):
        given = dict(zip(words[::2], words[1::2], strict=True))
        settings = [value for flag, value in zip(words[::2], words[1::2], strict=True) if flag == "--set"]
        parts.append((given, preset(given["--preset"]).override(settings)))
        shutil.copytree(earlier_run, given["--out"])
        return 0

    monkeypatch.setattr(release.training_main, "main", train)
    words = [str(source.parent), "--out", str(out), "--minutes", "7", "--upright", "5", "4"]
    assert release.main([*words, "--set", "train.ema=0.9"]) == 0
    (first, before), (second, after), (third, _) = parts
    assert (first["--init"], first["--minutes"]) == ("imagenet", "7.0")
    assert (second["--init"], second["--minutes"]) == (first["--out"], "5.0")
    assert (third["--init"], third["--minutes"]) == (second["--out"], "4.0")
    assert [config.train.seed for _, config in parts] == [0, 1, 2]
    assert before.augment.rot90 and before.augment.flip and before.augment.flip_vertical
    assert not after.augment.rot90 and not after.augment.flip
    assert before.train.ema == after.train.ema == 0.9
    np.testing.assert_allclose(  # both upright parts have the same weights here
        next(iter(read_arrays(out / "model" / BEST_FILE).values())),
        next(iter(read_arrays(Path(second["--out"]) / LAST_FILE).values())),
        rtol=1e-3,
        atol=6e-8,  # the distance of the smallest numbers that float16 has
    )


def test_data_without_the_held_out_names_are_refused(tmp_path, capsys):
    (tmp_path / "sartorius").mkdir()
    assert release.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "val_ids.txt" in error and error.count("\n") == 1
