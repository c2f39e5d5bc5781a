"""What a second pair of eyes found in the server and the client, each with the test it lacked."""

import gzip
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import model_management_pb2
from typer.testing import CliRunner

from espalier import Client, ConfigError, ServerError
from espalier.pipeline.cli import app
from espalier.serving import servable
from espalier.serving.batching import Parameters
from espalier.serving.client import as_array
from espalier.serving.manager import ModelConfig
from espalier.serving.predictor import description
from espalier.serving.tensors import BFLOAT16, FLOAT, INT32


class Rows(tf.Module):
    """Parses numbers, row by row; with many outputs."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "x")])
    def parse(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.strings.to_number(x)
        return {"a": y, "b": y + 1, "c": y + 2}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def one(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name) for name in "xz"])
    def two(self, x: tf.Tensor, z: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + z}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, module = tmp_path_factory.mktemp("mended"), Rows()
    tf.saved_model.save(module, str(folder / "rows" / "1"), module.parse)
    tf.saved_model.save(module, str(folder / "one"), module.one)
    tf.saved_model.save(module, str(folder / "two"), module.two)
    return folder


def test_a_flag_alone_is_true_and_swallows_nothing(saved: Path) -> None:
    arguments = ["serve", str(saved / "rows"), "--enable_batching", "--port", "0"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "give gRPC a --port or a --grpc_socket_path" in done.output.replace("\n", " ")
    done = CliRunner().invoke(app, [*arguments[:2], "--enable_batching=maybe"])
    assert done.exit_code == 2 and "maybe" in done.output


def test_a_caller_cannot_say_where_the_server_writes(
    saved: Path, open_door: Callable[..., Any], tmp_path: Path
) -> None:
    door = open_door(ModelConfig("rows", saved / "rows"))
    request = model_management_pb2.ReloadConfigRequest()
    config = request.config.model_config_list.config.add()
    config.name, config.base_path = "rows", str(saved / "rows")
    config.logging_config.log_collector_config.type = "tfrecord"
    config.logging_config.log_collector_config.filename_prefix = str(tmp_path / "any" / "where")
    config.logging_config.sampling_config.sampling_rate = 1.0
    door.model.HandleReloadConfigRequest(request, 60)
    door.predict("rows", {"x": [b"1"]})
    door.server.stop(5)
    assert not (tmp_path / "any").exists()


def test_the_log_of_the_command_line_outlives_a_new_configuration(
    saved: Path, open_door: Callable[..., Any], tmp_path: Path
) -> None:
    options = {"request_log": str(tmp_path / "log"), "request_log_rate": 1.0}
    door = open_door(ModelConfig("rows", saved / "rows"), **options)
    request = model_management_pb2.ReloadConfigRequest()
    config = request.config.model_config_list.config.add()
    config.name, config.base_path = "rows", str(saved / "rows")
    door.model.HandleReloadConfigRequest(request, 60)
    door.predict("rows", {"x": [b"1"]})
    door.server.stop(5)
    assert len(list(tmp_path.glob("log-rows-*.tfrecord"))) == 1


@pytest.mark.parametrize("batching", [None, Parameters(batch_timeout_micros=1000)])
def test_an_error_that_is_not_utf8_is_the_rows_own(
    saved: Path, open_door: Callable[..., Any], batching: Any
) -> None:
    door = open_door(ModelConfig("rows", saved / "rows"), batching=batching)
    with Client(door.target, "rows") as client:
        with pytest.raises(ServerError) as caught:
            client.predict([b"\xff\xfe"])
        assert caught.value.code == "INVALID_ARGUMENT"


def test_outputs_in_any_order_share_one_prepared_call(
    saved: Path, open_door: Callable[..., Any]
) -> None:
    door = open_door(ModelConfig("rows", saved / "rows"))
    for outputs in (["a", "b", "c"], ["c", "b", "a"], ["b", "a", "c"], []):
        answer = door.predict("rows", {"x": [b"1"]}, outputs=outputs)
        assert {name: value.item() for name, value in answer.items()} == {"a": 1, "b": 2, "c": 3}
    with door.server.manager.hold("rows", None, "") as version:
        assert len(version.loaded._callables) == 1


def test_the_client_learns_what_a_new_version_takes(
    saved: Path, open_door: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    base = tmp_path / "m"
    base.mkdir()
    (saved / "one").rename(base / "1")
    door = open_door(ModelConfig("m", base))
    with Client(door.target, "m") as client:
        assert client.predict({"x": [1.0]})["y"].tolist() == [1.0]
        (saved / "two").rename(base / "2")
        tools.until(lambda: client.status().get(2) == "AVAILABLE")
        assert client.predict({"x": [1.0], "z": [2.0]})["y"].tolist() == [3.0]
        with pytest.raises(ConfigError, match="m takes x, z; found x"):
            client.predict({"x": [1.0]})


def test_a_deadline_holds_for_both_calls_of_a_first_prediction() -> None:
    with socket.socket() as mute:  # takes the connection, and says nothing
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        target = f"127.0.0.1:{mute.getsockname()[1]}"
        begin = time.monotonic()
        with Client(target, "m", timeout=3600) as client, pytest.raises(ServerError) as caught:
            client.predict([1.0], timeout=0.2)
    assert caught.value.code in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
    assert time.monotonic() - begin < 600  # and not the connection's hour


def test_numbers_of_both_kinds_are_floats_and_other_mixtures_are_refused(door: Any) -> None:
    with Client(door.target, "half_plus_two") as client:
        rows = [{"x": [2]}, {"x": [4.0]}, {"x": np.array([6.0])}]
        with pytest.raises(ServerError):  # the model reads floats
            client.regress(rows[:1], signature="regress", version=1)
        assert client.regress(rows[1:], signature="regress", version=1).tolist() == [4.0, 5.0]
        with pytest.raises(ConfigError, match="x: numbers and strings in one feature"):
            client.regress([{"x": [1, "a"]}], signature="regress")
    from espalier.serving.client import fill_example

    example = tf.train.Example()
    fill_example({"x": [1, 2.5]}, example)
    assert list(example.features.feature["x"].float_list.value) == [1.0, 2.5]


def test_arrays_that_would_lose_something_are_refused() -> None:
    with pytest.raises(ConfigError, match="too large for float"):
        as_array("x", [1e300], FLOAT)
    with pytest.raises(ConfigError, match="int64 found; the model takes bool"):
        as_array("x", [5], 10)
    with pytest.raises(ConfigError, match="half of a character"):
        as_array("x", ["\ud800"], 7)
    assert as_array("x", [], INT32).dtype == np.int32
    bits = as_array("x", np.array([0x7FFFFFFF, 0x7F800001], np.uint32).view(np.float32), BFLOAT16)
    assert np.isnan((bits.astype(np.uint32) << 16).view(np.float32)).all()


def test_rest_requests_that_cannot_be_read_are_counted(
    saved: Path, open_door: Callable[..., Any]
) -> None:
    door = open_door(ModelConfig("rows", saved / "rows"), rest={"metrics_path": "/metrics"})
    assert door.post("/v1/models/rows:predict", b"{").status_code == 400
    line = ':tensorflow:serving:request_count{model_name="rows",status="INVALID_ARGUMENT"} 1.0'
    assert line in door.get("/metrics").text


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data"])
def test_json_is_read_whatever_it_is_called(door: Any, kind: str) -> None:
    row = {"instances": [{"a": "&" * 5000, "b": ""}], "signature_name": "serving_default"}
    for body, more in (
        (json.dumps(row).encode(), {}),  # of forms, tornado takes a thousand parts
        (gzip.compress(json.dumps(row).encode()), {"Content-Encoding": "gzip"}),
    ):
        answer = door.http.post(
            "/v1/models/odd:predict", content=body, headers={"Content-Type": kind, **more}
        )
        assert answer.status_code == 200, answer.text


def test_choices_of_outputs_are_not_kept_without_an_end(
    saved: Path, open_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servable, "_MOST_CALLABLES", 2)
    door = open_door(ModelConfig("rows", saved / "rows"))
    for outputs in (["a"], ["b"], ["c"], ["a", "b"], ["a", "c"], ["b", "c"], []):
        assert door.predict("rows", {"x": [b"1"]}, outputs=outputs)
    with door.server.manager.hold("rows", None, "") as version:
        assert len(version.loaded._callables) <= 2


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "\udcff", "[]", "nothing"])
def test_a_description_that_is_none_describes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "assets.extra").mkdir()
    data = text.encode(errors="surrogateescape")
    (tmp_path / "assets.extra" / "espalier.json").write_bytes(data)
    assert description(tmp_path) == {}


@pytest.mark.parametrize("config", [{"base_path": "a\0b"}, {"name": "a\nb"}, {"name": "a\0b"}])
def test_names_and_paths_that_nobody_has_are_the_callers_fault(
    saved: Path, open_door: Callable[..., Any], config: dict[str, str]
) -> None:
    door = open_door(ModelConfig("rows", saved / "rows"))
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(**{"name": "m", "base_path": "/nowhere", **config})
    code, _ = door.failure(door.model.HandleReloadConfigRequest, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_closed_client_says_so(door: Any) -> None:
    client = Client(door.target, "half_plus_two")
    client.close()
    with pytest.raises(ConfigError, match="this client is closed"):
        client.status()
