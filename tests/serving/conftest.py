"""Tiny models, one server for all tests, and its two doors: the official stubs and plain HTTP.

The files test_conform_*.py ask nothing but these doors, so they can be pointed at TensorFlow
Serving itself, to see that it answers the same:

    python tests/serving/conftest.py FOLDER      # writes the models and FOLDER/models.config
    tensorflow_model_server --port=8500 --rest_api_port=8501 \
        --model_config_file=FOLDER/models.config --allow_version_labels_for_unavailable_models=true
    export ESPALIER_TFS_TARGET=localhost:8500 ESPALIER_TFS_REST=localhost:8501
    ESPALIER_TFS_MODELS=FOLDER pytest tests/serving/test_conform_*.py

FOLDER must have the same path for the server. Prometheus' page is off by default there:
--monitoring_config_file with `prometheus_config { enable: true }` turns it on.
"""

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import espalier  # isort: skip  # noqa: F401  (asks for Keras 2, before TensorFlow is imported)

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

PATIENCE = 60.0  # seconds that anything may take, on a busy machine
ECHOED = {
    "float": tf.float32, "double": tf.float64, "half": tf.float16, "bfloat16": tf.bfloat16,
    "int8": tf.int8, "int16": tf.int16, "int32": tf.int32, "int64": tf.int64,
    "uint8": tf.uint8, "uint16": tf.uint16, "uint32": tf.uint32, "uint64": tf.uint64,
    "bool": tf.bool, "string": tf.string, "complex64": tf.complex64, "complex128": tf.complex128,
}  # fmt: skip


def graph(**inputs: tuple[Any, tf.DType]) -> Any:
    """tf.function for inputs of these shapes and types."""
    specs = [tf.TensorSpec(shape, dtype, name) for name, (shape, dtype) in inputs.items()]
    return tf.function(input_signature=specs, autograph=False)


class Half(tf.Module):
    """Half of x, and something more; with heads that read tf.Examples."""

    def __init__(self, more: float) -> None:
        super().__init__()
        self.half, self.more = tf.Variable(0.5), tf.Variable(more)

    def line(self, x: tf.Tensor) -> tf.Tensor:
        return self.half * x + self.more

    @graph(x=([None], tf.float32))
    def plain(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": self.line(x)}

    @graph(x=([None], tf.float32))
    def both(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": self.line(x), "doubled": 2 * x}

    def read(self, examples: tf.Tensor) -> tf.Tensor:
        spec = {"x": tf.io.FixedLenFeature([], tf.float32, default_value=0.0)}
        return self.line(tf.io.parse_example(examples, spec)["x"])

    @graph(inputs=([None], tf.string))
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        y = self.read(inputs)  # [B]
        classes = tf.tile(tf.constant([["y", "minus y"]]), [tf.size(y), 1])
        return {"classes": classes, "scores": tf.stack([y, -y], axis=1)}

    @graph(inputs=([None], tf.string))
    def scores(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"scores": self.classify(inputs)["scores"]}

    @graph(inputs=([None], tf.string))
    def regress(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": self.read(inputs)}

    @graph(inputs=([None], tf.string))
    def column(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": self.read(inputs)[:, None]}

    def save(self, folder: Path) -> None:
        heads = {name: getattr(self, name) for name in ("classify", "scores", "regress", "column")}
        signatures = {"serving_default": self.plain, "both": self.both, **heads}
        tf.saved_model.save(self, str(folder), signatures)


class Odd(tf.Module):
    """What is rarer: two inputs, fixed shapes, scalars, rows that fail, time that passes."""

    @graph(a=([None], tf.string), b=([None], tf.string))
    def join(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        joined = tf.strings.join([a, b])
        return {"joined": joined, "joined_bytes": joined}

    @graph(x=([None, 3], tf.float32))
    def triples(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"sum": tf.reduce_sum(x, axis=1)}

    @graph(x=([None], tf.float32))
    def scalars(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"text": tf.constant("so many"), "count": tf.size(x), "x": x}

    @graph(x=(None, tf.float32))
    def any_shape(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"x": tf.identity(x)}

    @graph(x=([None], tf.float32))
    def positive(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_positive(x, "not above zero")]):
            return {"x": tf.identity(x)}

    @graph(seconds=([None], tf.float64))
    def slow(self, seconds: tf.Tensor) -> dict[str, tf.Tensor]:
        end = tf.timestamp() + tf.reduce_max(seconds)
        turns = tf.while_loop(lambda _: tf.timestamp() < end, lambda i: [i + 1], [0])
        return {"seconds": seconds + 0 * tf.cast(turns[0], tf.float64)}

    def save(self, folder: Path) -> None:
        names = ("join", "triples", "scalars", "any_shape", "positive", "slow")
        signatures = {name: getattr(self, name) for name in names}
        tf.saved_model.save(self, str(folder), {"serving_default": self.join, **signatures})


def save_echo(folder: Path) -> None:
    """A model that gives back what it gets, with a signature for each type."""
    module = tf.Module()
    signatures = {}
    for name, dtype in ECHOED.items():
        signatures[name] = graph(x=([None], dtype))(lambda x: {"x": tf.identity(x)})
        setattr(module, name, signatures[name])
    tf.saved_model.save(module, str(folder), signatures)


def write_models(folder: Path) -> Path:
    """Write half_plus_two (1: + 2, 2: + 3), odd and echo, and the config that serves them."""
    Half(2.0).save(folder / "half_plus_two" / "1")
    Half(3.0).save(folder / "half_plus_two" / "2")
    Odd().save(folder / "odd" / "1")
    save_echo(folder / "echo" / "1")
    config = folder / "models.config"
    half = (
        "model_version_policy { specific { versions: 1 versions: 2 } } "
        'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }'
    )
    more = {"half_plus_two": half, "odd": "", "echo": ""}
    config.write_text(
        "model_config_list {\n"
        + "".join(
            f'  config {{ name: "{name}" base_path: "{folder.resolve() / name}" '
            f'model_platform: "tensorflow" {text} }}\n'
            for name, text in more.items()
        )
        + "}\n"
    )
    return config


class Door:
    """A server's doors.

    Args:
        target: HOST:PORT of gRPC.
        rest: HOST:PORT of REST.
        credentials: of gRPC's TLS; None for none.
        http: of httpx, for REST; None for plain.
    """

    def __init__(
        self,
        target: str,
        rest: str,
        credentials: grpc.ChannelCredentials | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        self.target, self.rest = target, rest
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self.http = http or httpx.Client(base_url=f"http://{rest}", timeout=PATIENCE)

    def close(self) -> None:
        self.channel.close()
        self.http.close()

    def request(
        self, model: str, inputs: Mapping[str, Any], outputs: Sequence[str] = (), **spec: Any
    ) -> Any:
        """A PredictRequest; inputs that are no TensorProtos are made such by TensorFlow."""
        request = predict_pb2.PredictRequest(output_filter=outputs)
        fill(request.model_spec, model, **spec)
        for name, value in inputs.items():
            is_proto = hasattr(value, "tensor_shape")
            request.inputs[name].CopyFrom(value if is_proto else tf.make_tensor_proto(value))
        return request

    def predict(self, model: str, inputs: Mapping[str, Any], **more: Any) -> dict[str, np.ndarray]:
        """Answers as arrays."""
        response = self.prediction.Predict(self.request(model, inputs, **more), PATIENCE)
        return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}

    def half(self, *numbers: float, **spec: Any) -> tuple[int, list[float]]:
        """What half_plus_two says to numbers, and which version says it."""
        x = np.array(numbers, np.float32)
        response = self.prediction.Predict(
            self.request("half_plus_two", {"x": x}, **spec), PATIENCE
        )
        return response.model_spec.version.value, tf.make_ndarray(response.outputs["y"]).tolist()

    def failure(self, call: Any, request: Any, **more: Any) -> tuple[grpc.StatusCode, str]:
        """The code and the words of a call that fails."""
        with pytest.raises(grpc.RpcError) as caught:
            call(request, **({"timeout": PATIENCE} | more))
        return caught.value.code(), caught.value.details()

    def refusal(self, model: str, inputs: Mapping[str, Any], **more: Any) -> tuple[Any, str]:
        """The code and the words of a Predict that fails."""
        return self.failure(self.prediction.Predict, self.request(model, inputs, **more))

    def post(self, path: str, document: Any) -> httpx.Response:
        """POST JSON, or bytes as they are."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.http.post(path, content=body)

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path)


def fill(
    spec: Any, name: str, signature: str = "", version: int | None = None, label: str = ""
) -> Any:
    """Fill a ModelSpec."""
    spec.name, spec.signature_name = name, signature
    if version is not None:
        spec.version.value = version
    if label:
        spec.version_label = label
    return spec


def examples_of(*numbers: float) -> list[tf.train.Example]:
    """A tf.Example for each number, as its feature x."""
    found = [tf.train.Example() for _ in numbers]
    for example, number in zip(found, numbers, strict=True):
        example.features.feature["x"].float_list.value.append(number)
    return found


# Below the ports that systems give to outgoing connections, which would take one at any time.
_ports = itertools.cycle(range(10_000 + os.getpid() * 97 % 20_000, 32_000))


def free_port() -> int:
    """A port that nobody listens at, and another one each time."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def until(true: Callable[[], Any]) -> Any:
    """Wait until a thing is so, and return it; a test fails that waits for ever."""
    end = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def process(
    *arguments: str | Path, out: IO[str] | int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """`espalier serve` in a process of its own, which tells `out`; it ends with the block."""
    command = [str(Path(sys.executable).with_name("espalier")), "serve", "--host", "127.0.0.1"]
    running = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=out,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
            raise


def await_health(door: Door, running: subprocess.Popen[str] | None = None) -> None:
    """Wait until the health service says that models are served."""

    def serving() -> bool:
        assert running is None or running.poll() is None, running.communicate()[0]
        try:
            answer = door.health.Check(
                health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=1
            )
        except grpc.RpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    until(serving)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `write_models` filled; do not change it."""
    if given := os.environ.get("ESPALIER_TFS_MODELS"):
        return Path(given)
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="session")
def door(models: Path) -> Iterator[Door]:
    """The doors of the server that all tests share: ours, or the one of the environment."""
    if target := os.environ.get("ESPALIER_TFS_TARGET"):
        found = Door(target, os.environ["ESPALIER_TFS_REST"])
        yield found
        found.close()
        return
    ports = free_port(), free_port()
    config = models / "models.config"
    flags = ("--port", str(ports[0]), "--rest_api_port", str(ports[1]))
    with process(*flags, "--model_config_file", config) as running:
        found = Door(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
        await_health(found, running)
        yield found
        found.close()


@pytest.fixture
def open_door() -> Iterator[Callable[..., Door]]:
    """Start a server in this process: `models` as ModelConfigs, then fields of its Options.

    Those of the doors go by `grpc` and `rest`: dicts of what differs. Returns its Door, whose
    `server` is the Server.
    """
    from espalier.serving.grpc_door import DoorOptions
    from espalier.serving.manager import Policy
    from espalier.serving.rest_door import RestOptions
    from espalier.serving.server import Options, Server

    with contextlib.ExitStack() as stack:

        def start(
            *models: Any, grpc: Any = None, rest: Any = None, client: Any = None, **more: Any
        ) -> Door:
            ports = free_port(), free_port()
            here = {"host": "127.0.0.1"}
            more = {"policy": Policy(poll_seconds=0.05)} | more
            server = Server(
                Options(
                    models,
                    grpc=DoorOptions(port=ports[0], **here, **(grpc or {})),
                    rest=RestOptions(port=ports[1], **here, **(rest or {})),
                    **more,
                )
            )
            server.start()
            stack.callback(server.stop, 5.0)
            door = Door(f"localhost:{ports[0]}", f"localhost:{ports[1]}", **(client or {}))
            stack.callback(door.close)
            door.server = server  # type: ignore[attr-defined]
            return door

        yield start


@pytest.fixture(scope="session")
def half_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int], Path]:
    """Put version N of a model into a base path, whole at once: half of x, and two more."""
    saved = tmp_path_factory.mktemp("half") / "1"
    Half(2.0).save(saved)

    def put(base: Path, number: int) -> Path:
        base.mkdir(parents=True, exist_ok=True)
        shutil.copytree(saved, base / f"tmp-{number}")
        return (base / f"tmp-{number}").rename(base / str(number))

    return put


@pytest.fixture(scope="session")
def tools() -> Any:
    """The functions of this file, which test files cannot import."""
    return sys.modules[__name__]


def classification(*numbers: float, **spec: Any) -> Any:
    """A ClassificationRequest of half_plus_two's head."""
    request = classification_pb2.ClassificationRequest()
    fill(request.model_spec, "half_plus_two", **({"signature": "classify"} | spec))
    request.input.example_list.examples.extend(examples_of(*numbers))
    return request


def regression(*numbers: float, **spec: Any) -> Any:
    """A RegressionRequest of half_plus_two's head."""
    request = regression_pb2.RegressionRequest()
    fill(request.model_spec, "half_plus_two", **({"signature": "regress"} | spec))
    request.input.example_list.examples.extend(examples_of(*numbers))
    return request


if __name__ == "__main__":
    print(write_models(Path(sys.argv[1])))
