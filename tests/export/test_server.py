from __future__ import annotations

import base64
import json
import socket
import threading
import time
import types

import numpy as np
import pytest
import requests
import tensorflow as tf

pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed")

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from effdet_tf.errors import UserError
from export import server, serving_protocols
from export.servable import RequestError, Servable, to_json

LIMIT = 2**20


class Model(tf.Module):
    """Two signatures: texts with their lengths, and a sum of two inputs."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def texts(self, text):
        size = tf.strings.length(text)
        return {"size": size, "back": text, "back_bytes": text, "third": tf.cast(size, tf.float32) / 3}

    @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32), tf.TensorSpec((None, 2), tf.float32)])
    def add(self, a, b):
        return {"sum": a + b}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = Model()
    for version in ("2", "10"):
        tf.saved_model.save(model, str(folder / version), {"serving_default": model.texts, "add": model.add})
    (folder / "11").mkdir()  # unfinished
    return folder


@pytest.fixture(scope="module")
def servable(folder):
    return Servable(folder, "toy model", 1)


@pytest.fixture(scope="module")
def running(servable):
    started = serving_protocols.Server(servable, "127.0.0.1", 0, 0, LIMIT)
    yield started
    started.stop()


@pytest.fixture
def rest(running):
    session = requests.Session()
    session.trust_env = False
    base = f"http://127.0.0.1:{running.rest_port}/v1/models/"
    with session:

        def call(path, question=None, **more):
            if question is None and not more:
                answer = session.get(base + path, timeout=20)
            else:
                answer = session.post(base + path, json=question, timeout=20, **more)
            return answer.status_code, answer.json()

        yield call


@pytest.fixture
def stub(running):
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}", [("grpc.enable_http_proxy", 0)]) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def question(name="toy model", signature="", version=None, outputs=(), **inputs):
    message = predict_pb2.PredictRequest()
    message.model_spec.name = name
    message.model_spec.signature_name = signature
    if version is not None:
        message.model_spec.version.value = version
    for key, value in inputs.items():
        message.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    message.output_filter.extend(outputs)
    return message


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


ASKED = "toy%20model:predict"


def test_highest_whole_version_is_served(rest):
    code, answer = rest("toy%20model")
    assert code == 200
    assert answer["model_version_status"][0]["version"] == "10"
    assert answer["model_version_status"][0]["state"] == "AVAILABLE"


def test_metadata_gives_the_signatures(rest):
    code, answer = rest("toy%20model/versions/10/metadata")
    assert code == 200 and answer["model_spec"] == {"name": "toy model", "version": "10"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "add"}
    assert signatures["add"]["inputs"]["a"]["dtype"] == "DT_FLOAT"


def test_columns(rest):
    code, answer = rest(ASKED, {"inputs": {"text": [b64(b"\xff\x00"), "abc"]}})
    assert code == 200
    outputs = answer["outputs"]
    assert outputs["size"] == [2, 3]
    assert outputs["back_bytes"] == [b64(b"\xff\x00"), b64(b"abc")]
    assert outputs["back"][1] == "abc"
    assert np.array_equal(np.array(outputs["third"], np.float32), np.float32([2, 3]) / np.float32(3))


def test_columns_of_a_single_input_go_without_its_name(rest):
    assert rest(ASKED, {"inputs": ["abc"]})[1]["outputs"]["size"] == [3]


def test_an_empty_batch(rest):
    code, answer = rest(ASKED, {"inputs": {"text": []}})
    assert code == 200 and answer["outputs"] == {"size": [], "back": [], "back_bytes": [], "third": []}


def test_rows(rest):
    code, answer = rest(ASKED, {"instances": [{"text": b64(b"ab")}, {"text": "abc"}]})
    assert code == 200
    assert [row["size"] for row in answer["predictions"]] == [2, 3]
    assert rest(ASKED, {"instances": [b64(b"ab")]})[1]["predictions"][0]["size"] == 2


def test_a_single_output_comes_without_its_name(rest):
    rows = [{"a": [1, 2], "b": [3, 4]}, {"a": [0, 0], "b": [1, 1]}]
    code, answer = rest(ASKED, {"signature_name": "add", "instances": rows})
    assert code == 200 and answer == {"predictions": [[4, 6], [1, 1]]}
    columns = {"a": [[1, 2]], "b": [[3, 4]]}
    assert rest(ASKED, {"signature_name": "add", "inputs": columns})[1] == {"outputs": [[4, 6]]}


def test_outputs_without_a_common_batch_go_by_columns_only():
    outputs = {"a": np.zeros((2, 3), np.int32), "b": np.zeros(1, np.int32)}
    assert set(to_json(outputs, rows=False)["outputs"]) == {"a", "b"}
    for bad in (outputs, {"a": np.int32(4)}):
        with pytest.raises(RequestError, match="no common batch"):
            to_json({key: np.asarray(value) for key, value in bad.items()}, rows=True)


@pytest.mark.parametrize(
    ("path", "asked", "code", "words"),
    [
        ("other:predict", {"inputs": ["a"]}, 404, "Latest(other)"),
        ("toy%20model/versions/2:predict", {"inputs": ["a"]}, 404, "Specific(toy model, 2)"),
        ("toy%20model:classify", {"inputs": ["a"]}, 400, "Malformed request: POST"),
        ("toy%20model", {"inputs": ["a"]}, 400, "Malformed request: POST"),
        (ASKED, {"signature_name": "none", "inputs": ["a"]}, 400, '"none" not found'),
        (ASKED, {"inputs": ["a"], "instances": ["a"]}, 400, "one of"),
        (ASKED, {"signature_name": "add"}, 400, "one of"),
        (ASKED, ["a"], 400, "not an object"),
        (ASKED, {"inputs": [{"b64": "%%%"}]}, 400, "base64"),
        (ASKED, {"inputs": {"text": [1]}}, 400, "string tensor"),
        (ASKED, {"inputs": {"other": ["a"]}}, 400, "['text']"),
        (ASKED, {"instances": []}, 400, "instances"),
        (ASKED, {"instances": [{"text": "a"}, "b"]}, 400, "instances"),
        (ASKED, {"signature_name": "add", "inputs": [[1, 2]]}, 400, "several inputs"),
        (ASKED, {"signature_name": "add", "inputs": {"a": [[1], [1, 2]], "b": [[1, 2]]}}, 400, "tensor"),
    ],
)
def test_wrong_requests_are_refused_with_a_reason(rest, path, asked, code, words):
    found, answer = rest(path, asked)
    assert found == code and set(answer) == {"error"}
    assert words in answer["error"]


def test_other_faults_of_http(rest, running):
    assert rest("../../x")[0] == 400
    assert rest(ASKED)[0] == 400  # GET
    code, answer = rest(ASKED, data=b"{")
    assert code == 400 and "JSON Parse error" in answer["error"]
    code, answer = rest(ASKED, data=iter([b"{}"]))  # sent in chunks
    assert code == 411


def test_a_large_request_is_refused_and_the_server_goes_on(rest):
    code, answer = rest(ASKED, {"inputs": ["a" * (LIMIT + 1)]})
    assert code == 413 and str(LIMIT) in answer["error"]
    assert rest(ASKED, {"inputs": ["abc"]})[0] == 200


def test_a_client_that_goes_away_in_the_middle_disturbs_nobody(rest, running, capfd):
    with socket.create_connection(("127.0.0.1", running.rest_port)) as gone:
        gone.sendall(b"POST /v1/models/toy%20model:predict HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    assert rest(ASKED, {"inputs": ["abc"]})[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_grpc_predict(stub):
    answer = stub.Predict(question(text=[b"\xff\x00", b"abc"]), timeout=20)
    assert answer.model_spec.version.value == 10
    assert tf.make_ndarray(answer.outputs["size"]).tolist() == [2, 3]
    assert list(tf.make_ndarray(answer.outputs["back"])) == [b"\xff\x00", b"abc"]
    some = stub.Predict(question(text=[b"abc"], outputs=["size"], version=10), timeout=20)
    assert set(some.outputs) == {"size"}
    empty = stub.Predict(question(text=np.array([], object)), timeout=20)
    assert tf.make_ndarray(empty.outputs["size"]).shape == (0,)


def test_grpc_metadata(stub):
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "toy model"
    answer = stub.GetModelMetadata(asked, timeout=20)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == {"serving_default", "add"}
    asked.metadata_field[0] = "other"
    with pytest.raises(grpc.RpcError, match="metadata_field"):
        stub.GetModelMetadata(asked, timeout=20)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (question("other", text=[b"a"]), grpc.StatusCode.NOT_FOUND),
        (question(version=2, text=[b"a"]), grpc.StatusCode.NOT_FOUND),
        (question(signature="none", text=[b"a"]), grpc.StatusCode.FAILED_PRECONDITION),
        (question(other=[b"a"]), grpc.StatusCode.INVALID_ARGUMENT),
        (question(text=[1.0]), grpc.StatusCode.INVALID_ARGUMENT),
        (question(text=[b"a"], outputs=["none"]), grpc.StatusCode.INVALID_ARGUMENT),
        (question(text=[b"a" * (LIMIT + 1)]), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_grpc_refuses_with_a_status(stub, asked, code):
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(asked, timeout=20)
    assert error.value.code() == code and error.value.details()


def test_requests_wait_for_their_turn(folder):
    own = Servable(folder, "toy", 1)
    running, most, function = 0, 0, own._model.signatures["serving_default"]

    def slow(**inputs):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return function(**inputs)

    own._model = types.SimpleNamespace(signatures={"serving_default": slow})
    threads = [
        threading.Thread(target=own.run, args=("", {"text": np.array([b"a"], object)})) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_failing_graph_is_the_requests_fault(servable):
    with pytest.raises(RequestError) as error:
        servable.run("add", {"a": np.zeros((1, 3), np.float32), "b": np.zeros((1, 2), np.float32)})
    assert error.value.code == "INVALID_ARGUMENT"


def test_a_taken_port_is_told(servable, running):
    for ports in ((running.rest_port, 0), (0, running.grpc_port)):
        with pytest.raises(UserError, match="cannot be listened on"):
            serving_protocols.Server(servable, "127.0.0.1", *ports, LIMIT)


def test_a_folder_without_a_model_is_told(tmp_path, capsys):
    assert server.main([str(tmp_path)]) == 1
    assert "holds no SavedModel" in capsys.readouterr().err
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"x")
    assert server.main([str(tmp_path)]) == 1
    assert "not a readable SavedModel" in capsys.readouterr().err


def test_help_says_what_it_is_not_for(capsys):
    with pytest.raises(SystemExit):
        server.main(["--help"])
    assert "NOT for production" in capsys.readouterr().out


def test_answers_are_json_that_any_reader_takes(rest):
    assert json.loads(json.dumps(rest(ASKED, {"inputs": ["ä"]})[1]))["outputs"]["back"] == ["ä"]
