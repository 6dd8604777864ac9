from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.images.read import encode_png
from effdet_tf.prediction.load import load
from effdet_tf.prediction.metadata import METADATA_FILE
from effdet_tf.prediction.tflite import TFLitePredictor

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")

ROOT = Path(__file__).resolve().parents[2]
# Whatever imports a framework fails.
BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "jax", "torch"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rows, columns = np.mgrid[:60, :150]
    gray = 120 + 60 * np.sin(rows / 4) * np.sin(columns / 5)
    gray += np.random.default_rng(0).normal(0, 5, gray.shape)
    return gray.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def reference(tiny_config):
    """A Keras network of random weights that finds cells with scores of all kinds."""
    import keras

    from effdet_tf.model.network import build_network
    from effdet_tf.prediction.run import RunPredictor

    keras.utils.set_random_seed(0)
    config = tiny_config.override(["postprocess.score_threshold=0.3", "postprocess.report_score=0.35"])
    network = build_network(config.override(["model.batch_norm_momentum=0.0", "model.drop_connect=0.0"]))
    noise = np.random.default_rng(1).normal(size=(1, 128, 128, 1)).astype(np.float32)
    network.dense(noise, training=True)  # else all values vanish on their way
    layer = network.dense.get_layer("class_predict")
    layer.bias.assign(layer.bias * 0 - 2)
    layer.pointwise_kernel.assign(layer.pointwise_kernel * 100)
    base = network.mask_head.base
    base.assign(np.r_[base.numpy()[:-1], 5.0])  # the bias of the last filter: every mask covers its box
    predictor = RunPredictor(network, config)
    return predictor


@pytest.fixture(scope="module")
def model(reference, tmp_path_factory) -> Path:
    from export.tflite import convert

    path = tmp_path_factory.mktemp("model") / "model.tflite"
    path.write_bytes(convert(reference, (64, 64), "float32"))
    return path


def changed(model: Path, folder: Path, metadata: bytes | None, method: int = zipfile.ZIP_STORED) -> Path:
    """The model with another description, or none."""
    whole = model.read_bytes()
    path = folder / "changed.tflite"
    path.write_bytes(whole[: whole.index(b"PK\x03\x04")])
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("labels.txt", "cell\n")
        if metadata is not None:
            archive.writestr(METADATA_FILE, metadata)
    return path


def described(model: Path, **changes) -> bytes:
    with zipfile.ZipFile(model) as archive:
        return json.dumps(json.loads(archive.read(METADATA_FILE)) | changes).encode()


def test_load_opens_it(model, reference, image):
    predictor = load(model)
    assert isinstance(predictor, TFLitePredictor)
    assert predictor.input_size == (64, 64)
    assert predictor.class_names == reference.class_names
    assert predictor.category_ids == reference.category_ids
    assert predictor.per_class == reference.per_class
    assert predictor.config == reference.config
    assert predictor.metadata["precision"] == "float32"
    small = image[:64, :64]
    expected, result = reference.predict(small), predictor.predict(small)
    assert len(expected) > 5 and not expected.truncated
    assert (result.height, result.width) == (60, 64)
    np.testing.assert_allclose(result.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)
    assert np.abs(result.masks.astype(int) - expected.masks).max() <= 1
    tiled = predictor.predict(image)
    assert len(tiled) > len(result) > 0
    assert tiled.boxes[:, 3].max() > 100


def test_threads_give_the_same(model, image):
    expected = TFLitePredictor(model, threads=1).predict(image)
    result = TFLitePredictor(model, threads=2).predict(image)
    np.testing.assert_allclose(result.boxes, expected.boxes, atol=1e-3)


def test_several_threads_may_ask_at_once(model, image):
    from concurrent.futures import ThreadPoolExecutor

    predictor = TFLitePredictor(model, threads=1)
    pictures = [np.roll(image, shift, 1) for shift in range(0, 60, 10)]
    expected = [predictor.predict(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(expected, pool.map(predictor.predict, pictures), strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)
            np.testing.assert_array_equal(one.masks, other.masks)


def test_without_any_framework(model, reference, image, tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(encode_png(image))
    script = BLOCKED + textwrap.dedent(
        """
        from effdet_tf.prediction.load import load
        from effdet_tf.images.read import read_image

        model, file, out = sys.argv[1:]
        predictor = load(model)
        of_file, of_array = predictor.predict(file), predictor.predict(read_image(file))
        assert (of_file.boxes == of_array.boxes).all() and (of_file.masks == of_array.masks).all()
        print(len(of_file), len(of_file.filter(predictor.config.postprocess.report_score)))

        import runpy

        sys.argv = ["effdet_tf", "predict", "--run", model, file, "--out", out]
        try:
            runpy.run_module("effdet_tf", run_name="__main__")
        except SystemExit as end:
            code = end.code
        assert not {"tensorflow", "keras", "jax", "torch"} & set(sys.modules)
        sys.exit(code)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(model), str(file), str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = load(model).predict(image)
    all_cells, kept = map(int, done.stdout.splitlines()[0].split())
    assert all_cells == len(expected) > kept > 0
    table = (tmp_path / "out" / "picture.cells.csv").read_text().splitlines()
    assert 0 < len(table) - 1 <= kept
    assert (tmp_path / "out" / "picture.labels.tif").exists()
    assert "picture" in (tmp_path / "out" / "summary.csv").read_text()


def test_a_missing_runtime_is_told(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UserError, match=r'needs ai_edge_litert, .*pip install "effdet_tf\[tflite\]"'):
        TFLitePredictor(model)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match="gone.tflite: cannot be read .*; check the name"):
        load(tmp_path / "gone.tflite")
    with pytest.raises(UserError, match="cannot be read"):
        TFLitePredictor(tmp_path)


@pytest.mark.parametrize("content", [b"", b"abc", b"not a TFLite file at all"])
def test_another_file_is_told(tmp_path, content):
    path = tmp_path / "other.tflite"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no TFLite file"):
        TFLitePredictor(path)


def test_a_file_cut_short_is_told(model, tmp_path):
    whole = model.read_bytes()
    path = tmp_path / "cut.tflite"
    for size in (100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="was not made by effdet_tf, or is cut short"):
            TFLitePredictor(path)


def test_a_damaged_network_is_told(model, tmp_path):
    path = tmp_path / "damaged.tflite"
    content = bytearray(model.read_bytes())
    content[8 : content.index(b"PK\x03\x04") // 2] = b"\xff" * (content.index(b"PK\x03\x04") // 2 - 8)
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        TFLitePredictor(path)


def test_a_file_without_description_is_told(model, tmp_path):
    with pytest.raises(UserError, match=f"holds no {METADATA_FILE}"):
        TFLitePredictor(changed(model, tmp_path, None))


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b"{}", b"\xff\xfe\x00", b"[" * 100_000, b'{"format": 1, "config": 3}']
)
def test_a_damaged_description_is_told(model, tmp_path, metadata):
    with pytest.raises(UserError, match="holds no description by effdet_tf"):
        TFLitePredictor(changed(model, tmp_path, metadata))


def test_a_description_of_another_network_is_told(model, tmp_path):
    config = json.loads(described(model))["config"]
    for section, key, value in (("data", "channels", 3),):
        other = config | {section: config[section] | {key: value}}
        with pytest.raises(UserError, match="its inputs and outputs are not those"):
            TFLitePredictor(changed(model, tmp_path, described(model, config=other)))
    with pytest.raises(UserError, match="'madeup'"):
        TFLitePredictor(changed(model, tmp_path, described(model, config={"madeup": 1})))


def test_a_bomb_is_not_unpacked(model, tmp_path):
    path = changed(model, tmp_path, b" " * 50_000_000, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is far too large"):
        TFLitePredictor(path)
    lying = bytearray(path.read_bytes())
    for place in (lying.rindex(b"PK\x01\x02") + 24, lying.rindex(b"PK\x03\x04") + 22):
        lying[place : place + 4] = (100).to_bytes(4, "little")  # the size that it claims to unpack to
    path.write_bytes(lying)
    with pytest.raises(UserError, match="was not made by effdet_tf, or is cut short"):
        TFLitePredictor(path)


def test_an_encrypted_description_is_told(model, tmp_path):
    path = changed(model, tmp_path, described(model))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    content[content.rindex(b"PK\x03\x04") + 6] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="was not made by effdet_tf, or is cut short"):
        TFLitePredictor(path)


def test_a_description_that_is_damaged_inside_is_told(model, tmp_path):
    path = changed(model, tmp_path, described(model), zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    packed = zlib.compressobj(wbits=-15).compress(b"") or b"\xff" * 40
    place = content.rindex(METADATA_FILE.encode(), 0, content.rindex(b"PK\x01\x02")) + len(METADATA_FILE)
    content[place + 5 : place + 5 + len(packed)] = packed
    path.write_bytes(content)
    with pytest.raises(UserError, match="was not made by effdet_tf, or is cut short"):
        TFLitePredictor(path)
