"""A run killed in the Trainer goes on behind its last whole epoch."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_killed_trainer_resumes(
    tmp_path: Path, small_bert: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job(tmp_path, small_bert, count=300)
    command = [sys.executable, "-m", "espalier.pipeline.cli", "run", str(job.yaml)]
    command += ["--set", "train.epochs=40", "--set", "train.learning_rate=1e-3"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True
    )
    epoch = _wait_for_epoch(tmp_path, 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    done = subprocess.run(
        [*command, "--to", "Trainer"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    resumed = int(done.stdout.split("resumed after epoch ")[1].split()[0])
    assert resumed >= epoch
    (history,) = tmp_path.glob("runs/small/artifacts/Trainer/model_run/*/history.json")
    assert len(json.loads(history.read_text())["epochs"]) == 40
    assert not list(tmp_path.glob("runs/small/training/*"))


def _wait_for_epoch(folder: Path, epoch: int, process: "subprocess.Popen[bytes]") -> int:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        for file in folder.glob("runs/small/training/*/state.json"):
            if (reached := json.loads(file.read_text())["epoch"]) >= epoch:
                return int(reached)
        time.sleep(0.05)
    raise AssertionError("the Trainer did not reach the epoch")
