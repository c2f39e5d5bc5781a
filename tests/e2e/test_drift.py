"""`espalier drift` on what a real server logged of a model that a real run pushed."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from espalier import Client, RunResult, ServerError


@contextmanager
def served(models: Path, prefix: Path, socket: Path) -> Iterator[Client]:
    """A server that logs every request."""
    flags = ["--port=0", "--rest_api_port=0", f"--grpc_socket_path={socket}", "--model_name=small"]
    flags += [f"--request_log={prefix}", "--request_log_rate=1"]
    command = [sys.executable, "-m", "espalier.pipeline.cli", "serve", str(models), *flags]
    process = subprocess.Popen(command, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    try:
        with Client(f"unix:{socket}", "small") as client:
            end = time.monotonic() + 120
            while time.monotonic() < end and process.poll() is None:
                try:
                    client.status()
                    break
                except ServerError:
                    time.sleep(0.2)
            yield client
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def logged(job: Any, first_run: RunResult, tmp_path: Path) -> Callable[[list[str]], str]:
    """Ask a server for these texts; the folder of its log."""

    def ask(texts: list[str]) -> str:
        with served(job.folder / "models", tmp_path / "log" / "r", tmp_path / "s") as client:
            for at in range(0, len(texts), 20):
                client.predict({"text": texts[at : at + 20]})
        return str(tmp_path / "log")

    return ask


def held_out(job: Any) -> list[str]:
    """The texts of the rows that were not trained on."""
    (examples,) = job.folder.glob("runs/small/artifacts/ExampleGen/examples/1")
    files = [str(file) for split in ("eval", "test") for file in examples.glob(f"Split-{split}/*")]
    found = tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator()
    features = [tf.train.Example.FromString(record).features.feature for record in found]
    return [feature["text"].bytes_list.value[0].decode() for feature in features]


def test_rows_that_were_held_out_give_no_alarm(
    job: Any, first_run: RunResult, logged: Callable[[list[str]], str]
) -> None:
    texts = held_out(job)
    done = job.cli("drift", str(job.yaml), logged(texts))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(texts)} logged rows" in done.stdout
    assert f"of version {Path(str(first_run.pushed)).name}" in done.stdout
    for feature in ("text: words", "text: new words"):
        assert re.search(rf"{feature} .* Jensen-Shannon .* ok\b", done.stdout), done.stdout


def test_requests_of_another_kind_give_alarm(
    job: Any, first_run: RunResult, logged: Callable[[list[str]], str]
) -> None:
    texts = [f"Wo bleibt meine Bestellung {n}? Ich warte seit {n} Tagen." for n in range(200)]
    log = logged(texts)
    done = job.cli("drift", str(job.yaml), log)
    assert done.returncode == 6, done.stdout + done.stderr
    assert "Alarm: 200 logged rows differ" in done.stdout
    assert "text: new words" in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stderr
    told = json.loads(job.cli("drift", str(job.yaml), log, "--json").stdout)
    assert told["verdict"].startswith("Alarm: ") and "text: new words" in told["alarms"]
    assert {one["verdict"] for one in told["features"]} >= {"alarm"}
