"""Back to an earlier version, on a real line: who is served, and who is the one to beat."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, RunResult, run

WORSE = ["evaluate.at_least={}", "train.epochs=1", "train.learning_rate=1e-7"]


@pytest.fixture(scope="module")
def mine(job: Any, first_run: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of what the first run left; later tests need theirs as it is."""
    folder = tmp_path_factory.mktemp("versions")
    text = job.yaml.read_text(encoding="utf-8")
    for name in ("runs", "models"):
        shutil.copytree(job.folder / name, folder / name)
        text = text.replace(f"{job.folder}/{name}", f"{folder}/{name}")
    (folder / job.yaml.name).write_text(text, encoding="utf-8")
    return type(job)(folder, folder / job.yaml.name)


def test_a_rollback_is_served_and_is_what_the_next_run_is_compared_with(
    mine: Any, first_run: RunResult
) -> None:
    good = Path(str(first_run.pushed)).name
    worse = run(Config.load(mine.yaml, WORSE), accept=True)
    bad = Path(str(worse.pushed)).name
    assert mine.versions() == sorted([good, bad], key=int)

    done = mine.cli("rollback", str(mine.yaml))
    assert done.returncode == 0, done.stderr
    copy = mine.versions()[-1]
    assert done.stdout == f"served now: {mine.folder}/models/{copy}, a copy of version {good}\n"

    listed = [line.split() for line in mine.cli("ls", str(mine.yaml)).stdout.splitlines()[1:]]
    listed = [line for line in listed if line[0] != "-"]  # another test's run, that pushed nothing
    score, bad_score = (f"{r.metrics['overall']['accuracy']:.4f}" for r in (first_run, worse))
    assert [(line[0], line[-3], line[-1]) for line in listed] == [
        (copy, "served", score),
        (bad, "there", bad_score),
        (good, "there", score),
    ]

    again = run(Config.load(mine.yaml, WORSE), from_node="Evaluator")
    assert again.exit_code == 4
    assert f"the blessed model has {score}" in again.verdict
    assert mine.versions()[-1] == copy

    done = mine.cli("rm", str(mine.yaml), bad, "--yes")
    assert done.returncode == 0, done.stderr
    assert mine.versions() == sorted([good, copy], key=int)
