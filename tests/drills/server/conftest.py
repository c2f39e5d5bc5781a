"""A server in a process of its own for the drills, with tiny models, and a look at its health.

The models and doors are those of tests/serving, whose conftest.py is loaded by its path.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2

from espalier.trainer import wordpiece

DEADLINE = 30.0  # seconds that any answer may take, on a busy machine


def _load() -> ModuleType:
    name, path = "serving_for_drills", Path(__file__).parents[2] / "serving" / "conftest.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_serving = _load()
tools, open_door, half_models = _serving.tools, _serving.open_door, _serving.half_models


class Text(tf.Module):
    """The wordpiece graph that our models of texts begin with."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        letters = "abcdefghijklmnopqrstuvwxyz"
        tokens = [*wordpiece.SPECIAL, *letters, *(f"##{one}" for one in letters), "good", "film"]
        self.file = tf.saved_model.Asset(wordpiece.write_vocabulary(tokens, str(folder)))
        self.table = wordpiece._table(self.file)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def tokens(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        ids = wordpiece._pieces(wordpiece.words(text, True), self.table)
        start, end = tf.constant(2, tf.int64), tf.constant(3, tf.int64)
        return {"token_ids": wordpiece.pack(ids, start, end, 64)}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base paths of half_plus_two (1: + 2, 2: + 3), odd and text, in a folder; do not change it."""
    folder = tmp_path_factory.mktemp("hidden") / "models"
    _serving.Half(2.0).save(folder / "half_plus_two" / "1")
    _serving.Half(3.0).save(folder / "half_plus_two" / "2")
    _serving.Odd().save(folder / "odd" / "1")
    text = Text(folder.parent)
    tf.saved_model.save(text, str(folder / "text" / "1"), text.tokens)
    return folder


@contextlib.contextmanager
def serving(log: Path, *arguments: object) -> Iterator[Any]:
    """`espalier serve` in a process of its own that writes to a file, killed with the block."""
    command = [str(Path(sys.executable).with_name("espalier")), "serve", "--host", "127.0.0.1"]
    # One arena: with several, glibc keeps so much freed memory that a leak could not be told.
    settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1", "MALLOC_ARENA_MAX": "1"}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, *map(str, arguments)], stdout=out, stderr=out, env=os.environ | settings
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """`serving`."""
    return serving


@dataclass
class Running:
    """A server that answers, and what it may not do meanwhile."""

    door: Any
    process: Any
    log: Path

    def check(self) -> None:
        """See that it lives, answers a good request at both doors, and says that it is well."""
        assert self.process.poll() is None, "the server has ended"
        assert self.door.half(1.0) == (2, [3.5])
        answer = self.door.post("/v1/models/half_plus_two:predict", {"instances": [1.0]})
        assert answer.json() == {"predictions": [3.5]}
        health = self.door.health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        assert health.status == health_pb2.HealthCheckResponse.SERVING

    def endure(self, line: Any, tries: int, one: Callable[[int], None]) -> None:
        """Try so often; it must answer well after each hundred, and hold no more at the end."""
        begin = self.held()
        for place in range(tries):
            with line.attempt(f"try {place}"):
                one(place)
            if place % 100 == 99 or place == tries - 1:
                self.check()
            if place == tries // 3:
                begin = self.held()  # what the first of each kind costs is kept
        self.settle("files", begin["files"] + 20)
        self.settle("threads", begin["threads"] + 60)  # Python's pools keep some for use
        assert self.held()["MiB"] <= begin["MiB"] + 150, (begin, self.held())

    def held(self) -> dict[str, float]:
        """Its memory in MiB, its threads, its open files."""
        one = psutil.Process(self.process.pid)
        memory = one.memory_info().rss / 2**20
        return {"MiB": round(memory), "threads": one.num_threads(), "files": one.num_fds()}

    def ports(self) -> tuple[int, int]:
        """gRPC's and REST's."""
        return int(self.door.target.split(":")[1]), int(self.door.rest.split(":")[1])

    def settle(self, what: str, most: float) -> None:
        """See that it holds at most so many of them, once it has had time to let go."""
        end = time.monotonic() + DEADLINE
        while (now := self.held()[what]) > most:
            assert time.monotonic() < end, f"{now} {what} are held, more than {most}"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def running(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for the drills that should leave it as it was."""
    ports = _serving.free_port(), _serving.free_port()
    names = ("half_plus_two", "odd", "text")
    flags = ("--port", ports[0], "--rest_api_port", ports[1], "--max_message_bytes", 4 * 2**20)
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(log, *(models / name for name in names), *flags) as process:
        door = _serving.Door(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
        _serving.await_health(door, process)
        yield Running(door, process, log)
        door.close()
