"""The request log: records that parse, lines that match them, rotation, a queue that is full."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from espalier.serving import request_log
from espalier.serving.manager import ModelConfig
from espalier.serving.request_log import Record, RequestLog


def records(folder: Path) -> list[Any]:
    """The PredictionLogs of all files, in the files' order."""
    data = tf.data.TFRecordDataset(sorted(map(str, folder.glob("*.tfrecord"))))
    return [prediction_log_pb2.PredictionLog.FromString(one.numpy()) for one in data]


def lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def record(request_id: str, size: int = 0) -> Record:
    request, response = predict_pb2.PredictRequest(), predict_pb2.PredictResponse()
    request.model_spec.name = response.model_spec.name = "m"
    request.inputs["x"].string_val.append(b"x" * size)
    response.model_spec.version.value = 3
    return Record("predict", request, response, request_id, 1.5, 1.5, 2.5)


@pytest.fixture
def lost() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, lost: list[str]) -> Callable[..., RequestLog]:
    def start(**more: Any) -> RequestLog:
        log = RequestLog(lost.append, **more)
        prefix = str(tmp_path / "log" / "m")
        log.configure([ModelConfig("m", tmp_path, log_prefix=prefix, log_rate=1.0)])
        return log

    return start


def test_requests_of_both_doors_are_logged(models, tmp_path, open_door, tools):
    prefix = str(tmp_path / "log" / "half")
    config = ModelConfig("half_plus_two", models / "half_plus_two", log_prefix=prefix, log_rate=1.0)
    door = open_door(config)
    request = door.request("half_plus_two", {"x": [1.0]})
    door.prediction.Predict(request, metadata=(("x-request-id", "one"),))
    door.http.post(
        "/v1/models/half_plus_two:predict",
        json={"instances": [2.0]},
        headers={"X-Request-Id": "two"},
    )
    door.prediction.Classify(tools.classification(1))
    door.prediction.Regress(tools.regression(1))
    door.refusal("half_plus_two", {"z": [1.0]})
    tools.until(lambda: len(lines(tmp_path / "log")) >= 4)
    logged, told = records(tmp_path / "log"), lines(tmp_path / "log")
    kinds = [one.WhichOneof("log_type") for one in logged]
    assert kinds == ["predict_log", "predict_log", "classify_log", "regress_log"]
    assert [one["method"] for one in told] == ["predict", "predict", "classify", "regress"]
    assert [one["request_id"] for one in told] == ["one", "two", "", ""]
    first = logged[0]
    assert first.predict_log.request == request
    assert tf.make_ndarray(first.predict_log.response.outputs["y"]).tolist() == [3.5]
    assert first.log_metadata.model_spec.version.value == 2
    assert first.log_metadata.sampling_config.sampling_rate == 1.0
    assert {(one["model"], one["version"]) for one in told} == {("half_plus_two", 2)}
    assert all(one["received"] <= one["started"] <= one["sent"] for one in told)


def test_a_model_without_a_log_is_not_logged(tmp_path, make):
    log = make()
    assert log.chosen("m") == 1.0 and log.chosen("other") == 0.0
    log.configure([])
    assert log.chosen("m") == 0.0
    log.close()


def test_a_rate_is_kept_roughly(tmp_path, make):
    log = make()
    log.configure([ModelConfig("m", tmp_path, log_prefix="p", log_rate=0.5)])
    chosen = sum(log.chosen("m") == 0.5 for _ in range(4000))
    log.close()
    assert 1600 < chosen < 2400


def test_a_full_file_is_followed_by_the_next(tmp_path, make, lost):
    log = make(largest=1000)
    for number in range(7):
        log.add("m", record(str(number), size=400))
    log.close()
    files = sorted((tmp_path / "log").glob("*.tfrecord"))
    assert len(files) == 3
    assert [one["request_id"] for one in lines(tmp_path / "log")] == list("0123456")
    assert len(records(tmp_path / "log")) == 7 and not lost


def test_a_new_prefix_is_a_new_file(tmp_path, make, tools):
    log = make()
    log.add("m", record("old"))
    tools.until(lambda: (tmp_path / "log").exists() and lines(tmp_path / "log"))
    log.configure([ModelConfig("m", tmp_path, log_prefix=str(tmp_path / "b" / "m"), log_rate=1.0)])
    log.add("m", record("new"))
    log.close()
    assert [one["request_id"] for one in lines(tmp_path / "log")] == ["old"]
    assert [one["request_id"] for one in lines(tmp_path / "b")] == ["new"]


def test_a_full_queue_loses_records_and_holds_nobody_up(make, lost, monkeypatch):
    held, entered = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        entered.set()
        held.wait(60)

    monkeypatch.setattr(RequestLog, "_append", slow)
    log = make()
    log.add("m", record("first"))
    assert entered.wait(60)
    for number in range(request_log._QUEUED + 5):
        log.add("m", record(str(number)))
    assert lost == ["m"] * 5
    held.set()
    log.close()


def test_a_disk_that_hangs_does_not_keep_the_server_from_ending(make, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(RequestLog, "_append", lambda *_: held.wait(60))
    monkeypatch.setattr(request_log, "_CLOSE_SECONDS", 0.1)
    log = make()
    for number in range(request_log._QUEUED + 5):
        log.add("m", record(str(number)))
    closing = threading.Thread(target=log.close)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    held.set()


def test_a_disk_that_fails_loses_records_and_goes_on(tmp_path, make, lost, monkeypatch):
    log = make()
    monkeypatch.setattr(request_log, "_PAUSE_SECONDS", 0.0)
    (tmp_path / "log").write_text("no folder")
    log.add("m", record("lost"))
    log.add("m", record("lost too"))
    while len(lost) < 2:
        threading.Event().wait(0.01)
    (tmp_path / "log").unlink()
    log.add("m", record("kept"))
    log.close()
    assert [one["request_id"] for one in lines(tmp_path / "log")] == ["kept"]


def test_lost_records_are_counted_for_prometheus(models, tmp_path, open_door, tools):
    (tmp_path / "log").write_text("no folder")
    prefix = str(tmp_path / "log" / "half")
    config = ModelConfig("half_plus_two", models / "half_plus_two", log_prefix=prefix, log_rate=1.0)
    door = open_door(config, rest={"metrics_path": "/metrics"})
    assert door.half(1) == (2, [3.5])
    count = ':espalier:serving:unlogged_count{model_name="half_plus_two"} 1.0'
    tools.until(lambda: count in door.get("/metrics").text)
