"""TLS, clients' certificates and the token, on both ports; and messages that are too large."""

import contextlib
import gzip
import ssl
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import get_model_status_pb2
from typer.testing import CliRunner

from espalier import Client, ServerError
from espalier.errors import ConfigError
from espalier.pipeline.cli import app
from espalier.serving import config_files
from espalier.serving.client import Connection
from espalier.serving.manager import ModelConfig
from espalier.serving.protos import message

HALF = "/v1/models/half_plus_two"
ROW = {"instances": [1.0]}
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The PEMs of an authority (ca), of localhost (server) and of a client, made by openssl."""
    folder = tmp_path_factory.mktemp("certificates")
    new = ("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    run(*new, "-x509", "-subj", "/CN=test", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    for name in ("server", "client"):
        run(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        names = ("-extfile", "names", "-in", f"{name}.csr", "-out", f"{name}.crt")
        run("openssl", "x509", "-req", *signed, *names)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def ssl_config(certificates: Mapping[str, Path], tmp_path: Path) -> Callable[..., Any]:
    """An SSLConfig, read from a file as the command reads it."""

    def write(verify: bool = False, **more: str) -> Any:
        config = message("SSLConfig")(
            server_key=certificates["server.key"].read_text(),
            server_cert=certificates["server.crt"].read_text(),
            client_verify=verify,
        )
        if verify:
            config.custom_ca = certificates["ca.crt"].read_text()
        for name, value in more.items():
            setattr(config, name, value)
        (tmp_path / "ssl.config").write_text(str(config))
        return config_files.ssl(tmp_path / "ssl.config")

    return write


@pytest.fixture
def half(models: Path) -> ModelConfig:
    return ModelConfig("half_plus_two", models / "half_plus_two")


def credentials(certificates: Mapping[str, Path], client: bool) -> grpc.ChannelCredentials:
    files = ("client.key", "client.crt") if client else ()
    pair = [certificates[name].read_bytes() for name in files]
    return grpc.ssl_channel_credentials(certificates["ca.crt"].read_bytes(), *pair)


def https(door: Any, certificates: Mapping[str, Path], client: bool) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(certificates["ca.crt"]))
    if client:
        context.load_cert_chain(certificates["client.crt"], certificates["client.key"])
    return httpx.Client(base_url=f"https://{door.rest}", verify=context, timeout=60)


# --- TLS ----------------------------------------------------------------------------------


def test_tls_on_both_ports(half, certificates, ssl_config, open_door):
    config = ssl_config()
    client = {"credentials": credentials(certificates, client=False)}
    door = open_door(half, grpc={"ssl": config}, rest={"ssl": config}, client=client)
    assert door.half(1) == (2, [3.5])
    with https(door, certificates, client=False) as http:
        assert http.post(f"{HALF}:predict", json=ROW).json() == {"predictions": [3.5]}


def test_with_tls_nobody_gets_in_without(half, ssl_config, open_door):
    config = ssl_config()
    door = open_door(half, grpc={"ssl": config}, rest={"ssl": config})
    request = door.request("half_plus_two", {"x": np.ones(1, np.float32)})
    code, _ = door.failure(door.prediction.Predict, request)
    assert code is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(httpx.TransportError):
        door.get(HALF)


def test_clients_must_show_their_certificate_if_asked(half, certificates, ssl_config, open_door):
    config = ssl_config(verify=True)
    client = {"credentials": credentials(certificates, client=True)}
    door = open_door(half, grpc={"ssl": config}, rest={"ssl": config}, client=client)
    assert door.half(1) == (2, [3.5])
    with https(door, certificates, client=True) as http:
        assert http.post(f"{HALF}:predict", json=ROW).json() == {"predictions": [3.5]}
    with grpc.secure_channel(door.target, credentials(certificates, client=False)) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        assert door.failure(call, b"")[0] is grpc.StatusCode.UNAVAILABLE
    with https(door, certificates, client=False) as http, pytest.raises(httpx.TransportError):
        http.get(HALF)
    assert door.half(1) == (2, [3.5])


def test_our_own_client_speaks_mtls(half, certificates, ssl_config, open_door):
    files = {name: str(path) for name, path in certificates.items()}
    door = open_door(
        half,
        grpc={"ssl": ssl_config(verify=True)},
        client={"credentials": credentials(certificates, client=True)},
    )
    pair = (files["client.crt"], files["client.key"])
    with Client(door.target, "half_plus_two", ca=files["ca.crt"], certificate=pair) as client:
        assert client.predict([2.0])["y"].tolist() == [4.0]
    for shown in ({}, {"ca": files["ca.crt"]}):  # in the clear; without a certificate
        stranger = Client(door.target, "half_plus_two", timeout=20, **shown)
        with stranger as client, pytest.raises(ServerError):
            client.predict([2.0])
    words = ["load", f"{door.target}/half_plus_two", "--ca", files["ca.crt"], "--cert", *pair]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "half_plus_two" in done.output, done.output  # no model of ours


def test_pems_that_are_none_are_named_before_anything_is_sent(certificates, tmp_path):
    (tmp_path / "junk").write_bytes(b"\xffno PEM")
    junk, pem = str(tmp_path / "junk"), {name: str(path) for name, path in certificates.items()}
    with pytest.raises(ConfigError, match="junk: holds no certificate in PEM"):
        Client("localhost:1", "m", ca=junk)
    for pair in ((junk, junk), (pem["client.crt"], pem["server.key"]), (pem["client.crt"], junk)):
        with pytest.raises(ConfigError, match="a certificate and its own key are needed"):
            Client("localhost:1", "m", certificate=pair)
    with pytest.raises(ConfigError, match="nowhere: cannot be read"):
        Client("localhost:1", "m", ca=tmp_path / "nowhere")


def test_a_certificate_that_proves_nothing_is_told_in_a_sentence(
    half, certificates, ssl_config, open_door
):
    door = open_door(half, grpc={"ssl": ssl_config()})
    # Signed by another authority: the server's own certificate is none of the client's.
    words = "no connection by TLS .* signed by .*client.crt"
    stranger = Client(door.target, "half_plus_two", ca=certificates["client.crt"])
    with stranger as client, pytest.raises(ServerError, match=words):
        client.predict([1.0])


def test_an_ssl_config_that_lacks_something_is_refused(ssl_config):
    with pytest.raises(ConfigError, match="server_cert is missing"):
        ssl_config(server_cert="")
    with pytest.raises(ConfigError, match="client_verify needs custom_ca"):
        ssl_config(verify=True, custom_ca="")


def test_a_certificate_that_is_none_is_refused(half, ssl_config, open_door):
    config = ssl_config(server_cert="no PEM")
    with pytest.raises(ConfigError, match="certificate or its key is none"):
        open_door(half, grpc={"ssl": config})
    with pytest.raises(ConfigError, match="certificates cannot be used"):
        open_door(half, rest={"ssl": config})


# --- the token ----------------------------------------------------------------------------


@pytest.fixture
def guarded(half: ModelConfig, tmp_path: Path, open_door: Callable[..., Any]) -> Any:
    (tmp_path / "token").write_text("s3cret\n")
    return open_door(half, token_file=tmp_path / "token", rest={"metrics_path": "/metrics"})


@pytest.mark.parametrize("shown", [None, "", "s3cret", "Bearer wrong", "bearer s3cret", "Basic x"])
def test_without_the_token_nobody_gets_in(guarded, shown):
    metadata = () if shown is None else (("authorization", shown),)
    predict = guarded.request("half_plus_two", {"x": np.ones(1, np.float32)})
    status = get_model_status_pb2.GetModelStatusRequest()
    for call, request in (
        (guarded.prediction.Predict, predict),
        (guarded.model.GetModelStatus, status),
    ):
        code, words = guarded.failure(call, request, metadata=metadata)
        assert code is UNAUTHENTICATED and "token" in words
    headers = {} if shown is None else {"Authorization": shown}
    for response in (
        guarded.http.post(f"{HALF}:predict", json=ROW, headers=headers),
        guarded.http.get(HALF, headers=headers),
        guarded.http.get("/metrics", headers=headers),
        guarded.http.get("/demo/models", headers=headers),
    ):
        assert response.status_code == 401 and "token" in response.json()["error"]


def test_the_token_lets_in(guarded):
    metadata = (("authorization", "Bearer s3cret"),)
    request = guarded.request("half_plus_two", {"x": np.ones(1, np.float32)})
    assert guarded.prediction.Predict(request, metadata=metadata).model_spec.version.value == 2
    headers = {"Authorization": "Bearer s3cret"}
    response = guarded.http.post(f"{HALF}:predict", json=ROW, headers=headers)
    assert response.json() == {"predictions": [3.5]}


def test_health_needs_no_token_and_reflection_does(guarded):
    answer = guarded.health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(guarded.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.ServerReflectionInfo(iter([asked])))
    assert caught.value.code() is UNAUTHENTICATED


def test_a_token_file_that_holds_none_is_refused(half, tmp_path, open_door):
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        open_door(half, token_file=tmp_path / "token")


@pytest.mark.parametrize("token", ["two words", "pässword", "a\nb", "x" * 5000, "\x7f"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(half, tmp_path, open_door, token):
    (tmp_path / "token").write_text(token)
    with pytest.raises(ConfigError, match="the token") as caught:
        open_door(half, token_file=tmp_path / "token")
    assert token not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="token: the token"):
        Client("localhost:1", "m", token=token)


def test_a_token_of_other_bytes_is_refused_and_not_shown(half, tmp_path, open_door):
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="must be one line of ASCII"):
        open_door(half, token_file=tmp_path / "token")


def test_a_connection_does_not_show_its_token():
    assert "s3cret" not in repr(Connection(token="s3cret"))


# --- too large ----------------------------------------------------------------------------


@pytest.fixture
def narrow(half: ModelConfig, open_door: Callable[..., Any]) -> Any:
    """A server that takes messages of 10 kB."""
    most = {"max_message_bytes": 10_000}
    return open_door(half, grpc=most, rest=most)


def test_a_message_that_is_too_large_is_refused(narrow):
    code, _ = narrow.refusal("half_plus_two", {"x": np.ones(9000, np.float32)})
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert narrow.half(*range(2000))[0] == 2


def test_a_body_that_is_too_large_is_refused(narrow):
    body = {"instances": [1.0] * 9000}
    with contextlib.suppress(httpx.TransportError):  # cut off while it was still sending
        assert narrow.post(f"{HALF}:predict", body).status_code in (400, 413)
    assert narrow.post(f"{HALF}:predict", ROW).json() == {"predictions": [3.5]}


def test_a_zipped_body_is_measured_unzipped(narrow):
    gzipped = {"Content-Encoding": "gzip"}
    bomb = gzip.compress(b" " * 5 * 10**6)
    assert len(bomb) < 10_000
    response = narrow.http.post(f"{HALF}:predict", content=bomb, headers=gzipped)
    assert response.status_code == 400 and "more than 10000 bytes" in response.json()["error"]
    for broken in (b"no gzip", gzip.compress(b'{"instances": [1.0]}')[:-9]):
        response = narrow.http.post(f"{HALF}:predict", content=broken, headers=gzipped)
        assert response.status_code == 400 and "uncompress" in response.json()["error"]
