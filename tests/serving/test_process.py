"""`espalier serve` as a process: its errors, SIGTERM, its configuration's file, a UNIX socket."""

import ctypes
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from typer.testing import CliRunner

from espalier.errors import ConfigError
from espalier.pipeline.cli import app
from espalier.serving import config_files
from espalier.serving.manager import ModelConfig, Policy


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run `espalier serve` with arguments that cannot be used; what it prints."""
    monkeypatch.setattr("espalier.serving.server.Server.wait", lambda _: pytest.fail("it serves"))

    def run(*arguments: object) -> str:
        flags = ["--host", "127.0.0.1", *map(str, arguments)]
        result = CliRunner().invoke(app, ["serve", *flags])
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        return result.output

    return run


def one_line(output: str) -> str:
    """The error of a command, which must be one line and no traceback."""
    lines = [line for line in output.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), output
    return lines[0]


def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    """Even where that is killed alone, as by a system without memory."""
    binary = tmp_path / "server"
    binary.write_text("#!/bin/sh\ntouch begun; exec sleep 600\n")
    binary.chmod(0o755)
    killed = (
        "import os, pathlib, sys, time\n"
        "from espalier.serving.process import started\n"
        "with started(pathlib.Path('.'), sys.argv[1]) as server:\n"
        "    print(server.process.pid, flush=True)\n"
        "    while not os.path.exists('begun'): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", killed, str(binary)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    process = Path("/proc", ran.stdout.strip())
    deadline = time.monotonic() + 10
    while _lives(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ran.returncode == -9 and not _lives(process)


def _lives(process: Path) -> bool:
    """Whether it is there, and more than an entry that nobody has asked for yet."""
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- what cannot be served ----------------------------------------------------------------


def test_a_real_process_prints_one_line_and_exits_by_two(tmp_path):
    command = [str(Path(sys.executable).with_name("espalier")), "serve", str(tmp_path / "nothing")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2 and not ran.stdout
    assert "there is no such folder" in one_line(ran.stderr)


def test_no_model_is_an_error(refuse):
    assert "name a MODEL_DIR" in one_line(refuse())


def test_a_missing_folder_is_an_error(refuse, tmp_path):
    assert "there is no such folder" in one_line(refuse(tmp_path / "nothing"))


def test_a_version_not_named_as_a_number_is_an_error(refuse, tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    assert "must be named as a number" in one_line(refuse(tmp_path))


def test_a_taken_port_is_an_error(refuse, models, tools):
    base = models / "half_plus_two"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = tools.free_port()
        assert "gRPC cannot listen" in one_line(refuse(base, "--port", port))
        words = one_line(refuse(base, "--port", free, "--rest_api_port", port))
        assert "REST cannot listen" in words and "--rest_api_port" in words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_config_list { config { nam: 'm' } }", 'no field named "nam"'),
        ("model_config_list {", "models.config:1:"),
        ("", "a model_config_list is expected"),
        ("model_config_list { config { name: 'm' } }", "needs a name and a base_path"),
        ("model_config_list { config { name: 'a/b' base_path: '/m' } }", "must hold no /"),
        (
            "model_config_list { config { name: 'm' base_path: '/m' model_platform: 'jax' } }",
            "unsupported platform jax",
        ),
    ],
)
def test_a_bad_config_file_is_an_error(refuse, tmp_path, text, words):
    (tmp_path / "models.config").write_text(text)
    output = one_line(refuse("--model_config_file", tmp_path / "models.config"))
    assert words in output and "models.config" in output


def test_a_config_file_that_is_not_there_or_no_text_is_an_error(refuse, tmp_path):
    file = tmp_path / "models.config"
    assert "cannot be read" in one_line(refuse("--model_config_file", file))
    file.write_bytes(b"\xff\xfe")
    assert "is not text in UTF-8" in one_line(refuse("--model_config_file", file))


def test_a_model_listed_twice_is_an_error(refuse, models, tmp_path, tools):
    one = f'config {{ name: "m" base_path: "{models / "half_plus_two"}" }}'
    (tmp_path / "models.config").write_text(f"model_config_list {{ {one} {one} }}")
    ports = ("--port", tools.free_port(), "--rest_api_port", 0)
    output = refuse("--model_config_file", tmp_path / "models.config", *ports)
    assert "Illegal to list model m multiple times" in one_line(output)


def test_batching_parameters_without_batching_are_an_error(refuse, models, tmp_path):
    (tmp_path / "batching").write_text("max_batch_size { value: 4 }")
    flags = ("--batching_parameters_file", tmp_path / "batching")
    assert "without --enable_batching" in one_line(refuse(models / "odd", *flags))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size is 0; at least 1"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "must rise, and end with"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 2", "must rise"),
        ("pad_variable_length_inputs: true", "is not supported"),
        ("max_batch: 3", "A BatchingParameters as text is expected"),
    ],
)
def test_bad_batching_parameters_are_an_error(tmp_path, text, words):
    (tmp_path / "batching").write_text(text)
    with pytest.raises(ConfigError, match=words):
        config_files.batching(tmp_path / "batching")


# --- a server that runs -------------------------------------------------------------------


def test_sigterm_lets_calls_under_way_finish(models, tmp_path, tools):
    ports = tools.free_port(), tools.free_port()
    flags = ("--port", ports[0], "--rest_api_port", ports[1])
    place = tmp_path / "socket"
    more = ("--grpc_socket_path", place, "--rest_api_timeout_in_ms", 60_000)
    with tools.process(models / "odd", *flags, *more) as running, ThreadPoolExecutor(2) as pool:
        door = tools.Door(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
        tools.await_health(door, running)
        triples = {"x": np.ones([1, 3], np.float32)}
        local = tools.Door(f"unix:{place}", door.rest)
        assert local.predict("odd", triples, signature="triples")["sum"].tolist() == [3]
        assert door.get("/v1/models/odd").status_code == 200
        seconds = np.array([2.0])
        over_grpc = pool.submit(door.predict, "odd", {"seconds": seconds}, signature="slow")
        document = {"signature_name": "slow", "instances": [2.0]}
        over_rest = pool.submit(door.post, "/v1/models/odd:predict", document)
        time.sleep(1)  # both are under way
        running.terminate()
        assert over_grpc.result(60)["seconds"].tolist() == [2.0]
        assert over_rest.result(60).json() == {"predictions": [2.0]}
        output, _ = running.communicate(timeout=60)
        assert running.returncode == 0
        assert "Traceback" not in output
        local.close()
        with pytest.raises(grpc.RpcError):
            door.predict("odd", triples, signature="triples")
        door.close()


def test_the_configuration_is_read_again_when_it_changes(
    models, tmp_path, open_door, tools, caplog
):
    file = tmp_path / "models.config"

    def write(*names: str) -> None:
        each = (f'config {{ name: "{n}" base_path: "{models / "half_plus_two"}" }}' for n in names)
        file.write_text(f"model_config_list {{ {' '.join(each)} }}")

    write("one")
    door = open_door(*config_files.read_models(file), config_file=file, config_poll_seconds=0.05)
    x = {"x": np.ones(1, np.float32)}

    def answers(name: str) -> bool:
        try:
            return door.predict(name, x)["y"].tolist() == [3.5]
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return False

    assert answers("one") and not answers("two")
    write("one", "two")
    tools.until(lambda: answers("two"))
    file.write_text("model_config_list { half a fi")
    tools.until(lambda: "the model config was not taken over" in caplog.text)
    assert answers("one") and answers("two")
    write("two")
    tools.until(lambda: not answers("one"))
    assert answers("two")


def test_health_follows_the_models(tmp_path, half_models, open_door, tools):
    (tmp_path / "half_plus_two").mkdir()
    policy = Policy(poll_seconds=0.05)
    door = open_door(ModelConfig("half_plus_two", tmp_path / "half_plus_two"), policy=policy)
    request = health_pb2.HealthCheckRequest()
    assert door.health.Check(request).status == health_pb2.HealthCheckResponse.NOT_SERVING
    half_models(tmp_path / "half_plus_two", 1)
    serving = health_pb2.HealthCheckResponse.SERVING
    tools.until(lambda: door.health.Check(request).status == serving)
    assert door.half(1) == (1, [2.5])


def test_sigterm_counts_whichever_thread_takes_it(models, tools, tmp_path):
    """Any may; of one that another thread took, the first one never heard."""
    flags = ["--model_base_path", models / "half_plus_two", "--model_name", "half_plus_two"]
    flags += ["--port", "0", "--rest_api_port", "0", "--grpc_socket_path", tmp_path / "s"]
    with tools.process(*flags) as running:
        tools.await_health(tools.Door(f"unix:{tmp_path / 's'}", ""), running)
        tools.until(lambda: _has_sigterm(Path("/proc", str(running.pid)), "SigCgt"))
        threads = Path("/proc", str(running.pid), "task").iterdir()
        others = (one for one in threads if one.name != str(running.pid))
        taking = next(one for one in others if not _has_sigterm(one, "SigBlk"))
        tgkill = ctypes.CDLL(None).tgkill
        assert tgkill(running.pid, int(taking.name), signal.SIGTERM) == 0
        assert running.wait(tools.PATIENCE) == 0


def _has_sigterm(process: Path, mask: str) -> bool:
    """Whether it is among the signals in that line of a process's or a thread's status."""
    found = re.search(rf"^{mask}:\s*(\w+)", process.joinpath("status").read_text(), re.M)
    return bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_log_on_a_full_disk_ends_no_server(models, tools, tmp_path):
    socket = tmp_path / "s"
    flags = ["--model_base_path", models / "half_plus_two", "--model_name", "half_plus_two"]
    flags += ["--port", "0", "--rest_api_port", "0", "--grpc_socket_path", socket]
    with open("/dev/full", "w") as full, tools.process(*flags, out=full) as running:
        door = tools.Door(f"unix:{socket}", "")
        tools.await_health(door, running)
        tools.until(lambda: _has_sigterm(Path("/proc", str(running.pid)), "SigCgt"))
        assert door.half(1)[1] == [3.5]
        running.terminate()
        assert running.wait(tools.PATIENCE) == 0
