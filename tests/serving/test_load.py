"""The load test: its counts add up, and it flatters no server."""

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

from espalier.errors import ConfigError, DataError, ServerError
from espalier.pipeline.cli import app
from espalier.serving.client import Client
from espalier.serving.grpc_door import DoorOptions
from espalier.serving.load_requests import PICTURE, SENTENCE, Given, bodies
from espalier.serving.load_test import Plan, Result, check_picture, picture, run, table
from espalier.serving.manager import ModelConfig
from espalier.serving.protos import message
from espalier.serving.rest_door import RestOptions
from espalier.serving.server import Options, Server
from espalier.serving.tensors import to_numpy


class Models(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def read(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"label": text}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def see(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        shapes = tf.map_fn(
            lambda one: tf.shape(tf.io.decode_image(one, channels=3)), image_bytes, tf.int32
        )
        return {"shape": shapes}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="a"),
            tf.TensorSpec([None], tf.int64, name="b"),
        ]
    )
    def add(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"sum": a + tf.cast(b, tf.float32)}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a server with the models read, see and add."""
    folder = tmp_path_factory.mktemp("load")
    module = Models()
    for name in ("read", "see", "add"):
        tf.saved_model.save(
            module, str(folder / name / "1"), {"serving_default": getattr(module, name)}
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configs = [ModelConfig(name, folder / name) for name in ("read", "see", "add")]
    server = Server(Options(configs, DoorOptions("127.0.0.1", port), RestOptions(port=0)))
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(1.0)


@contextlib.contextmanager
def fake(answer: Callable[[bytes, Any], bytes]) -> Iterator[str]:
    """A server whose Predict is a function of bytes; yields HOST:PORT."""
    method = grpc.unary_unary_rpc_method_handler(answer)
    service = "tensorflow.serving.PredictionService"
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Predict": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def inputs(body: bytes) -> dict[str, list[Any]]:
    request = message("PredictRequest").FromString(body)
    return {name: to_numpy(proto).tolist() for name, proto in request.inputs.items()}


def sent(target: str, model: str, given: Given = Given(), batch: int = 1) -> list[dict[str, Any]]:  # noqa: B008
    with Client(target, model) as client:
        return [inputs(body) for body in bodies(client, given, batch)]


def test_every_request_is_counted_once() -> None:
    arrived: list[bytes] = []
    with fake(lambda body, _: arrived.append(body) or body) as address:
        result = run(address, [b"x"], Plan(concurrency=3, seconds=0.5, warmup_seconds=0))
    assert result.requests == len(result.took) == len(result.ended) == len(arrived) > 3
    assert not result.errors
    assert result.seconds == pytest.approx(0.5)
    # The last of each of the three may end after that time.
    assert result.per_second * result.seconds == pytest.approx(result.requests, abs=3)
    assert (result.took > 0).all()


def test_what_begins_before_the_counting_does_not_count() -> None:
    arrived: list[bytes] = []
    with fake(lambda body, _: arrived.append(body) or body) as address:
        result = run(address, [b"x"], Plan(seconds=0.3, warmup_seconds=0.3))
    assert 0 < result.requests < len(arrived)
    assert (result.ended - result.took >= 0).all()


def test_so_many_are_under_way_and_no_more() -> None:
    now, most, lock = 0, 0, threading.Lock()

    def answer(body: bytes, _: Any) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return body

    with fake(answer) as address:
        run(address, [b"x"], Plan(concurrency=3, seconds=0.5, warmup_seconds=0))
    assert most == 3


def test_bodies_go_in_turn_and_with_the_token() -> None:
    seen: list[tuple[bytes, str]] = []

    def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append((body, dict(context.invocation_metadata())["authorization"]))
        return body

    from espalier.serving.client import Connection

    with fake(answer) as address:
        plan = Plan(concurrency=1, seconds=0.3, warmup_seconds=0)
        run(address, [b"a", b"b"], plan, Connection(token="word"))
    assert seen[:4] == [(b"a", "Bearer word"), (b"b", "Bearer word")] * 2


def test_errors_are_counted_by_their_code() -> None:
    arrived = itertools.count()
    codes = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)

    def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
        number = next(arrived) % 4
        if number < 2:
            context.abort(codes[number], "no such thing")
        return body

    with fake(answer) as address:
        result = run(address, [b"x"], Plan(concurrency=1, seconds=0.5, warmup_seconds=0))
    assert set(result.errors) == {"NOT_FOUND", "UNAVAILABLE"}
    assert result.requests == next(arrived)  # UNAVAILABLE was not hidden by trying again
    assert len(result.took) == pytest.approx(result.errors.total(), abs=2)
    assert result.first_error == "no such thing"


def test_no_server_is_an_error_and_not_a_pause() -> None:
    result = run("127.0.0.1:1", [b"x"], Plan(concurrency=2, seconds=0.3, warmup_seconds=0))
    assert set(result.errors) == {"UNAVAILABLE"}
    assert not len(result.took)
    assert np.isnan(result.percentile(50))


def stalling(begins: float, lasts: float) -> Callable[[bytes, Any], bytes]:
    """Answers at once, but for once a while in which nobody is answered."""
    first: list[float] = []

    def answer(body: bytes, _: Any) -> bytes:
        now = time.monotonic()
        first.append(now)
        if first[0] + begins <= now < first[0] + begins + lasts:
            time.sleep(first[0] + begins + lasts - now)
        return body

    return answer


def test_the_open_loop_counts_from_when_a_request_was_due() -> None:
    """Of 2 s, 0.5 stand still: a fifth of the callers wait more than 0.1 s, whoever measures."""
    with fake(stalling(0.5, 0.5)) as address:
        result = run(address, [b"x"], Plan(rate=200, seconds=2, warmup_seconds=0))
    assert not result.errors
    assert 300 < result.requests < 500
    waited = float((result.took > 0.1).mean())
    assert 0.1 < waited < 0.4  # 0.2, were the machine idle
    assert result.percentile(99) > 400


def test_requests_that_are_sent_late_count_from_when_they_were_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The measuring side may stand still too: that is not the server's merit."""
    from espalier.serving import load_test

    real, stalled = load_test._Load._send, itertools.count()

    def send(self: Any, due: float, again: bool) -> None:
        if next(stalled) == 20:
            time.sleep(0.5)
        real(self, due, again)

    monkeypatch.setattr(load_test._Load, "_send", send)
    with fake(lambda body, _: body) as address:
        result = run(address, [b"x"], Plan(rate=200, seconds=1, warmup_seconds=0))
    assert (result.took > 0.1).sum() > 40  # of the 100 that were due in that half second


def test_ctrl_c_ends_it_with_what_there_is() -> None:
    calls = itertools.count()

    def told(seconds: float, requests: int, failed: int) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt

    begin = time.monotonic()
    with fake(lambda body, _: body) as address:
        result = run(address, [b"x"], Plan(seconds=60, warmup_seconds=0), told=told)
    assert time.monotonic() - begin < 30
    assert result.requests > 0
    assert not result.errors


def test_progress_is_told() -> None:
    seen: list[tuple[float, int, int]] = []
    with fake(lambda body, _: body) as address:
        run(address, [b"x"], Plan(seconds=1, warmup_seconds=0), told=lambda *it: seen.append(it))
    assert len(seen) >= 2
    assert seen == sorted(seen)
    assert seen[-1][1] > 0 == seen[-1][2]


def test_percentiles_are_times_that_were_measured() -> None:
    took = np.arange(1, 1001) / 1000
    result = Result(took, took, seconds=1.0)
    found = [result.percentile(percent) for percent in (50, 90, 99, 99.9, 100)]
    assert found == pytest.approx([500, 900, 990, 999, 1000], abs=1.01)
    assert {one / 1000 for one in found} <= set(took.tolist())


def test_models_of_ours_need_no_data(target: str) -> None:
    assert sent(target, "read") == [{"text": [SENTENCE.encode()]}]
    assert sent(target, "see", batch=2) == [{"image_bytes": [PICTURE] * 2}]
    with Client(target, "see") as client:
        assert client.predict([PICTURE])["shape"].tolist() == [[32, 32, 3]]


def test_what_is_given_is_sent_in_turn(target: str, tmp_path: Path) -> None:
    found = sent(target, "read", Given(texts=["a", "b", "c"]), batch=2)
    assert found == [{"text": [b"a", b"b"]}, {"text": [b"c", b"a"]}]
    (tmp_path / "one").write_bytes(b"picture")
    assert sent(target, "see", Given(images=[tmp_path / "one"])) == [{"image_bytes": [b"picture"]}]
    table_ = tmp_path / "rows.csv"
    table_.write_text('x,y,path\n1.5,2,one\n"3",4,one\n', encoding="utf-8")
    given = Given(data=table_, columns=["x", "y"])
    assert sent(target, "add", given, batch=2) == [{"a": [1.5, 3.0], "b": [2, 4]}]
    assert sent(target, "see", Given(data=table_))[0] == {"image_bytes": [b"picture"]}


@pytest.mark.parametrize(
    ("model", "given", "error", "words"),
    [
        ("add", Given(), ConfigError, r"takes a \(float\), b \(int64\): say what to send"),
        ("add", Given(texts=["a"]), ConfigError, "give a CSV"),
        ("add", Given(data=Path("rows.csv"), columns=["x"]), ConfigError, "a --column for each"),
        ("add", Given(data=Path("rows.csv"), columns=["x", "z"]), DataError, "no column z"),
        ("add", Given(data=Path("rows.csv"), columns=["x", "x"]), DataError, "not of int64"),
        ("read", Given(data=Path("none.csv"), columns=["x"]), ConfigError, "cannot be read"),
        ("see", Given(images=[Path("none.png")]), ConfigError, "cannot be read"),
        ("none", Given(), ServerError, "NOT_FOUND"),
    ],
)
def test_what_does_not_fit_is_said(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    model: str, given: Given, error: type[Exception], words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("x,y\n1.5,2\n", encoding="utf-8")
    with pytest.raises(error, match=words):
        sent(target, model, given)


@pytest.mark.parametrize("count", [0, 1, 5000])
@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_the_picture_is_drawn(tmp_path: Path, count: int, suffix: str) -> None:
    file = tmp_path / f"load.{suffix}"
    check_picture(file)
    ended = np.linspace(0, 3, count)
    picture(Result(ended, ended / 100, seconds=3.0), "a title", file)
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    assert file.read_bytes().startswith(starts[suffix])
    assert table(Result(ended, ended, seconds=3.0)).row_count == 1


def test_a_picture_that_cannot_be_drawn_is_said_before(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.svg, \.png, \.pdf"):
        check_picture(tmp_path / "load.txt")
    with pytest.raises(ConfigError, match="no folder"):
        check_picture(tmp_path / "none" / "load.svg")


def test_the_command(target: str, tmp_path: Path) -> None:
    file = tmp_path / "load.svg"
    flags = ["--seconds", "0.5", "--warmup-seconds", "0", "--batch", "3", "-o", str(file)]
    done = CliRunner().invoke(app, ["load", f"{target}/read", *flags])
    assert done.exit_code == 0, done.output
    assert "requests/s" in done.output and "none" in done.output
    assert file.exists()
    flags = [*flags[:4], "--rate", "50", "--json"]
    done = CliRunner().invoke(app, ["load", f"{target}/read", *flags])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["requests"] > 0 and told["errors"] == {}
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["max"]


def test_the_command_fails_when_requests_do(target: str, tmp_path: Path) -> None:
    (tmp_path / "no-picture").write_bytes(b"text")
    flags = ["--image", str(tmp_path / "no-picture"), "--seconds", "0.3", "--warmup-seconds", "0"]
    done = CliRunner().invoke(app, ["load", f"{target}/see", *flags])
    assert done.exit_code == 5
    assert "INVALID_ARGUMENT" in done.output and "the first error: " in done.output
    done = CliRunner().invoke(app, ["load", f"{target}/see", *flags, "--json"])
    told = json.loads(done.stdout)
    assert told["errors"]["INVALID_ARGUMENT"] == told["requests"]
    assert told["latency_ms"]["p99"] is None and told["first_error"] in done.stderr
    for wrong in (["models/reviews"], [f"{target}/see", "--rate", "5", "--concurrency", "2"]):
        assert CliRunner().invoke(app, ["load", *wrong]).exit_code == 2


def test_no_tensorflow_is_imported() -> None:
    code = (
        "import sys, espalier.serving.load_test, espalier.serving.load_requests;"
        "sys.exit(', '.join({'tensorflow', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
