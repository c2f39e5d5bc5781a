"""Another Beam runner gives what the one in this process gives."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, RunResult, run


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


def test_a_portable_runner_gives_the_same_results(
    job: Any, first_run: RunResult, job_server: str, tmp_path: Path
) -> None:
    options = f"{{job_endpoint: {job_server}, environment_type: LOOPBACK, job_server_timeout: 600}}"
    config = Config.load(
        job.yaml,
        [f"runs={tmp_path}/runs", f"push.to={tmp_path}/models",
         f"beam={{runner: portable, options: {options}}}"],
    )  # fmt: skip
    result = run(config)
    assert result.status == "pushed"
    assert result.rows == first_run.rows
    assert result.metrics == first_run.metrics
    done = (tmp_path / "job_server.log").read_text().count("with state DONE")
    assert done == 4  # ExampleGen, StatisticsGen, Transform, Evaluator
