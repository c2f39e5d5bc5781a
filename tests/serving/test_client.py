"""The client against a server: what goes in, what comes out, what is said when it goes wrong."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from espalier import AsyncClient, Client, ConfigError, ServerError
from espalier.serving import protos
from espalier.serving.grpc_door import DoorOptions
from espalier.serving.manager import ModelConfig
from espalier.serving.rest_door import RestOptions
from espalier.serving.server import Options, Server
from espalier.serving.tensors import to_numpy


@pytest.fixture(scope="module")
def half(door: Any) -> Iterator[Client]:
    with Client(door.target, "half_plus_two") as client:
        yield client


@pytest.fixture(scope="module")
def odd(door: Any) -> Iterator[Client]:
    with Client(door.target, "odd") as client:
        yield client


# --- what goes in and what comes out --------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"x": [1, 2.5]},
        {"x": np.array([1, 2.5])},  # float64, which the model does not take
        [1, 2.5],
        np.array([1, 2.5], np.float32),
    ],
    ids=["dict", "float64", "list", "array"],
)
def test_numbers_become_what_the_model_takes(half: Client, given: Any) -> None:
    answer = half.predict(given, version=1)
    assert answer["y"].dtype == np.float32
    assert answer["y"].tolist() == [2.5, 3.25]


def test_version_label_signature_and_outputs_are_asked_for(half: Client) -> None:
    assert half.predict([0.0])["y"].tolist() == [3.0]  # the newest
    assert half.predict([0.0], label="stable")["y"].tolist() == [2.0]
    assert set(half.predict([1.0], signature="both")) == {"y", "doubled"}
    assert set(half.predict([1.0], signature="both", outputs=["doubled"])) == {"doubled"}


def test_strings_come_back_as_text_and_lose_nothing(odd: Client) -> None:
    answer = odd.predict({"a": ["grü", b"\xff"], "b": np.array(["n", "."])})
    assert answer["joined"].tolist() == ["grün", "\udcff."]
    assert answer["joined"][1].encode("utf-8", "surrogateescape") == b"\xff."


@pytest.mark.parametrize("name", ["half", "bfloat16", "int8", "uint64", "bool", "complex64"])
def test_every_type_goes_there_and_back(door: Any, name: str) -> None:
    given = {"bool": [True, False], "complex64": np.array([1 + 2j], np.complex64)}
    values = given.get(name, [1, 3])
    with Client(door.target, "echo") as client:
        answer = client.predict({"x": values}, signature=name)["x"]
    assert answer.tolist() == list(values)


def test_bfloat16_is_rounded_as_tensorflow_rounds(door: Any) -> None:
    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    with Client(door.target, "echo") as client:
        answer = client.predict({"x": values}, signature="bfloat16")["x"]
    expected = tf.cast(tf.cast(values, tf.bfloat16), tf.float32).numpy()
    np.testing.assert_array_equal(answer, expected)


def test_examples_are_classified_and_regressed(half: Client) -> None:
    rows = [{"x": 2.0}, {"x": [4.0]}]
    assert half.classify(rows, signature="classify", version=1) == [
        [("y", 3.0), ("minus y", -3.0)],
        [("y", 4.0), ("minus y", -4.0)],
    ]
    assert half.regress(rows, signature="regress", version=1).tolist() == [3.0, 4.0]


def test_metadata_and_status(half: Client) -> None:
    assert set(half.metadata()["serving_default"].inputs) == {"x"}
    assert half.status() == {1: "AVAILABLE", 2: "AVAILABLE"}


def test_the_asyncio_twin_answers_alike(door: Any) -> None:
    async def ask() -> tuple[Any, ...]:
        async with AsyncClient(door.target, "half_plus_two") as client:
            many = await asyncio.gather(*(client.predict([float(n)], version=1) for n in range(20)))
            rows = [{"x": 2.0}]
            return (
                [one["y"].item() for one in many],
                await client.classify(rows, signature="classify", version=1),
                (await client.regress(rows, signature="regress", version=1)).tolist(),
                await client.status(),
                set(await client.metadata()),
            )

    halves, classified, regressed, states, signatures = asyncio.run(ask())
    assert halves == [2 + n / 2 for n in range(20)]
    assert classified == [[("y", 3.0), ("minus y", -3.0)]] and regressed == [3.0]
    assert states == {1: "AVAILABLE", 2: "AVAILABLE"} and "classify" in signatures


# --- what is said when it goes wrong --------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"y": [1.0]}, "half_plus_two takes x; found y."),
        ({}, "half_plus_two takes x; found nothing."),
        ({"x": ["one"]}, "x: <U3 found; the model takes float."),
        ({"x": [[1.0], [1.0, 2.0]]}, "x: is no array"),
    ],
)
def test_inputs_that_do_not_fit_are_named_before_they_are_sent(
    half: Client, given: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        half.predict(given)


def test_a_number_is_no_text_and_half_is_no_whole_number(door: Any, odd: Client) -> None:
    with pytest.raises(ConfigError, match="a: int found at place 1; a string is expected"):
        odd.predict({"a": ["x", 1], "b": ["x", "y"]})
    with pytest.raises(ConfigError, match="takes a, b: give a dict with these"):
        odd.predict(["x"])
    with Client(door.target, "echo") as client:
        with pytest.raises(ConfigError, match="x: float64 found; the model takes int64"):
            client.predict([0.5], signature="int64")
        with pytest.raises(ConfigError, match="x: int64 found; the model takes int8"):
            client.predict([300], signature="int8")


def test_the_servers_words_and_code_come_through(door: Any, half: Client) -> None:
    with Client(door.target, "nobody") as client, pytest.raises(ServerError) as caught:
        client.predict([1.0])
    assert caught.value.code == "NOT_FOUND"
    assert "Servable not found for request: Latest(nobody)" in str(caught.value)
    with pytest.raises(ServerError, match='no signature "nope"; there is both, classify'):
        half.predict([1.0], signature="nope")


def test_nobody_there_is_a_sentence() -> None:
    with Client("127.0.0.1:1", "reviews") as client, pytest.raises(ServerError) as caught:
        client.status()
    assert caught.value.code == "UNAVAILABLE"
    assert str(caught.value).startswith("127.0.0.1:1: no server answers there (")


def test_each_call_has_a_deadline(odd: Client) -> None:
    with pytest.raises(ServerError) as caught:
        odd.predict({"seconds": [5.0]}, signature="slow", timeout=0.2)
    assert caught.value.code == "DEADLINE_EXCEEDED"


class Flaky(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Fails as told, then answers; it keeps what it saw."""

    def __init__(self, codes: list[grpc.StatusCode]) -> None:
        self.codes, self.calls, self.token = codes, 0, ""

    def GetModelMetadata(self, request: Any, context: Any) -> None:
        self.calls += 1
        self.token = dict(context.invocation_metadata()).get("authorization", "")
        context.abort(self.codes[min(self.calls, len(self.codes)) - 1], "not now")


@pytest.fixture
def flaky() -> Iterator[Callable[..., tuple[Flaky, str]]]:
    servers = []

    def start(*codes: grpc.StatusCode) -> tuple[Flaky, str]:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        servicer = Flaky(list(codes))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return servicer, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


def test_only_unavailable_is_tried_again(flaky: Callable[..., tuple[Flaky, str]]) -> None:
    busy, target = flaky(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
    with (
        Client(target, "m", token="secret") as client,
        pytest.raises(ServerError, match="INTERNAL"),
    ):
        client.metadata()
    assert busy.calls == 2
    assert busy.token == "Bearer secret"
    gone, target = flaky(grpc.StatusCode.UNAVAILABLE)
    with Client(target, "m") as client, pytest.raises(ServerError, match="UNAVAILABLE"):
        client.metadata()
    assert gone.calls == 4


# --- without TensorFlow, and beside it ------------------------------------------------------


def test_it_imports_no_tensorflow(door: Any) -> None:
    code = f"""
import sys
class No:
    def find_spec(self, name, *rest):
        assert name.partition('.')[0] not in {{"tensorflow", "tensorflow_serving", "tfx"}}, name
sys.meta_path.insert(0, No())
from espalier import Client
from espalier.pipeline.cli import app
client = Client({door.target!r}, 'half_plus_two')
assert client.predict([1.0], version=1)['y'].tolist() == [2.5]
assert 'grpc' in sys.modules and 'tensorflow' not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_protos_live_beside_tensorflows(half: Client) -> None:
    # TensorFlow's own are loaded here; a second copy in the same pool would have ended us.
    ours = protos.message("PredictRequest")()
    ours.inputs["x"].CopyFrom(protos.message("tensorflow.TensorProto")(dtype=1, float_val=[2.0]))
    official = predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    assert tf.make_ndarray(official.inputs["x"]).tolist() == 2.0
    assert to_numpy(ours.inputs["x"]).tolist() == 2.0
    assert type(ours) is not predict_pb2.PredictRequest


def test_its_protos_are_the_official_ones() -> None:
    assert protos.FILE.read_bytes() == protos.official(), "run `python -m espalier.serving.protos`"


# --- a server that is gone ------------------------------------------------------------------


@pytest.fixture
def serve_at(models: Path) -> Iterator[Callable[[int], Any]]:
    """Start a server of half_plus_two at a port; its Server."""
    servers = []

    def start(port: int) -> Server:
        half = ModelConfig("half_plus_two", models / "half_plus_two")
        door = DoorOptions(host="127.0.0.1", port=port)
        servers.append(Server(Options([half], grpc=door, rest=RestOptions(port=0))))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop(0)


def test_a_server_that_was_there_is_waited_for(serve_at: Any, tools: Any) -> None:
    port = tools.free_port()
    server = serve_at(port)
    with Client(f"127.0.0.1:{port}", "half_plus_two", timeout=60) as client:
        assert client.predict([1.0])["y"].tolist() == [3.5]
        server.stop(0)
        with futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.predict, [2.0])
            with pytest.raises(futures.TimeoutError):
                asked.result(1.0)  # longer than four tries take
            serve_at(port)
            assert asked.result(60)["y"].tolist() == [4.0]


def test_the_asyncio_twin_waits_too(serve_at: Any, tools: Any) -> None:
    port = tools.free_port()
    server = serve_at(port)

    async def ask() -> Any:
        async with AsyncClient(f"127.0.0.1:{port}", "half_plus_two", timeout=60) as client:
            await client.predict([1.0])
            await asyncio.to_thread(server.stop, 0)
            asked = asyncio.create_task(client.predict([2.0]))
            await asyncio.sleep(1.0)
            assert not asked.done()
            await asyncio.to_thread(serve_at, port)
            return await asked

    assert asyncio.run(ask())["y"].tolist() == [4.0]


def test_a_server_that_never_was_there_or_need_not_come_back_is_not_waited_for(
    serve_at: Any, tools: Any
) -> None:
    port = tools.free_port()
    stranger = Client(f"127.0.0.1:{port}", "half_plus_two", timeout=3600)
    with stranger as client, pytest.raises(ServerError, match="no server answers there"):
        client.predict([1.0])
    server = serve_at(port)
    with Client(f"127.0.0.1:{port}", "half_plus_two", timeout=3600, wait=False) as client:
        client.predict([1.0])
        server.stop(0)
        with pytest.raises(ServerError, match="no server answers there"):
            client.predict([1.0])
