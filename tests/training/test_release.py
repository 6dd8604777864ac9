"""The network that comes with the package: how it is packed, what its card says, and that it works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from effdet_tf.config import Config, TrustConfig, load_config
from effdet_tf.data.manifest import load_manifest
from effdet_tf.data.record import iterate_records
from effdet_tf.data.store import RecordStore
from effdet_tf.errors import UserError
from effdet_tf.model.network import build_network
from effdet_tf.model.weights import read_arrays, save_arrays, to_arrays
from effdet_tf.prediction.run import load_run
from effdet_tf.presets import preset
from effdet_tf.runs import BEST_FILE, CONFIG_FILE, LAST_FILE
from training import release
from training.release_data import ReleaseData, prepare


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
    trained = load_config(later / CONFIG_FILE).replace(
        data__source_share={"disks": 0.5}, train__keep_better=False
    )
    trained = trained.replace(postprocess__calibration=((0.0, 0.0), (0.2, 0.6), (1.0, 1.0)))
    trained.replace(postprocess__report_score=0.6, trust__f1=(0.0, 1.0)).save(later / CONFIG_FILE)
    release.pack([earlier_run, later], tmp_path / "model")
    packed = load_config(tmp_path / "model" / CONFIG_FILE)
    # Means of weights score otherwise than the last of them.
    assert packed.postprocess.report_score == pytest.approx(0.2) and packed.postprocess.calibration == ()
    assert packed.trust == TrustConfig() and packed.data.source_share == {} and packed.train.keep_better
    after = read_arrays(tmp_path / "model" / BEST_FILE)
    for name, value in arrays.items():
        np.testing.assert_allclose(after[name], value + 0.5, rtol=1e-3, atol=1e-3)
    other = {name: value for name, value in arrays.items() if "class_predict" not in name}
    save_arrays(later / LAST_FILE, other)
    with pytest.raises(UserError, match="weights of different networks have no mean"):
        release.pack([earlier_run, later], tmp_path / "model")


SEEN = 96, 128  # height and width


@pytest.fixture
def sets(tmp_path, monkeypatch) -> Path:
    """Folders of data sets: a competition of three images, two sources of label maps, images alone."""
    monkeypatch.setattr(
        "training.release_data._SIMULATED", ("--looks", "varied", "--train", "2", "--val", "1")
    )
    rng, source = np.random.default_rng(0), tmp_path / "source"
    rows = ["id,annotation,width,height,cell_type"]
    for name in ("000a", "000b", "000c"):
        picture(rng, source / "sartorius" / "train" / f"{name}.png")
        first = 20 * SEEN[1] + 31  # counted from 1: rows 20 to 39, columns 30 to 49
        runs = " ".join(f"{first + row * SEEN[1]} 20" for row in range(20))
        rows.append(f"{name},{runs},{SEEN[1]},{SEEN[0]},cort")
    (source / "sartorius" / "train.csv").write_text("\n".join(rows) + "\n")
    (source / "sartorius" / "val_ids.txt").write_text("000b\n")
    for number in range(8):
        picture(rng, source / "general" / "disks" / "images" / f"t{number}.png")
        labels = cv2.circle(np.zeros(SEEN, np.uint16), (60, 50), 15 + number, 1, -1)
        (source / "general" / "disks" / "masks").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(source / "general" / "disks" / "masks" / f"t{number}.png"), labels)
    picture(rng, source / "general" / "bare" / "images" / "x.png")
    return source


def picture(rng: np.random.Generator, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rng.integers(0, 255, SEEN, dtype=np.uint8))


def test_sources_are_parted_and_nothing_is_converted_twice(sets, tmp_path, capsys):
    data = prepare(sets, tmp_path / "out")
    counts = {name: load_manifest(folder).images for name, folder in data.train.items()}
    assert counts == {"sartorius": 2, "disks": 7, "simulated": 2}
    assert {name: load_manifest(folder).images for name, folder in data.val.items()} == {
        "sartorius": 1, "disks": 1,
    }  # fmt: skip
    names = [record.file_name for record in iterate_records(data.val["disks"])]
    assert names == ["t7.png"]  # the last in time
    store = RecordStore(list(data.train.values()))
    assert sorted(set(store.sources.tolist())) == ["disks", "sartorius", "simulated"]
    assert sorted(path.name for path in data.images["sartorius"].iterdir()) == ["000a.png", "000c.png"]
    assert len(list(data.images["disks"].iterdir())) == 7
    assert [path.name for path in data.unlabelled["bare"].iterdir()] == ["x.png"]
    assert list(data.apart) == ["simulated"]
    capsys.readouterr()
    assert prepare(sets, tmp_path / "out") == data
    assert "$ python" not in capsys.readouterr().out


ANNOTATED = [f"{well}_00d00h00m_1.tif" for well in ("A172_Phase_A7_1", "A172_Phase_A7_2", "A172_Phase_B7_1")]
ANNOTATED += ["BV2_Phase_C4_1_00d00h00m_1.tif"]
OTHERS = [f"{well}_02d00h00m_1.tif" for well in ("A172_Phase_A7_1", "A172_Phase_B7_2", "BV2_Phase_D4_1")]


def livecell(folder: Path, annotated: list[str], part: str) -> None:
    """Write a set of LIVECell of one square cell an image."""
    rng = np.random.default_rng(1)
    images, cells = [], []
    for number, name in enumerate(annotated, 1):
        picture(rng, folder / "images" / "livecell_train_val_images" / name.split("_")[0] / name)
        images.append({"id": number, "file_name": name, "height": SEEN[0], "width": SEEN[1]})
        square = {"bbox": [30, 20, 20, 20], "segmentation": [[30, 20, 50, 20, 50, 40, 30, 40]], "area": 400}
        cells.append({"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, **square})
    coco = {"images": images, "annotations": cells, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "annotations" / "LIVECell").mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / "LIVECell" / f"livecell_coco_{part}.json").write_text(json.dumps(coco))


def wells_of(folder: Path) -> list[str]:
    records = list(iterate_records(folder))
    assert all(len(record.boxes) == 1 for record in records)
    return ["_".join(Path(record.file_name).stem.split("_")[2:4]) for record in records]


def test_livecell_is_parted_by_wells_and_its_other_images_are_labelled(sets, tmp_path):
    """Of each cell type the first half of the wells validates; nothing of these wells is trained on."""
    livecell(sets / "livecell", ANNOTATED, "val")
    for name in OTHERS:
        picture(np.random.default_rng(2), sets / "livecell" / "images" / "livecell_train_val_images" / name)
    picture(
        np.random.default_rng(2), sets / "livecell" / "images" / "livecell_test_images" / "BV2_Phase_D4_2.tif"
    )
    data = prepare(sets, tmp_path / "out")
    assert wells_of(data.train["livecell"]) == ["B7_1"]
    assert wells_of(data.val["livecell"]) == ["A7_1", "A7_2", "C4_1"]
    assert load_manifest(data.train["livecell"]).source == "livecell"
    assert {path.name for path in data.unlabelled["livecell_others"].iterdir()} == set(OTHERS[1:])
    assert [path.name for path in data.images["livecell"].iterdir()] == ANNOTATED[2:3]
    assert all(len(list(images)) for images in data.looks())


def test_of_one_well_of_livecell_nothing_is_trained_on_or_labelled(sets, tmp_path):
    livecell(sets / "livecell", ANNOTATED[:1], "val")
    data = prepare(sets, tmp_path / "out")
    assert wells_of(data.val["livecell"]) == ["A7_1"] and "livecell" not in data.train
    assert "livecell" not in data.images and list(data.unlabelled) == ["bare"]


def test_a_whole_livecell_is_parted_as_its_makers_did(sets, tmp_path):
    livecell(sets / "livecell", ANNOTATED[:1], "train")
    livecell(sets / "livecell", ANNOTATED[1:], "val")
    data = prepare(sets, tmp_path / "out")
    assert wells_of(data.train["livecell"]) == ["A7_1"]
    assert wells_of(data.val["livecell"]) == ["A7_2", "B7_1", "C4_1"]
    assert list(data.unlabelled) == ["bare"]
    assert [path.name for path in data.images["livecell"].iterdir()] == ANNOTATED[:1]


def test_a_run_is_packed_evaluated_and_described(earlier_run, sets, tmp_path, capsys):
    out = tmp_path / "out"
    words = [str(sets), "--out", str(out), "--run", str(earlier_run), "--small-minutes", "7"]
    assert release.main([*words, "--score", "0.15"]) == 0, capsys.readouterr().err
    model = out / "model" / "cells"
    card = (model / "MODEL_CARD.md").read_text()
    parameters = sum(
        np.prod(v.shape) for v in build_network(load_config(earlier_run / CONFIG_FILE)).trainable_variables
    )
    assert f"{parameters:,} parameters" in card
    command = (
        "--large-minutes 120 120 --large-init imagenet --small-minutes 7 --small-init imagenet --score 0.15"
    )
    assert f"python -m training.release DATA --out release {command}" in card
    assert "| sartorius | 2 | Kaggle" in card and "| disks | 7 | its own |" in card
    assert "| bare | 1 |" in card and "| Sartorius validation images: 1 images, 1 cells" in card
    assert "| disks: 1 images, 1 cells" in card and "at score 0.15," in card
    assert "| LIVECell:" not in card  # not there, not judged
    assert sorted(p.name for p in model.iterdir()) == [
        "MODEL_CARD.md", "best.npz", "config.yaml", "metrics.json",
    ]  # fmt: skip


def test_a_network_of_another_name_says_how_it_was_trained(earlier_run, tmp_path):
    release.pack([earlier_run], tmp_path / "model")
    card = release.model_card("cells-large", tmp_path / "model", {}, "By hand, on Monday.", ReleaseData())
    assert card.startswith("# cells-large\n") and 'effdet_tf.load("cells-large")' in card
    assert "--run cells-large --out" in card and "--init cells-large" in card
    assert "## Training\n\nBy hand, on Monday.\n" in card and "training.release" not in card
    backbone = load_config(earlier_run / CONFIG_FILE).model.backbone
    assert f"weights of {backbone}".lower() in card.lower()


@pytest.mark.slow
def test_both_networks_train_in_parts_and_the_small_one_learns_from_the_large(
    earlier_run, sets, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    parts = []

    def train(words):
        flags = [place for place, word in enumerate(words) if word.startswith("--")]
        given: dict[str, list[str]] = {}
        for first, last in zip(flags, [*flags[1:], len(words)], strict=True):
            given.setdefault(words[first], []).extend(words[first + 1 : last])
        config = preset(given.get("--preset", ["cells-lite0"])[0]).override(given["--set"])
        parts.append((given, config))
        shutil.copytree(earlier_run, given["--out"][0])
        return 0

    monkeypatch.setattr(release.training_main, "main", train)
    words = [str(sets), "--out", str(out), "--large-minutes", "7", "5", "4", "--small-minutes", "3"]
    assert release.main([*words, "--score", "0.2", "--set", "train.ema=0.9"]) == 0
    (first, before), (second, after), (third, _), (small, taught) = parts
    assert first["--preset"] == ["cells-lite2"] and first["--init"] == ["imagenet"]
    assert "--pseudo" not in first and first["--minutes"] == ["7.0"]
    assert second["--init"] == first["--out"] and third["--init"] == second["--out"]
    assert "--preset" not in second and second["--minutes"] == ["5.0"]
    assert [config.train.seed for _, config in parts] == [0, 1, 2, 0]
    assert before.data.source_share == {"sartorius": 0.35, "disks": 0.055, "simulated": 0.1}
    assert not before.augment.rot90 and before.train.ema == after.train.ema == 0.9
    assert (before.train.learning_rate, after.train.learning_rate) == (4e-3, 1e-3)
    # The large one labels what nobody has annotated, the small one learns from its scores on everything.
    assert [Path(folder).name for folder in second["--pseudo"]] == ["bare"]
    about = load_manifest(second["--pseudo"][0])
    assert about.pseudo["soft"] and about.pseudo["flips"] and about.source == "labelled_bare"
    assert sorted(Path(folder).name for folder in small["--pseudo"]) == ["bare", "disks", "sartorius"]
    assert all(load_manifest(folder).pseudo["soft"] for folder in small["--pseudo"])
    assert small["--preset"] == ["cells-lite0"] and taught.data.source_share["sartorius"] == 0.3
    assert (out / "model" / "cells" / BEST_FILE).is_file()
    np.testing.assert_allclose(  # both later parts have the same weights here
        next(iter(read_arrays(out / "model" / "cells-large" / BEST_FILE).values())),
        next(iter(read_arrays(Path(second["--out"][0]) / LAST_FILE).values())),
        rtol=1e-3,
        atol=6e-8,  # the distance of the smallest numbers that float16 has
    )


def test_data_without_the_held_out_names_are_refused(tmp_path, capsys):
    (tmp_path / "sartorius").mkdir()
    assert release.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "val_ids.txt" in error and error.count("\n") == 1
