"""Every run leaves a page, and what is on it is what was measured."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier import RunResult
from espalier.pipeline.store import Store


def test_a_run_leaves_a_page(job: Any, first_run: RunResult) -> None:
    page = Path(first_run.report)
    assert page.parent == job.config.home / "reports"
    html = page.read_text(encoding="utf-8")
    assert first_run.verdict.split(";")[0] in html
    assert "could not be drawn" not in html
    for title in ("What ran", "Data", "Training", "Evaluation", "Serving check", "Lineage"):
        assert f">{title}</h2>" in html
    assert "There is no earlier version whose data" in html and "text: characters" in html
    assert "http" not in html.replace("http-equiv", ""), "it needs no network"
    assert len(html) < 200_000


def test_the_closer_look_saw_what_tfma_measured(job: Any, first_run: RunResult) -> None:
    store = Store(job.config.home)
    nodes = {node.name: node for node in store.nodes(first_run.run)}
    evaluation = nodes["Evaluator"].outputs["evaluation"]
    facts, closer = (evaluation.read_json(name) for name in ("metrics.json", "closer.json"))
    overall, confusion = facts["candidate"]["overall"], facts["candidate"]["confusion"]
    right = sum(row.get(label, 0) for label, row in confusion.items())
    assert sum(n for row in confusion.values() for n in row.values()) == overall["rows"]
    assert right / overall["rows"] == pytest.approx(overall["accuracy"])
    for counts in closer["scores"].values():
        assert sum(counts["with"]) + sum(counts["without"]) == overall["rows"]
    wrong = overall["rows"] - right
    assert len(closer["mistakes"]) == min(20, wrong)
    scores = [mistake["score"] for mistake in closer["mistakes"]]
    assert scores == sorted(scores, reverse=True)
    assert all(m["is"] != m["said"] and "order" in m["text"] for m in closer["mistakes"])


def test_the_page_is_drawn_anew(job: Any, first_run: RunResult) -> None:
    page = Path(first_run.report)
    before = page.read_text(encoding="utf-8")
    page.unlink()
    done = job.cli("report", str(job.yaml), first_run.run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(page)
    assert page.read_text(encoding="utf-8") == before
    version = Path(str(first_run.pushed)).name
    assert job.cli("report", str(job.yaml), version).stdout.strip() == str(page)
    gone = job.cli("report", str(job.yaml), "yesterday")
    assert gone.returncode == 2
    assert "no run yesterday. The last ones are:" in gone.stderr


def test_two_runs_side_by_side(job: Any, first_run: RunResult) -> None:
    done = job.cli("report", str(job.yaml), first_run.run, "--compare", first_run.run)
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.strip())
    assert page.name == "..".join([first_run.run.replace(":", "-")] * 2) + ".html"
    html = page.read_text(encoding="utf-8")
    assert "The settings are the same." in html
    assert f'<td class="number">{first_run.metrics["overall"]["accuracy"]:.4f}</td>' in html
    assert "+0.0000" in html and "could not be drawn" not in html
    page.unlink()


def test_tensorboard_shows_the_training(job: Any, first_run: RunResult) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "espalier.pipeline.cli", "tensorboard", str(job.yaml)]
    process = subprocess.Popen(
        [*command, "--port", str(port)], cwd=job.folder, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                url = f"http://localhost:{port}/data/runs"
                runs = json.loads(urllib.request.urlopen(url, timeout=5).read())
                if any(run.endswith("train") for run in runs):
                    break
            time.sleep(0.2)
        else:
            raise AssertionError("TensorBoard does not know the training")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_run_that_fails_leaves_one_too(
    tmp_path: Path, small_bert: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job(tmp_path, small_bert, count=200)
    done = job.cli("run", str(job.yaml), "--set", "train.learning_rate=1e30")
    assert done.returncode == 2
    (page,) = (tmp_path / "runs" / "small" / "reports").glob("*.html")
    assert f"report: {page}" in done.stdout
    html = page.read_text(encoding="utf-8")
    assert "The run did not end. Trainer: train.learning_rate: training diverged" in html
    assert "Labels of train" in html
    again = job.cli("report", str(job.yaml))
    assert again.returncode == 0
    assert page.read_text(encoding="utf-8") == html, "drawn anew, it still says why"
