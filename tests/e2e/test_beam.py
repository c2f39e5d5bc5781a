"""Another Beam runner gives what the one in this process gives."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, RunResult, masking, run


@pytest.fixture
def job_server(tmp_path: Path) -> Iterator[str]:
    """Beam's own portable job server, which speaks what Flink's and Spark's do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    module = "apache_beam.runners.portability.local_job_service_main"
    with (tmp_path / "job_server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", module, "--port", str(port)], stdout=log, stderr=log
        )
    try:
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None
            time.sleep(0.1)
        yield f"localhost:{port}"
    finally:
        server.kill()
        server.wait()


def test_a_portable_runner_gives_the_same_results_and_its_secret_stays_one(
    job: Any,
    first_run: RunResult,
    job_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = "kept/Nowhere+1"
    monkeypatch.setenv("BEAM_KEY", secret)
    monkeypatch.setattr(masking, "_names", {})  # later tests may write what they like
    options = f"job_endpoint: {job_server}, environment_type: LOOPBACK, job_server_timeout: 600"
    options += ", s3_secret_access_key: '${BEAM_KEY}'"
    config = Config.load(
        job.yaml,
        [f"runs={tmp_path}/runs", f"push.to={tmp_path}/models", "secrets=[BEAM_KEY]",
         f"beam={{runner: portable, options: {{{options}}}}}"],
    )  # fmt: skip
    assert config.beam.options["s3_secret_access_key"] == secret
    result = run(config)
    assert result.status == "pushed"
    assert result.rows == first_run.rows
    assert result.metrics == first_run.metrics
    done = (tmp_path / "job_server.log").read_text().count("with state DONE")
    assert done == 4  # ExampleGen, StatisticsGen, Transform, Evaluator
    written = [file for name in ("runs", "models") for file in (tmp_path / name).rglob("*")]
    found = {file: file.read_bytes() for file in written if file.is_file()}
    assert [file for file, content in found.items() if secret.encode() in content] == []
    named = {file.suffix for file, content in found.items() if b"${BEAM_KEY}" in content}
    assert named >= {".json", ".html", ".yaml", ".sqlite"}
