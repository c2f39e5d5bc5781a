"""Callers who say nothing, or too much: they keep no thread, no file and no memory from others."""

import errno
import queue
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from espalier.serving import commands, patience, rest_door
from espalier.serving.manager import ModelConfig

PREDICT = "/tensorflow.serving.PredictionService/Predict"
CHECK = "/grpc.health.v1.Health/Check"


@pytest.fixture
def start(models: Path, open_door: Callable[..., Any]) -> Callable[..., Any]:
    """Start a server of half_plus_two with two threads for gRPC."""

    def begin(**more: Any) -> Any:
        half = ModelConfig("half_plus_two", models / "half_plus_two")
        return open_door(half, grpc={"max_threads": 2}, **more)

    return begin


@pytest.fixture
def silent() -> Iterator[Callable[..., Any]]:
    """Open a call that sends no message; the call."""
    ends: list[queue.SimpleQueue[None]] = []

    def open_call(door: Any, path: str) -> Any:
        ends.append(queue.SimpleQueue())
        return door.channel.stream_unary(path).future(iter(ends[-1].get, None), timeout=60)

    yield open_call
    for end in ends:
        end.put(None)


def test_silent_calls_keep_no_thread_from_others(start, silent):
    door = start()
    calls = [silent(door, PREDICT) for _ in range(20)]
    assert door.half(1) == (2, [3.5])
    assert not any(call.done() for call in calls)


def test_a_silent_probe_keeps_none_from_another(start, silent):
    door = start()
    for _ in range(3):
        silent(door, CHECK)
    answer = door.health.Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_silent_call_is_ended(start, silent, monkeypatch):
    monkeypatch.setattr(patience, "_SECONDS", 0.2)
    assert silent(start(), PREDICT).code() is grpc.StatusCode.CANCELLED


def test_in_a_crowd_they_are_ended_sooner(start, silent, monkeypatch, tools):
    monkeypatch.setattr(patience, "_CROWD", 2)
    monkeypatch.setattr(patience, "_SECONDS_IN_A_CROWD", 0.2)
    door = start()
    calls = [silent(door, PREDICT) for _ in range(4)]
    tools.until(lambda: any(call.done() for call in calls))
    assert {call.code() for call in calls if call.done()} == {grpc.StatusCode.CANCELLED}
    assert door.half(1) == (2, [3.5])


def test_threads_that_make_up_for_silent_calls_end_with_them(start, silent, tools):
    def threads() -> set[threading.Thread]:
        return {one for one in threading.enumerate() if one.name == "grpc"}

    before = threads()  # those of other tests' servers, which may end meanwhile
    door = start()
    calls = [silent(door, PREDICT) for _ in range(10)]
    tools.until(lambda: len(threads() - before) > 2 + 10)
    for call in calls:
        call.cancel()
    tools.until(lambda: len(threads() - before) == 2)
    door.server.stop(0)
    tools.until(lambda: not threads() - before)


def test_without_the_token_no_message_is_waited_for(start, silent, tmp_path):
    (tmp_path / "token").write_text("s3cret")
    door = start(token_file=tmp_path / "token")
    assert silent(door, PREDICT).code() is grpc.StatusCode.UNAUTHENTICATED


def test_several_tokens_are_none(start, tmp_path):
    (tmp_path / "token").write_text("s3cret")
    door = start(token_file=tmp_path / "token")
    request = door.request("half_plus_two", {"x": [1.0]})
    shown = [("authorization", "Bearer wrong"), ("authorization", "Bearer s3cret")]
    code, _ = door.failure(door.prediction.Predict, request, metadata=shown)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert door.prediction.Predict(request, metadata=shown[1:]).outputs


def test_a_message_that_is_none_is_the_callers_fault(start):
    door = start()
    code, words = door.failure(door.channel.unary_unary(PREDICT), b"\xff")
    assert code is grpc.StatusCode.INVALID_ARGUMENT and "cannot be read" in words
    with pytest.raises(grpc.RpcError) as caught:
        door.channel.stream_unary(PREDICT)(iter([]), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_names_that_are_watched_are_not_kept(start):
    door = start()
    stub = health_pb2_grpc.HealthStub(door.channel)
    (answer,) = stub.Watch(health_pb2.HealthCheckRequest(service="made up"), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
    watched.cancel()
    assert "made up" not in door.server._grpc._health._send_response_callbacks


def test_rest_leaves_half_of_the_files_to_others(start, monkeypatch):
    door = start()
    monkeypatch.setattr(rest_door.resource, "getrlimit", lambda _: (4, 4))
    host, port = door.rest.split(":")
    held = [socket.create_connection((host, int(port)), timeout=60) for _ in range(3)]
    assert held[2].recv(1) == b""  # the third is closed at once
    for connection in held:
        connection.close()
    monkeypatch.undo()
    assert door.get("/v1/models/half_plus_two").status_code == 200


def test_without_files_rest_pauses_and_says_so_once(monkeypatch, caplog):
    def accept(_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", accept)
    with rest_door._Listener() as listener:
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                listener.accept()
    assert [one.message for one in caplog.records] == [
        "REST takes no new connections for now: Too many open files"
    ]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has it")
def test_an_answer_that_nobody_reads_is_dropped(start, monkeypatch, tools):
    monkeypatch.setattr(rest_door, "_IDLE_SECONDS", 1.0)
    door = start()
    body = b'{"instances": [' + b"1.0," * 4_000_000 + b"1.0]}"
    host, port = door.rest.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = "POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: a\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        tools.until(lambda: door.server._rest._server.opened == 0)


def test_bodies_have_room_in_all(start, monkeypatch, tools):
    monkeypatch.setattr(rest_door, "_MOST_BODIES", 0)
    door = start()
    response = door.post("/v1/models/half_plus_two:predict", {"instances": [1.0]})
    assert response.status_code == 429 and "Too many large requests" in response.json()["error"]
    monkeypatch.undo()
    response = door.post("/v1/models/half_plus_two:predict", {"instances": [1.0]})
    assert response.json() == {"predictions": [3.5]}
    tools.until(lambda: door.server._rest._calls.body_bytes == 0)


def test_the_command_opens_as_many_files_as_it_may(monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda *given: asked.append(given))
    commands._open_many_files()
    assert asked == [(resource.RLIMIT_NOFILE, (4096, 4096))]
