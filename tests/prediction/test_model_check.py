"""Networks of strangers: what could do more than compute is refused before any of it runs."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from tensorflow.core.protobuf import saved_model_pb2

from effdet_tf.config import Config, load_config
from effdet_tf.errors import UserError
from effdet_tf.prediction.load import load
from effdet_tf.prediction.metadata import METADATA_FILE, describe
from effdet_tf.prediction.model_check import check_saved_model, check_tflite

BEFORE = Path(__file__).resolve().parents[1] / "before" / "exports"
LITE = BEFORE / "float32.tflite"


def save(folder: Path, run: Callable[[tf.Tensor], tf.Tensor], module: tf.Module | None = None) -> Path:
    """A SavedModel that says of itself that it is ours, with signatures that all do `run`."""
    module = module or tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def answer(query: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"metadata": run(query)}

    module.answer = answer
    signatures = dict.fromkeys(("serving_default", "tensor", "info"), answer)
    tf.saved_model.save(module, str(folder), signatures)
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / METADATA_FILE).write_text(json.dumps(describe(Config(), "float32")))
    return folder


def write(query: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([tf.io.write_file("WRITTEN", "x")]):
        return tf.identity(query)


def branch(query: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.size(query) > 7, lambda: tf.io.read_file("/etc/passwd")[None], lambda: query)


def mapped(query: tf.Tensor) -> tf.Tensor:
    data = tf.data.Dataset.from_tensor_slices(query).map(lambda _: tf.io.read_file("/etc/passwd"))
    return tf.data.experimental.get_single_element(data.batch(1))


def python(query: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.numpy_function(lambda x: x, [query], tf.string), [-1])


@pytest.mark.parametrize(
    ("run", "operator"), [(write, "WriteFile"), (branch, "ReadFile"), (mapped, "."), (python, "PyFunc")]
)
def test_operators_that_do_more_than_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable, operator: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path / "model", run)
    with pytest.raises(UserError, match=f"holds the operator {operator}.*nothing of it was run") as told:
        load(folder)
    assert "\n" not in str(told.value) and not (tmp_path / "WRITTEN").exists()


def test_objects_and_functions_that_load_by_themselves(tmp_path: Path) -> None:
    folder = save(tmp_path / "asset", lambda query: query)
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    model.meta_graphs[0].object_graph_def.nodes.add().asset.asset_file_def_index = 0
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="holds objects that no export of ours has"):
        load(folder)

    folder = save(tmp_path / "saving", lambda query: query)
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    functions = model.meta_graphs[0].graph_def.library.function
    (name,) = [
        one.signature.name for one in functions if one.signature.name.startswith("__inference__traced_save")
    ]
    called = next(one for one in functions if one.signature.name.startswith("__inference_signature"))
    node = called.node_def.add(name="x", op="StatefulPartitionedCall")
    node.attr["f"].func.name = name
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="writes or reads files where it should compute"):
        load(folder)


def test_a_constant_that_is_large_in_few_bytes(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", lambda query: query)
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    node = model.meta_graphs[0].graph_def.node.add(name="large", op="Const")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0, shape=[1]))
    node.attr["value"].tensor.tensor_shape.dim[0].size = 2**40
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="a constant of 1,099,511,627,776 values in a few bytes"):
        load(folder)


def test_a_model_that_says_nothing_is_not_opened(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", write)
    (folder / "assets.extra" / METADATA_FILE).unlink()
    with pytest.raises(UserError, match="nothing of it was run"):
        load(folder)


def test_exports_of_before_pass(tmp_path: Path) -> None:
    with zipfile.ZipFile(BEFORE / "saved_model.zip") as archive:
        archive.extractall(tmp_path)
    check_saved_model(next(tmp_path.rglob("saved_model.pb")).parent)
    check_tflite(LITE, LITE.read_bytes())


@pytest.mark.parametrize("code", [schema.BuiltinOperator.CUSTOM, schema.BuiltinOperator.READ_VARIABLE, 999])
def test_tflite_operators_that_are_not_ours(tmp_path: Path, code: int) -> None:
    import flatbuffers

    model = schema.ModelT.InitFromPackedBuf(LITE.read_bytes(), 0)
    model.operatorCodes[3].builtinCode = code
    model.operatorCodes[3].customCode = b"Flex" if code == schema.BuiltinOperator.CUSTOM else None
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(UserError, match=r"holds the operator (CUSTOM|READ_VARIABLE|999), which no export"):
        check_tflite(tmp_path / "x.tflite", bytes(builder.Output()))


def test_damaged_tflite_files_are_one_line(tmp_path: Path) -> None:
    data, source = LITE.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        wrong = bytearray(data)
        for _ in range(source.choice((1, 4, 64))):
            wrong[source.randrange(8, 40_000)] = source.choice((0, 1, 127, 128, 255))
        try:
            check_tflite(tmp_path / "x.tflite", bytes(wrong))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


# Values in config.yaml


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data: {zoom: 1.0e+300}", "data.zoom 1e[+]300: take 0.1 to 10"),
        ("data: {zoom: .nan}", "data.zoom nan"),
        ("data: {zoom: -1}", "data.zoom -1.0"),
        ("data: {max_instances: 1000000000000}", "data.max_instances 1000000000000"),
        ("data: {crop_size: [512, 99999999]}", "data.crop_size 99999999"),
        ("model: {fpn_repeats: 1000000}", "model.fpn_repeats 1000000"),
        ("postprocess: {report_score: .inf}", "postprocess.report_score inf"),
        ("postprocess: {score_threshold: high}", "'high' is not a number"),
        ("anchors: {ratios: [1, .nan]}", "anchors.ratios nan"),
        ("class_names: [a, b]", "2 class_names, 1 category_ids"),
        ("class_names: [a, b]\ncategory_ids: [1, 1]", "2 class_names, 1 category_ids"),
    ],
)
def test_values_that_no_network_has(tmp_path: Path, setting: str, told: str) -> None:
    (tmp_path / "config.yaml").write_text(setting)
    with pytest.raises(UserError, match=told):
        load_config(tmp_path / "config.yaml")


def test_a_long_list_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"class_names: [{', '.join('a' * 20_000)}]")
    with pytest.raises(UserError, match="class_names"):
        load_config(tmp_path / "config.yaml")
