"""The page at `/`: what it is served with, that it keeps to its own server, and what it is told."""

import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from espalier.serving import rest_door
from espalier.serving.grpc_door import DoorOptions
from espalier.serving.manager import ModelConfig
from espalier.serving.rest_door import RestOptions
from espalier.serving.server import Options, Server

TOKEN = "open-sesame"
PAGE = (Path(rest_door.__file__).parent / "demo.html").read_text(encoding="utf-8")
TOLD = {
    "kind": "text",
    "labels": ["<img src=x onerror=alert(1)>", "no"],
    "inputs": ["question", "answer"],
    "multi_label": False,
}


class Half(tf.Module):
    """A model of other people's."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def half(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x / 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base paths of one that says of itself what ours say, and of one that does not."""
    bases = {name: tmp_path_factory.mktemp(name) for name in ("ours", "others")}
    for base in bases.values():
        model = Half()
        tf.saved_model.save(model, str(base / "7"), signatures={"serving_default": model.half})
    extra = bases["ours"] / "7" / "assets.extra"
    extra.mkdir()
    (extra / "espalier.json").write_text(json.dumps({**TOLD, "checkpoint": "not the page's"}))
    return bases


@pytest.fixture(scope="module")
def serve(folders: dict[str, Path]) -> Iterator[Callable[..., str]]:
    """Start a server of these models; its REST address."""
    servers = []

    def start(*names: str, token_file: Path | None = None) -> str:
        port = free_port()
        models = [ModelConfig(name, folders[name]) for name in names]
        rest = RestOptions(host="127.0.0.1", port=port, threads=2)
        server = Server(Options(models, DoorOptions(port=0), rest, token_file=token_file))
        servers.append(server)
        server.start()
        address = f"http://127.0.0.1:{port}"
        wait_for(address, names)
        return address

    yield start
    for server in servers:
        server.stop(grace=0)


@pytest.fixture(scope="module")
def address(serve: Callable[..., str]) -> str:
    """A server of both models, without a token."""
    return serve("ours", "others")


@pytest.fixture(scope="module")
def guarded(serve: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A server that asks for TOKEN."""
    file = tmp_path_factory.mktemp("secret") / "token"
    file.write_text(f"{TOKEN}\n")
    return serve("others", token_file=file)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def get(url: str, token: str = "") -> tuple[int, Any, str]:
    """Status, headers and text of an answer."""
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as got:
            return got.status, got.headers, got.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def wait_for(address: str, names: tuple[str, ...]) -> None:
    """Until the models are loaded."""
    for _ in range(600):
        answers = [get(f"{address}/v1/models/{name}", TOKEN) for name in names]
        if all('"AVAILABLE"' in text for _, _, text in answers):
            return
        time.sleep(0.1)
    raise AssertionError(f"not served after a minute: {answers}")


# --- the page itself ----------------------------------------------------------------------


def test_the_page_is_served_as_it_lies_there(address):
    status, headers, text = get(f"{address}/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert text == PAGE


def test_its_policy_lets_it_talk_to_its_own_server_alone(address):
    policy = get(f"{address}/")[1]["Content-Security-Policy"]
    rules = {name: values for name, *values in map(str.split, policy.split(";"))}
    assert rules["default-src"] == ["'none'"]
    assert rules["connect-src"] == ["'self'"]
    assert set(rules["img-src"]) == {"data:", "blob:"}
    assert rules["script-src"] == rules["style-src"] == ["'unsafe-inline'"]


def test_it_names_nothing_elsewhere():
    assert not re.search(r"(https?|wss?):|\burl\(|@import|(src|href)\s*=\s*[\"']?//", PAGE)
    assert re.findall(r"(?i)\b(?:src|href|action)=\"([^\"]*)", PAGE) == ["data:,"]


@pytest.mark.parametrize(
    "way", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser",
            "setHTML", "srcdoc", "createContextualFragment", "eval(", "new Function"]
)  # fmt: skip
def test_nothing_that_is_written_becomes_html(way):
    assert way not in PAGE


def test_it_keeps_the_token_for_the_session_alone():
    assert 'sessionStorage.setItem("token"' in PAGE
    assert "localStorage" not in PAGE and "cookie" not in PAGE


def test_each_field_has_a_label_and_the_answer_is_announced():
    body = PAGE.split("<script>")[0]
    fields = re.findall(r"<(?:input|textarea)\b[^>]*\bid=\"(\w+)", body)
    assert fields and all(f'<label for="{name}"' in body for name in fields)
    assert all(re.search(r"<label[^>]*>[^<]+$", part) for part in body.split("<select")[:-1])
    assert re.search(r"aria-live=\"polite\"", body)


# --- what it is told ----------------------------------------------------------------------


def test_it_is_told_what_is_served(address):
    status, headers, text = get(f"{address}/demo/models")
    nothing = dict.fromkeys(TOLD)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert sorted(json.loads(text), key=lambda one: one["name"]) == [
        {"name": "others", "version": 7, **nothing},
        {"name": "ours", "version": 7, **TOLD},
    ]


def test_the_version_is_written_as_the_page_reads_it(address):
    """It takes large versions out of the text, since a number there has 53 bits."""
    assert r'replace(/"version": (\d+)/g' in PAGE
    assert '"version": 7' in get(f"{address}/demo/models")[2]


def test_a_description_that_is_broken_is_no_description(address, folders):
    file = folders["ours"] / "7" / "assets.extra" / "espalier.json"
    whole = file.read_text()
    file.write_text("{")
    try:
        status, _, text = get(f"{address}/demo/models")
    finally:
        file.write_text(whole)
    assert status == 200
    assert [one["kind"] for one in json.loads(text)] == [None, None]


def test_no_model_is_an_empty_list(serve):
    assert get(f"{serve()}/demo/models")[::2] == (200, "[]")


# --- with a token -------------------------------------------------------------------------


def test_the_page_comes_without_the_token_and_the_models_do_not(guarded):
    assert get(f"{guarded}/")[::2] == (200, PAGE)
    status, _, text = get(f"{guarded}/demo/models")
    assert status == 401 and "others" not in text
    assert "token" in json.loads(text)["error"]


@pytest.mark.parametrize("wrong", ["sesame", TOKEN + "s", TOKEN.upper()])
def test_a_wrong_token_is_refused(guarded, wrong):
    assert get(f"{guarded}/demo/models", wrong)[0] == 401


def test_the_right_token_lists_the_models(guarded):
    status, _, text = get(f"{guarded}/demo/models", TOKEN)
    assert status == 200 and [one["name"] for one in json.loads(text)] == ["others"]
