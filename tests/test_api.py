"""What a person types: `effdet_tf.load(...).predict(...)` gives what the command reports."""

from __future__ import annotations

import inspect
import runpy
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile

import effdet_tf
from effdet_tf import cli
from effdet_tf.data.synthetic.phase_contrast import render_image
from effdet_tf.outputs import FORMATS
from effdet_tf.prediction.load import load as load_predictor


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return render_image(3, 160, 200, 30, "Cluster")[0]


@pytest.fixture(scope="module")
def model() -> effdet_tf.Model:
    return effdet_tf.load("cells")


def test_the_quickstart_is_five_lines(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("image.tif", image)
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["cells"]) > 10 and list((tmp_path / "results").glob("*.labels.tif"))


def test_it_reports_what_the_command_reports(model, image, tmp_path):
    path = tmp_path / "a b.tif"
    tifffile.imwrite(path, image, resolution=(2.5, 2.5), imagej=True, metadata={"unit": "um"})
    names = ",".join(FORMATS)
    assert cli.main(["predict", str(path), "--out", str(tmp_path / "command"), "--formats", names]) == 0
    cells = model.predict(path)
    assert cells.um_per_px == pytest.approx(0.4)
    files = cells.save(tmp_path / "python", FORMATS)
    assert len(files) == len(FORMATS) == len(list((tmp_path / "python").iterdir()))
    for file in files:
        other = tmp_path / "command" / file.name
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as mine, zipfile.ZipFile(other) as its:
                assert {n: mine.read(n) for n in mine.namelist()} == {n: its.read(n) for n in its.namelist()}
        else:
            assert file.read_bytes() == other.read_bytes(), file.name
    assert (tifffile.imread(files[0]) == cells.label_image()).all()


def test_cells_one_by_one(model, image):
    cells = model.predict(image)
    assert len(cells) == len(list(cells)) == len(cells.table()) == cells.label_image().max() > 10
    third = cells[3]
    assert third.number == 4 and third.class_name == "cell" and third.score == cells.result.scores[3]
    assert cells[-1].number == len(cells)
    assert [cell.number for cell in cells[1:4]] == [2, 3, 4] and cells[:0] == []
    assert [cell.number for cell in cells[-2:]] == [len(cells) - 1, len(cells)]
    for index in (len(cells), -len(cells) - 1):
        with pytest.raises(IndexError, match=f"there are {len(cells)} cells, numbered from 0, not {index}"):
            cells[index]
    labels = cells.label_image()
    assert third.mask.shape == image.shape[:2] and third.mask[labels == 4].all()
    y0, x0, y1, x1 = third.box
    rows, columns = np.nonzero(third.mask)
    assert (
        y0 - 4 <= rows.min() and rows.max() <= y1 + 4 and x0 - 4 <= columns.min() <= columns.max() <= x1 + 4
    )
    assert f"{len(cells)} cells in image, 160 x 200 px" in repr(cells)
    assert "mask" not in repr(third)


def test_scores(model, image):
    candidates = load_predictor("cells").predict(image)
    every = model.predict(image, score=0)
    np.testing.assert_array_equal(every.result.scores, candidates.scores)
    assert len(every) == len(every.table()) == len(candidates) > len(model.predict(image))
    strict = model.predict(image, score=0.8)
    assert strict.result.scores.min() >= 0.8 and 0 < len(strict) < len(model.predict(image))
    assert model.score == load_predictor("cells").config.postprocess.report_score
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(effdet_tf.UserError, match=f"score {wrong}.*0 to 1"):
            model.predict(image, score=wrong)


class _Lazy:
    """As zarr, dask and xarray have it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.array if dtype is None else self.array.astype(dtype)


def test_whatever_is_an_array(model, image, tmp_path):
    expected = model.predict(image).label_image()
    on_disk = np.memmap(tmp_path / "pixels", image.dtype, "w+", shape=image.shape)
    on_disk[:] = image
    for other in (_Lazy(image), on_disk, image.tolist(), image.astype(np.uint16) * 257, image[..., None]):
        assert (model.predict(other).label_image() == expected).mean() > 0.99
    with pytest.raises(effdet_tf.UserError, match=r"this array is \[2, 3, 4, 5\]"):
        model.predict(np.zeros((2, 3, 4, 5)))


def test_a_stack_is_asked_for_its_page(model, image, tmp_path):
    path = tmp_path / "film.tif"
    tifffile.imwrite(path, np.stack([image, image[::-1]]), metadata={"axes": "TYX"})
    with pytest.raises(effdet_tf.UserError, match=r"film.tif: is a stack of 2 pages.*page=0"):
        model.predict(path)
    with pytest.raises(effdet_tf.UserError, match="2 pages.*no page 2"):
        model.predict(path, page=2)
    second = model.predict(path, page=1)
    np.testing.assert_array_equal(second.label_image(), model.predict(image[::-1]).label_image())
    first, last = model.predict_many(path, progress=False)
    assert (first.name, last.name) == ("film_0001", "film_0002")
    np.testing.assert_array_equal(last.label_image(), second.label_image())


def test_one_bad_image_does_not_end_many(model, image, tmp_path, capsys):
    (tmp_path / "inner").mkdir()
    tifffile.imwrite(tmp_path / "inner" / "good.tif", image)
    (tmp_path / "bad.tif").write_bytes(b"II*\0 cut short")
    failed: list[tuple[str, str]] = []
    many = model.predict_many([tmp_path, image, np.zeros((2, 2, 9))], failed=failed)
    found = {cells.name: len(cells) for cells in many}
    assert set(found) == {"inner/good", "image_1"} and found["inner/good"] == found["image_1"] > 10
    assert [name for name, _ in failed] == ["bad", "image_2"]
    told = capsys.readouterr().err
    assert "bad.tif" in told and "image_2" in told
    with pytest.raises(effdet_tf.UserError, match="nowhere"):  # before the first image
        model.predict_many([tmp_path / "nowhere"])


def test_what_no_code_expects_ends_neither(model, image, monkeypatch, capsys):
    predict = type(model.predictor).predict

    def fail_on_the_small(self, pixels, score):
        if pixels.shape[0] < 100:
            raise RuntimeError("node 7")
        return predict(self, pixels, score)

    monkeypatch.setattr(type(model.predictor), "predict", fail_on_the_small)
    failed: list[tuple[str, str]] = []
    found = list(model.predict_many([image[:80], image], progress=False, failed=failed))
    assert [cells.name for cells in found] == ["image_1"]
    assert failed == [("image_0", "unexpected: RuntimeError: node 7")]
    assert "image_0: unexpected: RuntimeError: node 7" in capsys.readouterr().err


def test_saving_replaces_nothing_unasked(model, image, tmp_path):
    cells = model.predict(image)
    (path,) = cells.save(tmp_path, ["table"])
    before = path.read_bytes()
    with pytest.raises(effdet_tf.UserError, match="image.cells.csv: exists already"):
        cells.save(tmp_path, ["labels", "table"], um_per_px=0.5)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    cells.save(tmp_path, ["table"], um_per_px=0.5, overwrite=True)
    assert "area_um2" in path.read_text() and "area_um2" in cells.table(um_per_px=0.5)
    with pytest.raises(effdet_tf.UserError, match="'lables'.*labels, table"):
        cells.save(tmp_path, ["lables"])


def test_pictures(model, image):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    cells = model.predict(image)
    assert cells.overlay().dtype == np.uint8 and cells.overlay().shape[2] == 3
    assert cells._repr_png_().startswith(b"\x89PNG")
    axes = cells.plot()
    assert f"{len(cells)} cells" in axes.get_title() and len(axes.images) == 1
    assert cells.plot(axes) is axes


def test_coco_entries(model, image):
    cells = model.predict(image)
    entries = cells.to_coco(7)
    assert len(entries) == len(cells) and {entry["image_id"] for entry in entries} == {7}
    assert {entry["category_id"] for entry in entries} == set(cells.category_ids)


def test_from_annotations_to_an_export_in_python(tiny_config, tmp_path, capsys):
    source, data, run = tmp_path / "images", tmp_path / "data", tmp_path / "run"
    size = "--train 4 --val 2 --size 96 96 --cells 3 6"
    assert cli.main(["synthetic", str(source), *size.split()]) == 0
    for split in ("train", "val"):
        manifest = effdet_tf.convert("livecell", source, data / split, split=split, workers=1, quiet=True)
    assert manifest.images == 2 and manifest.cells >= 6
    with pytest.raises(effdet_tf.UserError, match="holds a converted data set.*--overwrite"):
        effdet_tf.convert("livecell", source, data / "val", split="val")
    effdet_tf.convert("livecell", source, data / "val", split="val", overwrite=True, quiet=True)

    tiny_config.save(tmp_path / "tiny.yaml")
    changes = {"data.crop_size": [48, 64], "model.mask.channels": 16}
    options = {"val": data / "val", "config": tmp_path / "tiny.yaml", "epochs": 1, "batch": 2, "out": run}
    assert effdet_tf.train(data=[data / "train"], set=changes, **options) == run
    assert effdet_tf.load(run).predictor.config.data.crop_size == (48, 64)
    report = effdet_tf.evaluate(run=run, data=data / "val", score=0.3, coco=False)
    assert len(report["images"]) == 2 and (run / "evaluation-val.json").exists()
    made = effdet_tf.export(run=run, out=tmp_path / "exports", formats=["tflite-fp32"], no_parity=True)
    assert list(made) == ["float32"] and made["float32"].stat().st_size > 1e5
    capsys.readouterr()


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        ("train", {"dat": "x"}, r"training.main has no option 'dat'; did you mean data\?"),
        ("train", {"help": True}, "has no option 'help'"),
        ("train", {"minutes": -1, "data": "x"}, "argument --minutes: -1 is not above 0"),
        ("train", {"minutes": 1, "epochs": 2, "data": "x"}, "not allowed with argument"),
        ("train", {"minutes": 1}, "--minutes: needs --data"),
        ("train", {"strict": "yes"}, "strict='yes': give True or False"),
        ("evaluate", {"run": "cells"}, "--data"),
        ("evaluate", {"predictions": "a.json", "data": "b", "tta": True}, "--tta.*go with --run"),
        ("export", {"run": "cells", "out": "x", "formats": ["tflite-fp32", "onnx"]}, "unknown format 'onnx'"),
        ("export", {"run": "nowhere", "out": "x"}, "nowhere"),
    ],
)
def test_wrong_options_are_told_as_the_commands_tell_them(
    call, options, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(effdet_tf.UserError, match=message):
        getattr(effdet_tf, call)(**options)
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_wrong_kinds_and_their_options(tmp_path):
    with pytest.raises(effdet_tf.UserError, match="invalid choice: 'coccco'; did you mean coco"):
        effdet_tf.convert("coccco", tmp_path, tmp_path / "out")
    with pytest.raises(effdet_tf.UserError, match="convert coco has no option 'split'"):
        effdet_tf.convert("coco", tmp_path, tmp_path / "out", split="val")


PUBLIC = {
    *("Cells", "Config", "DetectedCell", "Model", "Predictor", "Result", "UserError", "__version__"),
    *("convert", "evaluate", "export", "load", "train"),
}


def test_the_public_names_are_these():
    assert set(effdet_tf.__all__) == set(dir(effdet_tf)) == PUBLIC
    for name in PUBLIC - {"__version__"}:
        assert inspect.getdoc(getattr(effdet_tf, name)), name
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        effdet_tf.laod  # noqa: B018 - asked for to fail


def test_the_page_of_the_interface_is_made_from_the_docstrings():
    page = Path(__file__).parents[1] / "docs" / "api.md"
    script = runpy.run_path(str(page.with_name("make_api.py")))
    assert page.read_text(encoding="utf-8") == script["page"](), "run `python docs/make_api.py`"
