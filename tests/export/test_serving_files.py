from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import types

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from effdet_tf.errors import UserError
from export import serving_api, serving_files, warmup

pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed")

from tensorflow_serving.apis import predict_pb2, prediction_log_pb2


def written(folder, config, **options):
    serving_files.write(folder, types.SimpleNamespace(config=config), **options)
    return (folder / "SERVING.md").read_text(), (folder / "batching_parameters.txt").read_text()


def batching_parameters():
    """The message, by the field numbers of TensorFlow Serving's session_bundle_config.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

    file = descriptor_pb2.FileDescriptorProto(name="batching.proto", package="t", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    message = file.message_type.add(name="BatchingParameters")
    for number, (name, kind) in enumerate(
        [
            ("max_batch_size", "Int64Value"),
            ("batch_timeout_micros", "Int64Value"),
            ("max_enqueued_batches", "Int64Value"),
            ("num_batch_threads", "Int64Value"),
            ("thread_pool_name", "StringValue"),
        ],
        start=1,
    ):
        message.field.add(name=name, number=number, type=11, label=1, type_name=f".google.protobuf.{kind}")
    message.field.add(name="allowed_batch_sizes", number=6, type=3, label=3)
    message.field.add(name="pad_variable_length_inputs", number=7, type=8, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.BatchingParameters"))()


def test_batching_parameters_are_what_serving_reads(tmp_path, tiny_config):
    _, text = written(tmp_path, tiny_config)
    found = text_format.Parse(text, batching_parameters())
    assert found.max_batch_size.value == 1
    assert found.batch_timeout_micros.value == 0 and found.HasField("batch_timeout_micros")
    assert found.num_batch_threads.value > 0 and found.max_enqueued_batches.value > 0
    assert {path.name for path in tmp_path.iterdir()} == {"SERVING.md", "batching_parameters.txt"}


def test_the_text_has_the_figures_of_the_model(tmp_path, tiny_config):
    config = tiny_config.override(["model.mask.size=28", "class_names=[round, long]", "category_ids=[1, 2]"])
    text, _ = written(tmp_path, config, max_pixels=123_456)
    assert "2,000 x 824 = 1,648,000 bytes (1.6 MiB)" in text
    assert "up to 3.1 MiB for 2,000 cells" in text
    assert "2 such images at a time fit" in text and "123,456 pixels" in text
    assert "0 round, 1 long" in text and "[B, N, 28, 28]" in text
    small, _ = written(tmp_path, config.override(["model.mask.size=48"]))
    assert "2,000 x 2,344 = 4,688,000 bytes (4.5 MiB)" in small and "not even one" in small
    plain, _ = written(tmp_path, config.override(["model.mask.enabled=false"]))
    assert "2,000 x 24 = 48,000 bytes" in plain
    assert "`masks`" not in plain and "label_map" not in plain


def test_the_size_of_a_message_is_as_told():
    shapes = {"boxes": (4,), "scores": (), "classes": (), "masks": (28, 28), "mask_boxes": (4,)}
    answer = predict_pb2.PredictResponse()
    for name, shape in shapes.items():
        dtype = {"masks": np.uint8, "classes": np.int32}.get(name, np.float32)
        array = np.full((1, 2000, *shape), 255, dtype)
        answer.outputs[name].CopyFrom(tf.make_tensor_proto(array))
    assert 0 <= answer.ByteSize() - 1_648_000 < 500
    numbers = answer.outputs["masks"]  # as TensorFlow Serving writes them by default
    numbers.ClearField("tensor_content")
    numbers.int_val.extend([255] * (2000 * 28 * 28))
    assert round(answer.ByteSize() / 2**20, 1) == 3.1


def test_examples_in_the_text_are_sound(tmp_path, tiny_config):
    text, _ = written(tmp_path, tiny_config)
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(python, "SERVING.md", "exec")
    bodies = re.findall(r"^(\{\"(?:inputs|signature_name).*\})$", text, re.MULTILINE)
    assert len(bodies) == 2
    for body in bodies:
        question = json.loads(body.replace("$(base64 -w0 IMAGE.png)", "QUJD"))
        assert question["inputs"]["image_bytes"] == [{"b64": "QUJD"}]
    command = text.split("docker run")[1].split("```")[0]
    for part in ("-p 8500:8500", "-p 8501:8501", "MODEL_NAME=cells", "--batching_parameters_file", ":ro"):
        assert part in command
    assert "not run by effdet_tf's tests" in text


def test_the_python_example_runs(tmp_path, exported, served, picture_png, monkeypatch, capsys):
    text, _ = written(tmp_path, exported.predictor.config)
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "IMAGE.png").write_bytes(picture_png)
    monkeypatch.chdir(tmp_path)
    exec(python.replace("localhost:8500", served.grpc.removeprefix("grpc://")), {})
    assert capsys.readouterr().out.startswith("60 [[")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_examples_run(tmp_path, exported, served, picture_png):
    text, _ = written(tmp_path, exported.predictor.config)
    (tmp_path / "IMAGE.png").write_bytes(picture_png)
    commands = re.findall(r"^curl .*?^END$", text, re.DOTALL | re.MULTILINE)
    assert len(commands) == 2
    cells, labels = (
        json.loads(
            subprocess.run(
                ["bash", "-c", command.replace("http://localhost:8501", served.http)],
                cwd=tmp_path,
                env={**os.environ, "no_proxy": "127.0.0.1"},
                stdout=subprocess.PIPE,
                timeout=60,
                check=True,
            ).stdout
        )["outputs"]
        for command in commands
    )
    assert cells["count"] == [60] and cells["ok"] == [True] and np.shape(cells["boxes"]) == (1, 60, 4)
    assert np.shape(labels["labels"]) == (1, 64, 80) and np.max(labels["labels"]) == labels["count"][0] > 0


def requests_of(folder):
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    assert 0 < len(records) <= 1000  # more make TensorFlow Serving refuse the model
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    assert all(log.WhichOneof("log_type") == "predict_log" for log in logs)
    return [log.predict_log.request for log in logs]


def test_warmup_requests_are_answered_by_the_model(exported):
    model = tf.saved_model.load(str(exported.version))
    asked = []
    for request in requests_of(exported.version):
        inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
        found = model.signatures[request.model_spec.signature_name](**inputs)
        assert found["ok"].numpy().all(), found["error"]
        asked.append((request.model_spec.signature_name, int(found["height"][0]), int(found["width"][0])))
    sizes = [(64, 64), (48, 48)]
    assert asked == [(name, *size) for name in ("serving_default", "label_map") for size in sizes]


def test_warmup_asks_only_what_the_model_has(tmp_path):
    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
        def size(self, image_bytes):
            return {"size": tf.strings.length(image_bytes)}

    model = Model()
    tf.saved_model.save(model, str(tmp_path), {"serving_default": model.size})
    warmup.write_warmup(tmp_path, (1, 30))
    requests = requests_of(tmp_path)
    assert [request.model_spec.signature_name for request in requests] == ["serving_default"] * 2
    first = tf.io.decode_png(tf.make_ndarray(requests[0].inputs["image_bytes"])[0])
    assert first.shape == (1, 30, 1)
    again = (tmp_path / warmup.WARMUP_FILE).read_bytes()
    warmup.write_warmup(tmp_path, (1, 30))
    assert (tmp_path / warmup.WARMUP_FILE).read_bytes() == again


def test_missing_messages_are_told(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.prediction_log_pb2", None)
    with pytest.raises(UserError, match=r'pip install "effdet_tf\[serving\]"'):
        serving_api.serving_api("prediction_log_pb2")


def test_pictures_for_warmup_have_noise():
    image = tf.io.decode_png(warmup._image(40, 50, np.uint16), dtype=tf.uint16).numpy()
    assert image.shape == (40, 50, 1) and image.std() > 1000 and image.max() > 255
