"""Certificates that prove nothing, and tokens that are not the token: refused, in one sentence."""

import hmac
import logging
import socket
import ssl
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from espalier import Client, ServerError
from espalier.serving import frontend
from espalier.serving.manager import ModelConfig
from espalier.serving.protos import message

TOKEN = "a-token-0123456789"
CERTIFICATE = "server", "client", "expired", "future", "elsewhere", "signed by itself", "stranger"
REST = "/metrics", "/v1/models/half_plus_two", "/", "/demo/models"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """PEMs by openssl: NAME.crt and NAME.key of each of CERTIFICATE, and the authority's ca.crt."""
    folder = tmp_path_factory.mktemp("certificates")

    def run(*command: str) -> None:
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    alone = ("-x509", "-days", "2", "-addext", "subjectAltName=DNS:localhost")
    for name in ("ca", "other", "signed by itself"):
        run(*new, *alone, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")
    (folder / "authority").write_text(
        "[ca]\ndefault_ca=a\n[a]\ndatabase=issued\nnew_certs_dir=.\nrand_serial=yes\n"
        "default_md=sha256\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n"
    )
    days: dict[str, tuple[str, ...]] = {
        "expired": ("-startdate", "20200101000000Z", "-enddate", "20200201000000Z"),
        "future": ("-startdate", "20900101000000Z", "-enddate", "20910101000000Z"),
    }
    for name in ("server", "client", "expired", "future", "elsewhere", "stranger"):
        host = "elsewhere.example" if name == "elsewhere" else "localhost"
        authority = "other" if name == "stranger" else "ca"
        (folder / "names").write_text(f"subjectAltName=DNS:{host}\n")
        (folder / "issued").write_text("")
        run(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        run(
            "ca", "-batch", "-config", "authority", "-notext", "-extfile", "names",
            "-cert", f"{authority}.crt", "-keyfile", f"{authority}.key",
            "-in", f"{name}.csr", "-out", f"{name}.crt", *days.get(name, ("-days", "2")),
        )  # fmt: skip
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def encrypted(
    certificates: Mapping[str, Path], models: Path, open_door: Any
) -> Callable[[str, bool], Any]:
    """Start a server that shows this certificate, and perhaps asks for the caller's; its Door."""

    def start(name: str, verify: bool = False) -> Any:
        config = message("SSLConfig")(
            server_key=certificates[f"{name}.key"].read_text(),
            server_cert=certificates[f"{name}.crt"].read_text(),
            custom_ca=certificates["ca.crt"].read_text() if verify else "",
            client_verify=verify,
        )
        ports = {"grpc": {"ssl": config}, "rest": {"ssl": config, "metrics_path": "/metrics"}}
        return open_door(ModelConfig("half_plus_two", models / "half_plus_two"), **ports)

    return start


def ask(door: Any, certificates: Mapping[str, Path], shown: str = "") -> Any:
    """What our client gets, at gRPC."""
    pair = (certificates[f"{shown}.crt"], certificates[f"{shown}.key"]) if shown else None
    connection = {"ca": certificates["ca.crt"], "certificate": pair}
    with Client(door.target, "half_plus_two", timeout=30, **connection) as client:
        return client.predict([1.0])["y"].tolist()


def get(door: Any, certificates: Mapping[str, Path], path: str, shown: str = "") -> int:
    """The code of a page, by HTTPS."""
    context = ssl.create_default_context(cafile=str(certificates["ca.crt"]))
    if shown:
        context.load_cert_chain(certificates[f"{shown}.crt"], certificates[f"{shown}.key"])
    return httpx.get(f"https://{door.rest}{path}", verify=context, timeout=30).status_code


def refused(call: Callable[[], Any]) -> None:
    """See that the client says in a sentence that it got no connection."""
    with pytest.raises(ServerError) as caught:
        call()
    words = str(caught.value)
    assert caught.value.code == "UNAVAILABLE" and "no connection by TLS" in words, words
    assert "\n" not in words and words.endswith("."), words


def test_certificates(encrypted: Any, certificates: Mapping[str, Path], drill: Any) -> None:
    line = drill("certificates that prove nothing")
    good = encrypted("server")
    assert ask(good, certificates) == [3.5] and get(good, certificates, "/metrics") == 200
    for name in ("expired", "future", "elsewhere", "signed by itself", "stranger"):
        with line.attempt(f"the server's is {name}"):
            door = encrypted(name)
            refused(lambda door=door: ask(door, certificates))
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                get(door, certificates, "/metrics")
    door = encrypted("server", True)
    assert ask(door, certificates, "client") == [3.5]
    for path in REST:
        assert get(door, certificates, path, "client") == 200
    for shown in ("expired", "future", "signed by itself", "stranger", ""):
        with line.attempt(f"the client's is {shown or 'missing'}"):
            refused(lambda shown=shown: ask(door, certificates, shown))
            for path in REST:
                with pytest.raises(httpx.TransportError):
                    get(door, certificates, path, shown)
    with line.attempt("health without a certificate"):
        authority = grpc.ssl_channel_credentials(certificates["ca.crt"].read_bytes())
        with grpc.secure_channel(door.target, authority) as channel:
            call = channel.unary_unary("/grpc.health.v1.Health/Check")
            code, _ = door.failure(call, b"")
        assert code is grpc.StatusCode.UNAVAILABLE


WRONG: list[list[bytes]] = [
    [], [b""], [b"Bearer"], [b"Bearer "], [TOKEN.encode()], [b"Bearer  " + TOKEN.encode()],
    [b"bearer " + TOKEN.encode()], [b"BEARER " + TOKEN.encode()], [b"Basic " + TOKEN.encode()],
    [b"Bearer " + TOKEN.encode()[:-1]], [b"Bearer " + TOKEN.encode() + b"x"],
    [b"Bearer " + TOKEN.encode().upper()], [b"Bearer " + b"x" * 6000],
    [b"Bearer " + TOKEN.encode(), b"Bearer " + TOKEN.encode()],
    [b"Bearer wrong", b"Bearer " + TOKEN.encode()], [b"Bearer " + TOKEN.encode(), b"Bearer wrong"],
    [b"Bearer " + TOKEN.encode() + b", x"],
]  # fmt: skip
ODD = [[b"Bearer \xff\xfe"], [b"Bearer p\xc3\xa4ss"], [b"Bearer " + TOKEN.encode() + b"\xa0"]]


def get_plainly(door: Any, path: str, shown: list[bytes]) -> tuple[int, bytes]:
    """The code and all else of a page, for headers that no client would send."""
    host, port = door.rest.split(":")
    heads = b"".join(b"Authorization: " + one + b"\r\n" for one in shown)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n".encode() + heads + b"\r\n"
        )
        got = b""
        while part := connection.recv(2**16):
            got += part
    return int(got.split()[1]), got


def test_tokens(
    models: Path, tmp_path: Path, open_door: Any, drill: Any,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    line, compared = drill("tokens that are not the token"), 0

    class Slowly:
        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            nonlocal compared
            compared += 1
            return hmac.compare_digest(one, other)

    monkeypatch.setattr(frontend, "hmac", Slowly)
    (tmp_path / "token").write_text(TOKEN + "\n")
    config = ModelConfig("half_plus_two", models / "half_plus_two")
    door = open_door(config, token_file=tmp_path / "token", rest={"metrics_path": "/metrics"})
    right = [b"Bearer " + TOKEN.encode()]
    for path in ("/metrics", "/v1/models/half_plus_two"):
        assert get_plainly(door, path, right)[0] == 200
    with Client(door.target, "half_plus_two", token=TOKEN) as client:
        assert client.predict([1.0])["y"].tolist() == [3.5]
        assert TOKEN not in repr(client._connection)
    request = door.request("half_plus_two", {"x": [1.0]})
    for shown in [*WRONG, *ODD]:
        with line.attempt(repr(shown)[:80]):
            for path in ("/metrics", "/v1/models/half_plus_two", "/demo/models"):
                before = compared
                code, answer = get_plainly(door, path, shown)
                assert code == 401 and compared == before + 1
                assert TOKEN.encode() not in answer
            if shown in ODD:
                continue  # gRPC's client refuses to send them
            before = compared
            metadata = [("authorization", one.decode()) for one in shown]
            code, words = door.failure(door.prediction.Predict, request, metadata=metadata)
            assert code is grpc.StatusCode.UNAUTHENTICATED and compared == before + 1
            assert TOKEN not in words
    with line.attempt("what is told of it"):
        assert TOKEN not in caplog.text
        assert TOKEN.encode() not in get_plainly(door, "/metrics", right)[1]
