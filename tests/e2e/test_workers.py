"""Two workers on this machine, found by TF_CONFIG, train what one would have trained."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

SETTINGS = ("train.distribute=multi_worker", "model.dropout=0")


def addresses(count: int) -> list[str]:
    """Of ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [f"localhost:{one.getsockname()[1]}" for one in sockets]


def start(job: Any, among: list[str], index: int, *settings: str) -> "subprocess.Popen[str]":
    """One worker, as a TFJob's pod starts it."""
    task = {"type": "worker", "index": index}
    config = json.dumps({"cluster": {"worker": among}, "task": task})
    options = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "espalier.pipeline.cli", "run", str(job.yaml), *options],
        cwd=job.folder, env={**os.environ, "TF_CONFIG": config, "COLUMNS": "200"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> str:
    """What a worker that ended well has printed."""
    try:
        printed, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, printed
    return str(printed)


def until(true: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait for something that a worker does."""
    deadline = time.monotonic() + 300
    while not true():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


def reached(folder: Path) -> int:
    """The last epoch that is on disk; 0 for none."""
    files = list(folder.glob("runs/small/training/*/state.json"))
    return max((int(json.loads(file.read_text())["epoch"]) for file in files), default=0)


def histories(folder: Path) -> list[list[dict[str, float]]]:
    """What each Trainer has noted of its epochs, the oldest first."""
    files = folder.glob("runs/small/artifacts/Trainer/model_run/*/history.json")
    ordered = sorted(files, key=lambda file: int(file.parent.name))
    return [json.loads(file.read_text())["epochs"] for file in ordered]


def test_two_workers_train_what_one_does(
    tmp_path: Path, small_bert: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job(tmp_path, small_bert, count=300)
    # Slow and short: noise of the last digit grows with every step.
    slow = ("train.learning_rate=3e-4", "train.epochs=2", "evaluate.at_least={accuracy: 0.3}")
    options = [part for setting in ("model.dropout=0", *slow) for part in ("--set", setting)]
    done = job.cli("run", str(job.yaml), "--to", "Trainer", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    (alone,) = histories(tmp_path)
    among = addresses(2)
    workers = [start(job, among, index, *slow) for index in (1, 0)]
    follower, chief = (ended(worker) for worker in workers)

    assert "epoch 2 of 2" in chief
    assert "pushed" in chief
    assert "epoch 2 of 2" in follower
    _, together = histories(tmp_path)  # of the same rows: the Transform is the first run's
    for one, other in zip(alone, together, strict=True):
        assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)
        assert other["val_accuracy"] == pytest.approx(one["val_accuracy"])
        # Keras counts rows of a batch that does not divide a little differently.
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-3)
    assert [f.name for f in (tmp_path / "runs/small/training").iterdir()] == ["workers-over.json"]
    assert len(list(tmp_path.glob("runs/small/artifacts/Trainer/model_run/*"))) == 2


def test_a_lost_worker_is_waited_for(
    tmp_path: Path, small_bert: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job(tmp_path, small_bert, count=300)
    among, longer = addresses(2), ("train.epochs=25", "train.learning_rate=1e-3")
    chief, follower = (start(job, among, index, *longer) for index in (0, 1))
    until(lambda: reached(tmp_path) >= 1, chief)
    os.killpg(follower.pid, signal.SIGKILL)
    follower.communicate()
    again = start(job, among, 1, *longer)
    printed, _ = ended(chief), ended(again)
    assert "a worker was lost; attempt 2" in printed
    assert "resumed after epoch" in printed
    (epochs,) = histories(tmp_path)
    assert len(epochs) == 25


def test_a_chief_lost_while_it_exports_finds_the_others_there(
    tmp_path: Path, small_bert: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job(tmp_path, small_bert, count=300)
    among = addresses(2)
    chief, follower = (start(job, among, index) for index in (0, 1))
    until(lambda: reached(tmp_path) == 4, chief)  # all of the epochs
    os.killpg(chief.pid, signal.SIGKILL)
    chief.communicate()
    again = start(job, among, 0)
    printed = ended(again)
    assert "resumed after epoch 4" in printed
    assert "pushed" in printed
    assert "epoch 4 of 4" in ended(follower)

    # Nothing has to be trained now: who waits must not wait for ever.
    follower = start(job, among, 1, "evaluate.at_least={accuracy: 0.5}")
    until(lambda: len(list(tmp_path.glob("runs/small/logs/*-worker-1.log"))) == 2, follower)
    time.sleep(1)
    ended(start(job, among, 0, "evaluate.at_least={accuracy: 0.5}"))
    assert "epoch" not in ended(follower)


@pytest.mark.parametrize("value", ["", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {}}'])
def test_workers_need_to_be_told_who_they_are(job: Any, value: str) -> None:
    options = ("--set", "train.distribute=multi_worker")
    done = job.cli("run", str(job.yaml), *options, TF_CONFIG=value)
    assert done.returncode == 2
    assert "train.distribute is multi_worker, and TF_CONFIG is" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_without_gpus_is_not_mirrored(job: Any) -> None:
    options = ("--set", "train.distribute=mirrored", "--to", "Trainer")
    done = job.cli("run", str(job.yaml), *options)
    assert done.returncode == 2
    assert "this machine has 0 GPUs that TensorFlow sees" in done.stderr
